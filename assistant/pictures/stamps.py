"""Real pictures to test with: the stamps of Tux Paint whose captions name a thing of ours. Never shipped.

Source: Debian's tuxpaint-stamps-default, GPL-2; fetched with apt-get when the test is made.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from assistant.folders import check_hash, sha256_of
from assistant.pictures.packages import drawings_folder
from assistant.pictures.things import Thing, load_things, plural

PACKAGE = "tuxpaint-stamps-default"
ARCHIVE = "tuxpaint-stamps-default_2022.06.04-1_all.deb"
SHA256 = "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34"
DRAWN = ("symbols", "cartoon", "clipart", "hobbies/cartoon", "map", "flags", "numbers", "letters")


class Stamp(NamedTuple):
    """A picture with what may rightly be said of it, by language."""

    path: Path
    names: dict[str, tuple[str, ...]]
    thing: str
    caption: str


def stamps(folder: Path | None = None) -> Iterator[Stamp]:
    """The stamps whose English caption is the name of a thing; `folder`: the unpacked package.

    Raises RuntimeError, one sentence, where apt-get is missing or brings another version.
    """
    root = folder or fetch_stamps()
    known = _known_captions()
    for path in sorted(root.rglob("*.png")):
        text = path.with_suffix(".txt")
        if not text.is_file() or any(part in DRAWN for part in path.relative_to(root).parts):
            continue
        caption = text.read_text(encoding="utf-8", errors="replace").split("\n")[0].strip()
        thing = known.get(_plain(caption))
        if thing:
            yield Stamp(path, thing.names, thing.name, caption)


def _known_captions() -> dict[str, Thing]:
    """Taught names win over the names that other things may also have."""
    known: dict[str, Thing] = {}
    for rank in range(max(len(thing.names["en"]) for thing in load_things())):
        for thing in load_things():
            for name in thing.names["en"][rank : rank + 1]:
                known.setdefault(_plain(name), thing)
                known.setdefault(_plain(plural(name)), thing)
    return known


def _plain(caption: str) -> str:
    """`A brown bear.` → `brown bear`."""
    return re.sub(r"^(an?|the|some)\s+", "", caption.casefold().strip(" .!")).replace("-", " ")


def fetch_stamps() -> Path:
    """The unpacked package under models/pictures; fetched once, 161 MB."""
    place = drawings_folder() / "stamps"
    if place.is_dir():
        return place
    deb = drawings_folder() / "packages" / ARCHIVE
    deb.parent.mkdir(parents=True, exist_ok=True)
    if not deb.is_file() or sha256_of(deb) != SHA256:
        _run(["apt-get", "download", PACKAGE], deb.parent, f"apt-get could not download {PACKAGE}")
        if not deb.is_file():
            raise RuntimeError(f"apt-get brought another version of {PACKAGE} than {ARCHIVE}")
        check_hash(deb, SHA256)
    partial = place.with_name(f".stamps.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    _run(["dpkg", "-x", str(deb), str(partial)], deb.parent, f"dpkg could not unpack {deb.name}")
    os.replace(partial / "usr/share/tuxpaint/stamps", place)
    shutil.rmtree(partial)
    return place


def _run(command: list[str], folder: Path, failure: str) -> None:
    if shutil.which(command[0]) is None:
        raise RuntimeError(f"the real pictures need {command[0]} (Debian or Ubuntu), and it is missing")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise RuntimeError(f"{failure} ({lines[-1].strip() if lines else 'no reason given'})")
