"""Fifty clients of either page, with a model so small that it runs here and so slow that they wait."""

import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from crowd import check_fair
from serving import Face, serving
from tiny_gguf import make_tiny_gguf

pytest.importorskip("xllamacpp")
pytestmark = pytest.mark.alone

TOKENS = 120  # of each answer: an answer takes longer than a question to arrive


@pytest.fixture(scope="module", params=["gradio", "streamlit"])
def page(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Face, str]]:
    folder = tmp_path_factory.mktemp(request.param)
    model = make_tiny_gguf(folder / "tiny.gguf")
    with serving(request.param, folder, ASSISTANT_MODEL=str(model)) as url:
        yield request.param, url
        assert "Traceback" not in Path(folder / f"{request.param}.log").read_text(encoding="utf-8")


def heard(address: str, body: Any) -> str:
    asked = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=200) as reply:
        return reply.read().decode()


def by_api(url: str, number: int) -> list[int]:
    """How many came first, as the server said it."""
    asked = {"messages": [{"role": "user", "content": f"{number}?"}], "stream": True, "max_tokens": TOKENS}
    said = heard(f"{url}/v1/chat/completions", asked)
    assert said.endswith("data: [DONE]\n\n") and '"finish_reason": "' in said and '"error"' not in said, said
    return [int(place) for place in re.findall(r"^: waiting (\d+)$", said, re.MULTILINE)]


def by_gradio(url: str, number: int) -> None:
    """As Gradio's own clients ask."""
    address = f"{url}/gradio_api/call/chat"
    event = json.loads(heard(address, {"data": [f"{number}?", "", 0, 0.9, TOKENS, None]}))["event_id"]
    with urllib.request.urlopen(f"{address}/{event}", timeout=200) as reply:
        *_, last = reply.read().decode().strip().split("\n\n")
    assert last.startswith('event: complete\ndata: ["') and len(last) > 60, last


def test_fifty_clients_are_all_served_and_fairly(page: tuple[Face, str]):
    face, url = page
    places: list[int] = []

    def ask(number: int) -> None:
        if face == "gradio" and number % 2:
            by_gradio(url, number)
        else:
            places.extend(by_api(url, number))

    by_api(url, 0)  # the model has loaded
    check_fair(ask)
    assert max(places) >= 20, "there was no line"
