"""Who can look at pictures here; the same on both pages.

Knows no framework and no tensor: an LLM is given the eyes of data/eyes behind the page, the first time.
"""

import importlib.util
import json
import os
import shutil
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from assistant.folders import read_json
from assistant.settings import DATA, REPOSITORY, load_settings
from assistant.web import Engine, assistant_name
from assistant.web.models import id_of
from assistant.web.texts import Texts, in_language

EYES, MADE = (DATA / "eyes").relative_to(REPOSITORY), Path("models/cache/eyes")
TOWER = "efficientnet-lite0"
WEIGHTS = "adapter_model.safetensors"
LONGEST_HEADER = 10_000_000  # bytes
MOST_LOADED = 2  # engines in memory beside the page's own


@dataclass(frozen=True)
class Seeing:
    """Who can look. `path` is what open_backend takes; with an `llm` it is made of that when it is needed."""

    id: str
    name: str
    path: str
    llm: Path | None = None


def find_seeing(own: str, root: Path = REPOSITORY) -> list[Seeing]:
    """The page's `own` model first if it sees or can be given eyes, then the others; each once."""
    found = [*_with_eyes(own, root), *_llavas(own, root)] if can_load() else []
    addresses = [own, *os.environ.get("ASSISTANT_ENDPOINTS", "").split()]
    found += [Seeing(f"endpoint:{assistant_name(a)}", assistant_name(a), a) for a in addresses if "://" in a]
    first: dict[str, Seeing] = {}
    for seeing in sorted(found, key=lambda seeing: not _is_of(own, seeing)):
        first.setdefault(seeing.id, seeing)
    return list(first.values())


def _is_of(own: str, seeing: Seeing) -> bool:
    """Of a run's folder out/NAME any file may be the page's own: the model, its GGUF, its adapter."""
    if "://" in own or not own:
        return False
    runs = {Path(own), Path(own).parent} if Path(own).parent.parent.name == "out" else {Path(own)}
    return bool(runs & {Path(seeing.path), *([seeing.llm, seeing.llm.parent] if seeing.llm else [])})


def can_load() -> bool:
    """A page that was published for GGUF files lacks our modules too, whatever else its host installed."""
    return all(importlib.util.find_spec(name) for name in ("torch", "transformers", "assistant.llava"))


def why_none(root: Path = REPOSITORY) -> str:
    """The text that says what to do where find_seeing finds nobody."""
    if not can_load():
        return "eyes_no_torch"
    return "eyes_no_model" if projector_width(root / EYES) else "eyes_missing"


def _llavas(own: str, root: Path) -> Iterator[Seeing]:
    for folder in (Path(own), *_folders(root, "out/*", "out/*/*", "models/*")):
        if "LlavaForConditionalGeneration" in _config(folder).get("architectures", ()):
            yield Seeing(id_of(folder, root), assistant_name(str(folder)), str(folder))


def _with_eyes(own: str, root: Path) -> Iterator[Seeing]:
    width = projector_width(root / EYES)
    for llm in (Path(own), *_folders(root, "out/*/model", "models/*")) if width else ():
        config = _config(llm)
        if config.get("hidden_size") == width and config.get("model_type") == "llama":
            name = llm.parent.name if llm.name == "model" else llm.name
            made = str(root / MADE / name)
            yield Seeing(f"eyes:{id_of(llm, root)}", assistant_name(str(llm)), made, llm)


def labels_of(found: list[Seeing]) -> dict[str, str]:
    """What a person reads for each id; two of one name are told apart by their folders."""
    names = [seeing.name for seeing in found]
    folders = {seeing.id: seeing.id.removeprefix("eyes:").removesuffix("/model") for seeing in found}
    return {s.id: s.name if names.count(s.name) == 1 else f"{s.name} ({folders[s.id]})" for s in found}


def _folders(root: Path, *patterns: str) -> list[Path]:
    found = [path for pattern in patterns for path in sorted(root.glob(pattern)) if path.is_dir()]
    return [path for path in found if not path.name.startswith(".")]  # a dot: being made


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    return read_json(path) if path.is_file() else {}


def projector_width(eyes: Path) -> int:
    """The hidden size of the LLMs that these eyes fit; 0 where there are none."""
    path = eyes / WEIGHTS
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        size = file.read(8)
        length = struct.unpack("<Q", size)[0] if len(size) == 8 else 0
        header = json.loads(file.read(length)) if 0 < length < LONGEST_HEADER else {}
    name = next((name for name in header if name.endswith("multi_modal_projector.linear_2.weight")), "")
    return int(header[name]["shape"][0]) if name else 0


