"""What a person does in a conversation, the same on both pages: ask, stop, regenerate, edit, undo, rate.

Knows no framework; everything done is kept in the store.
"""

import sqlite3
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import cast

from assistant.backends import Sampling
from assistant.conversations import Message, user
from assistant.settings import one_line
from assistant.web import Engine, Shown, answer, conversation
from assistant.web.store import Chat, Store, Turn
from assistant.web.texts import Texts

SAVE_S = 1.0  # a crash loses at most the last second
LONGEST_COMMENT = 1000


@dataclass
class Running:
    """The conversations that are being answered, each with what stops it."""

    stops: dict[str, threading.Event] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def begin(self, id: str) -> Iterator[threading.Event | None]:
        """What will stop this answer; None when another one is being written in that conversation."""
        stop = threading.Event()
        with self.lock:
            is_ours = self.stops.setdefault(id, stop) is stop
        try:
            yield stop if is_ours else None
        finally:
            if is_ours:
                del self.stops[id]

    def stop(self, id: str) -> None:
        if found := self.stops.get(id):
            found.set()


RUNNING = Running()


def reply(
    store: Store, browser: str, chat: Chat, engine: Engine, sampling: Sampling, texts: Texts, client: str = ""
) -> Generator[Shown, None, None]:
    """The answer to the chat's last turn, a question; as it grows it is the new last turn, also in the store.

    Never raises. Closing it or RUNNING.stop(chat.id) ends it at once and keeps what was said so far.
    """
    with RUNNING.begin(chat.id) as stop:
        if not stop:
            yield Shown(note=texts["answering"], failed=True)
            return
        turn: Turn = {"role": "assistant", "content": "", "note": texts["stopped"], "model": engine.name}
        messages = conversation(spoken(chat.turns), chat.system_prompt)
        chat.turns.append(turn)
        try:
            yield from _kept(
                store, browser, chat, turn, answer(engine, messages, sampling, texts, client), stop
            )
        except (ValueError, sqlite3.Error) as error:
            yield Shown(turn["content"], texts.say("not_saved", error=one_line(error)), failed=True)


def _kept(
    store: Store,
    browser: str,
    chat: Chat,
    turn: Turn,
    states: Generator[Shown, None, None],
    stop: threading.Event,
) -> Generator[Shown, None, None]:
    store.save(browser, chat)
    saved, shown = time.monotonic(), Shown()
    try:
        with closing(states):
            for shown in states:
                if stop.is_set():
                    break
                turn["content"] = shown.text
                yield shown
                if (now := time.monotonic()) - saved >= SAVE_S:
                    store.save(browser, chat)
                    saved = now
        if stop.is_set():
            shown = replace(shown, note=turn["note"], meanwhile="", failed=False)
            yield shown
        _finish(turn, shown)
    finally:
        store.save(browser, chat)


def _finish(turn: Turn, shown: Shown) -> None:
    turn["content"], turn["note"] = shown.text, shown.note
    if shown.failed:
        turn["failed"] = True
    if shown.figures:
        turn["figures"] = shown.figures


def spoken(turns: list[Turn]) -> list[Message]:
    """The turns as messages, without what stands beside them."""
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns]


def ask(chat: Chat, question: str) -> bool:
    """Whether there is something to answer."""
    if question.strip():
        chat.turns.append(cast(Turn, user(question)))
    return bool(question.strip())


def ask_again(chat: Chat, at: int, question: str | None = None) -> bool:
    """Go back to the question at turn `at` or just before it, and put it again, in new words if given.

    False when there is no question.
    """
    asked = [i for i, turn in enumerate(chat.turns[: at + 1]) if turn["role"] == "user"]
    if not asked:
        return False
    question = (question or "").strip() or chat.turns[asked[-1]]["content"]
    del chat.turns[asked[-1] :]
    return ask(chat, question)


def undo(chat: Chat) -> str:
    """Take back the last question with its answer; the question's text, "" when there is none."""
    asked = [i for i, turn in enumerate(chat.turns) if turn["role"] == "user"]
    if not asked:
        return ""
    text = chat.turns[asked[-1]]["content"]
    del chat.turns[asked[-1] :]
    return text


def rate(chat: Chat, at: int, liked: bool | None, comment: str = "") -> None:
    """A person's verdict on the answer at turn `at`; None takes it back."""
    if not 0 <= at < len(chat.turns) or chat.turns[at]["role"] != "assistant":
        return
    turn = chat.turns[at]
    turn.pop("liked", None)
    turn.pop("comment", None)
    if liked is not None:
        turn["liked"] = liked
    if comment.strip():
        turn["comment"] = comment.strip()[:LONGEST_COMMENT]
