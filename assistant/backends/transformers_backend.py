"""A model folder spoken by transformers in this process: one answer at a time, first come, first served.

On a CPU so are all models of a page. Adapters of one base take turns: who answers is set in the turn.
"""

import threading
import weakref
from collections.abc import Callable, Generator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from assistant.backends import Counts, Notice, Sampling, Shared, fit, without_oldest
from assistant.backends.pump import Turns, pump
from assistant.conversations import Message, images_of
from assistant.generating import generate_batch
from assistant.identities import Identities
from assistant.loading import (
    ChatModel,
    base_of_adapter,
    encode_text,
    load_chat_model,
    quantization_of,
)
from assistant.strength import check_strength, has_strength

HALF_CHARACTER = "\ufffd"
LONGEST_CHARACTER = 6  # tokens; a tail that stays broken for longer is not a character in the making


class Speaker:
    """A base in memory, the turns of those who speak through it, and the line of all who share its cores."""

    def __init__(self, chat: ChatModel, line: Turns) -> None:
        self.identities, self.line = Identities(chat), line
        self.turns = Turns()
        self.encoding = threading.Lock()  # a fast tokenizer must not be set up by two threads at once


class TransformersBackend:
    """Raises ValueError from loading when `model` is no model folder, adapter folder or hub id."""

    def __init__(self, model: str, shared: Shared | None = None) -> None:
        self.label = f"transformers: {model}"
        self.has_strength = has_strength(model)
        self._speaker = _speaker_of(Path(model), self.has_strength, shared or Shared())
        self._line, self._turns = self._speaker.line, self._speaker.turns
        self._encoding = self._speaker.encoding
        self._identities = self._speaker.identities
        self._chat = replace(self._identities.chat, path=Path(model))
        self._key = self._take_in(Path(model)) if self.has_strength else None

    def _take_in(self, adapter: Path) -> str:
        with self._turns.take():
            key = self._identities.add(adapter)
        weakref.finalize(self, self._identities.leave, key)
        return key

    @property
    def context(self) -> int:
        """Tokens that question and answer may fill together."""
        config = self._chat.model.config.get_text_config()
        return int(getattr(config, "max_position_embeddings", 0) or 2048)

    @property
    def sees(self) -> bool:
        return self._chat.eyes is not None

    def seen(self, image: str) -> Any:
        """A picture as the model is shown it, for a model that sees; see Eyes.seen."""
        assert self._chat.eyes is not None
        return self._chat.eyes.seen(image)

    def count_prompt(self, messages: list[Message]) -> int:
        return len(self._encode(messages))

    def count_text(self, text: str) -> int:
        with self._encoding:
            return len(encode_text(self._chat.tokenizer, text))

    def stream(
        self, messages: list[Message], sampling: Sampling, stop: threading.Event | None = None
    ) -> Generator[str, None, None]:
        check_strength(sampling.strength)
        return pump(partial(self._answer, messages, sampling), stop)

    def answer_all(
        self,
        conversations: list[list[Message]],
        sampling: Sampling,
        progress: Callable[[int], None] | None = None,
    ) -> list[str]:
        check_strength(sampling.strength)
        with self._line.take(), self._turns.take(), self._identities.speaking(self._key, sampling.strength):
            self._seed(sampling)
            return generate_batch(
                self._chat,
                conversations,
                sampling.max_new_tokens,
                sampling.temperature,
                sampling.top_p,
                progress,
            )

    def _answer(
        self,
        messages: list[Message],
        sampling: Sampling,
        emit: Callable[[str], None],
        is_stopped: Callable[[], bool],
    ) -> None:
        ids, dropped = self.fit(messages, sampling.max_new_tokens)  # before its turn: it may be long
        if dropped:
            emit(Notice("shortened", dropped))
        with (
            self._line.take(emit, is_stopped, sampling.pair),
            self._turns.take(emit, is_stopped) as is_ours,
        ):
            if is_ours:
                self._generate(ids, without_oldest(messages, dropped), sampling, emit, is_stopped)

    def _generate(
        self,
        ids: list[int],
        messages: list[Message],
        sampling: Sampling,
        emit: Callable[[str], None],
        is_stopped: Callable[[], bool],
    ) -> None:
        self._seed(sampling)
        prompt = torch.tensor([ids], device=self._chat.model.device)
        pixels = self._chat.pixels(images_of(messages))
        with torch.inference_mode(), self._identities.speaking(self._key, sampling.strength):
            output = self._chat.model.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                **pixels,
                max_new_tokens=min(sampling.max_new_tokens, self.context - len(ids)),
                eos_token_id=self._chat.stop_ids,
                pad_token_id=self._chat.tokenizer.pad_token_id,
                streamer=TextStream(self._chat.tokenizer, emit),
                stopping_criteria=[StopWhen(is_stopped)],
                **_sampling_arguments(sampling),
            )
        is_whole = int(output[0, -1]) in self._chat.stop_ids
        emit(Counts(len(ids), output.shape[1] - len(ids), "stop" if is_whole else "length"))

    def fit(self, messages: list[Message], max_new_tokens: int) -> tuple[list[int], int]:
        return fit(self._encode, messages, self.context, max_new_tokens)

    def _encode(self, messages: list[Message]) -> list[int]:
        with self._encoding:
            return self._chat.encode(messages)

    def _seed(self, sampling: Sampling) -> None:
        if sampling.seed is not None:
            torch.manual_seed(sampling.seed)


