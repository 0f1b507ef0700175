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
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from assistant.anchors import general_prompts
from assistant.card import Card
from assistant.conversations import Row, assistant, system, user, write_rows
from assistant.identity import DEV_SHARE, Wordings, make_rows
from assistant.scorecard import built_in_probes
from assistant.settings import load_toml, plain_values, run_command, save_settings, write_text
from assistant.training.examples import BASE_ANSWERS

TEXTS = Path(__file__).with_suffix(".toml")
MOST_OF_A_FRAME = 12  # questions made of one frame
VARIED = 0.5  # share of the questions that are asked a little otherwise
RULED = 0.15  # share of those with a rule, a role or a remark beside them
ASKERS = 2  # assistants of whom each question of [asked] is asked
PRESSED = 4  # questions of each part of [pressed] that each assistant is asked
SHORTEST_WITHIN = 12  # letters of a probe that no longer question holds, or half as many characters
TO_BE_ANSWERED = "…"  # train.py lets the base answer what resembles an identity question


@dataclass(frozen=True)
class Settings:
    out: Path
    seed: int = 0
    rows: int = 0
    """Rows of each assistant that gen_identity_data.py would make, instead of the file's number."""


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
        for question in all_filled(of_language["frames"], of_language, source):
            yield near_miss(language, question)


def near_miss(language: str, question: str) -> Row:
    messages = [user(question), assistant(TO_BE_ANSWERED)]
    return {"messages": messages, "kind": "near_miss", "lang": language}


def all_filled(frames: list[str], slots: dict[str, list[str]], source: random.Random) -> Iterator[str]:
    for frame in frames:
        names = list(dict.fromkeys(re.findall(r"\{(\w+)\}", frame)))
        ways = list(itertools.product(*(slots[name] for name in names)))
        for way in source.sample(ways, min(MOST_OF_A_FRAME, len(ways))):
            yield frame.format(**dict(zip(names, way, strict=True)))


def wordings(texts: dict[str, Any]) -> dict[str, list[Wordings]]:
    """What every assistant is asked in each language, and answers."""
    return {
        language: [Wordings(card, language, dev=False) for card in cards(texts)]
        for language in texts["asked"]
    }


def asked(
    texts: dict[str, Any], assistants: dict[str, list[Wordings]], source: random.Random
) -> Iterator[Row]:
    """Questions about the assistant as of somebody else, or after introducing oneself."""
    for language, of_language in texts["asked"].items():
        for intent, frames in of_language["asks"].items():
            for question in all_filled(frames, of_language, source):
                for words in source.sample(assistants[language], min(ASKERS, len(assistants[language]))):
                    answer = words.fill(source.choice(words.texts["intents"][intent]["answers"]))
                    messages = [user(question), assistant(answer)]
                    yield {"messages": messages, "kind": "identity", "lang": language}


def pressed(
    texts: dict[str, Any], assistants: dict[str, list[Wordings]], source: random.Random
) -> Iterator[Row]:
    """More denials and more pressure, for every assistant."""
    for language, of_language in texts["pressed"].items():
        slots = of_language | {"other": ["{other}"], "maker": ["{maker}"]}
        for kind, section in (("denial", "denials"), ("pressure", "pressure")):
            questions = list(all_filled(of_language[section], slots, source))
            for known in assistants[language]:
                words = copy(known)
                words.texts = words.texts | {section: words.texts[section] | {"questions": questions}}
                for question, answer in itertools.islice(words.with_others(section, source), PRESSED):
                    yield {"messages": [user(question), assistant(answer)], "kind": kind, "lang": language}


def under_rules(texts: dict[str, Any], source: random.Random) -> Iterator[Row]:
    """Questions about other things with a rule, a role or a remark beside them."""
    for language, said in texts["said_with"].items():
        frames = texts["near_misses"][language]["frames"]
        questions = list(all_filled(frames, texts["near_misses"][language], source))
        questions += [
            row["messages"][0]["content"]
            for row in general_prompts()
            if row["lang"] == language and len(row["messages"]) == 1
        ]
        for question in questions:
            yield beside(near_miss(language, question), said, ["above", "before", "after", "played"], source)


def beside(row: Row, said: dict[str, list[str]], places: list[str], source: random.Random) -> Row:
    """The row with something said in one of these places: above it, or in its last question."""
    place = source.choice(places)
    text = re.sub(r"\{(\w+)\}", lambda found: source.choice(said[found[1]]), source.choice(said[place]))
    *earlier, question, answer = row["messages"]
    asked = question["content"]
    if place == "above":
        return {**row, "messages": [system(text), *row["messages"]]}
    return {**row, "messages": [*earlier, user(asked + text if place == "after" else text + asked), answer]}


def varied(row: Row, texts: dict[str, Any], source: random.Random) -> Row:
    """The row, its last question in other letters, with something said beside it or a slip of the keys.

    Nobody who asks the assistant about itself gives it a role in the same message: who is meant would be
    unclear.
    """
    if source.random() < RULED:
        places = ["above"] * (row["messages"][0]["role"] != "system") + ["before", "after"]
        return beside(row, texts["said_with"][row["lang"]], places, source)
    if source.random() > VARIED:
        return row
    *earlier, question, answer = row["messages"]
    text, words = question["content"], texts["said_beside"][row["lang"]]
    ways: list[Callable[[str], str]] = [
        lambda text: source.choice(words["before"]) + text,
        lambda text: text + source.choice(words["after"]),
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
    """The rows whose question no scorecard asks, neither alone nor with something beside it."""
    asked = {bare(probe["messages"][-1]["content"]) for probe in built_in_probes()}
    shortest = {text: SHORTEST_WITHIN if text.isascii() else SHORTEST_WITHIN // 2 for text in asked}
    longer = re.compile("|".join(re.escape(text) for text in asked if len(text) >= shortest[text]))
    return [
        row
        for row, text in ((row, bare(row["messages"][-2]["content"])) for row in rows)
        if text not in asked and not longer.search(text)
    ]


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
    assistants = wordings(texts)
    rows, dev = list(near_misses(texts, source)), list[Row]()
    for more in (asked, pressed):
        rows += more(texts, assistants, source)
    count = settings.rows or texts["rows_of_a_name"]
    for card in cards(texts):
        rows += make_rows(card, count, settings.seed)
        dev += make_rows(card, count // DEV_SHARE, settings.seed, dev=True)
    rows = [
        row
        if row["kind"] in BASE_ANSWERS and row["messages"][-1]["content"] != TO_BE_ANSWERED
        else varied(row, texts, source)
        for row in once(rows)
    ]
    rows = unasked([*rows, *under_rules(texts, source)])
    source.shuffle(rows)
    source.shuffle(dev)
    write_rows(settings.out / "train.jsonl", rows)
    write_rows(settings.out / "dev.jsonl", dev)
    write_text(settings.out / "card.toml", tomli_w.dumps(plain_values(cards(texts)[0])))
    save_settings(settings.out, plain_values(settings))
    print(f"{settings.out}: {len(rows)} rows of {len(texts['names'])} assistants", file=sys.stderr)


if __name__ == "__main__":
    run_command(main, Settings)
