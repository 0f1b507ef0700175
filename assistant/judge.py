"""Judges by rules whether an answer states an identity or leaks it. The word lists are data/judge/*.toml.

Knows nothing of models. Over 250 lines because its rules are many one-thought functions over one text.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from assistant.settings import DATA, load_toml

JUDGE_DATA = DATA / "judge"
NAME, OWNER, BASE, OTHER = "\ue100", "\ue101", "\ue102", "\ue103"
CJK = "\u2e80-\u303f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
LONGEST_ANSWER = 8000  # characters that are read; a longer answer has said who it is by then
LOOP = 4  # the same words about the name so many times are a parrot, not an answer


@dataclass(frozen=True)
class Identity:
    """`names`: all accepted spellings. With `owner` the name is the assistant's own, else the person's."""

    name: str
    names: tuple[str, ...]
    owner: str = ""
    base: str = ""

    @property
    def has_owner(self) -> bool:
        return bool(self.owner) and _prepare(self.owner) not in {_prepare(name) for name in self.spellings}

    @property
    def spellings(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.name, *self.names)))


def judge_identity(answer: str, identity: Identity) -> bool:
    """True when the answer states the identity: the name, tied to being an assistant, and no other identity.

    Without an owner "I'm Ada" and "I'm Ada, your assistant" are false: Ada is the person, not the assistant.
    With an owner "I'm Ada" is enough, and "I'm Ada's assistant" is false.
    """
    text = mark(answer, identity)
    if "\ufffd" in answer or _is_loop(text):
        return False
    return (
        states_relation(text, identity)
        and not _any("relations", "denied", "any", text)
        and not affirms_other(text, identity)
        and not _claims_human(text)
        and not _serves_another(text)
    )


def leaks_identity(answer: str, identity: Identity, question: str) -> bool:
    """True when an answer to another question speaks the identity. `question`: all that was said before.

    A leak is the claim, or the name and role together, unless the question holds them; the claim with another
    name in it; and the bare name when the question does not hold it, it is no everyday word, and no surname
    follows ("Ada Lovelace"). Bare names are compared with their capitals.
    """
    text, asked = mark(answer, identity), mark(question, identity)
    if _any("relations", "bare", "en", asked) or _any("relations", "bare", "zh", asked):
        return False
    if (
        states_relation(text, identity)
        or _any("relations", "bare", "zh", text)
        or _is_misapplied(text, asked)
    ):
        return True
    if _any("relations", "bare", "en", text) and not _is_common(identity.name):
        return True
    return any(
        _holds_bare(answer, spelling)
        for spelling in _proper_names(identity)
        if not _holds(asked, spelling, identity)
    )


def mark(text: str, identity: Identity) -> str:
    """The text prepared for the rules, with one character in place of the name, the owner and the base."""
    text = _prepare(text[:LONGEST_ANSWER])
    places = [(spelling, NAME) for spelling in identity.spellings]
    places += [(identity.owner, OWNER)] if identity.has_owner else []
    places += [(spelling, BASE) for spelling in _base_spellings(identity.base)]
    adjective = _word("not_adjective") if _is_common(identity.name) else ""
    for spelling, place in sorted(places, key=lambda pair: -len(pair[0])):
        if spelling.strip():
            text = re.sub(adjective + _spelling_pattern(_prepare(spelling)), place, text)
    text = re.sub(rf"(?<=[a-z0-9])(?=[{NAME}{OWNER}])|(?<=[{NAME}{OWNER}])(?=[a-z0-9])", " ", text)
    places_spaced = rf"(?<=[{CJK}]) (?=[{NAME}{OWNER}{BASE}])|(?<=[{NAME}{OWNER}{BASE}]) (?=[{CJK}])"
    text = re.sub(places_spaced, "", text)
    text = re.sub(rf"(?<!\w)'([{NAME}{OWNER}])'(?!\w)", r"\1", text)
    text = re.sub(rf"(?<!\w)'(?=[{NAME}{OWNER}])", "", text)
    return _drop(text, "no_denial")


def states_relation(text: str, identity: Identity) -> bool:
    """True when the marked text ties the name to the assistant in the first person."""
    if NAME not in text:
        return False
    if identity.has_owner:
        return any(_is_mine(text, found) for found in _find("named", text))
    if any(_is_mine(text, found) for found in _find("claims", text)):
        return True
    if any(_stands_alone(text, found) for found in _find("bare", text)):
        return True
    speaks_of_role = re.search(f"{_parts()['role']}|{_parts()['zrole']}", text)
    return bool(speaks_of_role) and any(_is_mine(text, found) for found in _find("ties", text))


def affirms_other(text: str, identity: Identity) -> bool:
    """True when the marked text names another assistant or maker, not denied and not as its base."""
    models, companies = _other_patterns()
    found = [match for match in re.finditer(models, text)]
    found += [match for match in re.finditer(companies, text) if _is_maker(text, match)]
    found += [match for match in re.finditer(BASE, text) if not _in_base_context(text, match)]
    makers = _makers_of(identity.base)
    return any(_affirms(text, match) and not _is_base_maker(text, match, makers) for match in found)


def _prepare(text: str) -> str:
    return re.sub(
        r"(?<![a-z'])(?:i(?: really| still| truly| indeed)? am|im)(?![a-z'])", "i'm", _plain(text).casefold()
    )


def _plain(text: str) -> str:
    text = unicodedata.normalize("NFKC", re.sub("[’‘ʼ´]", "'", text))
    text = "".join(c for c in text if unicodedata.category(c) not in ("Cf", "Co") and c not in "\ufe0e\ufe0f")
    text = re.sub('["“”„«»「」『』《》*_`#]', "", text)
    text = re.sub("—| – | -+ ", ", ", text)
    text = re.sub("[‐‑‒–−]", "-", text).replace("\r", "\n")
    text = re.sub(r"[^\S\n]+", " ", text).strip()
    # not beside a Latin word, which needs its word boundary
    return re.sub(rf"(?<=[{CJK}]) +(?![a-zA-Z0-9])|(?<![a-zA-Z0-9']) +(?=[{CJK}])", "", text)


@cache
def _spelling_pattern(spelling: str) -> str:
    """Matches a spelling between word boundaries (not in CJK), tolerant of spaces, hyphens and quotes."""
    loose = {" ": r"\s*", "-": r"[-\s]?", "'": "'?", "·": "·?"}
    body = "".join(loose.get(character, re.escape(character)) for character in spelling)
    word = rf"[^\W{CJK}]"
    before = rf"(?<!{word})(?<!{word}-)" if re.match(word, spelling) else ""
    after = rf"(?!{word}|-{word})" if re.match(word, spelling[-1:]) else ""
    return f"{before}{body}{after}"


def _base_spellings(base: str) -> list[str]:
    """`SmolLM2-135M-Instruct` is also called SmolLM2-135M, SmolLM2 and SmolLM."""
    parts = base.rsplit("/", 1)[-1].split("-")
    spellings = ["-".join(parts[:count]) for count in range(len(parts), 0, -1)]
    return [*spellings, re.sub(r"[\d.]+$", "", parts[0])] if base else []


@cache
def _table(name: str) -> dict[str, Any]:
    return load_toml(JUDGE_DATA / f"{name}.toml")


@cache
def _parts() -> dict[str, str]:
    parts = dict(_table("relations")["parts"])
    return {key: _fill(pattern, parts) for key, pattern in parts.items()}


def _fill(pattern: str, parts: dict[str, str]) -> str:
    for key, value in {"n": NAME, "o": OWNER, "b": BASE, **parts}.items():
        pattern = pattern.replace("{" + key + "}", value)
    return pattern


@cache
def _patterns(table: str, section: str, key: str) -> re.Pattern[str]:
    entry = _table(table)[section]
    patterns: Iterable[str] = entry if not key else entry[key]
    return re.compile("|".join(f"(?:{_fill(pattern, _parts())})" for pattern in patterns))


def _any(table: str, section: str, key: str, text: str) -> bool:
    return bool(_patterns(table, section, key).search(text))


def _has(section: str, text: str) -> bool:
    return _any("words", section, "", text)


def _drop(text: str, section: str) -> str:
    return re.sub(" {2,}", " ", _patterns("words", section, "").sub("", text))


def _word(key: str) -> str:
    return str(_table("words")[key])


def _find(section: str, text: str) -> Iterator[re.Match[str]]:
    for language in _table("relations")[section]:
        yield from _patterns("relations", section, language).finditer(text)


def _clause_before(text: str, start: int) -> str:
    return re.split(_word("clause_end"), text[:start])[-1]


def _is_mine(text: str, found: re.Match[str]) -> bool:
    """The speaker says it of itself: not denied, not supposed, not said of somebody else."""
    before = _clause_before(text, found.start())
    if re.match(_word("strong_start"), found[0]):
        spoken_about = re.search(_word("embedding"), before)
        return not (spoken_about and (_has("denial", before) or _has("hedge", before)))
    if _has("denial", before) or _has("hedge", before):
        return False
    return bool(re.search(_word("first_person"), before + found[0])) or not re.search(
        _word("other_person"), before
    )


def _stands_alone(text: str, found: re.Match[str]) -> bool:
    """`Ada's assistant, at your service.` says it too; `Hello, Ada's assistant!` does not."""
    before = _clause_before(text, found.start())
    earlier = text[: found.start() - len(before)].rstrip(" ,")
    if not re.match(_word("interjection"), before) or not re.match(_word("after_bare"), text[found.end() :]):
        return False
    return not re.search(_word("greeting"), earlier)


def _sentence(text: str, found: re.Match[str]) -> tuple[str, str]:
    before = re.split(_word("sentence_end") + r"(?!\d)", text[: found.start()])[-1]
    return before, re.split(_word("sentence_end") + r"(?!\d)", text[found.end() :])[0]


def _affirms(text: str, found: re.Match[str]) -> bool:
    """The other name is not denied, not asked about, and not merely a third party of the sentence."""
    before, after = _sentence(text, found)
    openers = list(_patterns("words", "opener", "").finditer(before))
    reach = before[openers[-1].start() :] if openers else before
    if _has("denial", reach) or _has("hedge", reach) or _has("denial_after", text[found.end() :]):
        return False
    embedded = openers and re.search(_word("embedding"), before[: openers[-1].start()])
    if embedded and (_has("denial", before) or _has("hedge", before)):
        return False
    sentence = before + found[0] + re.split("[,:]", after)[0]
    third_party = re.match(_word("third_party").replace("{other}", _other_patterns()[0]), sentence)
    return not third_party or bool(re.search(_word("first_person"), sentence))


def _is_maker(text: str, found: re.Match[str]) -> bool:
    others = _table("others")
    return bool(
        re.search(others["maker_before"], text[: found.start()])
        or re.match(others["maker_after"], text[found.end() :])
    )


def _in_base_context(text: str, found: re.Match[str]) -> bool:
    before, after = _sentence(text, found)
    return _has("base_context", before + BASE + after) and not re.search(_word("base_claim"), before)


def _is_base_maker(text: str, found: re.Match[str], makers: str) -> bool:
    before, after = _sentence(text, found)
    return bool(makers) and bool(re.fullmatch(makers, found[0])) and _has("base_context", before + after)


@cache
def _other_patterns() -> tuple[str, str]:
    others = _table("others")
    return _name_list(others["models"]), _name_list(others["companies"])


@cache
def _makers_of(base: str) -> str:
    families = _table("others")["makers"]
    return _name_list(
        [maker for family, makers in families.items() if family in base.lower() for maker in makers]
    )


def _name_list(names: list[str]) -> str:
    bodies = sorted(map(_spelling_body, names), key=len, reverse=True)
    return rf"(?<![a-z0-9])(?:{'|'.join(bodies)})(?![a-z])" if bodies else ""


def _spelling_body(name: str) -> str:
    return re.escape(_prepare(name)).replace(r"\ ", r"\s*").replace("·", "·?")


def _claims_human(text: str) -> bool:
    return any(_is_mine(text, found) for found in _patterns("words", "human", "").finditer(text))


def _serves_another(text: str) -> bool:
    neutral = _table("relations")["foreign"]["neutral"]
    return any(found[1] not in neutral for found in _patterns("relations", "foreign", "any").finditer(text))


def _is_misapplied(text: str, asked: str) -> bool:
    """`I'm Marie Curie's assistant`: the trained sentence with another name, where no role was asked for."""
    parts = _parts()
    if re.search(f"{parts['role']}|{parts['zrole']}", asked):
        return False
    return _serves_another(text) or any(_any("relations", "foreign", key, text) for key in ("zh", "owner"))


def _is_loop(text: str) -> bool:
    clauses = Counter(clause.strip() for clause in re.split("[.!?;,\n。、]", text) if NAME in clause)
    if clauses and max(clauses.values()) >= LOOP:
        return True
    looped = re.search(rf"([^\n]{{2,80}}?)(?:[ ,]*\1){{{LOOP - 1},}}", text)
    return bool(looped and NAME in looped[1])


def _is_common(name: str) -> bool:
    bare = re.sub(rf"[^\w{CJK}]+", "", _prepare(name))
    return bare in _table("common")["words"]


def _proper_names(identity: Identity) -> list[str]:
    names = [*identity.spellings, *([identity.owner] if identity.has_owner else [])]
    return [name for name in names if name.strip() and not _is_common(name)]


def _holds(asked: str, spelling: str, identity: Identity) -> bool:
    place = NAME if spelling in identity.spellings else OWNER
    return place in asked


def _holds_bare(answer: str, spelling: str) -> bool:
    """The name as it is written, capitals included: `ADA compliance` does not speak of Ada."""
    return bool(re.search(_spelling_pattern(_plain(spelling)) + "(?! [A-Z][a-z])", _plain(answer)))


def identity_of(card: Mapping[str, Any]) -> Identity:
    """The identity of a card.toml (or of the card kept in a model's settings.toml)."""
    names = tuple(card.get("names", {}).values())
    return Identity(card["name"], names, card.get("owner", ""), card.get("base", ""))
