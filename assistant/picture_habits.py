"""How a model answers about pictures, right or wrong: with a title whatever is asked, or what was asked.

Knows no models; whether an answer is right is picture_judge's matter.
"""

import re
from functools import cache
from typing import Any

from assistant.picture_judge import (
    affirmed,
    choices_of,
    names_of,
    numbers_in,
    says_no_image,
    says_yes,
    speaks,
)
from assistant.pictures.things import LANGUAGES, load_texts, load_things

COUNTED = "一|两|二|三|四|五|六|七|八|九|十"


def is_title(answer: str) -> bool:
    """Whether an answer is only what stage 1 teaches: `A dog and two cats`, `一只狗、一只猫`."""
    text = re.sub(r"\s+", " ", answer.replace("-", " ").replace("’", "'")).strip(" .。").casefold()
    return any(_titles(language).fullmatch(text) for language in LANGUAGES)


@cache
def _titles(language: str) -> re.Pattern[str]:
    names = "|".join(re.escape(name) for name in sorted(names_of(language), key=len, reverse=True))
    if language == "en":
        numbers = "|".join(load_texts("en")["numbers"])
        item, joint = rf"(?:(?:an?|the|some|{numbers}) )?(?:{names})", r", (?:and )?| and "
    else:
        measures = "|".join(sorted({re.escape(thing.measure) for thing in load_things()}, key=len))
        item, joint = rf"(?:(?:{COUNTED})(?:{measures}))?(?:{names})", "、|，|和|与"
    return re.compile(f"{item}(?:(?:{joint}){item})*")


def heeds(rule: dict[str, Any], answer: str) -> bool:
    """Whether an answer is one to the question that was asked; a right one always is.

    `rule`: "kind" and "lang" of a question, as picture_judge reads them.
    """
    kind, language = rule["kind"], rule["lang"]
    if kind == "yes_no":
        return says_yes(answer) is not None
    if kind == "count":
        return bool(_counted(answer))
    if kind == "no_image":
        return says_no_image(answer)
    if not speaks(answer, language):
        return False
    if kind in ("kind", "colour"):
        return bool(affirmed(answer, choices_of(kind, language)))
    named = {name for name in affirmed(answer, names_of(language))}
    return len(named) > (kind == "several")


def _counted(answer: str) -> set[int]:
    """The numbers of an answer; the "a" of "This is a dog" and the 一 of 一只狗 alone count nothing."""
    numbers = numbers_in(re.sub(r"\b(a|an)\b", " ", answer.casefold()))
    return set() if numbers == {1} and is_title(answer) else numbers
