"""Before both pages: only this machine may come in by default, and no foreign picture is fetched."""

import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# A model's answer may hold ![](http://elsewhere/?q=secret): the browser must not ask for it.
POLICY = "img-src 'self' data: blob:; object-src 'none'; base-uri 'self'"


@dataclass
class Guard:
    """ASGI middleware. With `only_local`, other machines and foreign Host names (DNS rebinding) get 403."""

    app: ASGIApp
    only_local: bool = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if self.only_local and not is_local(scope):
            return await refuse(scope, receive, send)

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Content-Security-Policy"] = POLICY
            await send(message)

        await self.app(scope, receive, send_with_policy)


async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    sentence = "This page answers only its own machine; start it with a server address to open it."
    await PlainTextResponse(sentence, 403)(scope, receive, send)


def is_local(scope: Scope) -> bool:
    """The caller is on this machine and asked for it by a local name."""
    host = urlsplit("//" + Headers(scope=scope).get("host", "")).hostname or ""
    client = scope.get("client")
    return is_loopback(host) and (client is None or is_loopback(client[0]))


def is_loopback(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address == "localhost"
    mapped = getattr(found, "ipv4_mapped", None)
    return bool((mapped or found).is_loopback)
