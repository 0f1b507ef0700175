"""Interface texts in the person's language. Knows nothing of the frameworks that show them."""

import os
import re
from functools import cache
from pathlib import Path
from typing import Any

from assistant.settings import load_toml, near_names, one_line

TEXTS = Path(__file__).with_name("texts.toml")
# What may stand beside an answer for good; the slots are numbers, or the name of an error.
NOTES = ("stopped", "shortened", "cut", "no_words", "answering", "busy_full", "busy_often", "failed_inside")


class Texts(dict[str, Any]):
    """`texts["send"]`; `texts.say("waiting", number=2)` fills the slots. `code` is the language's."""

    code: str

    def say(self, key: str, **slots: object) -> str:
        return str(self[key]).format(**slots)

    def say_error(self, key: str, error: Exception) -> str:
        """The text with the error in its slot `error`, in this language where it is known in it."""
        return self.say(key, error=in_language(one_line(error), self))


@cache
def load_texts() -> dict[str, Texts]:
    """Language code → texts, in the order of the file; the first is the fallback."""
    known = {language: Texts(texts) for language, texts in load_toml(TEXTS).items()}
    for language, texts in known.items():
        texts.code = language
    return known


def fixed_language() -> str | None:
    """ASSISTANT_LANG, or None when each browser decides. Raises ValueError for a language without texts."""
    wanted = os.environ.get("ASSISTANT_LANG", "").strip()
    if not wanted:
        return None
    if known := _known(wanted):
        return known
    raise ValueError(f"ASSISTANT_LANG={wanted} has no texts{near_names(wanted, load_texts())}")


def pick_language(accepted: str | None) -> str:
    """The best of an Accept-Language header or a locale (`zh-CN,zh;q=0.9,en`), unless ASSISTANT_LANG says."""
    fallback = next(iter(load_texts()))
    tags = re.findall(r"[A-Za-z]{2,3}(?:[-_][A-Za-z0-9]+)*(?=\s*(?:[,;]|$))", accepted or "")
    return fixed_language() or next(filter(None, map(_known, tags)), fallback)


def _known(tag: str) -> str | None:
    language = re.split("[-_.]", tag.lower())[0]
    return language if language in load_texts() else None


def in_language(note: str, texts: Texts) -> str:
    """The note with the page's own words, and what the code says went wrong, as these texts say them."""
    note = _explained(note, texts)
    for known in load_texts().values():
        for key in NOTES:
            pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>\\w+)", re.escape(known[key]))
            if found := re.search(pattern, note):
                note = note.replace(found[0], texts.say(key, **found.groupdict()))
    return note


def _explained(sentence: str, texts: Texts) -> str:
    """The code speaks English; a sentence that is not among its `errors` stays as it is."""
    english = next(iter(load_texts().values()))
    if not sentence or texts is english:
        return sentence
    for pattern, said in zip(_errors(), texts["errors"], strict=True):
        if found := pattern.fullmatch(sentence):
            slots = found.groupdict().items()
            return said.format(**{slot: _explained(value, texts) for slot, value in slots})
    return sentence


@cache
def _errors() -> list[re.Pattern[str]]:
    english = next(iter(load_texts().values()))
    return [re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>.+?)", re.escape(said))) for said in english["errors"]]


def presets_of(texts: Texts) -> dict[str, tuple[str, str]]:
    """A preset's name and prompt in this language, by its name in the first one."""
    first, *_ = load_texts().values()
    named = {first["preset_none"]: (texts["preset_none"], "")}
    pairs = zip(first["presets"], texts["presets"], strict=True)
    return named | {key: (name, prompt) for (key, _), (name, prompt) in pairs}


def preset_of(prompt: str) -> str | None:
    """The preset whose prompt it is, in whichever language; None for a person's own words."""
    known = [presets_of(texts).items() for texts in load_texts().values()]
    return next((key for pairs in known for key, (_, said) in pairs if said == prompt), None)
