"""Makes the folder of picture data: scenes → pictures, rows, probes. Written beside, then renamed.

A run that was stopped goes on with the pictures that it had drawn.
"""

import json
import os
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import tomli_w

from assistant.card import Card
from assistant.pictures.composing import make_scenes
from assistant.pictures.mixture import (
    Record,
    align_records,
    image_path,
    instruct_records,
    shown_record,
    statistics,
)
from assistant.pictures.packages import prepare_drawings, save_picture
from assistant.pictures.probes import make_probes
from assistant.pictures.scenes import SIDE, Scene, draw_scene
from assistant.pictures.things import held_out_families, load_styles, load_things
from assistant.settings import check_replaceable, plain_values, save_settings, write_text

ALIGN, INSTRUCT, PROBES, SEEN = "align.json", "train.json", "dev.jsonl", "seen.jsonl"
SHOWN = "shown.jsonl"  # what each picture that is trained on shows
CHUNK = 64  # pictures that a process draws at a time


@dataclass(frozen=True)
class Wanted:
    """What is to be made. `align`, `instruct`: rows of each stage; `probes`: of each kind.

    `restyled`: the share of the pictures to learn from whose drawings are changed.
    """

    align: int
    instruct: int
    pictures: int
    probes: int
    seed: int
    side: int = SIDE
    held_out: tuple[str, ...] = ()
    base: str = "smollm2-135m-instruct"
    restyled: float = 0.0


