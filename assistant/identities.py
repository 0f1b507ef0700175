"""One base in memory and the LoRA adapters that speak through it; not one of the base's numbers changes.

Takes no turns: whoever calls holds the base, alone, until its answer is whole.
"""

import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from assistant.loading import ChatModel
from assistant.strength import adds_neurons


class Identities:
    """Between two answers every adapter is switched off: at rest the model is its base."""

    def __init__(self, chat: ChatModel) -> None:
        self.chat = chat
        self._wrapped: Any = None  # a PeftModel around chat.model while there is an adapter
        self._count = 0
        self._leaving: deque[str] = deque()

    def add(self, adapter: Path) -> str:
        """Read a LoRA adapter of this base; its key for `speaking`. A page without any needs no PEFT.

        Raises ValueError beside adapters of the other kind: of linear layers, or with neurons of its own.
        """
        from peft import PeftModel

        from assistant.neurons import adapter_config

        self._clear()
        config = adapter_config(adapter)
        others = {} if self._wrapped is None else self._wrapped.peft_config
        new = adds_neurons(config.target_modules)
        if any(adds_neurons(other.target_modules) != new for other in others.values()):
            raise ValueError(
                f"{adapter} is of another kind than the adapters beside it: one adds neurons, the other "
                "changes linear layers; choose it alone, or train it again"
            )
        self._count += 1
        key = f"adapter{self._count}"
        if self._wrapped is None:
            with warnings.catch_warnings():  # PEFT asks the model by an old name of transformers'
                warnings.simplefilter("ignore", FutureWarning)
                self._wrapped = PeftModel(self.chat.model, config, adapter_name=key)
        try:
            if key not in self._wrapped.peft_config:
                self._wrapped.add_adapter(key, config)
            self._wrapped.load_adapter(str(adapter), adapter_name=key)
        except BaseException:
            self._leaving.append(key)
            self._clear()
            raise
        self._wrapped.eval()
        self._wrapped.base_model.disable_adapter_layers()
        return key

    def leave(self, key: str) -> None:
        """Its memory goes before the next answer; may be called at any time, from any thread."""
        self._leaving.append(key)

    @contextmanager
    def speaking(self, key: str | None, strength: float = 1.0) -> Iterator[None]:
        """chat.model as that adapter, times `strength`; as the base for None and at 0."""
        self._clear()
        if key is None or not strength:
            yield
            return
        from peft.helpers import rescale_adapter_scale

        self._wrapped.set_adapter(key, inference_mode=True)
        self._wrapped.base_model.enable_adapter_layers()
        try:
            with rescale_adapter_scale(self.chat.model, strength):
                yield
        finally:
            self._wrapped.base_model.disable_adapter_layers()

    def _clear(self) -> None:
        while self._leaving:
            if (key := self._leaving.popleft()) in self._wrapped.peft_config:
                self._wrapped.base_model.set_adapter([])  # else PEFT warns that the active one goes
                self._wrapped.delete_adapter(key)
        if self._wrapped is not None and not self._wrapped.peft_config:
            self._wrapped.unload()  # the base's own layers stand where they stood
            self._wrapped = None
