"""The models a person may choose on the page, and their engines. Knows no framework.

Only what lies in models/ and out/ and what the environment names can be chosen: never a path from outside.
"""

import os
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from assistant.settings import REPOSITORY, load_settings, near_names, slug
from assistant.strength import has_strength
from assistant.web.engine import Engine, assistant_name
from assistant.web.texts import Texts

Kind = Literal["base", "adapter", "merged", "gguf", "endpoint"]
MOST_LOADED = 3  # engines in memory beside the page's own


@dataclass(frozen=True)
class Found:
    """`path` is what open_backend takes; `id` is what a browser may see and send back."""

    id: str
    name: str
    kind: Kind
    path: str


def find_models(own: str, root: Path = REPOSITORY) -> list[Found]:
    """The page's `own` model first, then assistants, then bases, then endpoints; each once."""
    found = [_endpoint(own) if "://" in own else _folder(Path(own), root)] if own else []
    for pattern in ("out/*/model", "out/*/adapter", "out/*/*.gguf", "models/*", "models/**/*.gguf"):
        found += [_folder(path, root) for path in sorted(root.glob(pattern)) if _is_model(path, root)]
    found += [_endpoint(address) for address in os.environ.get("ASSISTANT_ENDPOINTS", "").split()]
    first: dict[str, Found] = {}
    for model in found:
        first.setdefault(model.id, model)
    return list(first.values())


def _is_model(path: Path, root: Path) -> bool:
    if any(part.startswith(".") for part in path.relative_to(root).parts):
        return False  # being made
    if path.suffix == ".gguf":
        return path.is_file()
    if (path / "adapter_config.json").is_file():
        return True
    config = path / "config.json"
    return config.is_file() and "CausalLM" in config.read_text(encoding="utf-8")  # no vision tower


def _folder(path: Path, root: Path) -> Found:
    if path.suffix == ".gguf":
        kind: Kind = "gguf"
    elif (path / "adapter_config.json").is_file():
        kind = "adapter"
    else:
        kind = "merged" if "card" in load_settings(path) else "base"
    return Found(id_of(path, root), assistant_name(str(path)), kind, str(path))


def id_of(path: Path, root: Path) -> str:
    """What a browser may see of a path: nothing above the repository, whose out/ may be a link.

    A path as a person gave it is the same model as the one that is found.
    """
    ways = Path(os.path.abspath(path)), path.resolve()
    return next((way.relative_to(root).as_posix() for way in ways if way.is_relative_to(root)), ways[0].name)


def _endpoint(address: str) -> Found:
    name = assistant_name(address)
    return Found(f"endpoint:{name}", name, "endpoint", address)


class Engines:
    """The engines that are loaded: the page's own, always, and the few that were used last."""

    def __init__(self, own: Engine, root: Path = REPOSITORY) -> None:
        self.own, self._root = own, root
        self._others: dict[str, Engine] = {}
        self._lock = threading.Lock()

    def models(self) -> list[Found]:
        """What may be chosen now; a model that is made meanwhile appears."""
        return find_models(self.own.model, self._root)

    def find(self, id: str | None) -> Found | None:
        """The model of that id; the page's own for an unknown id."""
        models = self.models()
        return next((model for model in models if model.id == id), models[0] if models else None)

    def get(self, id: str | None) -> Engine:
        """The engine of a found model, which begins to load if it is new."""
        model = self.find(id)
        if not model or model.path == self.own.model:
            return self.own
        with self._lock:
            engine = self._others.pop(model.path, None)
            if not engine or engine.status == "error":
                engine = Engine(model.path, self.own.line, shared=self.own.shared)
            self._others[model.path] = engine
            for old in list(self._others)[:-MOST_LOADED]:
                del self._others[old]  # its memory goes when its last answer ends
        return engine


def model_named(name: str, models: list[Found], current: str = "") -> str:
    """What open_backend takes for a name, a folder's name, an id, a path or an address; an adapter first.

    `base` is what the `current` one was made from. Raises ValueError for an unknown name.
    """
    if exact := [model.path for model in models if model.id == name]:
        return exact[0]
    if "://" in name or name.endswith(".gguf") or Path(name).is_dir():
        return name
    if name == "base":
        now = next((model for model in models if current.endswith(model.path)), None)
        bases = [base_of(now, models)] if now else [model for model in models if model.kind == "base"]
        found = [model for model in bases if model]
    else:
        found = [model for model in models if slug(name) in called(model)]
    if not found:
        raise ValueError(
            f"there is no model {name!r}{near_names(name, {'base'}.union(*map(called, models)))}"
        )
    return min(found, key=lambda model: model.kind != "adapter").path


def called(model: Found) -> set[str]:
    """The names that a person may type for it."""
    folder = Path(model.path)
    own = {"adapter": folder.parent.name, "merged": folder.parent.name, "endpoint": model.name}
    return {slug(model.name), slug(own.get(model.kind, folder.stem))}


def labels_of(models: list[Found], texts: Texts) -> dict[str, str]:
    """What a person reads for each id; two that would read the same are told apart by their folders."""
    plain = {model.id: f"{model.name} · {texts['kind_' + model.kind]}" for model in models}
    read = list(plain.values())
    return {id: label if read.count(label) == 1 else f"{label} ({id})" for id, label in plain.items()}


def base_of(model: Found, models: list[Found]) -> Found | None:
    """What the assistant was made from, else the first base there is; None when there is none here.

    What an endpoint was made from is not known: another endpoint, if there is one, stands beside it.
    """
    others = [other for other in models if other.kind == "endpoint" and other.id != model.id]
    if model.kind == "endpoint" and others:
        return others[0]
    folder = Path(model.path)
    made_by = load_settings(folder) if folder.is_dir() else {}
    trained = load_settings(folder.parent / "adapter")
    card = made_by.get("card", {})
    names = {Path(str(trained.get("model", ""))).name, slug(str(card.get("base", "")) or "-")}
    bases = [other for other in models if other.kind == "base" and other.id != model.id]
    return next((base for base in bases if Path(base.path).name in names), bases[0] if bases else None)


def has_dial(model: Found | None) -> bool:
    """Whether how strongly it speaks can be set."""
    return model is not None and model.kind == "adapter" and has_strength(model.path)


def scorecard_of(model: Found) -> Path | None:
    """The folder of the assistant's scorecard; None before it was evaluated."""
    folder = Path(model.path).parent / "scorecard"
    is_there = model.kind not in ("endpoint", "base") and (folder / "scorecard.json").is_file()
    return folder if is_there else None


@cache
def engines_of(own: Engine) -> Engines:
    """One set of engines in this process for the page's own."""
    return Engines(own)
