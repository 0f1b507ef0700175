"""A GGUF file spoken by llama.cpp in this process, in the file's own chat template; without torch."""

import codecs
import threading
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from assistant.backends import Counts, Notice, Sampling, fit
from assistant.backends.pump import pump
from assistant.backends.slots import Slots, Wish
from assistant.conversations import Message, hide_contents, refuse_images, template_pieces
from assistant.llama_engine import Engine

HALF_CHARACTER = "\ufffd"
MOST_CONTEXT = 8192  # tokens; the memory for keys and values is taken when the file is opened
MOST_SLOTS = 4  # conversations that are answered at the same time; fewer where memory is short


class ChatFormat(Protocol):
    """A conversation → the token ids that were trained, with states among them where a picture is."""

    def encode(self, messages: list[Message]) -> list[int]: ...


class LlamaCppBackend:
    """A .gguf file in its own chat template, or in another `chat`, which may see with `eyes`.

    Raises ValueError when `path` is no GGUF file with a chat template, RuntimeError without xllamacpp.
    """

    def __init__(
        self,
        path: Path,
        context: int = MOST_CONTEXT,
        *,
        label: str = "",
        chat: ChatFormat | None = None,
        eyes: Any = None,
    ) -> None:
        _check_file(path)
        self.label, self._eyes = f"llama.cpp: {label or path}", eyes
        self._engine = Engine(path, context, MOST_SLOTS)
        self._chat = chat or FileFormat(self._engine, path)
        self._slots = Slots(self._engine)

    @property
    def sees(self) -> bool:
        return self._eyes is not None

    def seen(self, image: str) -> Any:
        """A picture as the model is shown it, for a model that sees; see Eyes.seen."""
        assert self._eyes is not None
        return self._eyes.seen(image)

    @property
    def context(self) -> int:
        """Tokens that question and answer may fill together."""
        return self._engine.context

    def count_prompt(self, messages: list[Message]) -> int:
        return len(self._chat.encode(messages))

    def count_text(self, text: str) -> int:
        return len(self._engine.tokenize(text))

    def stream(
        self, messages: list[Message], sampling: Sampling, stop: threading.Event | None = None
    ) -> Generator[str, None, None]:
        return pump(partial(self._generate, messages, sampling), stop)

    def answer_all(
        self,
        conversations: list[list[Message]],
        sampling: Sampling,
        progress: Callable[[int], None] | None = None,
    ) -> list[str]:
        """As many together as there are slots, in an order that is the same each time."""
        prompts = [self.fit(messages, sampling.max_new_tokens)[0] for messages in conversations]
        asked = [(ids, Wish(self._room(ids, sampling), sampling, reuse=False)) for ids in prompts]
        answers = []
        for (ids, wish), tokens in zip(asked, self._slots.generate_all(asked), strict=True):
            answers.append("".join(self._text_of(tokens, ids, wish)).strip())
            if progress:
                progress(1)
        return answers

    def _generate(
        self,
        messages: list[Message],
        sampling: Sampling,
        emit: Callable[[str], None],
        is_stopped: Callable[[], bool],
    ) -> None:
        ids, dropped = self.fit(messages, sampling.max_new_tokens)
        if dropped:
            emit(Notice("shortened", dropped))
        wish = Wish(self._room(ids, sampling), sampling, is_stopped=is_stopped)
        for chunk in self._text_of(self._slots.generate(ids, wish), ids, wish):
            emit(chunk)

    def _room(self, ids: list[int], sampling: Sampling) -> int:
        return min(sampling.max_new_tokens, self.context - len(ids))

    def _text_of(self, tokens: Iterator[int | Notice], ids: list[int], wish: Wish) -> Iterator[str]:
        """Text as it comes; a character whose bytes are not all there is held back, at the end dropped."""
        decoder, held, count = codecs.getincrementaldecoder("utf-8")("replace"), "", 0
        for token in tokens:
            if isinstance(token, Notice):
                yield token
                continue
            text = held + decoder.decode(self._engine.bytes_of(token))
            whole = text.rstrip(HALF_CHARACTER)
            held = text[len(whole) :]
            count += 1
            if whole:
                yield whole
        if wish.is_stopped():
            return
        yield Counts(len(ids), count, "length" if count == wish.room else "stop")

    def fit(self, messages: list[Message], max_new_tokens: int) -> tuple[list[int], int]:
        return fit(self._chat.encode, messages, self.context, max_new_tokens)


class FileFormat:
    """The file's chat template: the ids that loading.encode_chat gives for the folder the file came from."""

    def __init__(self, engine: Engine, path: Path) -> None:
        self._engine = engine
        self._control = engine.control_tokens()
        if not (text := engine.chat_template()):
            raise ValueError(f"{path} has no chat template; export it with scripts/export_gguf.py")
        self._template = _compiled(text, path)

    def encode(self, messages: list[Message]) -> list[int]:
        """What a person typed stays text: `<|im_end|>` in a message becomes ordinary tokens."""
        refuse_images(messages, "this model file")
        ends = self._engine.ends()
        text = self._template.render(messages=hide_contents(messages), add_generation_prompt=True, **ends)
        ids: list[int] = []
        for piece, is_control in template_pieces(text, messages, self._control):
            ids += [self._control[piece]] if is_control else self._engine.tokenize(piece)
        return ids


def _compiled(text: str, path: Path) -> Any:
    """Sandboxed, with the settings and the two functions that transformers gives to chat templates."""
    from jinja2 import TemplateError, TemplateSyntaxError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    try:
        return environment.from_string(text)
    except TemplateSyntaxError as error:
        raise ValueError(f"{path}: its chat template is broken ({error}); export it again") from None


def _check_file(path: Path) -> None:
    """Raises ValueError for what is no GGUF file."""
    if not path.is_file():
        raise ValueError(
            f"{path} does not exist; make one: python scripts/export_gguf.py --model DIR --out {path}"
        )
    with path.open("rb") as file:
        begin = file.read(4)
    if begin != b"GGUF":
        hint = "a git-lfs pointer: run `git lfs pull`" if begin == b"vers" else "not a GGUF file"
        raise ValueError(f"{path} is {hint}")
