"""An answer of the engine in the shapes of OpenAI's chat completions, whole or as events, errors included."""

import json
import secrets
import time
import traceback
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from assistant.backends import Counts, Notice
from assistant.settings import one_line
from assistant.web.asking import Asked, Refused
from assistant.web.engine import Engine
from assistant.web.following import follow, until_stop
from assistant.web.line import Busy


async def speak(engine: Engine, asked: Asked, client: str) -> AsyncGenerator[str, None]:
    """Notices, the words as they come, and last, always, the Counts."""
    said = ""
    counts: Counts | None = None
    chunks = follow(engine.stream(asked.messages, asked.sampling, client))
    async with aclosing(until_stop(chunks, asked.stops)) as pieces:
        async for piece in pieces:
            if isinstance(piece, Counts):
                counts = piece
            else:
                said += piece
                yield piece
    if counts is None:  # a Counts is an empty text, and false
        counts = await run_in_threadpool(count, engine, asked, said)
    yield counts


def count(engine: Engine, asked: Asked, said: str) -> Counts:
    """Of an answer that ended at a stop text: what the engine would have written after it is not counted."""
    assert engine.backend is not None
    prompt, answer = engine.backend.count_prompt(asked.messages), engine.backend.count_text(said)
    return Counts(prompt or 0, answer or 0, "stop")


def head(name: str, model: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "object": name,
        "created": int(time.time()),
        "model": model,
    }


def usage_of(counts: Counts) -> dict[str, int] | None:
    """None when the engine behind an address did not say."""
    if not counts.prompt:
        return None
    total = counts.prompt + counts.answer
    return {
        "prompt_tokens": counts.prompt,
        "completion_tokens": counts.answer,
        "total_tokens": total,
    }


async def whole_answer(pieces: AsyncGenerator[str, None], model: str) -> dict[str, Any]:
    heard = [piece async for piece in pieces]
    counts = heard[-1]
    assert isinstance(counts, Counts), heard[-1:]
    message = {"role": "assistant", "content": "".join(heard), "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": counts.ending}
    return head("chat.completion", model) | {"choices": [choice], "usage": usage_of(counts)}


async def events(
    first: str, pieces: AsyncGenerator[str, None], model: str, with_usage: bool
) -> AsyncGenerator[str, None]:
    """Server-sent events; a place in the line is a comment, which clients skip."""
    start = head("chat.completion.chunk", model) | ({"usage": None} if with_usage else {})

    def event(delta: dict[str, str], ending: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": ending}
        return line_of(start | {"choices": [choice]})

    yield event({"role": "assistant", "content": ""})
    try:
        piece = first
        while not isinstance(piece, Counts):
            if isinstance(piece, Notice):
                yield f": {piece.kind} {piece.number}\n\n"
            else:
                yield event({"content": piece})
            piece = await anext(pieces)
        yield event({}, piece.ending)
        if with_usage:
            yield line_of(start | {"choices": [], "usage": usage_of(piece)})
    except Exception as error:
        yield line_of(error_of(as_refused(error)))
    finally:
        await pieces.aclose()
    yield "data: [DONE]\n\n"


def line_of(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


class Events(StreamingResponse):
    """Closes what it streams when the client goes, not when the garbage is collected."""

    body_iterator: AsyncGenerator[str, None]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self.body_iterator.aclose()


def as_refused(error: Exception) -> Refused:
    match error:
        case Refused():
            return error
        case Busy():
            return Refused(one_line(error), 429, code="rate_limit_exceeded", retry_s=error.retry_s)
        case ValueError():
            return Refused(one_line(error))
        case RuntimeError() | OSError():
            return Refused(one_line(error), 500)
    traceback.print_exception(error)
    return Refused(f"something went wrong inside ({type(error).__name__}); the terminal has the details", 500)


def error_of(refused: Refused) -> dict[str, Any]:
    kind = "server_error" if refused.status >= 500 else "invalid_request_error"
    kind = "rate_limit_error" if refused.status == 429 else kind
    return {
        "error": {"message": str(refused), "type": kind, "param": refused.param, "code": refused.code},
    }
