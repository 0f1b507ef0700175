"""What every voice can do: messages in, text chunks out, stoppable at any moment; which model is the default.

Knows no engine: each one is a file here, imported only when it is opened.
"""

import importlib.util
import os
import re
import threading
from collections.abc import Callable, Generator, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, cast
from weakref import WeakValueDictionary

from assistant.conversations import Message
from assistant.settings import REPOSITORY

LEAST_ANSWER = 64  # tokens of the context that are always left for the answer
Kind = Literal["auto", "transformers", "openai", "llama_cpp"]
QUICK_LLAVA = "assistant.backends.llava_backend"
Made = TypeVar("Made")


@dataclass(frozen=True)
class Sampling:
    max_new_tokens: int = 512
    temperature: float = 0.0
    """0 is greedy: the same question gets the same answer."""
    top_p: float = 0.9
    seed: int | None = None
    strength: float = 1.0
    """Of a LoRA adapter: 0 is its base, 1 as trained. Other models have none and do not look at it."""
    pair: str = ""
    """Answers of the same pair are one question: they are written side by side, where others wait in line."""


class Notice(str):
    """An empty chunk that tells the person something beside the answer.

    `loading`: the model is not ready; `waiting`: `number` answers come first; `shortened`: the `number`
    oldest messages no longer fit. Joined to the other chunks it adds nothing.
    """

    kind: Literal["loading", "waiting", "shortened"]
    number: int

    def __new__(cls, kind: Literal["loading", "waiting", "shortened"], number: int = 0) -> "Notice":
        notice = super().__new__(cls, "")
        notice.kind, notice.number = kind, number
        return notice


class Counts(str):
    """The last, empty chunk of an answer that nobody stopped: tokens read, tokens written, how it ended.

    `ending`: `stop` when the model was done, `length` when there was no room for more.
    """

    prompt: int
    answer: int
    ending: Literal["stop", "length"]

    def __new__(  # the defaults let it cross to another process: pickle sets what it was afterwards
        cls, prompt: int = 0, answer: int = 0, ending: Literal["stop", "length"] = "stop"
    ) -> "Counts":
        counts = super().__new__(cls, "")
        counts.prompt, counts.answer, counts.ending = prompt, answer, ending
        return counts


class Backend(Protocol):
    label: str

    @property
    def context(self) -> int | None:
        """Tokens that question and answer may fill together; None when the engine does not say."""
        ...

    def count_prompt(self, messages: list[Message]) -> int | None:
        """Tokens of the whole conversation in the chat template; None when the engine does not say."""
        ...

    def count_text(self, text: str) -> int | None:
        """Tokens of a text alone; None when the engine does not say."""
        ...

    def stream(
        self, messages: list[Message], sampling: Sampling, stop: threading.Event | None = None
    ) -> Generator[str, None, None]:
        """Yield chunks that together are the answer; some are empty (a heartbeat, a Notice, the Counts).

        Closing the iterator or setting `stop` ends the engine's work at once. Raises RuntimeError or
        ValueError, one sentence, for what the engine refuses.
        """
        ...

    def answer_all(
        self,
        conversations: list[list[Message]],
        sampling: Sampling,
        progress: Callable[[int], None] | None = None,
    ) -> list[str]:
        """Answer every conversation; `progress` hears how many more are done."""
        ...


class Shared:
    """What several backends hold together, such as a base: made once, gone with its last user."""

    def __init__(self) -> None:
        self._kept: WeakValueDictionary[Any, Any] = WeakValueDictionary()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Made]) -> Made:
        with self._lock:
            found = self._kept.get(key)
            if found is None:
                self._kept[key] = found = make()
            return cast(Made, found)


