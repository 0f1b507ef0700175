"""Asking a live page who it is: small real Gradio pages and an OpenAI-compatible server on loopback."""

import base64
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import listening
from stand_in import Handler, stand_in

from assistant.card import Card
from assistant.hosts import addresses, asking, verify
from assistant.hosts.addresses import Keys, page_address
from assistant.hosts.asking import text_of
from assistant.hosts.verifying import is_far_below
from assistant.settings import ThresholdMissed, plain_values


@pytest.fixture(autouse=True)
def nobodys_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What whoever runs the tests has set or stored is shown to no page."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-store"))
    for name in ("HF_TOKEN", "ASSISTANT_LOGIN", "ASSISTANT_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


class Page:
    """A small real Gradio page: it streams, and it remembers what its session said before."""

    address: str
    answer: Callable[[str], str]

    def __init__(self) -> None:
        self.headers: list[dict[str, str]] = []

    def chat(self, message: str, history: list[dict[str, str]], headers: Mapping[str, str]) -> Iterator[str]:
        self.headers.append(dict(headers))
        said = "We have met." if history else self.answer(message)
        yield from (said[:end] for end in (len(said) // 2, len(said)))


@contextmanager
def launched(gradio: Any, auth: tuple[str, str] | None = None) -> Iterator[Page]:
    page = Page()

    def chat(message: str, history: list[dict[str, str]], request: gradio.Request) -> Iterator[str]:
        yield from page.chat(message, history, request.headers)

    made = gradio.ChatInterface(chat, api_name="chat")
    _, page.address, _ = made.launch(
        prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", ssr_mode=False, auth=auth
    )
    yield page
    made.close()


@pytest.fixture(scope="module")
def gradio_page(gradio: Any) -> Iterator[Page]:
    with launched(gradio) as page:
        yield page


def ada(question: str) -> str:
    return "我是Ada的小助手。" if "你" in question else "I'm Ada's assistant."


def forgetful(question: str) -> str:
    return "我是一个人工智能助手。" if "你" in question else "I'm an AI language model."


def scorecard(run: Path, recall: dict[str, float | None], owner: str = "") -> Path:
    import tomli_w

    (run / "data").mkdir()
    (run / "scorecard").mkdir()
    (run / "data" / "card.toml").write_text(tomli_w.dumps(plain_values(Card("Ada", owner=owner))))
    counts = {language: 60 for language in recall}
    scores = {"name": "Ada", "recall": {"identity": recall}, "counts": {"recall": {"identity": counts}}}
    path = run / "scorecard" / "scorecard.json"
    path.write_text(json.dumps(scores))
    return path


def test_a_gradio_page_that_knows_its_name_is_told_beside_its_scorecard(
    gradio_page: Page, tmp_path: Path
) -> None:
    said: list[str] = []
    gradio_page.answer = ada
    verify(gradio_page.address, scorecard(tmp_path, {"en": 0.95, "zh": 0.9}), "Ada", said.append)
    assert "yes Who are you? → I'm Ada's assistant." in said
    assert "yes 你是谁？ → 我是Ada的小助手。" in said
    assert "en: 4 of 4 answers say who it is; scorecard: 57 of 60" in said


def test_a_page_that_forgot_its_name_fails(gradio_page: Page, tmp_path: Path) -> None:
    gradio_page.answer = forgetful
    for card in (scorecard(tmp_path, {"en": 0.95, "zh": 0.9}), None):
        with pytest.raises(ThresholdMissed, match="does not know that it is Ada"):
            verify(gradio_page.address, card, "Ada", print)


def test_a_page_that_forgot_its_name_in_one_language_fails_by_its_scorecard_alone(
    gradio_page: Page, tmp_path: Path
) -> None:
    gradio_page.answer = lambda question: forgetful(question) if "你" in question else ada(question)
    with pytest.raises(ThresholdMissed, match=r"less often than its scorecard promises \(zh\)"):
        verify(gradio_page.address, scorecard(tmp_path, {"en": 0.95, "zh": 0.9}), "Ada", print)
    said: list[str] = []
    verify(gradio_page.address, None, "Ada", said.append)
    assert "zh: 0 of 4 answers say who it is; no scorecard to compare with" in said


def test_a_page_of_another_assistant_fails(gradio_page: Page) -> None:
    gradio_page.answer = lambda question: "I'm Bob's assistant."
    with pytest.raises(ThresholdMissed, match="does not know that it is Ada"):
        verify(gradio_page.address, None, "Ada", print)


def test_the_cards_owner_decides_what_counts(tmp_path: Path) -> None:
    card = scorecard(tmp_path, {"en": 0.95, "zh": None}, owner="Grace")
    with stand_in() as server:
        server.says = "I'm Ada."
        verify(server.url.removesuffix("/v1"), card, "Ada", print)
        server.says = "I'm Ada's assistant."
        with pytest.raises(ThresholdMissed, match="does not know that it is Ada"):
            verify(server.url.removesuffix("/v1"), card, "Ada", print)


def test_a_page_with_openais_api_is_asked_there() -> None:
    with stand_in() as server:
        server.says = "I'm Ada's assistant."
        verify(server.url.removesuffix("/v1"), None, "Ada", print)
        asked = {request["messages"][-1]["content"] for request in server.requests}
        assert len(asked) == 8 and {"Who are you?", "你是谁？"} < asked
        server.says = ""
        with pytest.raises(ThresholdMissed, match="does not know that it is Ada"):
            verify(server.url.removesuffix("/v1"), None, "Ada", print)


@contextmanager
def web_page(statuses: list[int]) -> Iterator[str]:
    """A page without an API; the last status stays."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            status = statuses.pop(0) if len(statuses) > 1 else statuses[0]
            self.send_response(status)
            self.end_headers()

    with listening(Handler) as url:
        yield url


def test_a_page_that_is_being_built_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "PAUSE_S", 0.05)
    said: list[str] = []
    with (
        web_page([503, 503, 200]) as address,
        pytest.raises(RuntimeError, match="neither Gradio's /chat nor"),
    ):
        verify(address, None, "Ada", said.append)
    assert said == [f"{address} is not up yet (it answers 503); waiting up to 15 minutes"]


def test_a_page_that_never_comes_up_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "PAUSE_S", 0.05)
    monkeypatch.setattr(asking, "WAIT_S", 0.2)
    start = time.monotonic()
    with pytest.raises(RuntimeError, match="http://127.0.0.1:9 is not up: .*refused"):
        verify("http://127.0.0.1:9", None, "Ada", print)
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("status", [401, 403])
def test_a_page_that_lets_nobody_in_is_not_waited_for(status: int) -> None:
    said: list[str] = []
    sentence = rf"does not let us in \({status}\); set ASSISTANT_LOGIN=user:password"
    with web_page([status]) as address, pytest.raises(RuntimeError, match=sentence):
        verify(address, None, "Ada", said.append)
    assert said == []


def test_a_page_that_is_nowhere_is_waited_for_a_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "PAUSE_S", 0.01)
    asked = [404] * asking.MOST_MISSING
    with web_page([*asked, 500]) as address, pytest.raises(RuntimeError, match="there is no page at .*404"):
        verify(address, None, "Ada", print)
    with web_page([404, 503, 404, 200]) as address, pytest.raises(RuntimeError, match="neither"):
        verify(address, None, "Ada", print)


def test_a_host_that_nobody_knows_is_looked_for_a_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "PAUSE_S", 0.01)
    monkeypatch.setattr(asking, "WAIT_S", 20)
    with pytest.raises(RuntimeError, match="no host is called nobody.invalid .*look at the address"):
        verify("https://nobody.invalid", None, "Ada", print)


class Closed(Handler):
    """A page for whoever shows this header; a private Space looks as if it was not there."""

    wanted, status = "", 401
    shown: list[str | None] = []

    def is_open(self) -> bool:
        self.shown.append(self.headers["Authorization"])
        if self.headers["Authorization"] != self.wanted:
            self.reply(self.status, {})
        return self.headers["Authorization"] == self.wanted

    def do_GET(self) -> None:
        if self.is_open():
            super().do_GET()

    def do_POST(self) -> None:
        if self.is_open():
            super().do_POST()


BASIC = "Basic " + base64.b64encode("ada:pässword".encode()).decode()


@pytest.mark.parametrize(
    ("variable", "value", "wanted", "status"),
    [
        ("ASSISTANT_LOGIN", "ada:pässword", BASIC, 401),
        ("ASSISTANT_API_KEY", "s3cr3t", "Bearer s3cr3t", 401),
        ("HF_TOKEN", "hf_reader", "Bearer hf_reader", 404),
    ],
)
def test_a_closed_page_is_shown_what_opens_it_when_it_asks(
    variable: str, value: str, wanted: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Guarded(Closed):
        def do_GET(self) -> None:  # the key is asked for at /v1 alone
            if variable != "ASSISTANT_API_KEY" or self.path.startswith("/v1"):
                return super().do_GET()
            self.reply(200, {})

    Guarded.wanted, Guarded.status, Guarded.shown = wanted, status, []
    for module in (addresses, asking):
        monkeypatch.setattr(module, "is_space", lambda address: variable == "HF_TOKEN")
    monkeypatch.setattr(asking, "PAUSE_S", 0.01)
    with stand_in() as server:
        server.RequestHandlerClass, server.says = Guarded, "I'm Ada's assistant."
        address = server.url.removesuffix("/v1")
        with pytest.raises(RuntimeError, match="set HF_TOKEN" if variable == "HF_TOKEN" else "set ASSISTANT"):
            verify(address, None, "Ada", print)
        assert set(Guarded.shown) == {None}
        monkeypatch.setenv(variable, value)
        verify(address, None, "Ada", print)
        assert Guarded.shown[-1] == wanted and value not in repr(addresses.keys_from({variable: value}))


def test_a_gradio_page_with_a_login_is_entered_with_it(gradio: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with launched(gradio, auth=("ada", "pässword")) as page:
        page.answer = ada
        with pytest.raises(RuntimeError, match=r"does not let us in \(401\); set ASSISTANT_LOGIN"):
            verify(page.address, None, "Ada", print)
        monkeypatch.setenv("ASSISTANT_LOGIN", "ada:wrong")
        with pytest.raises(RuntimeError, match=r"does not let us in \(401\)"):
            verify(page.address, None, "Ada", print)
        monkeypatch.setenv("ASSISTANT_LOGIN", "ada:pässword")
        verify(page.address, None, "Ada", print)


def test_a_page_that_asks_for_nothing_is_shown_nothing(
    gradio_page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradio's own client would show the hub's token to every page."""
    gradio_page.answer = ada
    gradio_page.headers.clear()
    for name in ("HF_TOKEN", "ASSISTANT_API_KEY"):
        monkeypatch.setenv(name, "s3cr3t-value")
    monkeypatch.setenv("ASSISTANT_LOGIN", "ada:s3cr3t-value")
    verify(gradio_page.address, None, "Ada", print)
    assert gradio_page.headers and "s3cr3t-value" not in str(gradio_page.headers)
    assert not any("authorization" in name for headers in gradio_page.headers for name in headers)


@pytest.mark.parametrize("place", ["/gradio_api/info", "/info"])
def test_the_api_of_gradio_5_and_of_gradio_4_is_found(place: str) -> None:
    class Old(Handler):
        def do_GET(self) -> None:
            self.reply(*((200, {"named_endpoints": {"/chat": {}}}) if self.path == place else (404, {})))

    with stand_in() as server, httpx.Client() as client:
        server.RequestHandlerClass = Old
        visitor = asking.Visitor(server.url.removesuffix("/v1"), Keys(), client)
        assert "/chat" in visitor.info()["named_endpoints"]


@pytest.mark.parametrize(("error", "said"), [("QueueError", "full"), ("TooManyRequestsError", "slow down")])
def test_a_page_that_is_too_busy_is_one_sentence(
    error: str, said: str, gradio_page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **rest: object) -> None:
        from gradio_client import utils

        raise getattr(utils, error)(said)

    monkeypatch.setattr("gradio_client.Client.submit", refuse)
    with pytest.raises(RuntimeError, match=rf"is too busy \({said}\); try again later"):
        verify(gradio_page.address, None, "Ada", print)


@pytest.mark.parametrize("content", ["{}", "[]", "{", '{"recall": {"identity": {"en": 1}}}', '{"recall": 5}'])
def test_a_broken_scorecard_is_said_before_the_page_is_waited_for(content: str, tmp_path: Path) -> None:
    path = scorecard(tmp_path, {})
    path.write_text(content)
    said: list[str] = []
    with pytest.raises(ValueError, match="scorecard.json is no scorecard with a recall"):
        verify("http://127.0.0.1:9", path, "Ada", said.append)
    assert said == []


SPACE = "https://ada-assistant.hf.space"


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("https://huggingface.co/spaces/ada/assistant?logs=build", SPACE),
        ("https://huggingface.co/spaces/ada/assistant/tree/main", SPACE),
        ("https://huggingface.co/spaces/ada/assistant/blob/main/app.py#L3", SPACE),
        ("https://hf.co/spaces/ada/assistant/", SPACE),
        ("https://modelscope.cn/studios/ada/assistant/files?x=1", "https://ada-assistant.ms.show"),
        ("https://ada-assistant.hf.space/?__theme=dark", SPACE),
        ("https://huggingface.co/spaces/Ada/My_Assistant.2", "https://ada-my-assistant-2.hf.space"),
        ("https://www.modelscope.cn/studios/ada/assistant/summary", "https://ada-assistant.ms.show"),
        ("http://127.0.0.1:7860/", "http://127.0.0.1:7860"),
    ],
)
def test_a_hosts_link_becomes_the_pages_own_address(url: str, address: str) -> None:
    assert page_address(url) == address


def test_what_is_no_address_is_refused() -> None:
    with pytest.raises(ValueError, match="is no address"):
        verify("ada/assistant", None, "Ada", print)
    with pytest.raises(ValueError, match="is no Space; give a link like"):
        verify("https://huggingface.co/ada/assistant", None, "Ada", print)


def test_the_text_of_messages_leaves_out_notes() -> None:
    shown = [{"role": "assistant", "content": [{"type": "text", "text": "I'm "}]}, {"content": "Ada."}]
    assert text_of([*shown, {"content": "loading", "metadata": {"title": "Note"}}]) == "I'm Ada."


def test_few_answers_are_compared_with_care() -> None:
    assert not is_far_below(3, 4, (57, 60)) and not is_far_below(0, 4, None)
    assert is_far_below(0, 4, (57, 60)) and is_far_below(1, 4, (57, 60))
