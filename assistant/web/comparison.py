"""One question to two models at once, judged blind. Knows no framework."""

import random
import time
from collections.abc import Generator
from contextlib import ExitStack, closing
from dataclasses import dataclass

from assistant.web import REDRAW_S, Shown
from assistant.web.models import Engines
from assistant.web.store import Store, Winner
from assistant.web.texts import Texts

LONGEST = 200  # tokens: enough to judge by, also on two cores
VOTES: dict[str, Winner] = {"vote_a": "left", "vote_tie": "tie", "vote_b": "right"}


@dataclass(frozen=True)
class Pair:
    """The ids of the models on the two sides, shuffled when `blind`; the browser must not know them."""

    left: str
    right: str
    question: str
    blind: bool


def draw_pair(one: str, other: str, question: str, blind: bool) -> Pair:
    left, right = random.sample([one, other], 2) if blind else [one, other]
    return Pair(left, right, question, blind)


def together(states: list[Generator[Shown, None, None]]) -> Generator[list[Shown], None, None]:
    """The latest state of each as long as one still grows, at most 20 times a second."""
    shown, last = [Shown() for _ in states], 0.0
    growing = dict(enumerate(states))
    with ExitStack() as stack:
        for state in states:
            stack.enter_context(closing(state))
        while growing:
            for place, state in list(growing.items()):
                if newer := next(state, None):
                    shown[place] = newer
                else:
                    del growing[place]
            if not growing or (now := time.monotonic()) - last >= REDRAW_S:
                yield list(shown)
                last = now if growing else last


def names(engines: Engines, one: str, other: str) -> tuple[str, str]:
    """Two names that tell the models apart, also when both are called the same."""
    first, second = engines.find(one), engines.find(other)
    if not first or not second:
        return one, other
    if first.name != second.name:
        return first.name, second.name
    return f"{first.name} ({first.id})", f"{second.name} ({second.id})"


def tally_line(store: Store, engines: Engines, one: str, other: str, texts: Texts) -> str:
    wins, losses, ties = store.tally(one, other)
    if not wins + losses + ties:
        return str(texts["tally_none"])
    left, right = names(engines, one, other)
    return texts.say("tally", one=left, wins=wins, other=right, losses=losses, ties=ties)
