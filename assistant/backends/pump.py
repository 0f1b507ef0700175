"""An engine's work as a stream that can be closed at any moment, and the line of those who wait for it."""

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager

from assistant.backends import Notice

HEARTBEAT_S = 0.1


def pump(
    work: Callable[[Callable[[str], None], Callable[[], bool]], None], stop: threading.Event | None = None
) -> Generator[str, None, None]:
    """Run `work(emit, is_stopped)` in a thread and yield what it emits, with empty heartbeats in between.

    The heartbeats let a caller close this iterator while the engine is still silent. An error in `work` is
    raised here.
    """
    ended = threading.Event()
    chunks: queue.SimpleQueue[str | BaseException | None] = queue.SimpleQueue()

    def is_stopped() -> bool:
        return ended.is_set() or (stop is not None and stop.is_set())

    def run() -> None:
        try:
            work(chunks.put, is_stopped)
            chunks.put(None)
        except BaseException as error:  # the reader's thread raises it
            chunks.put(error)

    threading.Thread(target=run, daemon=True, name="answer").start()
    try:
        yield from _until_done(chunks, is_stopped)
    finally:
        ended.set()


def _until_done(
    chunks: "queue.SimpleQueue[str | BaseException | None]", is_stopped: Callable[[], bool]
) -> Iterator[str]:
    while not is_stopped():
        try:
            chunk = chunks.get(timeout=HEARTBEAT_S)
        except queue.Empty:
            chunk = ""
        if chunk is None:
            return
        if isinstance(chunk, BaseException):
            raise chunk
        yield chunk


class Ticket:
    """A place in the line; those of one pair stand together and have their turn together."""

    def __init__(self, pair: str) -> None:
        self._pair = pair

    def is_with(self, other: "Ticket") -> bool:
        return self is other or bool(self._pair and self._pair == other._pair)


class Turns:
    """A lock that is granted first come, first served, and that a waiting caller can leave."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._line: list[Ticket] = []

    @contextmanager
    def take(
        self,
        emit: Callable[[str], None] = lambda chunk: None,
        is_stopped: Callable[[], bool] = lambda: False,
        pair: str = "",
    ) -> Iterator[bool]:
        """Wait for the turn; True when it came, False when `is_stopped` said so first."""
        ticket = Ticket(pair)
        with self._changed:
            beside = [place for place, other in enumerate(self._line, 1) if ticket.is_with(other)]
            self._line.insert(beside[-1] if beside else len(self._line), ticket)
        try:
            yield self._wait(ticket, emit, is_stopped)
        finally:
            with self._changed:
                self._line.remove(ticket)
                self._changed.notify_all()

    def stream(
        self, speak: Callable[[Callable[[str], None], Callable[[], bool]], None], stop: threading.Event | None
    ) -> Generator[str, None, None]:
        """pump() for a `speak(emit, is_stopped)` that begins when its turn has come."""

        def work(emit: Callable[[str], None], is_stopped: Callable[[], bool]) -> None:
            with self.take(emit, is_stopped) as is_ours:
                if is_ours:
                    speak(emit, is_stopped)

        return pump(work, stop)

    def _before(self, ticket: Ticket) -> int:
        return next(place for place, other in enumerate(self._line) if ticket.is_with(other))

    def _wait(self, ticket: Ticket, emit: Callable[[str], None], is_stopped: Callable[[], bool]) -> bool:
        told = 0
        with self._changed:
            while (before := self._before(ticket)) and not is_stopped():
                if before != told:
                    emit(Notice("waiting", before))
                    told = before
                self._changed.wait(HEARTBEAT_S)
        return not is_stopped()
