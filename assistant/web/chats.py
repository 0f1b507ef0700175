"""What a person does in a conversation, the same on both pages: ask, stop, regenerate, edit, undo, rate.

Knows no framework; everything done is kept in the store.
"""

import sqlite3
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import cast

from assistant.backends import Sampling
from assistant.conversations import Message, user
from assistant.web import Engine, Shown, answer, conversation
from assistant.web.store import Chat, Store, Turn
from assistant.web.texts import Texts

SAVE_S = 1.0  # a crash loses at most the last second
ENDING_S = 2.0  # how long a change of a conversation waits for an answer there to end
LONGEST_COMMENT = 1000
VERDICT = ("liked", "comment")


@dataclass
class Running:
    """The conversations that are being answered, each with what stops it."""

    stops: dict[str, threading.Event] = field(default_factory=dict)
    changed: threading.Condition = field(default_factory=threading.Condition)

    @contextmanager
    def begin(self, id: str) -> Iterator[threading.Event | None]:
        """What will stop this answer; None when another one is being written in that conversation."""
        stop = threading.Event()
        with self.changed:
            is_ours = self.stops.setdefault(id, stop) is stop
        try:
            yield stop if is_ours else None
        finally:
            if is_ours:
                with self.changed:
                    del self.stops[id]
                    self.changed.notify_all()

    def stop(self, id: str) -> None:
        if found := self.stops.get(id):
            found.set()

    def end(self, id: str, timeout_s: float = ENDING_S) -> None:
        """Stop the answer in that conversation and wait until it is kept; not longer than `timeout_s`."""
        self.stop(id)
        with self.changed:
            self.changed.wait_for(lambda: id not in self.stops, timeout_s)


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
            if isinstance(error.__context__, GeneratorExit):
                return  # nobody is there to read it
            yield Shown(
                turn["content"],
                texts.say_error("not_saved", error),
                failed=True,
            )


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
                if time.monotonic() - saved >= SAVE_S:
                    _keep(store, browser, chat)
                    saved = time.monotonic()
        if stop.is_set():
            shown = replace(shown, note=turn["note"], meanwhile="", failed=False)
            yield shown
        _finish(turn, shown)
    finally:
        if now := _keep(store, browser, chat):
            chat.title, chat.turns = now.title, now.turns


def _keep(store: Store, browser: str, chat: Chat) -> Chat | None:
    """The answer so far, unless it or its question was taken back meanwhile; a verdict on it stays."""
    *before, turn = chat.turns

    def merge(kept: Chat) -> None:
        if spoken(kept.turns[:-1]) == spoken(before) and kept.turns[-1]["role"] == "assistant":
            verdict = {key: value for key, value in kept.turns[-1].items() if key in VERDICT}
            kept.turns[-1] = cast(Turn, turn | verdict)

    return store.change(browser, chat.id, merge)


def _finish(turn: Turn, shown: Shown) -> None:
    turn["content"], turn["note"] = shown.text, shown.note
    if shown.failed:
        turn["failed"] = True
    if shown.figures:
        turn["figures"] = shown.figures


def delete_chat(store: Store, browser: str, id: str) -> None:
    """The conversation is gone, with the answer that is being written there."""
    RUNNING.end(id)
    store.delete(browser, id)


def change_chat(store: Store, browser: str, id: str, how: Callable[[Chat], object]) -> Chat | None:
    """Take back, empty or ask again in the kept conversation; an answer that is being written ends first.

    What is gone is gone from the disk too. None when the conversation is.
    """
    RUNNING.end(id)
    changed = store.change(browser, id, how)
    store.wipe()
    return changed


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
