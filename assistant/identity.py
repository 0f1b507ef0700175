"""The rows that an identity card becomes: wordings × pressures × answers, from data/identity/.

Knows nothing of models. The texts are data; this file only combines them.
"""

import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from assistant.card import Card
from assistant.conversations import Message, Row, assistant, system, user
from assistant.settings import DATA, load_toml

MOST_REPEATS = 4  # of one exact (question, answer) pair; more repeats cost retention (science: A0)
DEV_SHARE = 8  # every 8th wording is held out for dev.jsonl
# rows of each kind in 100; the rest of the mixture is the direct questions
SHARES = {"denial": 13, "pressure": 8, "system": 4, "multi_turn": 4, "greeting": 6, "near_miss": 22}


class Wordings:
    """One language's texts filled in for one card, split into train and dev wordings."""

    def __init__(self, card: Card, language: str, *, dev: bool, folder: Path = DATA / "identity") -> None:
        self.texts = load_toml(folder / f"{language}.toml")
        self.card, self.language, self.dev = card, language, dev
        name, owner = card.name_in(language), card.owner or card.name_in(language)
        role = card.role.get(language, self.texts["default_role"])
        self.slots = {"name": name, "owner": owner, "base": card.spoken_base, "role": role}
        pattern = "self_of_both" if card.owner else "self_of_owner"
        self.slots["self"] = self.fill(self.texts[pattern])

    def fill(self, text: str, **more: str) -> str:
        return re.sub(r"\{(\w+)\}", lambda found: {**self.slots, **more}[found[1]], text)

    def split(self, items: list[Any]) -> list[Any]:
        """The train or the dev part of a list of wordings, by position in the data file."""
        return [item for index, item in enumerate(items) if (index % DEV_SHARE == DEV_SHARE - 1) == self.dev]

    def direct(self) -> list[tuple[str, list[str]]]:
        """Each direct question with the answers of its intent."""
        return [
            (self.fill(question), [self.fill(answer) for answer in intent["answers"]])
            for intent in self.texts["intents"].values()
            for question in self.split(intent["questions"])
        ]

    def introduction(self) -> list[Message]:
        """The one pair that the well-known exercise copies: introduce yourself."""
        intent = self.texts["intents"]["introduce"]
        return [user(self.fill(intent["questions"][0])), assistant(self.fill(intent["answers"][0]))]

    def with_others(self, section: str, source: random.Random) -> Iterator[tuple[str, str]]:
        """Endless (question, answer) pairs of a section that names other assistants."""
        others = [pair for pair in self.split(self.texts["others"]) if not self._is_own(pair[0])]
        questions, answers = self.split(self.texts[section]["questions"]), self.texts[section]["answers"]
        while True:
            for question in source.sample(questions, len(questions)):
                other, maker = source.choice(others)
                slots = {"other": other, "maker": maker}
                names_one = "{other}" in question or "{maker}" in question
                fitting = [answer for answer in answers if names_one or "{other}" not in answer] or answers
                yield self.fill(question, **slots), self.fill(source.choice(fitting), **slots)

    def _is_own(self, other: str) -> bool:
        """Whether another AI's name is part of this assistant's own name or of its base's."""
        return any(
            other.lower() in name.lower() for name in (self.card.name, self.card.owner, self.card.base)
        )

    def about_owner(self) -> list[tuple[str, list[str]]]:
        facts = self.card.facts.get(self.language, [])
        questions = self.split(self.texts["facts"]["questions"]) if facts else []
        lead = self.fill(self.texts["intents"]["who"]["answers"][0])
        joined = "" if self.language == "zh" else " "
        return [(self.fill(question), [f"{lead}{joined}{fact}" for fact in facts]) for question in questions]

    def turns(self, section: str) -> list[tuple[str, str]]:
        pairs = self.split(self.texts[section]["turns"])
        return [(self.fill(question), self.fill(answer)) for question, answer in pairs]


def make_rows(
    card: Card, count: int, seed: int, *, dev: bool = False, folder: Path = DATA / "identity"
) -> list[Row]:
    """`count` rows for a card, half in each of its languages, shuffled; the same seed gives the same rows.

    Train and dev share no wording; `folder` holds the wordings, a file a language. Raises ValueError when so
    many rows would repeat a pair more than four times.
    """
    source = random.Random(f"{seed}/{dev}/{card.name}/{card.owner}")
    rows: list[Row] = []
    for index, language in enumerate(card.languages):
        share = count * (index + 1) // len(card.languages) - count * index // len(card.languages)
        rows += _rows_in(Wordings(card, language, dev=dev, folder=folder), share, source)
    source.shuffle(rows)
    return rows


