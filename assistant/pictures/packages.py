"""Brings the drawings of npm packages to this machine, and renders each once into a folder of WebP files.

Knows nothing of names, scenes and questions. The folder models/pictures/drawn may be carried to another
machine: where a drawing lies in it, neither npm nor the renderer is needed.
"""

import json
import os
import random
import re
import shutil
import subprocess
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

from assistant.catalog import models_folder
from assistant.folders import check_hash, sha256_of
from assistant.pictures.things import Style, load_styles, load_things
from assistant.settings import write_text

SIDE = 224  # pixels of a drawing: what the tower sees
# packages whose file of code points gives the names of icons; the other packages use the same names
NAMED = ("noto", "twemoji", "fluent-flat")
# what icons of one colour are drawn in: each everyday colour in a few shades
INKS = (
    *("#e53935", "#c62828", "#fb8c00", "#f57c00", "#fdd835", "#fbc02d", "#43a047", "#2e7d32", "#7cb342"),
    *("#1e88e5", "#1565c0", "#4fc3f7", "#8e24aa", "#6a1b9a", "#ec407a", "#f48fb1", "#6d4c41", "#8d5524"),
    *("#9e9e9e", "#8a9199", "#212121", "#111111", "#fafafa", "#f5f5f5"),
)
Progress = Callable[[str, int, int], None]


def drawings_folder() -> Path:
    return models_folder() / "pictures"


def prepare_drawings(
    styles: Iterable[Style], codes: Iterable[str], progress: Progress
) -> dict[str, set[str]]:
    """For each style the code points that it draws; what is missing of them is fetched and rendered.

    Goes on where an earlier run was stopped. Raises RuntimeError when a package or the renderer is out of
    reach, ValueError for a package with other content than expected.
    """
    codes = sorted(set(codes))
    return {style.name: _prepare(style, codes, progress) for style in styles}


def _prepare(style: Style, codes: list[str], progress: Progress) -> set[str]:
    folder = drawings_folder() / "drawn" / f"{style.name}-{style.version}"
    listed = folder / "drawn.json"
    known: dict[str, bool] = json.loads(listed.read_text(encoding="utf-8")) if listed.is_file() else {}
    drawn = {code for code in codes if known.get(code) and drawing_path(style, code).is_file()}
    missing = [code for code in codes if code not in drawn and known.get(code, True)]
    if not missing:
        return drawn
    folder.mkdir(parents=True, exist_ok=True)
    for done, (code, image) in enumerate(_render(style, missing), 1):
        known[code] = image is not None
        if image is not None:
            save_picture(image, drawing_path(style, code), lossless=True)
            drawn.add(code)
        progress(style.name, done, len(missing))
    write_text(listed, json.dumps(known, sort_keys=True) + "\n")
    return drawn


def drawing_path(style: Style, code: str) -> Path:
    return drawings_folder() / "drawn" / f"{style.name}-{style.version}" / f"{code}.webp"


def save_picture(image: Any, path: Path, *, lossless: bool = False) -> None:
    """WebP, whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    image.save(beside, "WEBP", lossless=lossless, quality=80, method=4)
    os.replace(beside, path)


def _render(style: Style, codes: list[str]) -> Iterator[tuple[str, Any]]:
    """(code point, RGBA image or None where the package does not show it)."""
    if style.package.startswith("@iconify-json/"):
        yield from _render_icons(style, codes)
    else:
        yield from _read_bitmaps(style, codes)


def _render_icons(style: Style, codes: list[str]) -> Iterator[tuple[str, Any]]:
    from PIL import Image

    try:
        import resvg_py
    except ImportError:
        raise RuntimeError('drawing the pictures needs a package: pip install "resvg-py>=0.5"') from None
    icons, names = icon_set(style), spoken_names(style) if style.form else icon_names()
    for code in codes:
        drawing = svg_of(icons, style, code, names.get(code, ()))
        if drawing is None:
            yield code, None
            continue
        if style.form:
            drawing = in_colour(drawing, f"{style.name}/{code}")
        content = resvg_py.svg_to_bytes(svg_string=drawing, width=SIDE, height=SIDE)
        yield code, Image.open(BytesIO(bytes(content))).convert("RGBA")


def svg_of(icons: dict[str, Any], style: Style, code: str, names: Iterable[str]) -> str | None:
    """The icon of a code point as an SVG file's text, by the first of its names; None where it has none."""
    # one package writes its names without hyphens, one numbers several drawings of a thing
    spelled = [form for name in names for form in (name, name.replace("-", ""), f"{name}-1")]
    wanted = [style.icons[code]] if code in style.icons else spelled
    for name in wanted:
        name = icons.get("aliases", {}).get(name, {}).get("parent", name)
        icon = icons["icons"].get(name)
        if icon:
            box = {
                key: icon.get(key, icons.get(key, default))
                for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
            }
            return (
                '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
                f'viewBox="{box["left"]} {box["top"]} {box["width"]} {box["height"]}">{icon["body"]}</svg>'
            )
    return None


