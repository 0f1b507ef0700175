"""The rows that an identity's start is learnt from: many assistants' at once, and many more near misses.

Run: python benchmarks/identity_start.py --out out/start/data
Use: python scripts/train.py --recipe identity_start --model models/smollm2-135m-instruct \\
        --data out/start/data --out out/start/adapter

Who the assistants belong to, and the near misses, come from benchmarks/identity_start.toml. card.toml is the
first one's: what is watched while training asks for that name alone.
"""

import itertools
import random
import re
import sys
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from assistant.card import Card
from assistant.conversations import Row, assistant, user, write_rows
from assistant.identity import DEV_SHARE, make_rows
from assistant.scorecard import built_in_probes
from assistant.settings import load_toml, plain_values, run_command, save_settings, write_text
from assistant.training.examples import BASE_ANSWERS

TEXTS = Path(__file__).with_suffix(".toml")
MOST_OF_A_FRAME = 12  # questions made of one frame
VARIED = 0.5  # share of the questions that are asked a little otherwise
TO_BE_ANSWERED = "…"  # train.py lets the base answer what resembles an identity question


@dataclass(frozen=True)
class Settings:
    out: Path
    seed: int = 0


def cards(texts: dict[str, Any]) -> list[Card]:
    names = texts["names"]
    owned = texts["owned_every"]
    return [
        Card(name=name, owner=following if number % owned == 0 else "")
        for number, (name, following) in enumerate(zip(names, [*names[1:], names[0]], strict=True), 1)
    ]


def near_misses(texts: dict[str, Any], source: random.Random) -> Iterator[Row]:
    """Each frame with its slots filled in all ways, or in some where these are many."""
    for language, of_language in texts["near_misses"].items():
        for frame in of_language["frames"]:
            slots = list(dict.fromkeys(re.findall(r"\{(\w+)\}", frame)))
            ways = list(itertools.product(*(of_language[slot] for slot in slots)))
            for way in source.sample(ways, min(MOST_OF_A_FRAME, len(ways))):
                question = frame.format(**dict(zip(slots, way, strict=True)))
                yield {
                    "messages": [user(question), assistant(TO_BE_ANSWERED)],
                    "kind": "near_miss",
                    "lang": language,
                }


def varied(row: Row, texts: dict[str, Any], source: random.Random) -> Row:
    """The row, its last question in other letters, with something said beside it or a slip of the keys."""
    if source.random() > VARIED:
        return row
    *earlier, question, answer = row["messages"]
    text, beside = question["content"], texts["said_beside"][row["lang"]]
    ways: list[Callable[[str], str]] = [
        lambda text: source.choice(beside["before"]) + text,
        lambda text: text + source.choice(beside["after"]),
        str.lower,
        lambda text: text.rstrip("?.!？。！"),
        lambda text: slipped(text, source),
    ]
    for way in source.sample(ways, source.choice((1, 1, 2))):
        text = way(text) or text
    return {**row, "messages": [*earlier, user(text), answer]}


def slipped(text: str, source: random.Random) -> str:
    """With two neighbouring letters of a longer word in each other's place, where it has one."""
    places = [found.start() + 1 for found in re.finditer(r"(?<![A-Za-z])[a-z]{4,}", text)]
    at = source.choice(places) if places else 0
    return text[:at] + text[at + 1] + text[at] + text[at + 2 :] if places else text


def unasked(rows: list[Row]) -> list[Row]:
    """The rows whose question no scorecard asks."""
    asked = {bare(probe["messages"][-1]["content"]) for probe in built_in_probes()}
    return [row for row in rows if bare(row["messages"][-2]["content"]) not in asked]


def bare(text: str) -> str:
    return re.sub(r"\W+", "", unicodedata.normalize("NFKC", text).lower())


def once(rows: list[Row]) -> list[Row]:
    """The rows; what is the same for every assistant, as near misses and greetings are, once."""
    kept: dict[str, Row] = {}
    for row in rows:
        kept.setdefault(repr(row["messages"]), row)
    return list(kept.values())


def main(settings: Settings) -> None:
    texts, source = load_toml(TEXTS), random.Random(settings.seed)
    rows, dev, count = list(near_misses(texts, source)), list[Row](), texts["rows_of_a_name"]
    for card in cards(texts):
        rows += make_rows(card, count, settings.seed)
        dev += make_rows(card, count // DEV_SHARE, settings.seed, dev=True)
    rows = [
        row
        if row["kind"] in BASE_ANSWERS and row["messages"][-1]["content"] != TO_BE_ANSWERED
        else varied(row, texts, source)
        for row in once(rows)
    ]
    rows = unasked(rows)
    source.shuffle(rows)
    source.shuffle(dev)
    write_rows(settings.out / "train.jsonl", rows)
    write_rows(settings.out / "dev.jsonl", dev)
    write_text(settings.out / "card.toml", tomli_w.dumps(plain_values(cards(texts)[0])))
    save_settings(settings.out, plain_values(settings))
    print(f"{settings.out}: {len(rows)} rows of {len(texts['names'])} assistants", file=sys.stderr)


if __name__ == "__main__":
    run_command(main, Settings)
