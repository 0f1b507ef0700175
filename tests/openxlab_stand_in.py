"""OpenXLab's API as far as making a repository needs it: nonce, signature, token, repository.

Its addresses and answers are those that the published `openxlab` package asks for and reads.
"""

import base64
import hmac
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from serving import listening

AK, SK = "ak-secret-key", "sk-secret-key"
NONCE, TOKEN = "nonce-of-today", "jwt-secret-token"
LOGIN = {
    "jwt": TOKEN, "expiration": "2099-01-01 00:00:00", "sso_uid": "7",
    "refresh_token": "refresh-secret", "refresh_expiration": "2099-01-01 00:00:00",
}  # fmt: skip
OPEN, MODELS = "/sso-be/api/v1/open", "/model-center/api/v1/cli/repository"


@dataclass
class OpenXLab:
    """What it was asked, and what goes wrong: the create call's refusal, a status for all, another form."""

    url: str = ""
    refusal: str = ""
    status: int = 200
    form: dict[str, Any] | None = None
    stall: Callable[[], Any] = bool
    look: Callable[[], str] = str
    heard: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    seen: str = ""

    def answer(self, path: str, asked: dict[str, Any], authorization: str | None) -> dict[str, Any]:
        self.heard.append((path, asked))
        self.seen += self.look()
        self.stall()
        if self.form is not None:
            return self.form
        if path == f"{OPEN}/auth":
            return done({"nonce": NONCE, "algorithm": "HmacSHA256"})
        if path == f"{OPEN}/getJwt":
            signed = base64.b64encode(hmac.digest(SK.encode(), NONCE.encode(), "sha256")).decode()
            return done(LOGIN) if asked == {"ak": AK, "d": signed} else refused("signature is wrong")
        if path == f"{MODELS}/createModelRepository" and authorization == TOKEN:
            return refused(self.refusal) if self.refusal else done({"repositoryId": 1})
        return refused(f"no login for {path}")


def done(data: dict[str, Any]) -> dict[str, Any]:
    return envelope({"msgCode": "10000", "msg": "ok", "data": data, "traceId": "t"})


def refused(why: str) -> dict[str, Any]:
    return envelope({"msgCode": "50001", "msg": why, "data": None, "traceId": "t"})


def envelope(inner: dict[str, Any]) -> dict[str, Any]:
    return {"traceId": "t", "msgCode": "10000", "msg": "ok", "data": inner, "success": True}


@contextmanager
def openxlab_stand_in(**faults: Any) -> Iterator[OpenXLab]:
    there = OpenXLab(**faults)

    class Api(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            said = json.dumps(there.answer(self.path, asked, self.headers["Authorization"])).encode()
            self.send_response(there.status)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

    with listening(Api) as there.url:
        yield there
