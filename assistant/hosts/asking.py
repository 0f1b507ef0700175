"""How a live page is waited for and asked, through Gradio's API or /v1.

Knows nothing of identities.
"""

import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from assistant.conversations import user
from assistant.hosts.addresses import Keys, is_space
from assistant.hosts.credentials import scrub
from assistant.settings import one_line

if TYPE_CHECKING:
    import httpx

WAIT_S = 900  # a page that was just sent is built first
PAUSE_S = 10
ANSWER_S = 180  # a free machine, shared by all who ask
MOST_MISSING = 6  # tries, where a page or its host is unknown: who builds it knows it soon
INFOS = ("gradio_api/info", "info")  # of Gradio 5 and later, and of Gradio 4
Ask = Callable[[list[str]], list[str]]


@dataclass
class Visitor:
    """Asks one page over HTTP, and shows its keys when the page wants to see them."""

    address: str
    keys: Keys
    client: "httpx.Client"
    is_logged_in: bool = False
    """Through Gradio's own form."""

    def get(self, place: str = "", shown: str = "") -> "httpx.Response":
        """`shown`: the Authorization for a page that answers that it is not for everyone."""
        answered = self.client.get(f"{self.address}{place}")
        is_closed = answered.status_code in (401, 403) or (
            is_space(self.address) and answered.status_code == 404
        )
        if is_closed and shown:
            self.client.headers["Authorization"] = shown
            answered = self.client.get(f"{self.address}{place}")
        return answered

    def info(self) -> Mapping[str, Any]:
        """What Gradio tells of its API; empty where there is none."""
        for place in INFOS:
            answered = self.get(f"/{place}", self.keys.for_page(self.address))
            if answered.status_code == 401 and self.keys.login and not self.is_logged_in:
                self._log_in()
                answered = self.get(f"/{place}")
            if found := _object(answered):
                return found
        return {}

    def _log_in(self) -> None:
        name, _, password = self.keys.login.partition(":")
        sent = self.client.post(f"{self.address}/login", data={"username": name, "password": password})
        self.is_logged_in = sent.status_code == 200


@contextmanager
def reached(address: str, keys: Keys, say: Callable[[str], None]) -> Iterator[Ask]:
    """How this page is asked, as soon as it is up.

    Raises RuntimeError for one that lets us not in, is nowhere, has no API, or is not up after WAIT_S.
    """
    import httpx

    with httpx.Client(follow_redirects=True, timeout=30) as client:
        yield _wait_for(Visitor(address, keys, client), say)


def _wait_for(visitor: Visitor, say: Callable[[str], None]) -> Ask:
    import httpx

    deadline, told, missing = time.monotonic() + WAIT_S, "", 0
    while True:
        try:
            status = visitor.get("", visitor.keys.for_page(visitor.address)).status_code
            if status < 400:
                return _way_to_ask(visitor)
            reason, missing = f"it answers {status}", missing + 1 if status == 404 else 0
            _stop_at(visitor, status, missing)
        except httpx.HTTPError as error:
            reason, missing = one_line(error), missing + 1 if is_unknown_host(error) else 0
            if missing >= MOST_MISSING:
                raise RuntimeError(
                    f"no host is called {urlsplit(visitor.address).hostname} ({reason}); look at the address "
                    "and at your network"
                ) from None
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"{visitor.address} is not up: {reason}; look at its build log, then try again"
            )
        if reason != told:
            say(f"{visitor.address} is not up yet ({reason}); waiting up to {WAIT_S // 60} minutes")
            told = reason
        time.sleep(PAUSE_S)


def is_unknown_host(error: BaseException | None) -> bool:
    """Whether an error was caused by a name without an address, however often it was wrapped."""
    while error and not isinstance(error, socket.gaierror):
        error = error.__cause__ or error.__context__
    return error is not None


def _stop_at(visitor: Visitor, status: int, missing: int) -> None:
    """Raises RuntimeError for an answer that waiting does not change."""
    if status in (401, 403):
        raise RuntimeError(f"{visitor.address} does not let us in ({status}); {_what_opens(visitor)}")
    if missing >= MOST_MISSING:
        raise RuntimeError(
            f"there is no page at {visitor.address} (404); look at the address and its build log"
            + (f"; if it is private, {_what_opens(visitor)}" if is_space(visitor.address) else "")
        )


