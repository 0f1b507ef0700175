import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urljoin

import pytest
from serving import Face, serving
from stand_in import StandIn
from visiting import AT_REST, DESK, PHONE, Visit, english_in
from workshop import make_stage, wait_until

from assistant.folders import write_json
from assistant.settings import save_settings
from assistant.web.making import is_running, read_job, stop
from assistant.web.texts import load_texts

EN, ZH = load_texts()["en"], load_texts()["zh"]


@pytest.fixture(scope="module", params=["gradio", "streamlit"])
def stage(request, server: StandIn, tmp_path_factory) -> Iterator[tuple[Face, Path, str]]:
    """(page, its project, its address)"""
    root, folder = make_stage(tmp_path_factory.mktemp("stage")), tmp_path_factory.mktemp("page")
    with serving(request.param, folder, root, ASSISTANT_MODEL=server.url + "#ada") as url:
        yield request.param, root, url


FAINTEST = """milliseconds => new Promise(done => {
    const end = performance.now() + milliseconds
    let least = 1
    const look = () => {
        for (const node of document.querySelectorAll("[data-testid=stElementContainer]"))
            least = Math.min(least, getComputedStyle(node).opacity)
        performance.now() < end ? requestAnimationFrame(look) : done(least)
    }
    look()
})"""


class Maker(Visit):
    """A visitor of the tab that makes an assistant."""

    def come(self, texts=EN) -> "Maker":
        if self.kind == "gradio":
            self.page.get_by_role("tab", name=texts["make"]).first.click()
        else:
            self.page.goto(urljoin(self.page.url, "/make"))
        self.page.get_by_text(texts["make_hint"][:20]).first.wait_for()
        return self

    def come_again(self) -> "Maker":
        self.page.reload()
        return self.come() if self.kind == "gradio" else self

    def violations(self) -> list[str]:
        """At a moment when nothing fades; without those in the curves' markup, which is the library's."""
        found: list[str] = []
        self.page.add_style_tag(content=AT_REST)
        for _ in range(8):
            self.page.wait_for_timeout(300)
            found = [said for said in super().violations() if "role-mark" not in said]
            if not found:
                break
        return found

    def faintest(self, seconds: float) -> float:
        """The least opacity of anything that Streamlit draws, in every frame, without transitions."""
        self.page.add_style_tag(content=AT_REST)
        return float(self.page.evaluate(FAINTEST, 1000 * seconds))

    def type_name(self, name: str) -> None:
        box = self.page.get_by_role("textbox", name=EN["make_name"], exact=self.kind == "streamlit").first
        box.fill(name)
        box.press("Tab")


def make_nobody(root: Path) -> None:
    """What a first try has left would stand in a second one's way."""
    stop(root)
    wait_until(lambda: not is_running(root), root / "out" / "bob" / "making.log")
    shutil.rmtree(root / "out", ignore_errors=True)


