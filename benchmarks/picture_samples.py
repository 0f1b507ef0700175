"""Draw what both stages of a LLaVA answer about the same pictures: a grid for the docs.

Run: python benchmarks/picture_samples.py --align out/ada/llava_align --instruct out/ada/llava \\
        --data out/pictures --out docs/eyes.png

The questions are drawn by --seed from the held-out ones, one of each kind and language in turn; none is left
out for its answer. Right and wrong is picture_judge's verdict.
"""

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from assistant.backends import Sampling, open_backend
from assistant.images import open_image
from assistant.picture_questions import KINDS, PictureProbe, load_picture_probes
from assistant.picture_scorecard import ANSWER_TOKENS, is_right
from assistant.pictures.things import LANGUAGES, load_styles
from assistant.settings import run_command

COLUMNS, MOST_LINES = 3, 2
PICTURE, GAP, TEXT_WIDTH = 132, 18, 236
CARD_HEIGHT, CARD_WIDTH, MARGIN, HEAD, FOOT = 168, PICTURE + GAP + TEXT_WIDTH, 28, 62, 44
INK, GREY, PALE, RIGHT, WRONG, PAPER = "#1f2430", "#6b7280", "#e5e7eb", "#15803d", "#b91c1c", "#ffffff"
COLOURS = 256  # of the file: keeps it small
Font = ImageFont.FreeTypeFont


@dataclass(frozen=True)
class Settings:
    align: str
    """The model after stage 1, which titles every picture."""
    instruct: str
    """The model after stage 2, which answers."""
    data: Path = Path("out/pictures")
    out: Path = Path("docs/eyes.png")
    cards: int = 15
    seed: int = 0
    font: Path | None = None
    """A font with Chinese; default: the machine's."""


def chosen(probes: list[PictureProbe], count: int, seed: int) -> list[PictureProbe]:
    """`count` held-out questions: the kinds in turn, then again in the other language."""
    source = random.Random(seed)
    groups: dict[tuple[str, str], list[PictureProbe]] = {}
    for probe in probes:
        if probe.split == "held_out":
            groups.setdefault((probe.kind, probe.lang), []).append(probe)
    order = [
        (kind, LANGUAGES[(place + turn) % 2])
        for turn in range(2 * count)
        for place, kind in enumerate(KINDS)
        if (kind, LANGUAGES[(place + turn) % 2]) in groups
    ]
    waiting = {key: source.sample(group, len(group)) for key, group in sorted(groups.items())}
    return [waiting[key].pop() for key in order if waiting[key]][:count]


def answers_of(model: str, probes: list[PictureProbe]) -> list[str]:
    messages = [probe.messages for probe in probes]
    return open_backend(model).answer_all(messages, Sampling(max_new_tokens=ANSWER_TOKENS))


def find_font() -> Path:
    """A font of this machine that has Chinese. Raises RuntimeError where there is none."""
    if shutil.which("fc-match"):
        found = subprocess.run(
            ["fc-match", "-f", "%{file}|%{lang}", ":lang=zh-cn"], capture_output=True, text=True
        )
        path, _, languages = found.stdout.partition("|")
        if path and "zh-cn" in languages:
            return Path(path)
    raise RuntimeError("no font with Chinese; run: apt-get install fonts-wqy-microhei (or give --font)")


def wrapped(text: str, font: Font, width: int) -> list[str]:
    """The text in at most MOST_LINES lines, cut with … when it is longer; Chinese breaks anywhere."""
    lines, rest = [], " ".join(text.split()) or "…"
    while rest and len(lines) < MOST_LINES:
        end = next((n for n in range(len(rest), 1, -1) if font.getlength(rest[:n]) <= width), 1)
        if end < len(rest) and " " in rest[:end] and rest[end - 1].isascii() and rest[end].isascii():
            end = rest[: end + 1].rindex(" ")
        lines.append(rest[:end])
        rest = rest[end:].lstrip()
    if rest:
        while font.getlength(lines[-1] + "…") > width:
            lines[-1] = lines[-1][:-1]
        lines[-1] += "…"
    return lines


def draw_card(
    sheet: Image.Image, corner: tuple[int, int], probe: PictureProbe, answers: tuple[str, str], fonts: Any
) -> None:
    """A picture, the question, and the answer of each stage, coloured by whether it is right."""
    left, top = corner
    pen = ImageDraw.Draw(sheet)
    picture = open_image(probe.messages[0]["images"][0]).resize((PICTURE, PICTURE), Image.Resampling.LANCZOS)
    sheet.paste(picture, corner)
    pen.rectangle((left, top, left + PICTURE, top + PICTURE), outline=PALE)
    x, y = left + PICTURE + GAP, top - 2
    for line in wrapped(probe.messages[-1]["content"], fonts["question"], TEXT_WIDTH):
        pen.text((x, y), line, INK, fonts["question"], stroke_width=0.3, stroke_fill=INK)
        y += 20
    for label, answer in zip(("stage 1", "stage 2"), answers, strict=True):
        right = is_right(probe, answer)
        y += 7
        pen.text((x, y), f"{label}: {'right' if right else 'wrong'}", GREY, fonts["small"])
        y += 15
        for line in wrapped(answer, fonts["answer"], TEXT_WIDTH):
            pen.text((x, y), line, RIGHT if right else WRONG, fonts["answer"])
            y += 18


def credits_of(probes: list[PictureProbe]) -> Iterator[str]:
    for style in sorted({probe.style for probe in probes}):
        known = load_styles()[style]
        yield f"{style} by {known.author} ({known.licence})"


def draw_sheet(
    probes: list[PictureProbe], titles: list[str], answers: list[str], font: Path, seed: int
) -> Image.Image:
    rows = -(-len(probes) // COLUMNS)
    size = (2 * MARGIN + COLUMNS * (CARD_WIDTH + GAP) - GAP, HEAD + rows * CARD_HEIGHT + FOOT)
    sheet = Image.new("RGB", size, PAPER)
    fonts = {
        key: ImageFont.truetype(str(font), points)
        for key, points in (("title", 19), ("question", 15), ("answer", 15), ("small", 12))
    }
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, 16), "Styles and wordings that were never trained on", INK, fonts["title"])
    for index, probe in enumerate(probes):
        row, column = divmod(index, COLUMNS)
        corner = MARGIN + column * (CARD_WIDTH + GAP), HEAD + row * CARD_HEIGHT
        draw_card(sheet, corner, probe, (titles[index], answers[index]), fonts)
    how = f"Questions drawn by seed {seed}, none left out for its answer."
    pen.text((MARGIN, size[1] - FOOT + 2), how, GREY, fonts["small"])
    pen.text(
        (MARGIN, size[1] - FOOT + 19), f"Drawings: {'; '.join(credits_of(probes))}", GREY, fonts["small"]
    )
    return sheet


def save_sheet(sheet: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    sheet.quantize(COLOURS, dither=Image.Dither.NONE).save(beside, "PNG", optimize=True)
    os.replace(beside, path)


def main(settings: Settings) -> None:
    font = settings.font or find_font()
    probes = chosen(load_picture_probes(settings.data), settings.cards, settings.seed)
    titles, answers = answers_of(settings.align, probes), answers_of(settings.instruct, probes)
    save_sheet(draw_sheet(probes, titles, answers, font, settings.seed), settings.out)
    print(
        f"{settings.out}: {len(probes)} questions, {settings.out.stat().st_size // 1000} kB", file=sys.stderr
    )


if __name__ == "__main__":
    run_command(main, Settings)
