"""One question to two models at once, judged blind. Knows no framework."""

import random
import secrets
import time
from collections.abc import Generator, Iterable
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace

from assistant.backends import Sampling
from assistant.web import REDRAW_S, Shown
from assistant.web.models import Engines, Found, base_of
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


def two_of(models: list[Found], one: str | None, other: str | None) -> tuple[str, str]:
    """The ids that were chosen, as far as they are here; else the first model's and that of its base."""
    known = [model.id for model in models]
    second = base_of(models[0], models) or models[1]
    return one if one in known else known[0], other if other in known else second.id


def draw_pair(one: str, other: str, question: str, blind: bool) -> Pair:
    left, right = random.sample([one, other], 2) if blind else [one, other]
    return Pair(left, right, question, blind)


def sampling_of_pair(sampling: Sampling) -> Sampling:
    """For both sides: short, and side by side where others wait for each other."""
    most = min(sampling.max_new_tokens, LONGEST)
    return replace(sampling, max_new_tokens=most, pair=secrets.token_hex(8))


def together(
    states: list[Generator[Shown, None, None]], shown: list[Shown], texts: Texts
) -> Generator[None, None, None]:
    """The latest state of each in `shown` as long as one still grows, at most 20 times a second.

    Closing it ends both; what still grew then says that it was stopped.
    """
    growing, last = dict(enumerate(states)), 0.0
    with ExitStack() as stack:
        stack.callback(_mark_stopped, growing, shown, texts)
        for state in states:
            stack.enter_context(closing(state))
        while growing:
            _grow(growing, shown)
            if not growing or (now := time.monotonic()) - last >= REDRAW_S:
                yield
                last = now if growing else last


def _grow(growing: dict[int, Generator[Shown, None, None]], shown: list[Shown]) -> None:
    for place, state in list(growing.items()):
        if newer := next(state, None):
            shown[place] = newer
        else:
            del growing[place]


def _mark_stopped(growing: Iterable[int], shown: list[Shown], texts: Texts) -> None:
    for place in growing:
        shown[place] = replace(shown[place], meanwhile="", note=texts["stopped"])


def can_judge(shown: list[Shown]) -> bool:
    """Whether there are two answers to choose from: a vote on an error would say nothing of the model."""
    return all(one.text.strip() and not one.failed for one in shown)


def without_figures(shown: Shown) -> Shown:
    """How fast it was gives away who it is."""
    return replace(shown, figures={})


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
