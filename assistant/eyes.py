"""What a loaded LLaVA sees with: pictures → pixels, and how many tokens each takes.

Knows nothing of conversations.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from assistant.folders import read_json
from assistant.images import open_image
from assistant.llava_chat import IMAGE
from assistant.vision_tower import register_tower

READERS = 8  # threads that decode pictures: Pillow lets them run side by side


@dataclass(frozen=True)
class Eyes:
    """`token`: the id of `<image>`, `tokens`: how many of it a picture takes."""

    token: int
    tokens: int
    processor: Any

    def pixels(self, images: Sequence[str], pad: bool = True) -> torch.Tensor:
        """[pictures, 3, height, width]. With `pad` a picture is made square by borders, else by cutting.

        Raises ValueError naming a picture that cannot be read.
        """
        with ThreadPoolExecutor(min(READERS, len(images))) as pool:
            read = list(pool.map(lambda image: self._pixels_of(image, pad), images))
        return torch.cat(read)

    def seen(self, image: str) -> Any:
        """The square that the tower is shown, as a PIL picture. Raises ValueError as pixels() does."""
        from PIL import Image

        spread, mean = (
            torch.tensor(numbers)[:, None, None]
            for numbers in (self.processor.image_std, self.processor.image_mean)
        )
        colours = ((self.pixels([image])[0] * spread + mean) * 255).round().clamp(0, 255)
        return Image.fromarray(colours.byte().permute(1, 2, 0).numpy())

    def _pixels_of(self, image: str, pad: bool) -> torch.Tensor:
        read: torch.Tensor = self.processor(open_image(image), do_pad=pad, return_tensors="pt")[
            "pixel_values"
        ]
        return read


def is_llava(folder: Path) -> bool:
    """Whether a model folder can see; transformers then knows its tower."""
    path = folder / "config.json"
    if not path.is_file() or read_json(path).get("model_type") != "llava":
        return False
    register_tower()
    return True


def eyes_of(folder: Path, tokenizer: Any) -> Eyes:
    """Of a LLaVA folder. Raises ValueError when its tokenizer and its config name different `<image>`s."""
    # by name: the Auto class takes torchvision's where that is installed, whose pixels differ a little
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    config = read_json(folder / "config.json")
    token = config["image_token_index"]
    if tokenizer.convert_tokens_to_ids(IMAGE) != token:
        raise ValueError(
            f"{folder}: its tokenizer has no {IMAGE} with id {token}; make it with make_llava.py"
        )
    processor = LlavaImageProcessorPil.from_pretrained(str(folder))
    return Eyes(token, config["image_seq_length"], processor)
