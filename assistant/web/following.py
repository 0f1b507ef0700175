"""An engine's stream, which blocks, heard by a server that must not; and where a stop text cuts it."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, closing


async def follow(stream: Generator[str, None, None]) -> AsyncGenerator[str, None]:
    """The chunks of `stream`, without its heartbeats, from a thread of its own.

    Closing this closes the stream at its next heartbeat. Raises what the stream raises.
    """
    loop, ended = asyncio.get_running_loop(), threading.Event()
    chunks: asyncio.Queue[str | BaseException | None] = asyncio.Queue()

    def tell(chunk: str | BaseException | None) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(chunks.put_nowait, chunk)

    def run() -> None:
        try:
            with closing(stream):
                for chunk in stream:
                    if ended.is_set():
                        return
                    if chunk or type(chunk) is not str:
                        tell(chunk)
            tell(None)
        except BaseException as error:  # the reader raises it
            tell(error)

    threading.Thread(target=run, daemon=True, name="follow").start()
    try:
        while (chunk := await chunks.get()) is not None:
            if isinstance(chunk, BaseException):
                raise chunk
            yield chunk
    finally:
        ended.set()


async def until_stop(chunks: AsyncGenerator[str, None], stops: tuple[str, ...]) -> AsyncGenerator[str, None]:
    """The chunks up to the first of `stops`, which is left out; what may become one is held back."""
    held = ""
    async with aclosing(chunks):
        async for chunk in chunks:
            if not chunk:  # a notice
                if held:
                    yield held
                held = ""
                yield chunk
                continue
            text = held + chunk
            if places := [at for stop in stops if (at := text.find(stop)) >= 0]:
                if min(places):
                    yield text[: min(places)]
                return
            held = _beginning_at_end(text, stops)
            if whole := text[: len(text) - len(held)]:
                yield whole
        if held:
            yield held


def _beginning_at_end(text: str, stops: tuple[str, ...]) -> str:
    """The longest end of `text` with which a stop text begins."""
    longest = max((len(stop) for stop in stops), default=1) - 1
    for size in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-size:]) for stop in stops):
            return text[-size:]
    return ""
