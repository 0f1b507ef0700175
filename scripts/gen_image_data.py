"""Make pictures with titles, questions and answers for both stages of a LLaVA, and held-out probes.

Run: python scripts/gen_image_data.py --name Ada

Writes align.json (stage 1), train.json (stage 2), dev.jsonl (styles and wordings that neither holds),
seen.jsonl (known styles, held-out wordings) and images/, in LLaVA's format.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from assistant.card import Card, load_card
from assistant.pictures.making import Wanted, make_pictures
from assistant.pictures.scenes import SIDE
from assistant.settings import plain_values, run_command


@dataclass(frozen=True)
class Settings:
    name: str = ""
    """Whose assistant it is: identity questions are mixed in, with and without a picture."""
    data: Path | None = None
    """Instead of --name: a folder of gen_identity_data.py, whose card.toml is taken."""
    stage: Literal["align", "instruct", "both"] = "both"
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 40_000
    """Rows of stage 2; they share the pictures."""
    n_align: int = 20_000
    """Rows of stage 1: each picture in turn with an English and a Chinese title."""
    pictures: int = 10_000
    """Different pictures that are trained on."""
    probes: int = 200
    """Held-out probes of each kind, half in each language."""
    held_out: tuple[str, ...] = ()
    """Families of styles that only the probes show; default twemoji fxemoji (data/pictures/styles.toml)."""
    restyled: float = 0.0
    """Share of the pictures that are trained on whose drawings are changed as if another hand had made them:
    outlined, flattened, shaded."""
    side: int = SIDE
    """Pixels of a picture each way."""
    base: str = "smollm2-135m-instruct"
    """Whose shipped answers to general prompts are the rows of text alone."""
    seed: int = 0
    workers: int = min(8, os.cpu_count() or 1)
    """Processes that draw; their number changes no picture."""
    out: Path = Path("out/pictures")


def card_of(settings: Settings) -> Card | None:
    if settings.name and settings.data:
        raise ValueError("--name and --data both say whose assistant it is; give one of them")
    if settings.data:
        return load_card(settings.data / "card.toml")
    return Card(name=settings.name) if settings.name else None


def main(settings: Settings) -> None:
    card = card_of(settings)
    if card is None:
        print("no --name and no --data: no identity rows are mixed in", file=sys.stderr)
    wanted = Wanted(
        align=settings.n_align if settings.stage != "instruct" else 0,
        instruct=settings.n if settings.stage != "align" else 0,
        pictures=settings.pictures,
        probes=settings.probes,
        seed=settings.seed,
        side=settings.side,
        held_out=settings.held_out,
        base=settings.base,
        restyled=settings.restyled,
    )
    make_pictures(wanted, card, settings.out, settings.workers, plain_values(settings))
    images = sum(1 for _ in (settings.out / "images").iterdir())
    print(
        f"{settings.out}: {wanted.align} titles, {wanted.instruct} rows of questions, {images} pictures",
        file=sys.stderr,
    )


if __name__ == "__main__":
    run_command(main, Settings)
