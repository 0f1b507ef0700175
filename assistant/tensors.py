"""Tensors on disk: reads safetensors and pickled weights one at a time, writes safetensors in shards.

Knows no architecture. A pickle is read with weights_only: nothing in it is ever run.
"""

import pickle
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from assistant.folders import check_weights, indexed_files, refuse_pointer, weight_files, write_json
from assistant.settings import one_line

SHARD_BYTES = 400 * 10**6  # of a written file: with the copy that saving makes, far below 1 GiB of memory
INDEX = "model.safetensors.index.json"
MORE_THAN_TENSORS = ("Unsupported global", "Unsupported class", "unrecognized function")
PICKLED_INDEX = "pytorch_model.bin.index.json"


def checkpoint_files(folder: Path) -> list[Path]:
    """The files that hold a model's weights: safetensors, else pytorch_model*.bin.

    Raises ValueError when there are none, or when the index names a missing one.
    """
    if (folder / INDEX).is_file() or any(folder.glob("*.safetensors")):
        return weight_files(folder)
    index = folder / PICKLED_INDEX
    named = indexed_files(index) if index.is_file() else ()
    files = [folder / name for name in sorted(named)] or sorted(folder.glob("pytorch_model*.bin"))
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        what = "weights (*.safetensors or *.bin)"
        if missing:
            what = f"{', '.join(missing)}, which its index names"
        raise ValueError(f"{folder} lacks {what}; fetch the model again")
    return files


def shapes_in(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in a weight file. Raises ValueError as tensors_in does."""
    if path.suffix != ".safetensors":
        return {name: tuple(tensor.shape) for name, tensor in pickled_tensors(path).items()}
    with _opened(path) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def tensors_in(
    paths: list[Path], wanted: Callable[[str], bool] = lambda name: True
) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor whose name is `wanted`, with it, mapped from disk where the file's format allows it.

    Raises ValueError for a damaged file, a git-lfs pointer, or a pickle that holds more than tensors.
    """
    for path in paths:
        if path.suffix != ".safetensors":
            yield from ((name, tensor) for name, tensor in pickled_tensors(path).items() if wanted(name))
            continue
        with _opened(path) as file:
            for name in filter(wanted, file.keys()):
                yield name, file.get_tensor(name)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file. Raises ValueError for a damaged one."""
    check_weights(path)
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({one_line(error)}); fetch the model again") from None


def pickled_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The weights in a .bin file, also where they lie under `state_dict`. Raises ValueError for others."""
    content: dict[str, Any] = read_pickled(path)
    inner = content.get("state_dict")
    content = inner if isinstance(inner, dict) else content
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            what = f"{name!r}, a {type(value).__name__}"
            raise ValueError(f"{path} holds {what}, not tensors by name; fetch it again or give safetensors")
    return content


def read_pickled(path: Path) -> dict[str, Any]:
    """What a .bin or .pth file holds by name, without running anything in it.

    Raises ValueError for a damaged file, a git-lfs pointer, and one with objects in it.
    """
    refuse_pointer(path)
    is_zip = _begins_as_zip(path)
    if is_zip and not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is damaged: its end is missing; fetch it again or give safetensors")
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except (pickle.UnpicklingError, EOFError, RuntimeError, OSError) as error:
        # torch's own words are left out: they say how to load the file unsafely.
        unsafe = any(sign in str(error) for sign in MORE_THAN_TENSORS)
        wrong = "holds more than tensors, which is never run here" if unsafe else "is damaged"
        raise ValueError(f"{path} {wrong}; fetch it again or give safetensors") from None
    if not isinstance(content, dict):
        what = f"holds a {type(content).__name__}, not tensors by name"
        raise ValueError(f"{path} {what}; fetch it again or give safetensors")
    return content


def _begins_as_zip(path: Path) -> bool:
    """torch.save's format since 1.6; only it can be mapped."""
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def write_shards(tensors: Iterator[tuple[str, torch.Tensor]], folder: Path) -> str:
    """Write `tensors` into model*.safetensors files and, where they are several, the index.

    Returns the dtype of the weights as a config names it ("bfloat16"). Memory: two shards.
    """
    places: dict[str, str] = {}
    waiting: dict[str, torch.Tensor] = {}
    parts: list[Path] = []
    total, dtype = 0, ""

    def write() -> None:
        parts.append(folder / f"part-{len(parts):05}.safetensors")
        save_file(waiting, parts[-1], metadata={"format": "pt"})
        places.update(dict.fromkeys(waiting, parts[-1].name))
        waiting.clear()

    for name, tensor in tensors:
        if waiting and _bytes(waiting.values()) + tensor.nbytes > SHARD_BYTES:
            write()
        waiting[name] = tensor.contiguous()
        total += tensor.nbytes
        dtype = dtype or str(tensor.dtype).removeprefix("torch.")
    write()
    _name_shards(folder, parts, places, total)
    return dtype


def _bytes(tensors: Any) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _name_shards(folder: Path, parts: list[Path], places: dict[str, str], total: int) -> None:
    if len(parts) == 1:
        parts[0].rename(folder / "model.safetensors")
        return
    names = {
        part.name: f"model-{number:05}-of-{len(parts):05}.safetensors" for number, part in enumerate(parts, 1)
    }
    for part in parts:
        part.rename(folder / names[part.name])
    weight_map = {name: names[file] for name, file in places.items()}
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