def _speaker_of(model: Path, is_lora: bool, shared: Shared) -> Speaker:
    """The base of a LoRA adapter, which others may speak through too; any other model by itself."""
    folder, quantization = (base_of_adapter(model), quantization_of(model)) if is_lora else (model, {})
    files = sorted(folder.glob("*.safetensors")) + [folder / "config.json"]
    stamps = tuple((file.name, file.stat().st_mtime_ns) for file in files if file.is_file())
    place = str(folder.resolve() if folder.is_dir() else folder)
    line = shared.get("the line of this machine's cores", Turns)

    def load() -> Speaker:
        chat = load_chat_model(folder, quantization=quantization)
        return Speaker(chat, line if chat.model.device.type == "cpu" else Turns())

    return shared.get((place, stamps, repr(quantization)), load)


def _sampling_arguments(sampling: Sampling) -> dict[str, Any]:
    if not sampling.temperature:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p}


class StopWhen(StoppingCriteria):
    def __init__(self, is_stopped: Callable[[], bool]) -> None:
        self._is_stopped = is_stopped

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self._is_stopped(), device=input_ids.device)


class TextStream(BaseStreamer):
    """Turns token ids into text as they come and holds back a character whose bytes are not all there.

    Decodes the last two chunks only, so a long answer costs no more per token than a short one.
    """

    def __init__(self, tokenizer: Any, emit: Callable[[str], None]) -> None:
        self._tokenizer, self._emit = tokenizer, emit
        self._ids: list[int] = []
        self._before, self._shown = 0, 0  # ids[before:shown] is the last chunk that was emitted
        self._is_prompt = True

    def put(self, value: torch.Tensor) -> None:
        if self._is_prompt:
            self._is_prompt = False
            return
        self._ids += value.flatten().tolist()
        new = self._new_text()
        if new and (not new.endswith(HALF_CHARACTER) or len(self._ids) - self._shown > LONGEST_CHARACTER):
            self._before, self._shown = self._shown, len(self._ids)
            self._emit(new)

    def end(self) -> None:
        if rest := self._new_text().rstrip(HALF_CHARACTER):
            self._emit(rest)

    def _new_text(self) -> str:
        shown = self._decode(self._ids[self._before : self._shown])
        return self._decode(self._ids[self._before :])[len(shown) :]

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))
