"""How a question is worded: one of data/pictures' wordings, and for training the same said otherwise.

Every fifth wording is held out for the probes and never said otherwise; none that a probe asks comes out of
another one. Knows nothing of scenes and things.
"""

import random
import re
from functools import cache
from typing import Any

from assistant.pictures.things import LANGUAGES, load_texts

HELD_OUT_EVERY = 5
EXCHANGED = 0.5  # of the phrases that could be another
OPENED = 0.12  # share of the questions that begin with a word of politeness
BARE = 0.12  # share without the mark at their end
# The sections that probes are asked from.
ASKED = ("name", "kind", "yes_no_kind", "yes_no_name", "count", "colour", "language", "several", "no_image")


def choose_wording(language: str, section: str, source: random.Random, *, held_out: bool) -> Any:
    """[question, answer] with slots in braces, or a text alone, as the section of data/pictures has it."""
    items = load_texts(language)[section]
    item = source.choice([one for index, one in enumerate(items) if is_held_out(index) == held_out])
    if held_out:
        return item
    if isinstance(item, str):
        return said_otherwise(item, language, source)
    question, answer = item
    return [said_otherwise(question, language, source), answer]


def is_held_out(index: int) -> bool:
    return index % HELD_OUT_EVERY == HELD_OUT_EVERY - 1


def said_otherwise(question: str, language: str, source: random.Random) -> str:
    """The question with some phrases exchanged for others of the same meaning, now and then with an opening
    or without the mark at its end. One that would be a held-out wording stays as it is."""
    pattern, groups = _exchanges(language)

    def exchanged(match: re.Match[str]) -> str:
        others = [phrase for phrase in groups.get(match[0], ()) if phrase != match[0]]
        return source.choice(others) if others and source.random() < EXCHANGED else match[0]

    said = pattern.sub(exchanged, question)
    if source.random() < OPENED:
        said = source.choice(load_texts(language)["openings"]) + said
    if source.random() < BARE:
        said = said.rstrip("?.？。")
    return question if _core(said, language) in _held_out_cores() else said


@cache
def _exchanges(language: str) -> tuple[re.Pattern[str], dict[str, list[str]]]:
    """(what finds a slot or a phrase, the group of each phrase)"""
    groups = {phrase: group for group in load_texts(language)["alike"] for phrase in group}
    longest_first = sorted(groups, key=len, reverse=True)
    edge = r"\b" if language == "en" else ""
    found = "|".join(re.escape(phrase) + (edge if phrase[-1].isalnum() else "") for phrase in longest_first)
    return re.compile(r"\{\w+\}|" + f"{edge}(?:{found})"), groups


@cache
def _held_out_cores() -> frozenset[str]:
    return frozenset(
        _core(item if isinstance(item, str) else item[0], language)
        for language in LANGUAGES
        for section in ASKED
        for index, item in enumerate(load_texts(language)[section])
        if is_held_out(index)
    )


def _core(wording: str, language: str) -> str:
    """The wording without opening, marks and capitals."""
    for opening in load_texts(language)["openings"]:
        wording = wording.removeprefix(opening)
    return re.sub(r"[^\w{}]", "", wording).casefold()