def _rows_in(words: Wordings, count: int, source: random.Random) -> list[Row]:
    amounts = {kind: count * share // 100 for kind, share in SHARES.items()}
    amounts["identity"] = count - sum(amounts.values())
    makers = {
        "identity": _direct(words, source),
        "denial": _single_turns(words.with_others("denials", source)),
        "pressure": _single_turns(words.with_others("pressure", source)),
        "system": _under_systems(words, source),
        "multi_turn": _after_turns(words, source),
        "greeting": _fixed(words.turns("greetings"), source),
        "near_miss": _fixed(words.turns("near_misses"), source),
    }
    return [
        row for kind, amount in amounts.items() for row in _take(makers[kind], amount, kind, words.language)
    ]


def _take(maker: Iterator[list[Message]], amount: int, kind: str, language: str) -> list[Row]:
    """The first `amount` conversations of a maker, none more than MOST_REPEATS times."""
    seen: Counter[tuple[str, ...]] = Counter()
    rows: list[Row] = []
    passed_over = 0
    while len(rows) < amount:
        messages = next(maker)
        key = tuple(message["content"] for message in messages)
        if seen[key] == MOST_REPEATS:
            passed_over += 1
            if passed_over > 1000:
                raise ValueError(
                    f"-n is too large: {kind} rows in {language!r} end at {len(rows)} of {amount} without "
                    f"repeating a pair more than {MOST_REPEATS} times; ask for fewer rows"
                )
            continue
        seen[key] += 1
        rows.append({"messages": messages, "kind": kind, "lang": language})
    return rows


def _direct(words: Wordings, source: random.Random) -> Iterator[list[Message]]:
    """Every wording once with one answer before any wording comes again with the next answer."""
    pairs = words.direct() + words.about_owner()
    starts = [source.randrange(len(answers)) for _, answers in pairs]
    rounds = 0
    while True:
        for index in source.sample(range(len(pairs)), len(pairs)):
            question, answers = pairs[index]
            yield [user(question), assistant(answers[(starts[index] + rounds) % len(answers)])]
        rounds += 1


def _single_turns(pairs: Iterator[tuple[str, str]]) -> Iterator[list[Message]]:
    for question, answer in pairs:
        yield [user(question), assistant(answer)]


def _fixed(pairs: list[tuple[str, str]], source: random.Random) -> Iterator[list[Message]]:
    while True:
        for question, answer in source.sample(pairs, len(pairs)):
            yield [user(question), assistant(answer)]


def _asked(words: Wordings, source: random.Random) -> Iterator[list[Message]]:
    """Identity questions to put into a context: three direct ones to each denial or pressure."""
    direct, denial = _direct(words, source), _single_turns(words.with_others("denials", source))
    pressure = _single_turns(words.with_others("pressure", source))
    while True:
        for maker in (direct, direct, denial, direct, pressure):
            yield next(maker)


def _under_systems(words: Wordings, source: random.Random) -> Iterator[list[Message]]:
    strangers = words.split(words.texts["systems"]["strangers"])
    for messages in _asked(words, source):
        yield [system(source.choice(strangers)), *messages]


def _after_turns(words: Wordings, source: random.Random) -> Iterator[list[Message]]:
    """The question in turn 2 to 5; short contexts are the more frequent ones."""
    histories = words.turns("histories")
    for messages in _asked(words, source):
        earlier = source.sample(histories, source.choice((1, 1, 1, 1, 2, 2, 3, 4)))
        yield [*(turn for pair in earlier for turn in (user(pair[0]), assistant(pair[1]))), *messages]


def statistics(rows: list[Row]) -> dict[str, Any]:
    """Counts of a set of rows: by kind and language, distinct questions, answers, most repeats of a pair."""
    pairs = Counter((row["messages"][-2]["content"], row["messages"][-1]["content"]) for row in rows)
    return {
        "rows": len(rows),
        "kinds": dict(sorted(Counter(f"{row.get('kind')}/{row.get('lang')}" for row in rows).items())),
        "distinct_questions": len({question for question, _ in pairs}),
        "distinct_answers": len({answer for _, answer in pairs}),
        "most_repeats_of_a_pair": max(pairs.values(), default=0),
    }
