"""EfficientNet-Lite as a vision tower of transformers, registered with its Auto classes: no remote code.

Source: TensorFlow's efficientnet_lite_builder.py.
"""

from collections.abc import Iterator
from dataclasses import field
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

KIND = "efficientnet_lite"
STRIDE = 32  # pixels of the picture, each way, that become one feature
MEAN, SPREAD = 127 / 255, 128 / 255  # it was trained on (pixel - 127) / 128
LOUD, QUIET = 8.0, 0.05  # of one share beside 1280 features, which else would learn fifty times faster
STEM = 32


class Stage(NamedTuple):
    """Blocks of one kind: the first has the stride and changes the number of channels."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


LITE0 = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


class EfficientNetLiteConfig(PreTrainedConfig):
    """`hidden_size`: channels of a feature; an image of `image_size` has 1 + (image_size / 32)² of them.
    `known`: so many words of each kind that the last channels say its share of, one feature more a kind."""

    model_type = KIND
    hidden_size: int = 1280
    known: list[int] = field(default_factory=list)
    image_size: int = 224
    initializer_range: float = 0.02


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow pads: what is left over goes to the right and the bottom."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(channels, out, kernel, stride, groups=groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        sides = []
        for size in (x.shape[-1], x.shape[-2]):
            more = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            sides += [more // 2, more - more // 2]
        return super().forward(functional.pad(x, sides) if any(sides) else x)


class Block(nn.Module):
    """Widen, filter each channel, narrow. The batch norms are folded into the convolutions."""

    def __init__(self, channels: int, out: int, stage: Stage, stride: int) -> None:
        super().__init__()
        wide = channels * stage.expansion
        self.expand = SameConv(channels, wide, 1) if stage.expansion > 1 else None
        self.depthwise = SameConv(wide, wide, stage.kernel, stride, groups=wide)
        self.project = SameConv(wide, out, 1)
        self.is_residual = stride == 1 and channels == out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = functional.relu6(self.expand(x)) if self.expand else x
        narrow = self.project(functional.relu6(self.depthwise(wide)))
        return x + narrow if self.is_residual else narrow


class EfficientNetLite(PreTrainedModel):
    """Pictures [n, 3, height, width] → features [n, 1 + height / 32 · width / 32, hidden_size]: the mean over
    the picture, which says best what it shows, then its places row by row, which say where and how many.

    A tower that knows words (what a picture shows, its kind, its colour, how many) begins with the mean once
    for each kind of them, with the shares of its words beside it; those of the first stand beside places too.
    """

    config: EfficientNetLiteConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    input_modalities = "image"

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        self.stem = SameConv(3, STEM, 3, 2)
        self.blocks = nn.ModuleList(_blocks())
        channels = config.hidden_size - sum(config.known)
        self.head = SameConv(LITE0[-1].channels, channels, 1)
        self.known = nn.ModuleList(nn.Linear(channels, words) for words in config.known)
        self.post_init()

    def forward(self, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        places = self.places(pixel_values)
        mean = places.mean(1, keepdim=True)
        features = torch.cat([mean] * max(1, len(self.known)) + [places], dim=1)
        if self.known:
            features = torch.cat([QUIET * features, LOUD * self._shares(mean, places)], dim=-1)
        return BaseModelOutputWithPooling(
            last_hidden_state=features, pooler_output=features[:, 0], hidden_states=(features,)
        )

    def places(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """[n, height / 32 · width / 32, channels]: the features of a picture's places, row by row."""
        # channels beside each other: a CPU filters them one by one in half the time
        pixels = pixel_values.to(self.stem.weight.dtype, memory_format=torch.channels_last)
        x = functional.relu6(self.stem(pixels))
        for block in self.blocks:
            x = block(x)
        return functional.relu6(self.head(x)).flatten(2).transpose(1, 2)

    def _shares(self, mean: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """[n, kinds of words + places, all words]: zero but for the words that each row is about."""
        kinds, every = len(self.known), sum(self.config.known)
        shares = mean.new_zeros(len(mean), kinds + places.shape[1], every)
        ends = list(accumulate(self.config.known))
        for row, (layer, words, end) in enumerate(zip(self.known, self.config.known, ends, strict=True)):
            shares[:, row : row + 1, end - words : end] = _softmax(layer(mean))
        shares[:, kinds:, : ends[0]] = _softmax(self.known[0](places))
        return shares


def _softmax(scores: torch.Tensor) -> torch.Tensor:
    return scores.float().softmax(-1).to(scores.dtype)


def _blocks() -> Iterator[Block]:
    channels = STEM
    for stage in LITE0:
        for number in range(stage.repeats):
            yield Block(channels, stage.channels, stage, stage.stride if number == 0 else 1)
            channels = stage.channels


def register_tower() -> None:
    """Make AutoConfig and AutoModel know the tower; more than once does no harm."""
    AutoConfig.register(KIND, EfficientNetLiteConfig, exist_ok=True)
    AutoModel.register(EfficientNetLiteConfig, EfficientNetLite, exist_ok=True)


def features_of(config: dict[str, Any]) -> int:
    """How many features a picture has, by the tower's config."""
    return max(1, len(config.get("known", ()))) + int(config["image_size"] // STRIDE) ** 2


def with_known(config: dict[str, Any], words: list[int]) -> dict[str, Any]:
    """The tower's config once it knows so many words of each kind.

    Raises ValueError for a tower that cannot, or does already.
    """
    if config["model_type"] != KIND or config.get("known"):
        raise ValueError("the adapter knows words, which only an EfficientNet that knows none yet can learn")
    return {**config, "known": words, "hidden_size": config["hidden_size"] + sum(words)}
