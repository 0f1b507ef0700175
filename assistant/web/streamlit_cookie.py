"""The secret by which a browser finds its conversations again in Streamlit: a cookie no script can read."""

from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from assistant.web.store import new_browser

COOKIE = "little_assistant"
YEAR_S = 365 * 24 * 3600


@dataclass
class BrowserCookie:
    """ASGI middleware: a browser that comes without the cookie gets one with the first page."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        is_page = scope["type"] == "http" and "text/html" in headers.get("accept", "")
        if not is_page or COOKIE in cookie_parser(headers.get("cookie", "")):
            return await self.app(scope, receive, send)
        is_secure = "https" in (scope["scheme"], headers.get("x-forwarded-proto"))

        async def send_with_cookie(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).append("Set-Cookie", new_cookie(is_secure))
            await send(message)

        await self.app(scope, receive, send_with_cookie)


def new_cookie(is_secure: bool) -> str:
    """Also inside a frame of another site, as hosts of such pages show them, where https allows it."""
    place = "SameSite=None; Secure; Partitioned" if is_secure else "SameSite=Lax"
    return f"{COOKIE}={new_browser()}; Path=/; Max-Age={YEAR_S}; HttpOnly; {place}"
