"""What either page refuses or hides: who has no login, what is too large, what went wrong inside."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_gguf
from PIL import Image
from serving import Face, serving
from stand_in import StandIn
from test_pages import EN, WHOLE, ZH
from visiting import DESK, Visit, wait_until
from workshop import make_narrow_stage, make_stage

LARGE = 6_000_000  # bytes; 5 MB may come
BROKEN = "\n\ndef summary(*given):\n    raise KeyError('a secret of the server')\n"


# ---- both pages, of a project with a fault in it


@pytest.fixture(scope="module", params=["gradio", "streamlit"])
def page(request, server: StandIn, tmp_path_factory) -> Iterator[tuple[Face, str, Path]]:
    """(page, its address, its log); whoever opens the scorecard there meets an error."""
    root, folder = make_stage(tmp_path_factory.mktemp("stage")), tmp_path_factory.mktemp("page")
    view = root / "assistant" / "web" / "scorecard_view.py"
    view.write_text(view.read_text(encoding="utf-8") + BROKEN, encoding="utf-8")
    with serving(request.param, folder, root, ASSISTANT_MODEL=server.url + "#ada") as url:
        yield request.param, url, folder / f"{request.param}.log"


@pytest.mark.browser
@pytest.mark.parametrize("texts", [EN, ZH], ids=["en", "zh"])
def test_an_error_inside_is_told_to_the_terminal_and_not_to_the_visitor(page, chromium, texts):
    face, url, log = page
    visitor = Visit(chromium, url, face, viewport=DESK, locale="en-US" if texts is EN else "zh-CN")
    visitor.open_tab(texts["scorecard"])
    if face == "streamlit":
        visitor.sees(texts.say("failed_inside", error="KeyError"))
    visitor.page.wait_for_timeout(800)
    said = visitor.page.inner_text("body")
    assert "secret" not in said and "Traceback" not in said and "scorecard_view" not in said
    wait_until(lambda: "KeyError: 'a secret of the server'" in log.read_text(encoding="utf-8"))
    assert "Traceback" in log.read_text(encoding="utf-8")
    visitor.open_tab(texts["chat"])
    visitor.ask("Who are you?")
    visitor.sees(WHOLE)
    visitor.leave()


@pytest.mark.browser
def test_a_file_over_the_limit_is_refused_in_words(page, chromium, tmp_path):
    face, url, _ = page
    large = tmp_path / "large.png"
    large.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(LARGE))
    visitor = Visit(chromium, url, face, viewport=DESK)
    visitor.open_tab(EN["picture"])
    if face == "gradio":
        visitor.page.set_input_files("#picture input[type=file]", large)
        visitor.page.get_by_text("5 MB").or_(visitor.page.get_by_text("5.0 MB")).first.wait_for()
    else:
        visitor.page.set_input_files("[data-testid=stChatInput] input[type=file]", large)
        visitor.page.get_by_text("or smaller").first.wait_for()
    visitor.leave()


# ---- the Gradio page's own doors


def status_of(url: str, data: bytes | None = None, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=30) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.fixture(scope="module")
def guarded(tmp_path_factory) -> Iterator[str]:
    """Behind a login; its model is slow enough to wait for, and has a scorecard with a picture."""
    folder = tmp_path_factory.mktemp("guarded")
    with pytest.MonkeyPatch.context() as patched:
        for name, value in {"WIDTH": 512, "INNER": 1024, "LAYERS": 16, "CONTEXT": 4096}.items():
            patched.setattr(tiny_gguf, name, value)
        model = tiny_gguf.make_tiny_run(folder / "out" / "ada")
    Image.new("RGB", (60, 30), "orange").save(model.parent / "scorecard" / "scorecard.png")
    root = make_narrow_stage(folder / "stage")
    with serving("gradio", folder, root, ASSISTANT_MODEL=str(model), ASSISTANT_LOGIN="ada:lovelace") as url:
        yield url


class Guest(Visit):
    """One who meets the login first."""

    password = "lovelace"

    def arrive(self) -> None:
        self.page.get_by_label("username").fill("ada")
        self.page.get_by_label("password").fill(self.password)
        self.page.get_by_role("button", name="Login").click()


class Stranger(Guest):
    password = "wrong"


@pytest.mark.browser
def test_without_the_login_nothing_of_the_gradio_page_is_told(guarded: str, chromium):
    for path in ("/config", "/gradio_api/info", "/gradio_api/file=app.py"):
        assert status_of(guarded + path) == 401
    assert status_of(guarded + "/gradio_api/call/chat", b'{"data": []}') == 401
    stranger = Stranger(chromium, guarded, "gradio", viewport=DESK)
    stranger.sees("Incorrect")
    assert stranger.box.count() == 0
    stranger.leave()
    visitor = Guest(chromium, guarded, "gradio", viewport=DESK)
    visitor.box.wait_for()
    visitor.open_tab(EN["scorecard"])
    visitor.sees(EN["scorecard_passed"])
    picture = visitor.page.locator("#scorecard-picture img")
    picture.wait_for()
    visitor.page.wait_for_function("document.querySelector('#scorecard-picture img').naturalWidth === 60")
    visitor.finish()


@pytest.mark.browser
def test_who_waits_sees_the_place_in_line_on_the_gradio_page(guarded: str, chromium):
    first, second, third = (Guest(chromium, guarded, "gradio", viewport=DESK) for _ in range(3))
    for one in (first, second, third):
        one.page.locator("#box textarea:not([disabled])").wait_for()
    first.page.locator(".sidebar-content").get_by_text(EN["settings"], exact=True).click()
    first.page.get_by_role("slider", name=EN["max_new_tokens"]).press("End")
    first.page.wait_for_timeout(300)
    second.box.fill("hello")
    third.box.fill("hello")
    first.ask("a" * 900)
    first.page.locator("#chat .bot").first.wait_for()
    second.box.press("Enter")
    second.sees(EN.say("waiting", number=1))
    third.box.press("Enter")
    third.sees(EN.say("waiting", number=2))
    second.leave()
    third.sees(EN.say("waiting", number=1))
    first.stop()
    third.page.get_by_text(EN.say("waiting", number=1)).wait_for(state="detached")
    third.leave()
    first.finish()


def test_nobody_can_upload_more_than_the_limit_or_flag_an_answer(page):
    face, url, _ = page
    if face == "streamlit":
        pytest.skip("Streamlit's uploads belong to a session of its page")
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    body += bytes(LARGE) + b"\r\n--x--\r\n"
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    assert status_of(f"{url}/gradio_api/upload", body, **kind) == 413
    with urllib.request.urlopen(f"{url}/gradio_api/info") as reply:
        assert [*json.load(reply)["named_endpoints"]] == ["/chat"]
    flag = f"{url}/gradio_api/call/flag"
    assert status_of(flag, b'{"data": [{}]}', **{"Content-Type": "application/json"}) >= 400