def fit(
    encode: Callable[[list[Message]], list[int]], messages: list[Message], context: int, max_new_tokens: int
) -> tuple[list[int], int]:
    """Token ids of the conversation, and how many of its oldest messages had to go to fit the context.

    The system message and the last question stay. Raises ValueError when these alone are too long.
    """
    room = context - min(max_new_tokens, max(LEAST_ANSWER, context // 4))
    ids = encode(messages)
    if len(ids) <= room:
        return ids, 0
    fitting: tuple[list[int], int] | None = None
    # Pairs of messages that may have to go: the more go, the shorter it gets, so half of them need no look.
    least, most = 1, (len(messages) - (messages[0]["role"] == "system") - 1) // 2
    while least <= most:
        pairs = (least + most) // 2
        ids = encode(without_oldest(messages, 2 * pairs))
        if len(ids) <= room:
            fitting, most = (ids, 2 * pairs), pairs - 1
        else:
            least = pairs + 1
    if not fitting:
        raise ValueError(
            f"the message is {len(ids)} tokens long and the model reads {room}; write a shorter one"
        )
    return fitting


def without_login(text: str) -> str:
    """The text without the user:password that an address in it may hold."""
    return re.sub(r"(\w+://)[^\s/]*@", r"\1", text)


def without_oldest(messages: list[Message], count: int) -> list[Message]:
    """The conversation without its `count` oldest messages; a system message stays."""
    has_system = messages[0]["role"] == "system"
    return messages[:has_system] + messages[has_system + count :]


def open_backend(model: str, kind: Kind = "auto", shared: Shared | None = None) -> Backend:
    """An http…/v1 address (`#name`: one of its models), a .gguf file, a model or adapter folder, a hub id.

    Adapters that are opened with the same `shared` have one base in memory. Raises ValueError for what is
    none of these, RuntimeError when the engine is not installed.
    """
    is_address = model.startswith(("http://", "https://"))
    if kind == "openai" and not is_address:
        raise ValueError(f"{model} is no address; the openai backend needs one like http://127.0.0.1:8000/v1")
    if is_address and kind != "transformers":
        from assistant.backends.openai_backend import OpenAIBackend

        return OpenAIBackend(model)
    if model.endswith(".gguf") and kind in ("auto", "llama_cpp"):
        from assistant.backends.llama_cpp_backend import LlamaCppBackend

        return LlamaCppBackend(Path(model))
    if kind == "llama_cpp":
        raise ValueError(f"{model} is no .gguf file; make one with scripts/export_gguf.py")
    return _open_folder(model, kind, shared)


def _open_folder(model: str, kind: Kind, shared: Shared | None) -> Backend:
    try:
        from assistant.backends.transformers_backend import TransformersBackend
    except ModuleNotFoundError as error:
        raise RuntimeError(
            f"{model} needs {error.name}, which is not installed; run: pip install -e '.[train]', "
            "or give the http…/v1 address of a server"
        ) from None
    if kind == "auto" and importlib.util.find_spec(QUICK_LLAVA):  # a published page may lack it
        from assistant.backends.llava_backend import can_open_llava, open_llava

        if can_open_llava(Path(model)):
            return open_llava(Path(model))
    return TransformersBackend(model, shared)


def default_model(root: Path = REPOSITORY) -> str:
    """ASSISTANT_MODEL, else the newest finished out/*/model, else the default base model.

    Raises RuntimeError when there is none of them.
    """
    if named := os.environ.get("ASSISTANT_MODEL", "").strip():
        return named
    found = [path for path in root.glob("out/*/model/config.json") if _is_of_a_run(path.parents[1])]
    made = sorted(found, key=lambda path: path.stat().st_mtime)
    base = root / "models" / "smollm2-135m-instruct" / "config.json"
    if made or base.is_file():
        return str((made[-1] if made else base).parent)
    raise RuntimeError('there is no model yet; make one: make assistant NAME="Ada" (or set ASSISTANT_MODEL)')


def _is_of_a_run(folder: Path) -> bool:
    """Not what is being made, whose name begins with a dot, and no page that was built to be published."""
    return not folder.name.startswith(".") and not (folder / "deploy.json").is_file()