def stamp(llm: Path, root: Path) -> str:
    """Changes when the LLM is trained again, or the eyes are."""
    files = [*sorted(llm.glob("*.safetensors")), root / EYES / WEIGHTS]
    states = [(path.name, path.stat()) for path in files if path.is_file()]
    return " ".join(f"{name}:{state.st_size}:{state.st_mtime_ns}" for name, state in states)


def is_made(llm: Path, folder: Path, root: Path) -> bool:
    return load_settings(folder).get("made_of") == stamp(llm, root)


def give_eyes(llm: Path, folder: Path, root: Path = REPOSITORY) -> None:
    """Write the LLaVA `folder` of an LLM and data/eyes, unless it is there; fetches the tower once (13 MB).

    Raises ValueError or RuntimeError, one sentence, when it cannot.
    """
    if is_made(llm, folder, root):
        return
    from assistant.llava import make_llava
    from assistant.llava_adapter import read_trained
    from assistant.published_tower import fetch_tower

    tower, parts = fetch_tower(TOWER), read_trained(root / EYES)
    card = load_settings(llm).get("card") or load_settings(root / EYES).get("card", {})
    settings = {"llm": str(llm), "vision": TOWER, "adapter": str(EYES), "card": card}
    settings["made_of"] = stamp(llm, root)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=".making-") as work:
        make_llava(llm, tower, Path(work) / folder.name, parts, settings)
        shutil.rmtree(folder, ignore_errors=True)
        (Path(work) / folder.name).replace(folder)


class Sights:
    """The engines of those who can look: the page's own where it is one of them, and the few used last."""

    def __init__(self, own: Engine, root: Path = REPOSITORY) -> None:
        self.own, self._root = own, root
        self._others: dict[str, Engine] = {}
        self._lock = threading.Lock()

    def found(self) -> list[Seeing]:
        return find_seeing(self.own.model, self._root)

    def find(self, id: str | None) -> Seeing | None:
        """Who has that id; the first for an unknown id."""
        found = self.found()
        return next((seeing for seeing in found if seeing.id == id), found[0] if found else None)

    def get(self, id: str | None, again: bool = False) -> Engine:
        """The engine, which begins to load if it is new, after its folder is made if that is needed.

        One that could not load stays as it is, with its error, until it is asked for `again`.
        """
        seeing = self.find(id)
        if not seeing or seeing.path == self.own.model:
            return self.own
        with self._lock:
            engine = self._others.pop(seeing.path, None)
            if not engine or (again and engine.status == "error"):
                make = partial(give_eyes, seeing.llm, Path(seeing.path), self._root) if seeing.llm else None
                engine = Engine(seeing.path, self.own.line, make, self.own.shared)
                engine.name = seeing.name
            self._others[seeing.path] = engine
            for old in list(self._others)[:-MOST_LOADED]:
                del self._others[old]  # its memory goes when its last answer ends
            return engine

    def known(self, id: str | None) -> Engine | None:
        """The engine if it is there: whoever only looks how far it is must not load one, nor keep it."""
        seeing = self.find(id)
        is_own = not seeing or seeing.path == self.own.model
        return self.own if is_own else self._others.get(seeing.path)  # type: ignore[union-attr]

    def progress(self, id: str | None, seconds: int, texts: Texts) -> str:
        """What a page says while someone who can look gets ready, and then; "" when nobody asks any more."""
        engine, seeing = self.known(id), self.find(id)
        if not engine:
            return ""
        if engine.status == "error" or not seeing:
            return in_language(engine.error, texts)
        if engine.status == "ready":
            return texts.say("eyes_ready", name=seeing.name)
        is_there = not seeing.llm or is_made(seeing.llm, Path(seeing.path), self._root)
        return texts.say("model_loading" if is_there else "eyes_making", name=seeing.name, seconds=seconds)


@cache
def sights_of(own: Engine) -> Sights:
    """One set of engines in this process, however many pages there are.

    On ZeroGPU who can look is loaded now, in the main thread: on the card before the page is up, or never.
    """
    sights = Sights(own)
    if os.environ.get("SPACES_ZERO_GPU") and sights.found():
        sights.get(None)
    return sights
