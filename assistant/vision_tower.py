"""EfficientNet-Lite as a vision tower of transformers, registered with its Auto classes: no remote code.

Source: TensorFlow's efficientnet_lite_builder.py, and the names of efficientnet-lite-pytorch's weights.
"""

import shutil
from collections.abc import Iterator
from dataclasses import field
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from assistant.building import describe_weights
from assistant.catalog import load_towers, models_folder
from assistant.downloading import download
from assistant.folders import is_complete, weight_files, write_json
from assistant.settings import near_names, save_settings
from assistant.tensors import read_pickled, write_shards

KIND = "efficientnet_lite"
STRIDE = 32  # pixels of the picture, each way, that become one feature
MEAN, SPREAD = 127 / 255, 128 / 255  # it was trained on (pixel - 127) / 128
EPSILON = 1e-3  # of its batch norms
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


def fetch_tower(name_or_path: str | Path) -> Path:
    """A tower's folder: a path as it is, a name of data/models.toml from models/, where it is made once.

    Raises ValueError for an unknown name, RuntimeError when its source fails.
    """
    name, folder = str(name_or_path), Path(name_or_path)
    if name not in load_towers():
        if not folder.is_dir():
            raise ValueError(
                f"--vision {name} is no folder and no tower's name{near_names(name, load_towers())}"
            )
        return folder
    tower, folder = load_towers()[name], models_folder() / name
    if is_complete(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=".download-") as work:
        file, revision = download(tower.sources[0], Path(work) / "raw")
        made = Path(work) / name
        make_tower(file, made)
        weights = [describe_weights(path) for path in weight_files(made)]
        kept = {"model": name, "title": tower.title, "licence": tower.licence, "revision": revision}
        save_settings(made, {**kept, "weights": weights})
        if not is_complete(folder):  # else another process was quicker
            shutil.rmtree(folder, ignore_errors=True)
            made.replace(folder)
    return folder


def make_tower(weights: Path, folder: Path, image_size: int = 224) -> None:
    """Write the tower of a published EfficientNet-Lite0 .pth into `folder`.

    Raises ValueError naming the tensor for a file that is none, or damaged.
    """
    published = read_pickled(weights)
    folder.mkdir(parents=True, exist_ok=True)
    config = EfficientNetLiteConfig(image_size=image_size)
    with torch.device("meta"):
        wanted = {name: tuple(tensor.shape) for name, tensor in EfficientNetLite(config).state_dict().items()}
    folded = dict(_folded(published, weights))
    for name, shape in wanted.items():
        if tuple(folded[name].shape) != shape:
            found = list(folded[name].shape)
            raise ValueError(f"{weights}: {name} is {found}, and EfficientNet-Lite0 has {list(shape)}")
    write_shards(iter(folded.items()), folder)
    architecture = {"architectures": [EfficientNetLite.__name__], "model_type": KIND, "dtype": "float32"}
    write_json(folder / "config.json", architecture | {"hidden_size": 1280, "image_size": image_size})


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


def _folded(published: dict[str, torch.Tensor], source: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Each convolution with the batch norm behind it, in our names."""
    for ours, convolution, norm in _places():
        names = [f"{convolution}.weight", *(f"{norm}.{part}" for part in ("weight", "bias"))]
        names += [f"{norm}.running_{part}" for part in ("mean", "var")]
        if missing := [name for name in names if name not in published]:
            raise ValueError(f"{source} lacks {missing[0]}; give efficientnet-lite0's .pth")
        weight, scale, shift, mean, variance = (published[name].double() for name in names)
        factor = scale / torch.sqrt(variance + EPSILON)
        yield f"{ours}.weight", (weight * factor[:, None, None, None]).float()
        yield f"{ours}.bias", (shift - mean * factor).float()


def _places() -> Iterator[tuple[str, str, str]]:
    """(our convolution, the published one, its batch norm)."""
    yield "stem", "_conv_stem", "_bn0"
    number = 0
    for stage in LITE0:
        for _ in range(stage.repeats):
            ours, theirs = f"blocks.{number}", f"_blocks.{number}"
            if stage.expansion > 1:
                yield f"{ours}.expand", f"{theirs}._expand_conv", f"{theirs}._bn0"
            yield f"{ours}.depthwise", f"{theirs}._depthwise_conv", f"{theirs}._bn1"
            yield f"{ours}.project", f"{theirs}._project_conv", f"{theirs}._bn2"
            number += 1
    yield "head", "_conv_head", "_bn1"
