"""Asking a live page who it is: small real Gradio pages and an OpenAI-compatible server on loopback."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from stand_in import stand_in

from assistant.card import Card
from assistant.hosts import verify, verifying
from assistant.hosts.verifying import is_far_below, page_address, text_of
from assistant.settings import plain_values


class Page:
    """A small real Gradio page: it streams, and it remembers what its session said before."""

    address: str
    answer: Callable[[str], str]

    def chat(self, message: str, history: list[dict[str, str]]) -> Iterator[str]:
        said = "We have met." if history else self.answer(message)
        yield from (said[:end] for end in (len(said) // 2, len(said)))


@pytest.fixture(scope="module")
def gradio_page() -> Iterator[Page]:
    import gradio as gr

    page = Page()
    made = gr.ChatInterface(page.chat, api_name="chat")
    page.address = made.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", ssr_mode=False)[
        1
    ]
    yield page
    made.close()


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
        with pytest.raises(RuntimeError, match="does not know that it is Ada"):
            verify(gradio_page.address, card, "Ada", print)


def test_a_page_that_forgot_its_name_in_one_language_fails_by_its_scorecard_alone(
    gradio_page: Page, tmp_path: Path
) -> None:
    gradio_page.answer = lambda question: forgetful(question) if "你" in question else ada(question)
    with pytest.raises(RuntimeError, match=r"less often than its scorecard promises \(zh\)"):
        verify(gradio_page.address, scorecard(tmp_path, {"en": 0.95, "zh": 0.9}), "Ada", print)
    said: list[str] = []
    verify(gradio_page.address, None, "Ada", said.append)
    assert "zh: 0 of 4 answers say who it is; no scorecard to compare with" in said


def test_a_page_of_another_assistant_fails(gradio_page: Page) -> None:
    gradio_page.answer = lambda question: "I'm Bob's assistant."
    with pytest.raises(RuntimeError, match="does not know that it is Ada"):
        verify(gradio_page.address, None, "Ada", print)


def test_the_cards_owner_decides_what_counts(tmp_path: Path) -> None:
    card = scorecard(tmp_path, {"en": 0.95, "zh": None}, owner="Grace")
    with stand_in() as server:
        server.says = "I'm Ada."
        verify(server.url.removesuffix("/v1"), card, "Ada", print)
        server.says = "I'm Ada's assistant."
        with pytest.raises(RuntimeError, match="does not know that it is Ada"):
            verify(server.url.removesuffix("/v1"), card, "Ada", print)


def test_a_page_with_openais_api_is_asked_there() -> None:
    with stand_in() as server:
        server.says = "I'm Ada's assistant."
        verify(server.url.removesuffix("/v1"), None, "Ada", print)
        asked = {request["messages"][-1]["content"] for request in server.requests}
        assert len(asked) == 8 and {"Who are you?", "你是谁？"} < asked
        server.says = ""
        with pytest.raises(RuntimeError, match="does not know that it is Ada"):
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

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_a_page_that_is_being_built_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifying, "PAUSE_S", 0.05)
    said: list[str] = []
    with (
        web_page([503, 503, 200]) as address,
        pytest.raises(RuntimeError, match="neither Gradio's /chat nor"),
    ):
        verify(address, None, "Ada", said.append)
    assert said == [f"{address} is not up yet (it answers 503); waiting up to 15 minutes"]


def test_a_page_that_never_comes_up_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifying, "PAUSE_S", 0.05)
    monkeypatch.setattr(verifying, "WAIT_S", 0.2)
    start = time.monotonic()
    with pytest.raises(RuntimeError, match="http://127.0.0.1:9 is not up: .*refused"):
        verify("http://127.0.0.1:9", None, "Ada", print)
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("url", "address"),
    [
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


def test_the_text_of_messages_leaves_out_notes() -> None:
    shown = [{"role": "assistant", "content": [{"type": "text", "text": "I'm "}]}, {"content": "Ada."}]
    assert text_of([*shown, {"content": "loading", "metadata": {"title": "Note"}}]) == "I'm Ada."


def test_few_answers_are_compared_with_care() -> None:
    assert not is_far_below(3, 4, (57, 60)) and not is_far_below(0, 4, None)
    assert is_far_below(0, 4, (57, 60)) and is_far_below(1, 4, (57, 60))
