"""Judges by rules whether an answer about a picture is right. The word lists are data/pictures/judge.toml.

Knows nothing of models and pixels; of pictures only the names in data/pictures/.
"""

import re
from collections.abc import Iterable
from functools import cache
from typing import Any

from assistant.pictures.things import LANGUAGES, PICTURES, load_texts, load_things, plural
from assistant.settings import load_toml

CHINESE = re.compile(r"[\u3400-\u9fff]")
MOST_WRONG = 1  # other things that an answer may mention beside the right one
NAMES = ("name_en", "name_zh", "language", "several", "name", "title")


def judge_picture(probe: dict[str, Any], answer: str) -> bool:
    """Whether `answer` is right for a probe of dev.jsonl: "kind", "lang", "answers".

    Identity is another judge's matter (judge.py). Raises ValueError for an unknown kind.
    """
    kind, accepted, language = probe["kind"], probe["answers"], probe.get("lang", "en")
    if kind in NAMES:
        known = names_of(language)
        right_tongue = kind == "title" or speaks(answer, language)
        return right_tongue and _says_each(answer, accepted, known)
    if kind in ("kind", "colour"):
        return speaks(answer, language) and _says_each(answer, accepted, choices_of(kind, language))
    if kind == "yes_no":
        return says_yes(answer) is (accepted[0][0] == "yes")
    if kind == "count":
        return numbers_in(answer) == {int(accepted[0][0])}
    if kind == "no_image":
        return says_no_image(answer)
    raise ValueError(f"no rule judges picture answers of kind {kind!r}")


@cache
def words() -> dict[str, Any]:
    return load_toml(PICTURES / "judge.toml")


@cache
def names_of(language: str) -> frozenset[str]:
    """All names of all things, singular and plural, as they are compared."""
    return _spoken(name for thing in load_things() for name in thing.names[language])


@cache
def choices_of(kind: str, language: str) -> frozenset[str]:
    """What a question for the "kind" or the "colour" may be answered with, as it is compared."""
    section, first = ("kinds", 1) if kind == "kind" else ("colour_names", 0)  # a kind's first has an article
    return _spoken(name for names in load_texts(language)[section].values() for name in names[first:])


def _spoken(names: Iterable[str]) -> frozenset[str]:
    return frozenset(form for name in names for form in _forms(name))


def _forms(name: str) -> set[str]:
    """`dog`, `dogs`; a Chinese name is itself."""
    name = _plain(name)
    return {name} if CHINESE.search(name) else {name, plural(name)}


def speaks(answer: str, language: str) -> bool:
    """Whether an answer is in the language: Chinese has Chinese characters, English none."""
    return bool(CHINESE.search(answer)) == (language == "zh")


def says_name(answer: str, accepted: list[str], language: str = "en") -> bool:
    """Whether an answer says one of the names of a thing, and does not guess around."""
    return _says_each(answer, [accepted], names_of(language))


def _says_each(answer: str, groups: list[list[str]], known: frozenset[str]) -> bool:
    """An accepted name of each group is affirmed, and first of all; hardly any other known name is."""
    forms = [_spoken(group) for group in groups]
    wanted = frozenset().union(*forms)
    said = affirmed(answer, known | wanted)
    if not said or said[0] not in wanted or not all(any(name in group for name in said) for group in forms):
        return False
    others = {name for name in said if name not in wanted}
    return len(others) <= MOST_WRONG and not (others and _hedges(answer))


def affirmed(answer: str, known: frozenset[str]) -> list[str]:
    """The known names in an answer, in order, without those that it denies; the longest name counts."""
    found = []
    for clause in re.split(r"[,.;!?，。；！？\n]|\bbut\b|而是|但是", _plain(answer)):
        for place in _pattern(known | _passed_over()).finditer(clause):
            if place[0] in known and not _is_denied(clause[: place.start()]):
                found.append(place[0])
    return found


@cache
def _passed_over() -> frozenset[str]:
    return frozenset(_plain(word) for word in words()["passed_over"])


def _is_denied(before: str) -> bool:
    """Whether what stands before a name in its clause takes it back."""
    for phrase in (*words()["still_en"], *words()["still_zh"]):
        before = before.replace(phrase, " ")
    spoken = any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", before) for word in words()["not_en"])
    return spoken or any(word in before for word in words()["not_zh"])


def _hedges(answer: str) -> bool:
    text = _plain(answer)
    spoken = any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text) for word in words()["or_en"])
    return spoken or any(word in text for word in words()["or_zh"])


@cache
def _pattern(names: frozenset[str]) -> re.Pattern[str]:
    """Any of the names, the longest first; English ones as whole words."""
    parts = [
        re.escape(name) if CHINESE.search(name) else rf"(?<!\w){re.escape(name)}(?!\w)"
        for name in sorted(names, key=len, reverse=True)
    ]
    return re.compile("|".join(parts) or r"(?!)")


def says_yes(answer: str) -> bool | None:
    """True for an answer that affirms, False for one that denies, None for one that does neither."""
    text = _plain(answer)
    if any(phrase in text for phrase in words()["unsure"]):
        return None
    first = [(place, -len(word), sense) for word, sense in _senses() if (place := _place(word, text)) >= 0]
    return min(first)[2] if first else None


@cache
def _senses() -> tuple[tuple[str, bool], ...]:
    senses = [(f"{sense}_{language}", sense == "yes") for sense in ("yes", "no") for language in LANGUAGES]
    return tuple((word, value) for key, value in senses for word in words()[key])


def _place(word: str, text: str) -> int:
    """Where a word stands in a text, -1 when nowhere; an English one must be whole.

    A Chinese yes of one character is one at the beginning alone: 是 is in every other sentence.
    """
    if CHINESE.search(word):
        place = text.find(word)
        return place if place == 0 or len(word) > 1 or word in words()["no_zh"] else -1
    found = re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text)
    return found.start() if found else -1


def numbers_in(answer: str) -> set[int]:
    """The numbers that an answer names, in digits or words; "a dog" is one when nothing else is said."""
    text = _plain(answer)
    for phrase in (*words()["not_numbers_zh"], *_names_with_numbers()):
        text = text.replace(phrase, " ")
    found = {int(digits) for digits in re.findall(r"(?<![\w.])\d{1,3}(?![\d.]\d|[a-z])", text)}
    found |= {int(digits) for digits in re.findall(r"(?<=[\u3400-\u9fff])\d{1,3}(?=[\u3400-\u9fff])", text)}
    spoken = words()["numbers_en"]
    # "No, there are three" and "this one" name no number
    said = re.sub(r"\bno\b(?=\s*[,.;:!])|\b(this|that|the|each|every|which) one\b", " ", text)
    found |= {spoken[word] for word in re.findall(r"[a-z]+", said) if word in spoken}
    written = words()["numbers_zh"]
    longest = sorted(written, key=len, reverse=True)
    found |= {written[word] for word in re.findall("|".join(longest), text)}
    if not found and re.search(r"\b(a|an)\b", text):
        return {1}
    return found


@cache
def _names_with_numbers() -> tuple[str, ...]:
    """Chinese names that hold a number: 三明治, 四叶草."""
    return tuple(name for name in names_of("zh") if any(word in name for word in words()["numbers_zh"]))


def says_no_image(answer: str) -> bool:
    """Whether an answer says that no picture was given, or asks for one."""
    return any(re.search(pattern, _plain(answer)) for pattern in words()["no_image"])


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text.replace("’", "'").replace("-", " ").casefold()).strip()
