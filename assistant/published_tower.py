"""The towers of data/models.toml: fetched once, their published weights made ours.

Source of the names: efficientnet-lite-pytorch's weights.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from assistant.building import describe_weights
from assistant.catalog import load_towers, models_folder
from assistant.downloading import download
from assistant.folders import is_complete, weight_files, write_json
from assistant.settings import near_names, save_settings
from assistant.tensors import read_pickled, write_shards
from assistant.vision_tower import KIND, LITE0, EfficientNetLite, EfficientNetLiteConfig

EPSILON = 1e-3  # of the batch norms


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
