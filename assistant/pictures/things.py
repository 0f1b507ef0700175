"""What is drawn and what it is called, from data/pictures/: names, kinds, styles. Knows no pixel."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from assistant.settings import DATA, load_toml, near_names

PICTURES = DATA / "pictures"
LANGUAGES = ("en", "zh")


@dataclass(frozen=True)
class Thing:
    """`codes`: the emoji that show it; `names`: by language, the one that is taught first."""

    codes: tuple[str, ...]
    kind: str
    measure: str
    names: dict[str, tuple[str, ...]]
    countable: bool

    @property
    def name(self) -> str:
        return self.names["en"][0]

    @property
    def is_plural(self) -> bool:
        """Named in the plural in English: grapes, scissors."""
        return not self.countable and self.name.endswith("s") and not self.name.endswith("ss")


@dataclass(frozen=True)
class Style:
    """One npm package of drawings. `icons`: names in it that are not the usual ones.

    `form`: of a package of one-coloured icons, how it writes the English name of what one shows, "{}-fill";
    `without`: things whose name it gives to something else.
    """

    name: str
    family: str
    package: str
    version: str
    sha256: str
    licence: str
    author: str
    form: str = ""
    without: tuple[str, ...] = field(default=(), compare=False)
    icons: dict[str, str] = field(default_factory=dict, compare=False)


@cache
def load_things() -> tuple[Thing, ...]:
    kinds = load_toml(PICTURES / "things.toml")["things"]
    return tuple(_thing(kind, entry) for kind, entries in kinds.items() for entry in entries)


def _thing(kind: str, entry: list[str]) -> Thing:
    codes, measure, english, chinese = entry
    names = {"en": _split(english.removeprefix("~")), "zh": _split(chinese)}
    return Thing(tuple(codes.split()), kind, measure, names, not english.startswith("~"))


def _split(names: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in names.split(","))


@cache
def load_styles() -> dict[str, Style]:
    """Raises ValueError naming the style for a wrong key."""
    styles = load_toml(PICTURES / "styles.toml")["styles"]
    return {name: Style(name=name, **entry) for name, entry in styles.items()}


@cache
def load_texts(language: str) -> dict[str, Any]:
    """Questions, answers and words of a language."""
    return load_toml(PICTURES / f"{language}.toml")


@cache
def common() -> dict[str, Any]:
    """Which kinds and colours there are, and the shares of the mixture."""
    return load_toml(PICTURES / "common.toml")


def held_out_families(asked: Iterable[str] = ()) -> tuple[str, ...]:
    """The families that are kept for probes; without any named, the default of styles.toml.

    Raises ValueError for an unknown family, or when none is left to train on.
    """
    families = {style.family for style in load_styles().values()}
    chosen = tuple(asked) or tuple(load_toml(PICTURES / "styles.toml")["held_out"])
    for family in chosen:
        if family not in families:
            raise ValueError(f"no family of styles {family!r}{near_names(family, families)}")
    if families <= set(chosen):
        raise ValueError("every family of styles is held out; leave at least one to train on")
    return chosen


def with_article(thing: Thing, language: str) -> str:
    """`a dog`, `an apple`, `grapes`; `一只狗`."""
    if language == "zh":
        return f"一{thing.measure}{thing.names['zh'][0]}"
    return f"{article(thing.name)} {thing.name}" if thing.countable else thing.name


def article(word: str) -> str:
    """`a` or `an`, by sound as far as these words need it: a unicorn, a UFO, an SUV."""
    if word.startswith(("uni", "UFO", "uke", "eu")):
        return "a"
    return "an" if word[0].lower() in "aeiou" or word.startswith(("SUV", "hour")) else "a"


def plural(name: str) -> str:
    """The English plural of a name; its last word changes, or the one before "of", "with" and "and"."""
    for joint in (" of ", " with ", " and "):
        head, found, rest = name.partition(joint)
        if found:
            return f"{plural(head)}{joint}{plural(rest) if joint == ' and ' else rest}"
    irregular = load_texts("en")["plurals"]
    before, _, last = name.rpartition(" ")
    changed = irregular.get(last) or _regular_plural(last)
    return f"{before} {changed}".strip()


def _regular_plural(word: str) -> str:
    if word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return f"{word}es"
    if word.endswith("y") and word[-2] not in "aeiou":
        return f"{word[:-1]}ies"
    return f"{word}s"
