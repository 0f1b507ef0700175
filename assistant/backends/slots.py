"""Several conversations through one llama.cpp engine: each has a slot, and all are written together.

Knows token ids, no text. Beside others a number may differ in its last bits: never with quantized weights in
conversations of up to 256 tokens, else as the sums are taken; an answer changes where two words nearly tie.
"""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from assistant.backends import Notice, Sampling
from assistant.llama_cpp import pieces_of
from assistant.llama_engine import Engine, same_beginning

LOOK_S = 0.05  # how often a reader looks whether it was stopped
PIECE = 128  # tokens of a prompt that are read before those who are written to get their next one


@dataclass(frozen=True)
class Wish:
    """How an answer is wanted. `room` is in tokens; `reuse`: a long beginning is not read again."""

    room: int
    sampling: Sampling
    reuse: bool = True
    is_stopped: Callable[[], bool] = lambda: False


@dataclass(eq=False)
class Slot:
    """One sequence of the engine: the tokens that it has read, and when it was used last."""

    number: int
    read: list[int] = field(default_factory=list)
    used: int = 0


@dataclass(eq=False)
class Answer:
    """What somebody waits for; `unread` are the tokens that its slot must read before the next one comes."""

    ids: list[int]
    wish: Wish
    tokens: "queue.SimpleQueue[int | Exception | None]" = field(default_factory=queue.SimpleQueue)
    unread: list[int] = field(default_factory=list)
    count: int = 0
    has_left: bool = False
    sampler: Any = None


Part = tuple[Answer, list[int]]  # whose slot reads what next


class Slots:
    """The line before the engine and those who have a slot, first come, first served."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._lock = engine, threading.RLock()
        self._free = [Slot(number) for number in range(engine.sequences)]
        self._waiting: list[Answer] = []
        self._seated: dict[Answer, Slot] = {}
        self._thread: threading.Thread | None = None
        self._step_number = 0

    def generate(self, ids: list[int], wish: Wish) -> Iterator[int | Notice]:
        """Tokens after the prompt, until one ends the answer, there is no room, or it is stopped or closed.

        A Notice says how many come first. Raises RuntimeError when llama.cpp cannot go on.
        """
        for tokens in self.generate_all([(ids, wish)]):
            yield from tokens

    def generate_all(self, asked: Iterable[tuple[list[int], Wish]]) -> Iterator[Iterator[int | Notice]]:
        """As generate, of each in order.

        All stand in line from the start: who is written beside whom, and with it every number, is the same
        each time.
        """
        answers = [Answer(*one) for one in asked]
        with self._lock:
            self._waiting += answers
            if not self._thread:
                self._thread = threading.Thread(target=self._drive, daemon=True, name="slots")
                self._thread.start()
        try:
            yield from map(self._heard, answers)
        finally:
            for answer in answers:
                self._leave(answer)

    def _heard(self, answer: Answer) -> Iterator[int | Notice]:
        told = 0
        while not answer.wish.is_stopped():
            try:
                token = answer.tokens.get(timeout=LOOK_S)
            except queue.Empty:
                if (place := self._place_of(answer)) and place != told:
                    yield Notice("waiting", place)
                    told = place
                continue
            if token is None:
                return
            if isinstance(token, Exception):
                raise token
            yield token

    def _place_of(self, answer: Answer) -> int:
        with self._lock:
            return self._waiting.index(answer) + 1 if answer in self._waiting else 0

    def _leave(self, answer: Answer) -> None:
        """Whoever is still read to has the engine interrupted: a prompt may take long."""
        with self._lock:
            answer.has_left = True
            if answer in self._waiting:
                self._waiting.remove(answer)
            elif answer in self._seated and len(answer.unread) > 1:
                self._engine.stop()

    # ---- in the thread that drives the engine

    def _drive(self) -> None:
        while self._look():
            for parts in (self._writers(), self._reader()):
                try:
                    self._step(parts)
                except Exception as error:  # whoever waits for it raises it
                    for answer, _ in parts:
                        self._end(answer, error)

    def _look(self) -> bool:
        """Who has left is let go, who waits is seated; False when nobody is there: then this thread ends."""
        with self._lock:
            self._engine.stop(False)
            for answer in [answer for answer in self._seated if answer.has_left]:
                self._end(answer)
            while self._waiting and self._free:
                self._seat(self._waiting.pop(0))
            if not self._seated:
                self._thread = None
            return bool(self._seated)

    def _seat(self, answer: Answer) -> None:
        """The free slot that knows most of the prompt's beginning, else the one that was used longest ago."""
        known = {slot: same_beginning(answer.ids, slot.read) for slot in self._free}
        if not answer.wish.reuse:
            known = dict.fromkeys(known, 0)
        slot = max(self._free, key=lambda slot: (known[slot], -slot.used))
        self._free.remove(slot)
        self._seated[answer] = slot
        self._engine.forget(slot.number, known[slot])
        del slot.read[known[slot] :]
        answer.unread = answer.ids[known[slot] :]
        sampling = answer.wish.sampling
        answer.sampler = self._engine.sampler(sampling.temperature, sampling.top_p, sampling.seed)

    def _writers(self) -> list[Part]:
        """All who are written to, by the order of their slots: llama.cpp reads neighbours together."""
        writers = [(answer, answer.unread) for answer in self._seated if len(answer.unread) == 1]
        return sorted(writers, key=lambda part: self._seated[part[0]].number)

    def _reader(self) -> list[Part]:
        """One piece of one prompt, in turn, by itself and cut as it would be if nobody else were there.

        Beside other tokens, or in other pieces, llama.cpp takes another way to nearly the same numbers.
        """
        readers = [answer for answer in self._seated if len(answer.unread) > 1]
        if not readers:
            return []
        answer = min(readers, key=lambda answer: self._seated[answer].used)
        return [(answer, next(pieces_of(answer.unread, PIECE)))]

    def _step(self, parts: list[Part]) -> None:
        slots = [self._seated[answer] for answer, _ in parts]
        asked = [(slot.number, len(slot.read), ids) for slot, (_, ids) in zip(slots, parts, strict=True)]
        places = self._engine.evaluate(asked) if asked else None
        if places is None:
            return  # somebody left; the others go on where they were
        self._step_number += 1
        for slot, (answer, ids), place in zip(slots, parts, places, strict=True):
            slot.read += ids
            slot.used = self._step_number
            answer.unread = answer.unread[len(ids) :]
            if not answer.unread:
                self._say(answer, self._engine.sample(answer.sampler, place))

    def _say(self, answer: Answer, token: int) -> None:
        if self._engine.is_end(token):
            return self._end(answer)
        answer.tokens.put(token)
        answer.count += 1
        answer.unread = [token]
        if answer.count >= answer.wish.room:
            self._end(answer)

    def _end(self, answer: Answer, error: Exception | None = None) -> None:
        """The slot is free; after an error nothing that it has read is trusted."""
        with self._lock:
            if (slot := self._seated.pop(answer, None)) is None:
                return
            self._free.append(slot)
        if error:
            self._engine.forget(slot.number, 0)
            slot.read.clear()
        self._engine.free_sampler(answer.sampler)
        answer.tokens.put(error)
