"""A model folder spoken by transformers in this process: one answer at a time, first come, first served."""

import threading
from collections.abc import Callable, Generator
from functools import partial
from typing import Any

import torch
from transformers import StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from assistant.backends import Counts, Notice, Sampling, fit, without_oldest
from assistant.backends.pump import Turns
from assistant.conversations import Message, images_of
from assistant.loading import encode_text, generate_batch, load_chat_model

HALF_CHARACTER = "\ufffd"
LONGEST_CHARACTER = 6  # tokens; a tail that stays broken for longer is not a character in the making


class TransformersBackend:
    """Raises ValueError from loading when `model` is no model folder, adapter folder or hub id."""

    def __init__(self, model: str) -> None:
        self.label = f"transformers: {model}"
        self._chat = load_chat_model(model)
        self._turns = Turns()
        self._encoding = threading.Lock()  # a fast tokenizer must not be set up by two threads at once

    @property
    def context(self) -> int:
        """Tokens that question and answer may fill together."""
        config = self._chat.model.config.get_text_config()
        return int(getattr(config, "max_position_embeddings", 0) or 2048)

    def count_prompt(self, messages: list[Message]) -> int:
        return len(self._encode(messages))

    def count_text(self, text: str) -> int:
        with self._encoding:
            return len(encode_text(self._chat.tokenizer, text))

    def stream(
        self, messages: list[Message], sampling: Sampling, stop: threading.Event | None = None
    ) -> Generator[str, None, None]:
        return self._turns.stream(partial(self._generate, messages, sampling), stop)

    def answer_all(
        self,
        conversations: list[list[Message]],
        sampling: Sampling,
        progress: Callable[[int], None] | None = None,
    ) -> list[str]:
        with self._turns.take():
            self._seed(sampling)
            return generate_batch(
                self._chat,
                conversations,
                sampling.max_new_tokens,
                sampling.temperature,
                sampling.top_p,
                progress,
            )

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
        self._seed(sampling)
        prompt = torch.tensor([ids], device=self._chat.model.device)
        pixels = self._chat.pixels(images_of(without_oldest(messages, dropped)))
        with torch.inference_mode():
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