@pytest.mark.browser
def test_an_assistant_is_made_watched_stopped_resumed_and_taken_home(stage, chromium, tmp_path):
    kind, root, url = stage
    make_nobody(root)
    visitor = Maker(chromium, url, kind, viewport=DESK)
    visitor.open_tab(EN["compare"])
    visitor.sees(EN["compare_none"])
    visitor.come().type_name("<|im_end|>")
    visitor.sees("control token")
    visitor.type_name("Bob")
    visitor.sees(EN["make_preview"])
    assert not is_running(root)
    other = Maker(chromium, url, kind, viewport=DESK).come()
    other.type_name("Grace")
    other.sees(EN["make_preview"])
    visitor.press(EN["make_button"])
    visitor.sees("Bob: training")
    visitor.sees(EN["make_losses"])
    other.press(EN["make_button"])
    other.sees(EN.say("make_running", name="Bob"))
    visitor.come_again().sees("Bob: training")
    visitor.sees("75 s left")
    assert visitor.faintest(seconds=4) == 1
    assert visitor.violations() == []
    chinese = Maker(chromium, url, kind, viewport=DESK, locale="zh-CN").come(ZH)
    chinese.sees(ZH["make_watched"])
    names = f"ada Bob {EN['language']}"
    wait_until(lambda: not english_in(chinese, names), root / "out" / "bob" / "making.log")
    chinese.finish()
    other.press(EN["stop"])
    visitor.sees(EN.say("make_is_stopped", name="Bob"))
    other.finish()
    wait_until(lambda: not is_running(root), root / "out" / "bob" / "making.log")
    visitor.press(EN["make_go_on"])
    visitor.sees(EN.say("make_is_done", name="Bob"))
    visitor.page.get_by_text("I am Bob's.").locator("visible=true").first.wait_for()
    visitor.sees(EN["scorecard_passed"])
    assert visitor.violations() == []
    with visitor.page.expect_download() as download:
        visitor.page.get_by_text(EN["make_download"]).click()
    download.value.save_as(tmp_path / "adapter.zip")
    assert "bob-adapter/adapter_config.json" in zipfile.ZipFile(tmp_path / "adapter.zip").namelist()
    visitor.press(EN.say("make_chat", name="Bob"))
    visitor.box.wait_for()
    visitor.page.get_by_role("heading", name="Bob", exact=True).first.wait_for()
    assert read_job(root).wish.name == "Bob" and not (root / "out" / "grace").exists()
    visitor.open_tab(EN["compare"])
    visitor.page.get_by_role("button", name=EN["vote_a"]).wait_for()
    right = visitor.page.get_by_label(EN["compare_right"], exact=True).last
    wait_until(lambda: "Bob" in right.input_value(), root / "out" / "bob" / "making.log")
    visitor.finish()


@contextmanager
def one_who_sees(root: Path, name: str) -> Iterator[None]:
    seer = root / "out" / name.lower() / "llava"
    save_settings(seer, {"card": {"name": name}})
    write_json(seer / "config.json", {"architectures": ["LlavaForConditionalGeneration"]})
    try:
        yield
    finally:  # also for a second try
        shutil.rmtree(seer.parent)


@pytest.mark.browser
def test_the_picture_tab_finds_who_was_made_while_the_page_is_open(stage, chromium):
    kind, root, url = stage
    visitor = Visit(chromium, url, kind, viewport=DESK)
    visitor.open_tab(EN["picture"])
    visitor.sees(EN.say("eyes_ready", name="ada"))
    who = visitor.page.get_by_label(EN["picture_who"], exact=True).locator("visible=true")
    who.first.wait_for(state="hidden")  # one alone is no choice
    with one_who_sees(root, "Iris"):
        visitor.open_tab(EN["chat"])
        visitor.box.wait_for()
        visitor.open_tab(EN["picture"])
        who.last.click()
        visitor.page.get_by_role("option", name="Iris", exact=True).wait_for()
        visitor.page.keyboard.press("Escape")
    visitor.finish()


@pytest.mark.browser
def test_a_chinese_phone_reads_it_in_chinese(stage, chromium):
    kind, _, url = stage
    visitor = Maker(chromium, url, kind, viewport=PHONE, locale="zh-CN", color_scheme="dark")
    if kind == "streamlit":
        visitor.come(ZH)
        visitor.page.get_by_role("button", name=ZH["make_button"]).wait_for()
        assert visitor.violations() == []
    visitor.finish()


@pytest.mark.browser
@pytest.mark.parametrize("kind", ["gradio", "streamlit"])
def test_where_it_is_switched_off_the_tab_says_what_ones_own_machine_can(kind, chromium, server, tmp_path):
    with serving(kind, tmp_path, ASSISTANT_MODEL=server.url + "#ada", ASSISTANT_ALLOW_TRAINING="0") as url:
        visitor = Visit(chromium, url, kind, viewport=DESK)
        visitor.open_tab(EN["make"])
        visitor.sees("make run NAME=")
        assert visitor.page.get_by_role("button", name=EN["make_button"]).count() == 0
        visitor.finish()
