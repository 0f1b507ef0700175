"""Whether a model keeps to rules that a system prompt, a role or a user gives it: data/probes/rules.toml.

Knows no models. A small base keeps to few of them; what counts is that its assistant keeps to as many.
"""

import re
from dataclasses import dataclass
from functools import cached_property

from assistant.conversations import Message, system, user
from assistant.settings import DATA, load_toml

RULES = DATA / "probes" / "rules.toml"


@dataclass(frozen=True)
class Rule:
    """`must` is found in an answer that keeps to it, `must_not` is not; both are regular expressions."""

    lang: str
    system: str
    must: str
    must_not: str = ""

    @cached_property
    def _patterns(self) -> tuple[re.Pattern[str], re.Pattern[str]]:
        return re.compile(self.must, re.DOTALL), re.compile(self.must_not or r"(?!)", re.DOTALL)

    def is_kept_by(self, answer: str) -> bool:
        wanted, unwanted = self._patterns
        answer = answer.strip()
        return bool(wanted.search(answer)) and not unwanted.search(answer)


def load_rules() -> list[tuple[Rule, list[list[Message]]]]:
    """Every rule with its conversations: each question of its language under it as a system prompt, and after
    it in one message."""
    found = load_toml(RULES)
    rules = [Rule(**entry) for entry in found["rule"]]
    return [
        (
            rule,
            [turns for question in found["questions"][rule.lang] for turns in _asked(rule.system, question)],
        )
        for rule in rules
    ]


def _asked(rule: str, question: str) -> list[list[Message]]:
    return [[system(rule), user(question)], [user(f"{rule} {question}")]]
