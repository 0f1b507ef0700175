"""A LLaVA folder's conversations for llama.cpp: token ids, and its pictures as states among them.

Loads tower and projector, never the LLM: that is a GGUF then. Knows no engine.
"""

import threading
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from assistant.conversations import Message, images_of
from assistant.eyes import eyes_of
from assistant.folders import read_json
from assistant.llama_cpp import Glimpse
from assistant.loading import check_model_folder, encode_chat, load_tokenizer, quiet_loading
from assistant.tensors import checkpoint_files, tensors_in
from assistant.vision_tower import register_tower

REMEMBERED = 16  # pictures of conversations that go on
SEEING = ("vision_tower.", "multi_modal_projector.")
NO_LLM = {"num_hidden_layers": 0, "vocab_size": 1} | dict.fromkeys(
    ("pad_token_id", "bos_token_id", "eos_token_id")
)


class Seer:
    """On the CPU in float32. Raises ValueError for a folder that is no whole LLaVA."""

    def __init__(self, folder: Path) -> None:
        check_model_folder(folder)
        self._model = load_sight(folder)  # transformers knows the tower then
        self._tokenizer = load_tokenizer(folder)
        self.eyes = eyes_of(folder, self._tokenizer)
        self._glimpses = lru_cache(REMEMBERED)(self._look)
        self._one_at_a_time = threading.Lock()  # a fast tokenizer must not be set up by two threads at once

    def encode(self, messages: list[Message]) -> list[int]:
        """The ids of ChatModel.encode with a Glimpse at each place of a picture."""
        with self._one_at_a_time:
            ids = encode_chat(self._tokenizer, messages, picture_tokens=self.eyes.tokens)
            seen = iter([glimpse for image in images_of(messages) for glimpse in self._glimpses(image)])
        return [next(seen) if token == self.eyes.token else token for token in ids]

    def _look(self, image: str) -> list[Glimpse]:
        with torch.inference_mode():
            states = self._model.get_image_features(pixel_values=self.eyes.pixels([image])).pooler_output[0]
        return [Glimpse(state.float().numpy().tobytes()) for state in states]


def load_sight(folder: Path) -> Any:
    """A LlavaModel with the folder's tower and projector, whose LLM has no layers.

    Raises ValueError when a tensor is missing or of another shape.
    """
    from transformers import LlavaConfig, LlavaModel

    register_tower()
    config = read_json(folder / "config.json")
    shape = LlavaConfig.from_dict(config | {"text_config": config["text_config"] | NO_LLM})
    with quiet_loading():
        model = LlavaModel(shape)
    wanted = {name: value for name, value in model.state_dict().items() if name.startswith(SEEING)}
    for name, tensor in tensors_in(checkpoint_files(folder)):
        # CLIP's tensors are written with a part of their names that newer versions leave out
        place = name if name in wanted else name.replace("vision_tower.vision_model.", "vision_tower.", 1)
        if place not in wanted:
            continue
        if wanted[place].shape != tensor.shape:
            shapes = f"{list(tensor.shape)} and must be {list(wanted[place].shape)}"
            raise ValueError(f"{folder}: {name} is {shapes}; make it again with scripts/make_llava.py")
        wanted.pop(place).copy_(tensor)
    if wanted:
        raise ValueError(f"{folder} lacks {next(iter(wanted))}; make it again with scripts/make_llava.py")
    return model.eval()
