"""The engine on Hugging Face's ZeroGPU, where a card is lent for each answer to a process of its own.

Its rules: `spaces` is imported before torch, the model is on cuda before the page is launched, and what
crosses to the other process is pickled.
"""

import threading
from collections.abc import Callable, Generator
from contextlib import closing

from assistant.backends import Backend, Sampling, Shared
from assistant.conversations import Message

LONGEST_ANSWER_S = 60


class ZeroGpuBackend:
    """Made in the main thread. Raises RuntimeError without `spaces`, ValueError for no model folder."""

    def __init__(self, model: str, shared: Shared | None = None) -> None:
        try:
            import spaces
        except ModuleNotFoundError:
            raise RuntimeError("ZeroGPU needs the package spaces, which its host installs") from None
        from assistant.backends.transformers_backend import TransformersBackend

        backend: Backend = TransformersBackend(model, shared)

        @spaces.GPU(duration=LONGEST_ANSWER_S)
        def on_the_card(messages: list[Message], sampling: Sampling) -> Generator[str, None, None]:
            yield from backend.stream(messages, sampling)

        self.label = backend.label
        self.sees, self.seen = getattr(backend, "sees", False), getattr(backend, "seen", None)
        self._backend, self._stream = backend, on_the_card

    def stream(
        self, messages: list[Message], sampling: Sampling, stop: threading.Event | None = None
    ) -> Generator[str, None, None]:
        with closing(self._stream(messages, sampling)) as chunks:
            for chunk in chunks:
                if stop and stop.is_set():
                    return
                yield chunk

    @property
    def context(self) -> int | None:
        return self._backend.context

    def count_prompt(self, messages: list[Message]) -> int | None:
        return self._backend.count_prompt(messages)

    def count_text(self, text: str) -> int | None:
        return self._backend.count_text(text)

    def answer_all(
        self,
        conversations: list[list[Message]],
        sampling: Sampling,
        progress: Callable[[int], None] | None = None,
    ) -> list[str]:
        answers = []
        for messages in conversations:
            answers.append("".join(self.stream(messages, sampling)).strip())
            if progress:
                progress(1)
        return answers
