"""What stands first in the Gradio page's <head>: Gradio's own `head` comes after it has chosen a language."""

import json
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from assistant.web.texts import fixed_language, load_texts

HEAD = Path(__file__).with_name("head.html")


def page_head() -> bytes:
    """head.html, told the language that ASSISTANT_LANG asks for and Gradio's words in all but English."""
    first, *others = load_texts().values()
    words = {texts.code: [*zip(first["gradio"], texts["gradio"], strict=True)] for texts in others}
    head = HEAD.read_text(encoding="utf-8").replace("ASSISTANT_LANG", fixed_language() or "")
    return head.replace("ASSISTANT_WORDS", json.dumps(words, ensure_ascii=False)).encode()


@dataclass
class EarlyHead:
    """ASGI middleware that puts `head` at the beginning of the page's <head>."""

    app: ASGIApp
    head: bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "GET" or scope["path"] not in ("", "/"):
            return await self.app(scope, receive, send)
        start: list[Message] = []

        async def send_with_head(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.append(message)  # its length is not known yet
                return
            if start:
                body = message.get("body", b"").replace(b"<head>", b"<head>\n" + self.head, 1)
                headers = MutableHeaders(scope=start[0])
                if "content-length" in headers and not message.get("more_body"):
                    headers["content-length"] = str(len(body))
                await send(start.pop())
                message = {**message, "body": body}
            await send(message)

        await self.app(scope, receive, send_with_head)