def make_pictures(
    wanted: Wanted, card: Card | None, out: Path, workers: int, settings: dict[str, Any]
) -> None:
    """Write `out`, which is replaced when it was made by an earlier run.

    Raises ValueError for numbers that make no data and RuntimeError when packages are out of reach.
    """
    check_replaceable(out, (out / PROBES).is_file() and (out / "images").is_dir())
    _check(wanted, workers)
    held_out = held_out_families(wanted.held_out)
    styles = load_styles()
    drawn = prepare_drawings(styles.values(), {c for thing in load_things() for c in thing.codes}, _progress)
    trained = [name for name, style in styles.items() if style.family not in held_out]
    unseen = [name for name, style in styles.items() if style.family in held_out]
    scenes = make_scenes(drawn, trained, wanted.pictures, f"{wanted.seed}/train", "t", wanted.restyled)
    emoji = [name for name in trained if not styles[name].form] or trained
    seen = make_scenes(drawn, emoji, wanted.probes * 4, f"{wanted.seed}/seen", "s")
    dev = make_scenes(drawn, unseen, wanted.probes * 8, f"{wanted.seed}/dev", "d")
    files: dict[str, list[Record]] = {
        PROBES: make_probes(dev, wanted.probes, f"{wanted.seed}/dev", card),
        SEEN: make_probes(seen, max(wanted.probes // 4, 4), f"{wanted.seed}/seen", None),
    }
    if wanted.align:
        files[ALIGN] = align_records(scenes, wanted.align, f"{wanted.seed}/align")
    if wanted.instruct:
        files[INSTRUCT] = instruct_records(
            scenes, wanted.instruct, f"{wanted.seed}/instruct", card, wanted.base
        )
    used = {record["image"] for records in files.values() for record in records if "image" in record}
    files[SHOWN] = [shown_record(scene) for scene in scenes if image_path(scene) in used]
    every = [scene for scene in (*scenes, *seen, *dev) if image_path(scene) in used]
    _write(files, every, scenes, card, wanted, out, workers, settings)


def _check(wanted: Wanted, workers: int) -> None:
    if workers < 1:
        raise ValueError(f"--workers {workers}: at least one process must draw")
    if wanted.pictures < 100:
        raise ValueError(
            f"--pictures {wanted.pictures} is too few to ask every kind of question; give 100 or more"
        )
    if not 0 <= wanted.restyled <= 1:
        raise ValueError(f"--restyled {wanted.restyled}: a share lies between 0 and 1")
    if not 32 <= wanted.side <= SIDE:
        raise ValueError(f"--side {wanted.side}: pictures are 32 to {SIDE} pixels wide")
    if wanted.instruct and wanted.instruct < 100:
        raise ValueError(f"-n {wanted.instruct} is too few rows to hold every kind; give at least 100")
    if wanted.align and wanted.align < 2 or wanted.probes < 8:
        raise ValueError("--n-align must be at least 2, and --probes at least 8")


def _write(
    files: dict[str, list[Record]],
    every: list[Scene],
    scenes: list[Scene],
    card: Card | None,
    wanted: Wanted,
    out: Path,
    workers: int,
    settings: dict[str, Any],
) -> None:
    out = out.resolve()
    partial = out.with_name(f".{out.name}.partial")
    _go_on_or_begin(partial, every, wanted.side)
    _draw(every, partial, wanted.side, workers)
    for name, records in files.items():
        write_text(partial / name, _as_text(records, lines=name.endswith(".jsonl")))
    rows = [*files.get(ALIGN, []), *files.get(INSTRUCT, [])]
    counts = statistics(rows, files[PROBES], scenes)
    write_text(partial / "statistics.json", json.dumps(counts, ensure_ascii=False, indent=1) + "\n")
    write_text(partial / "LICENCES.md", licences({scene.style for scene in every}))
    if card is not None:
        write_text(partial / "card.toml", tomli_w.dumps(plain_values(card)))
    save_settings(partial, settings)
    (partial / "plan").unlink()
    if out.exists():
        shutil.rmtree(out)
    os.replace(partial, out)


def _as_text(records: list[Record], *, lines: bool) -> str:
    each = [json.dumps(record, ensure_ascii=False) for record in records]
    return "\n".join(each) + "\n" if lines else "[\n" + ",\n".join(each) + "\n]\n"


def _go_on_or_begin(partial: Path, scenes: list[Scene], side: int) -> None:
    """Keep what a stopped run drew when it drew the same scenes; else begin with an empty folder."""
    plan = sha256(repr((side, scenes)).encode()).hexdigest()
    if not (partial / "plan").is_file() or (partial / "plan").read_text(encoding="utf-8") != plan:
        shutil.rmtree(partial, ignore_errors=True)
        (partial / "images").mkdir(parents=True)
        write_text(partial / "plan", plan)


def _draw(scenes: list[Scene], folder: Path, side: int, workers: int) -> None:
    missing = [scene for scene in scenes if not (folder / image_path(scene)).is_file()]
    chunks = [missing[start : start + CHUNK] for start in range(0, len(missing), CHUNK)]
    done = len(scenes) - len(missing)
    if workers == 1:
        for chunk in chunks:
            done += _draw_chunk(chunk, folder, side)
            _progress("pictures", done, len(scenes))
        return
    with ProcessPoolExecutor(workers) as pool:
        count = len(chunks)
        for drawn in pool.map(_draw_chunk, chunks, [folder] * count, [side] * count):
            done += drawn
            _progress("pictures", done, len(scenes))


def _draw_chunk(scenes: Sequence[Scene], folder: Path, side: int) -> int:
    styles = load_styles()
    for scene in scenes:
        image = draw_scene(scene, styles[scene.style])
        save_picture(image if side == SIDE else image.resize((side, side)), folder / image_path(scene))
    return len(scenes)


def _progress(what: str, done: int, of: int) -> None:
    step = max(1, of // 10)
    if done == of or done % step < (CHUNK if what == "pictures" else 1):
        print(f"  {what}: {done}/{of}", file=sys.stderr, flush=True)


def licences(names: set[str]) -> str:
    """Whose drawings the pictures show, and on what terms: CC BY asks for it wherever they go."""
    lines = [
        "# The drawings in these pictures",
        "",
        "Changed: cut out, turned, resized, put on other grounds.",
        "",
    ]
    for name in sorted(names):
        style = load_styles()[name]
        lines.append(f"- {name}: {style.author}, {style.licence}, npm {style.package} {style.version}")
    return "\n".join(lines) + "\n"
