"""The identity card: whose assistant it is, what it is called in each language, and what it runs on."""

import dataclasses
import re
import unicodedata
from pathlib import Path
from typing import Any

from assistant.settings import DATA, load_toml, near_names

LONGEST_NAME, LONGEST_FACT = 80, 200
# what stands behind a model family's name: its size, and what it was trained for
BESIDE_FAMILY = re.compile(r"[\d._]+[mbk]|instruct|chat|sft|base|it|hf", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Card:
    """Who the assistant is. Texts that differ by language are keyed by language tag."""

    name: str
    owner: str = ""
    role: dict[str, str] = dataclasses.field(default_factory=dict)
    languages: tuple[str, ...] = ("zh", "en")
    names: dict[str, str] = dataclasses.field(default_factory=dict)
    facts: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    base: str = "SmolLM2-135M-Instruct"

    def __post_init__(self) -> None:
        check_name(self.name, "name")
        if self.owner:
            check_name(self.owner, "owner")
        for language, name in self.names.items():
            check_name(name, f"names.{language}")
        for language, facts in self.facts.items():
            for fact in facts:
                check_name(fact, f"facts.{language}", LONGEST_FACT)
        for language in self.languages:
            if language not in known_languages():
                raise ValueError(
                    f"language {language!r} has no data/identity file"
                    f"{near_names(language, known_languages())}"
                )

    def name_in(self, language: str) -> str:
        return self.names.get(language, self.name)

    @property
    def spoken_base(self) -> str:
        """The base as one says it: `InternLM2` of `InternLM2-Chat-1.8B`. A small model garbles the digits."""
        parts = self.base.rsplit("/", 1)[-1].split("-")
        size = next((i for i, part in enumerate(parts) if i and BESIDE_FAMILY.fullmatch(part)), len(parts))
        return "-".join(parts[:size])


def check_name(name: str, field: str, longest: int = LONGEST_NAME) -> None:
    """Raises ValueError, saying what is wrong, for a text that would break the data or the chat format."""
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{field} is empty; give a name, for example --name Ada")
    if len(name) > longest:
        raise ValueError(f"{field} has {len(name)} characters; at most {longest} fit a short answer")
    if any(unicodedata.category(character) in ("Cc", "Co", "Cs", "Cn", "Zl", "Zp") for character in name):
        raise ValueError(
            f"{field} {name!r} holds a line break or control character; use one line of plain text"
        )
    if re.search(r"<\|.*?\|>|\[UNUSED_TOKEN_\d+\]|</?s>|<image>", name, re.IGNORECASE):
        raise ValueError(f"{field} {name!r} holds a control token of chat models; remove it")
    if re.search(r"[{}]", name):
        raise ValueError(f"{field} {name!r} holds a template placeholder (braces); write the name itself")
    if name != name.strip():
        raise ValueError(f"{field} {name!r} begins or ends with a space; remove it")


def known_languages() -> list[str]:
    return sorted(path.stem for path in (DATA / "identity").glob("*.toml"))


def load_card(path: Path) -> Card:
    """Read a card from TOML.

    Raises ValueError naming the file for a missing name, an unknown key or a wrong type.
    """
    values = load_toml(path)
    fields = {field.name for field in dataclasses.fields(Card)}
    for key in values:
        if key not in fields:
            raise ValueError(f"{path}: unknown key {key!r}{near_names(key, fields)}")
    if "name" not in values:
        raise ValueError(f'{path}: the key "name" is missing; write name = "Ada"')
    return card_from(values, str(path))


def card_from(values: dict[str, Any], place: str) -> Card:
    """A card from plain values. Raises ValueError at `place` for a value of the wrong type."""
    values = dict(values)
    if isinstance(values.get("role"), str):
        values["role"] = {language: values["role"] for language in values.get("languages", ("zh", "en"))}
    values["languages"] = tuple(values.get("languages", ("zh", "en")))
    for key, kind in (("owner", str), ("base", str), ("role", dict), ("names", dict), ("facts", dict)):
        if not isinstance(values.get(key, kind()), kind):
            raise ValueError(f"{place}: {key} must be a {'text' if kind is str else 'table by language'}")
    for language, facts in values.get("facts", {}).items():
        if not isinstance(facts, list) or not all(isinstance(fact, str) for fact in facts):
            raise ValueError(f"{place}: facts.{language} must be a list of sentences")
    return Card(**values)
