"""Make the identity data of one assistant: train.jsonl, dev.jsonl, card.toml, statistics.json.

Run: python scripts/gen_identity_data.py --name Ada
"""

import dataclasses
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tomli_w
import tyro

from assistant.card import Card, load_card
from assistant.conversations import Format, write_rows
from assistant.identity import DEV_SHARE, make_rows, statistics
from assistant.settings import plain_values, run_command, save_settings, slug, write_text


@dataclass(frozen=True)
class Settings:
    name: str = ""
    """The person (or, with --owner, the assistant's own name)."""
    owner: str = ""
    """Whose assistant it is, when the assistant has a name of its own."""
    card: Path | None = None
    """An identity card in TOML: name, owner, role, languages, names, facts, base. Flags win over it."""
    languages: tuple[str, ...] = ()
    """Languages of the rows, of those in data/identity/; default zh en."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 1200
    """Rows of train.jsonl; dev.jsonl has an eighth more, of wordings that train.jsonl never holds."""
    base: str = ""
    """Name of the base model, for "I run on …"; default SmolLM2-135M-Instruct."""
    format: Format = "openai"
    seed: int = 0
    out: Path | None = field(default=None)
    """Default out/NAME/data."""


def card_of(settings: Settings) -> Card:
    card = load_card(settings.card) if settings.card else Card(name=settings.name)
    flags = {
        "name": settings.name,
        "owner": settings.owner,
        "languages": settings.languages,
        "base": settings.base,
    }
    return dataclasses.replace(card, **{key: value for key, value in flags.items() if value})  # type: ignore[arg-type]


def main(settings: Settings) -> None:
    if settings.n < 20:
        raise ValueError(
            f"-n {settings.n} is too few rows to hold every kind; give at least 20 (default 1200)"
        )
    card = card_of(settings)
    out = settings.out or Path("out") / slug(card.name) / "data"
    parts = {
        "train": make_rows(card, settings.n, settings.seed),
        "dev": make_rows(card, max(20, settings.n // DEV_SHARE), settings.seed, dev=True),
    }
    counts = {part: statistics(rows) for part, rows in parts.items()}
    for part, rows in parts.items():
        write_rows(out / f"{part}.jsonl", rows, settings.format)
    write_text(out / "card.toml", tomli_w.dumps(plain_values(card)))
    write_text(out / "statistics.json", json.dumps(counts, ensure_ascii=False, indent=1) + "\n")
    save_settings(out, plain_values(settings))
    train = counts["train"]
    print(
        f"{out}: {train['rows']} rows to train on ({train['distinct_questions']} questions, "
        f"{train['distinct_answers']} answers), {counts['dev']['rows']} held-out rows",
        file=sys.stderr,
    )


if __name__ == "__main__":
    run_command(main, Settings)
