"""A conversation about pictures, with whoever can look at them; the same on both pages.

Knows no framework, nor how a model is given eyes.
"""

from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import Any, NotRequired

from assistant.backends import Sampling
from assistant.conversations import Message, assistant, user
from assistant.images import BadPicture, small_address
from assistant.web import Engine, Shown, answer
from assistant.web.store import Turn
from assistant.web.texts import Texts


class Look(Turn):
    """A turn; a question may show pictures, as `data:` addresses, and as `files` that a browser is shown."""

    images: NotRequired[list[str]]
    files: NotRequired[list[str]]


def take_picture(source: bytes | Path, texts: Texts) -> tuple[str, str]:
    """A picture as a small `data:` address, or "" and why not, in the person's language."""
    try:
        return small_address(source), ""
    except BadPicture as error:
        return "", texts.get(f"picture_{error.kind}") or texts["picture_unknown"]


def seen_by(engine: Engine, address: str) -> Any:
    """The picture as the model is shown it, a PIL image; None before it has loaded, or from an endpoint."""
    seen: Callable[[str], Any] | None = getattr(engine.backend, "seen", None)
    return seen(address) if seen and engine.sees else None


def messages_of(turns: list[Look]) -> list[Message]:
    """The turns as a model may read them; the pictures of a question without an answer go to the next one."""
    kept: list[Message] = []
    for turn in turns:
        if turn["role"] == "user":
            waiting = kept.pop().get("images", []) if kept and kept[-1]["role"] == "user" else []
            kept.append(user(turn["content"], [*waiting, *turn.get("images", ())]))
        elif turn["content"].strip() and kept:
            kept.append(assistant(turn["content"]))
    return kept


def reply(
    engine: Engine, turns: list[Look], sampling: Sampling, texts: Texts, client: str = ""
) -> Generator[Shown, None, None]:
    """The answer to the last turn, a question; as it grows it is the new last turn. Never raises.

    Closing it ends it at once and keeps what was said so far.
    """
    turn: Look = {"role": "assistant", "content": "", "note": texts["stopped"], "model": engine.name}
    messages, shown = messages_of(turns), Shown()
    turns.append(turn)
    with closing(answer(engine, messages, sampling, texts, client)) as states:
        for shown in states:
            turn["content"] = shown.text
            yield shown
    turn["note"], turn["failed"], turn["figures"] = shown.note, shown.failed, shown.figures
