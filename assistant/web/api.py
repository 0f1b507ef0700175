"""The engine behind OpenAI's API, /v1, and /health, on the port of either page. Knows neither page."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from assistant.backends import LEAST_ANSWER
from assistant.conversations import images_of, user
from assistant.images import BadPicture, small_address
from assistant.settings import near_names
from assistant.web.asking import Asked, Refused, read_request
from assistant.web.completions import Events, as_refused, error_of, events, speak, whole_answer
from assistant.web.engine import Engine
from assistant.web.guard import Access, is_allowed

MOST_BYTES = 1_000_000  # of a request without its pictures
MOST_PICTURE_BYTES = 20_000_000  # of a request with them
MOST_PICTURES = 16  # of a conversation; each is decoded, one after the other
PICTURE = re.compile(rb'"url"\s*:\s*"data:(?:[^"\\]|\\/)*"')
LOADING_RETRY_S = 3
LOADING_WAIT_S = 30.0
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
CHAT, MODELS = "/v1/chat/completions", "/v1/models"
Handler = Callable[[Request], Awaitable[Response]]
Result = TypeVar("Result")


def routes(engine: Engine, access: Access) -> list[Route]:
    """For the server of either page."""
    started = int(time.time())

    def model() -> dict[str, Any]:
        return {"id": engine.name, "object": "model", "created": started, "owned_by": "local"}

    async def chat(request: Request) -> Response:
        asked = await run_in_threadpool(read_request, await read_body(request))
        check_model(engine, asked.model)
        return await answer_chat(engine, asked, request)

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [model()]})

    async def one_model(request: Request) -> Response:
        check_model(engine, request.path_params["name"])
        return JSONResponse(model())

    async def nothing(request: Request) -> Response:
        known = {CHAT: "POST", MODELS: "GET"}
        if method := known.get(request.url.path):
            raise Refused(f"{request.url.path} wants {method}", 405)
        raise Refused(f"nothing is here; there are POST {CHAT} and GET {MODELS}", 404, code="unknown_url")

    async def health(request: Request) -> Response:
        return JSONResponse({"status": engine.status, "model": engine.name})

    def guarded(handler: Handler) -> Handler:
        return partial(refusing, handler, access)

    return [
        Route(CHAT, guarded(chat), methods=["POST"]),
        Route(MODELS, guarded(models), methods=["GET"]),
        Route(MODELS + "/{name:path}", guarded(one_model), methods=["GET"]),
        Route("/v1/{rest:path}", guarded(nothing), methods=METHODS),
        Route("/health", health, methods=["GET"]),
    ]


async def refusing(handler: Handler, access: Access, request: Request) -> Response:
    """The handler's answer, or what went wrong as OpenAI says it: one sentence, never a traceback."""
    try:
        if not is_allowed(request.headers.get("authorization", ""), access):
            raise Refused("the API key is missing or wrong", 401, code="invalid_api_key")
        return await handler(request)
    except ClientDisconnect:
        return Response(status_code=499)  # nobody reads it
    except Exception as error:
        refused = as_refused(error)
        headers = {"Retry-After": str(refused.retry_s)} if refused.retry_s else {}
        return JSONResponse(error_of(refused), refused.status, headers)


async def read_body(request: Request) -> bytes:
    """Only JSON is read: a foreign web page cannot send it here without being allowed to first (CORS)."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused("send JSON, with the header Content-Type: application/json", 415)
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MOST_PICTURE_BYTES:
            sentence = f"the request is larger than {MOST_PICTURE_BYTES} bytes; send smaller pictures"
            raise Refused(sentence, 413)
    if len(body) > MOST_BYTES and len(await run_in_threadpool(PICTURE.sub, b"", body)) > MOST_BYTES:
        raise Refused(f"the request is larger than {MOST_BYTES} bytes; send a shorter one", 413)
    return body


def check_model(engine: Engine, name: str | None) -> None:
    if name is not None and name not in (engine.name, engine.shown_model):
        sentence = f"there is no model {name!r:.80}{near_names(name[:80], [engine.name])}"
        raise Refused(sentence, 404, param="model", code="model_not_found")


async def wait_ready(engine: Engine) -> None:
    """Until the model is loaded, which begins now at the latest; not for longer than LOADING_WAIT_S.

    Raises Refused when it is not loaded then, or never will be.
    """
    engine.begin()
    until = time.monotonic() + LOADING_WAIT_S
    while engine.status == "loading" and time.monotonic() < until:
        await asyncio.sleep(0.1)
    if engine.status == "error":
        raise Refused(engine.error, 503, code="model_not_loaded")
    if engine.status == "loading":
        raise Refused("the model is loading; ask again", 503, code="loading", retry_s=LOADING_RETRY_S)


def look_at(engine: Engine, asked: Asked) -> Asked:
    """The request with its pictures opened and made small, for an engine that sees. Raises Refused."""
    if not (shown := images_of(asked.messages)):
        return asked
    if not engine.sees:
        sentence = f"{engine.name} reads text alone; leave out the image_url parts, or serve a LLaVA folder"
        raise Refused(sentence, param="messages", code="image_not_supported")
    if len(shown) > MOST_PICTURES:
        raise Refused(f"{len(shown)} pictures; send at most {MOST_PICTURES}", param="messages")
    try:
        messages = [
            user(turn["content"], [small_address(image) for image in images])
            if (images := turn.get("images"))
            else turn
            for turn in asked.messages
        ]
    except BadPicture as error:
        raise Refused(str(error), param="messages", code="invalid_image") from None
    return replace(asked, messages=messages)


def check_length(engine: Engine, asked: Asked) -> None:
    """An API never shortens a conversation silently, as a page does with a note."""
    backend = engine.backend
    assert backend is not None
    tokens, context = backend.count_prompt(asked.messages), backend.context
    if tokens and context and tokens > context - min(asked.sampling.max_new_tokens, LEAST_ANSWER):
        raise Refused(
            f"the messages are {tokens} tokens long and the model reads {context}; send shorter ones",
            param="messages",
            code="context_length_exceeded",
        )


async def answer_chat(engine: Engine, asked: Asked, request: Request) -> Response:
    """Waits for the first word (or place in the line): until then an error still has a status of its own."""
    await while_there(request, wait_ready(engine))
    asked = await run_in_threadpool(look_at, engine, asked)
    await run_in_threadpool(check_length, engine, asked)
    pieces = speak(engine, asked, request.client.host if request.client else "")
    if not asked.is_streamed:
        return JSONResponse(await while_there(request, whole_answer(pieces, engine.name)))
    first = await while_there(request, anext(pieces))
    return Events(events(first, pieces, engine.name, asked.with_usage), media_type="text/event-stream")


async def while_there(request: Request, work: Awaitable[Result]) -> Result:
    """The result of `work`, which is cancelled when the client goes. Raises ClientDisconnect then."""
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            if await request.is_disconnected():
                raise ClientDisconnect
            await asyncio.wait({task}, timeout=0.1)
        return task.result()
    finally:
        task.cancel()
