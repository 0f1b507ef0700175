"""Where what is sent is made, and the model as it is sent: its files, card, rules for git-lfs, metafile.

Knows no uploads.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from assistant.bundles.choosing import Choice
from assistant.bundles.lfs import write_attributes
from assistant.bundles.targets import Target
from assistant.bundles.weights import place_file
from assistant.catalog import ADAPTER_FILES, PLAIN_FILES


@contextmanager
def workplace(place: Path) -> Iterator[Path]:
    """A new folder in `place`, held by this process and gone afterwards; what a kill left there goes now.

    Beside the results, not in /tmp: models are linked into it, which costs no disk there.
    Raises ValueError for a place where no folder can be made.
    """
    try:
        place.mkdir(parents=True, exist_ok=True)
        folder, held = _new_folder(place)
    except OSError as error:
        sentence = f"no folder can be made in {place} ({error.strerror}); give another with --work"
        raise ValueError(sentence) from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _let_go(held)


def _new_folder(place: Path) -> tuple[Path, int | None]:
    """One that is held, made while nobody else cleans up."""
    alone = _hold(place, waits=True)
    try:
        for old in place.glob("publish-*"):
            if (held := _hold(old)) is not None:
                shutil.rmtree(old, ignore_errors=True)
                _let_go(held)
        folder = Path(tempfile.mkdtemp(prefix="publish-", dir=place))
        folder.chmod(0o755)
        return folder, _hold(folder)
    finally:
        _let_go(alone)


def _hold(folder: Path, waits: bool = False) -> int | None:
    """A lock on the folder, which the kernel frees with its holder; None while another process has it.

    Where fcntl is missing nobody holds anything, and nothing old is taken away.
    """
    try:
        import fcntl
    except ImportError:
        return None
    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(opened)
        return None
    return opened


def _let_go(held: int | None) -> None:
    if held is not None:
        os.close(held)


def model_parcel(model: Choice, folder: Path, repo: str, target: Target, with_facts: bool) -> Path:
    """The model's files and its card in a new `folder`. Raises ValueError for a model on a hub."""
    from assistant.model_card import write_model_card

    if model.kind == "hub":
        raise ValueError(f"{model.place} is on a hub already; give a folder or a .gguf file with --model")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file in _files_of(model):
        place_file(file, folder / file.name)
    write_model_card(model.run, folder, repo=repo, include_facts=with_facts, scorecard=model.scorecard)
    if target.host == "openxlab":
        from assistant.hosts.openxlab_sdk import write_metafile

        write_metafile(folder, repo)
    write_attributes(folder, target.largest_plain_mb)
    return folder


def _files_of(model: Choice) -> list[Path]:
    if model.kind == "gguf":
        return [model.path]
    patterns = ADAPTER_FILES if model.kind == "adapter" else PLAIN_FILES
    return sorted({file for pattern in patterns for file in model.path.glob(pattern)})