def _what_opens(visitor: Visitor) -> str:
    if is_space(visitor.address):
        return "set HF_TOKEN to a token that may read this Space, or run: hf auth login"
    return "set ASSISTANT_LOGIN=user:password, as the page has it"


def _way_to_ask(visitor: Visitor) -> Ask:
    """Gradio's /chat where there is one, else OpenAI's /v1. Raises RuntimeError where there is neither."""
    if "/chat" in visitor.info().get("named_endpoints", {}):
        return lambda questions: ask_gradio(visitor, questions)
    listed = visitor.get("/v1/models", visitor.keys.for_api(visitor.address))
    if models := _object(listed).get("data"):
        return lambda questions: ask_openai(visitor, str(models[0]["id"]), questions)
    if 401 in (listed.status_code, visitor.get(f"/{INFOS[0]}").status_code):
        _stop_at(visitor, 401, 0)
    raise RuntimeError(
        f"{visitor.address} is up but cannot be asked: it has neither Gradio's /chat nor /v1; ask it by hand"
    )


def _object(answered: "httpx.Response") -> Mapping[str, Any]:
    """The JSON object of a good answer; empty for anything else."""
    try:
        content = answered.json() if answered.status_code == 200 else {}
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def ask_gradio(visitor: Visitor, questions: list[str]) -> list[str]:
    """Each question in a session of its own: a page may keep what was said before."""
    import httpx
    from gradio_client import Client
    from gradio_client.utils import QueueError, TooManyRequestsError

    shown = visitor.client.headers.get("Authorization")
    # False, not None: without a word of ours it would show the hub's token to every page.
    token: Any = visitor.keys.hub_token if shown and is_space(visitor.address) else False
    name, _, password = visitor.keys.login.partition(":")
    try:
        client = Client(
            visitor.address, token, verbose=False, analytics_enabled=False,
            auth=(name, password) if visitor.is_logged_in else None,
            headers={"Authorization": shown} if shown else None, httpx_kwargs={"timeout": ANSWER_S},
        )  # fmt: skip
        return [_answer_of(client, question) for question in questions]
    except TimeoutError:
        raise RuntimeError(f"{visitor.address} gave no answer within {ANSWER_S} s; try again") from None
    except (QueueError, TooManyRequestsError) as error:
        raise RuntimeError(f"{visitor.address} is too busy ({scrub(error)[:300]}); try again later") from None
    except (ValueError, httpx.HTTPError, ConnectionError) as error:
        raise RuntimeError(f"{visitor.address} could not be asked: {scrub(error)[:300]}") from None


def _answer_of(client: Any, question: str) -> str:
    client.reset_session()
    job = client.submit(question, api_name="/chat")
    job.result(timeout=ANSWER_S)
    shown = job.outputs()
    if not shown:
        raise ValueError("it ended without an answer")
    return text_of(shown[-1])


def text_of(shown: Any) -> str:
    """An answer's plain text: a page answers with a text, or with messages; those with a title are notes."""
    if isinstance(shown, list | tuple):
        return "".join(text_of(part) for part in shown)
    if isinstance(shown, Mapping):
        is_note = bool((shown.get("metadata") or {}).get("title"))
        return "" if is_note else text_of(shown.get("content", shown.get("text", "")))
    return str(shown)


def ask_openai(visitor: Visitor, model: str, questions: list[str]) -> list[str]:
    """One question after the other, as a visitor would."""
    import httpx

    answers = []
    for question in questions:
        asked = {"model": model, "messages": [user(question)], "max_tokens": 96, "temperature": 0}
        try:
            answered = visitor.client.post(
                f"{visitor.address}/v1/chat/completions", json=asked, timeout=ANSWER_S
            )
            answered.raise_for_status()
            answers.append(str(answered.json()["choices"][0]["message"]["content"] or ""))
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            raise RuntimeError(f"{visitor.address} could not be asked: {scrub(error)[:300]}") from None
    return answers
