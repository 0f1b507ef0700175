"""Pictures on their way into a step: as pixels, or as what a tower that learns nothing makes of them, once.

Knows nothing of rows and losses.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import nn

from assistant.devices import memory_of
from assistant.eyes import Eyes
from assistant.loading import ChatModel, core_of

AT_ONCE, AT_ONCE_CPU = 64, 8  # pictures that the tower sees together before the first step
GPU_SHARE, HOST_SHARE = 10, 4  # a tenth of the GPU's memory, a quarter of what is free beside it


class Pictures(Protocol):
    """Pictures → what a batch holds of them: {"pixel_values": …} or {"tower_states": …}."""

    bytes_on_gpu: int

    def __call__(self, images: list[str]) -> dict[str, torch.Tensor]: ...


class Pixels:
    """Pictures → their pixels, for a tower that learns; kept while the memory has room."""

    bytes_on_gpu = 0

    def __init__(self, eyes: Eyes, pad: bool) -> None:
        self.eyes, self.pad, self.kept = eyes, pad, dict[str, torch.Tensor]()
        self.room = _free_memory() // HOST_SHARE

    def __call__(self, images: list[str]) -> dict[str, torch.Tensor]:
        """The batch's "pixel_values": [pictures, 3, height, width]"""
        missing = [image for image in dict.fromkeys(images) if image not in self.kept]
        read = dict(zip(missing, self.eyes.pixels(missing, self.pad), strict=True)) if missing else {}
        for image, pixels in read.items():
            if pixels.nbytes <= self.room:
                self.kept[image], self.room = pixels.clone(), self.room - pixels.nbytes
        rows = [read[image] if image in read else self.kept[image] for image in images]
        return {"pixel_values": torch.stack(rows)}


class Sights:
    """Pictures → the states that a tower which learns nothing makes of them, computed once a picture.

    They lie on the GPU when they take little of it, else beside it; one without room is computed each time.
    """

    def __init__(self, chat: ChatModel, pad: bool, computing: AbstractContextManager[Any]) -> None:
        assert chat.eyes, "a LLaVA has eyes"
        self.eyes, self.llava, self.device = chat.eyes, core_of(chat.model).llava, chat.model.device
        self.pad, self.computing = pad, computing
        self.places: dict[str, int] = {}
        self.kept, self.bytes_on_gpu = torch.empty(0), 0

    def __call__(self, images: list[str]) -> dict[str, torch.Tensor]:
        """The batch's "tower_states": [pictures, tokens, width]"""
        missing = [image for image in dict.fromkeys(images) if image not in self.places]
        if not missing:
            return {"tower_states": self.kept[[self.places[image] for image in images]]}
        seen = dict(zip(missing, self._see(missing), strict=True))
        rows = [seen[i] if i in seen else self.kept[self.places[i]].to(self.device) for i in images]
        return {"tower_states": torch.stack(rows)}

    def prepare(self, images: list[str], say: Callable[[str], None]) -> None:
        """See as many of the pictures as have room. Raises ValueError naming one that cannot be read."""
        images, shown = list(dict.fromkeys(images)), time.monotonic()
        at_once = AT_ONCE_CPU if self.device.type == "cpu" else AT_ONCE
        for start in range(0, len(images), at_once):
            states = self._see(images[start : start + at_once])
            if not start:
                self.kept = self._room_for(states[0], len(images))
                self.bytes_on_gpu = self.kept.nbytes if self.kept.is_cuda else 0
            part = images[start : start + at_once][: len(self.kept) - start]
            self.kept[start : start + len(part)] = states[: len(part)]
            self.places |= {image: start + place for place, image in enumerate(part)}
            if len(self.places) == len(self.kept):
                break
            if time.monotonic() - shown > 10:
                shown = time.monotonic()
                say(f"seeing {len(self.places)}/{len(self.kept)} pictures")

    def _see(self, images: list[str]) -> torch.Tensor:
        pixels = self.eyes.pixels(images, self.pad).to(self.device)
        with self.computing, torch.no_grad():
            # autocast leaves some layers' numbers in 32 bits
            return tower_states(self.llava, pixels).to(self.llava.dtype)

    def _room_for(self, state: torch.Tensor, count: int) -> torch.Tensor:
        """[pictures, tokens, width] yet to be filled: all on the GPU if they fit, else some beside it."""
        device = self.device
        if device.type != "cpu" and count * state.nbytes > memory_of(device) // GPU_SHARE:
            device = torch.device("cpu")
        if device.type == "cpu":
            count = min(count, _free_memory() // HOST_SHARE // state.nbytes)
        return torch.empty(count, *state.shape, dtype=state.dtype, device=device)


def _free_memory() -> int:
    import psutil

    return int(psutil.virtual_memory().available)


def tower_states(llava: Any, pixels: torch.Tensor) -> torch.Tensor:
    """[pictures, tokens, width] as they enter the projector. `pixels`: [pictures, 3, height, width]."""
    inner = llava.model
    projector, inner.multi_modal_projector = inner.multi_modal_projector, nn.Identity()
    try:
        return torch.stack(list(llava.get_image_features(pixel_values=pixels.to(llava.dtype)).pooler_output))
    finally:
        inner.multi_modal_projector = projector


def projected(llava: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """[picture tokens, hidden]: what the projector makes of a batch's pictures, one after the other."""
    if "tower_states" in batch:
        states: torch.Tensor = llava.model.multi_modal_projector(batch["tower_states"])
        return states.flatten(0, 1)
    seen = llava.get_image_features(pixel_values=batch["pixel_values"].to(llava.dtype)).pooler_output
    return torch.cat(list(seen))