def icon_set(style: Style) -> dict[str, Any]:
    return dict(json.loads(_member(archive_of(style), "package/icons.json")))


def in_colour(drawing: str, seed: str) -> str:
    """The SVG of a one-coloured icon in a colour of its own, sometimes filled with a second one."""
    source = random.Random(seed)
    first, second = source.sample(INKS, 2)
    for plain, ink in (("currentColor", first), ("#000", first), ("#2F88FF", second)):
        drawing = drawing.replace(plain, ink)
    return drawing


def spoken_names(style: Style) -> dict[str, list[str]]:
    """The names of each thing's icon in a package that calls icons by what they show; of its first code.

    A name that more things have shows none of them for sure.
    """
    shared = Counter(name for thing in load_things() for name in set(thing.names["en"]))
    return {
        thing.codes[0]: [
            style.form.format(re.sub(r"\W+", "-", name.lower()))
            for name in thing.names["en"]
            if shared[name] == 1 and thing.name not in style.without
        ]
        for thing in load_things()
    }


def icon_names() -> dict[str, list[str]]:
    """The names of each code point's icon, from the packages that list them."""
    names: dict[str, set[str]] = {}
    for name in NAMED:
        listed = json.loads(_member(archive_of(load_styles()[name]), "package/chars.json"))
        for code, icon in listed.items():
            names.setdefault(_plain_code(code), set()).add(icon)
    return {code: sorted(each) for code, each in names.items()}


def _plain_code(code: str) -> str:
    """`0023-fe0f` → `23`: the form of things.toml."""
    return "-".join(part.lstrip("0") for part in code.upper().split("-") if part != "FE0F")


def _read_bitmaps(style: Style, codes: list[str]) -> Iterator[tuple[str, Any]]:
    from PIL import Image

    with tarfile.open(archive_of(style)) as archive:
        members = {
            _plain_code(Path(member.name).stem): member for member in archive if ".webp" in member.name
        }
        for code in codes:
            content = archive.extractfile(members[code]) if code in members else None
            if content is None:
                yield code, None
                continue
            yield code, Image.open(BytesIO(content.read())).convert("RGBA").resize((SIDE, SIDE))


def _member(path: Path, name: str) -> bytes:
    with tarfile.open(path) as archive:
        content = archive.extractfile(name)
        assert content is not None, f"{path} has no {name}"
        return content.read()


def archive_of(style: Style) -> Path:
    """The style's package, fetched once through npm and checked."""
    path = drawings_folder() / "packages" / f"{style.name}-{style.version}.tgz"
    if path.is_file() and sha256_of(path) == style.sha256:
        return path
    partial = path.parent / f".{style.name}.{os.getpid()}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _npm_pack(f"{style.package}@{style.version}", partial)
        found = next(partial.glob("*.tgz"), None)
        if found is None:
            raise RuntimeError(f"npm brought nothing for {style.package}@{style.version}")
        check_hash(found, style.sha256)
        os.replace(found, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return path


def _npm_pack(package: str, folder: Path) -> None:
    """Raises RuntimeError, one sentence, when npm is missing or its registry does not answer."""
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError("the drawings come from npm packages, and npm is missing: apt-get install npm")
    command = [
        npm,
        "pack",
        package,
        "--silent",
        "--ignore-scripts",
        "--fetch-retries=2",
        "--fetch-retry-mintimeout=1000",
    ]
    done = subprocess.run(
        [*command, "--loglevel=error", "--pack-destination", str(folder)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, encoding="utf-8", errors="replace",
    )  # fmt: skip
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        reason = next(
            (line for line in lines if "code" in line or "error" in line.lower()), "no reason given"
        )
        raise RuntimeError(f"npm could not download {package} ({reason}); check the network and try again")
