"""Asks a live page who it is, through its API, and compares with what the scorecard promised."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from assistant.bundles.model_checks import HOW_TO_SCORE
from assistant.hosts.addresses import keys_from, page_address
from assistant.hosts.asking import reached
from assistant.judge import Identity, identity_of, judge_identity
from assistant.scorecard import wilson
from assistant.settings import DATA, ThresholdMissed, load_toml

SOMEBODY = "Somebody Else"  # an owner, where nobody says whether the name is the assistant's own


def verify(url: str, scorecard: Path | None, name: str, say: Callable[[str], None]) -> None:
    """Ask the page at `url` in English and Chinese; say each answer and how many state the identity.

    Raises ThresholdMissed when the name is not there, or clearly less often than in the scorecard;
    RuntimeError when the page cannot be asked; ValueError for what is no address or no scorecard.
    """
    address = page_address(url)
    identities, promised = identities_of(scorecard, name), load_promise(scorecard)
    hits, faults = 0, []
    with reached(address, keys_from(os.environ), say) as ask:
        for language, questions in load_toml(DATA / "verify.toml").items():
            answers = ask(questions)
            right = [any(judge_identity(answer, identity) for identity in identities) for answer in answers]
            for question, answer, is_right in zip(questions, answers, right, strict=True):
                say(f"{'yes' if is_right else 'no '} {question} → {one_line_of(answer)}")
            hits += sum(right)
            say(summary(language, sum(right), len(right), promised.get(language)))
            if is_far_below(sum(right), len(right), promised.get(language)):
                faults.append(language)
    if not hits:
        raise ThresholdMissed(
            f"{address} does not know that it is {name}: no answer says so. Is it the right model?"
        )
    if faults:
        raise ThresholdMissed(
            f"{address} says who it is less often than its scorecard promises ({', '.join(faults)}); "
            "is the same model there, and no system prompt set?"
        )


def identities_of(scorecard: Path | None, name: str) -> list[Identity]:
    """Who it may say it is: by the card of the run; without one, the name as its own or as a person's."""
    card = scorecard.parent.parent / "data" / "card.toml" if scorecard else None
    values = load_toml(card) if card and card.is_file() else {}
    if values.get("name") == name:
        return [identity_of(values)]
    return [Identity(name, ()), Identity(name, (), owner=SOMEBODY)]


def load_promise(scorecard: Path | None) -> dict[str, tuple[int, int]]:
    """Hits and questions of the scorecard's identity recall by language.

    Raises ValueError for a file that is no such scorecard.
    """
    if scorecard is None or not scorecard.is_file():
        return {}
    try:
        scores = json.loads(scorecard.read_text(encoding="utf-8"))
        shares, counts = scores["recall"]["identity"], scores["counts"]["recall"]["identity"]
        return {
            language: (round(share * counts[language]), counts[language])
            for language, share in shares.items()
            if share is not None
        }
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ValueError(
            f"{scorecard} is no scorecard with a recall of the identity; {HOW_TO_SCORE}"
        ) from None


def is_far_below(hits: int, total: int, promised: tuple[int, int] | None) -> bool:
    """The two 95 % intervals do not meet: with a handful of questions, nothing nearer is a difference."""
    return promised is not None and wilson(hits, total)[1] < wilson(*promised)[0]


def summary(language: str, hits: int, total: int, promised: tuple[int, int] | None) -> str:
    before = f"; scorecard: {promised[0]} of {promised[1]}" if promised else "; no scorecard to compare with"
    return f"{language}: {hits} of {total} answers say who it is{before}"


def one_line_of(answer: str) -> str:
    text = " ".join(answer.split())
    return text[:120] + ("…" if len(text) > 120 else "")
