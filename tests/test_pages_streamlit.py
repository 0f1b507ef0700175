"""What the Streamlit page alone must prove; what both pages share is in the other test_pages files."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_gguf
from PIL import Image
from serving import page_of, serving
from stand_in import StandIn
from test_pages import EN, WHOLE
from visiting import AT_REST, DESK, PHONE, READ, Visit, english_in, wait_until
from workshop import make_narrow_stage, make_stage

from assistant.web.texts import load_texts

ZH = load_texts()["zh"]
SIDEBAR = "[data-testid=stSidebar]"
SAID = "Code:\n```python\nprint('hi')\n```\n$$x^2$$ and \\[y^2\\] and \\(z\\)"
CHAT = {
    "title": "Formulas",
    "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": SAID}],
}


@pytest.fixture(scope="module")
def stage(tmp_path_factory) -> Path:
    """The project with one assistant that has a scorecard; nobody asks it anything."""
    root = make_stage(tmp_path_factory.mktemp("stage"))
    run = root / "out" / "eva"
    for part in ("model", "scorecard"):
        (run / part).mkdir(parents=True)
        (run / part / "settings.toml").write_text('[card]\nname = "Eva"\n', encoding="utf-8")
    (run / "model" / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}', encoding="utf-8")
    card = {"recall": {"identity": {"en": 0.95}}, "leak": {"unrelated": {"en": 0.0}}, "passed": True}
    (run / "scorecard" / "scorecard.json").write_text(json.dumps(card), encoding="utf-8")
    Image.new("RGB", (60, 30), "orange").save(run / "scorecard" / "scorecard.png")
    return root


@pytest.fixture(scope="module")
def url(server: StandIn, stage: Path, tmp_path_factory) -> Iterator[str]:
    with page_of("streamlit", server, tmp_path_factory.mktemp("page"), stage) as url:
        yield url


@pytest.fixture
def visit(chromium, url: str):
    return lambda **context: Visit(chromium, url, "streamlit", **{"viewport": DESK} | context)


def side(visitor: Visit, key: str, texts=EN) -> None:
    """Fold a part of the sidebar out."""
    visitor.page.locator(SIDEBAR).get_by_text(texts[key], exact=True).first.click()
    visitor.page.wait_for_timeout(400)


def choose(visitor: Visit, label: str, option: str) -> None:
    visitor.page.get_by_label(label, exact=True).last.click()
    visitor.page.get_by_role("option", name=option, exact=True).click()
    visitor.page.wait_for_timeout(600)


# ---- in a browser

# Names on a Chinese page.
KNOWN = f"{WHOLE} {EN['language']} ada base Eva json image png"


@pytest.mark.browser
@pytest.mark.parametrize("texts", [EN, ZH], ids=["en", "zh"])
def test_every_page_is_accessible_on_phone_and_desk_by_day_and_night(visit, texts):
    visitor = visit(locale="en-US" if texts is EN else "zh-CN")
    visitor.page.add_style_tag(content=AT_REST)
    for tab in ("chat", "picture", "compare", "scorecard", "make"):
        visitor.page.set_viewport_size(DESK)
        if tab == "chat":
            visitor.ask(texts["examples"][0])
            visitor.sees(WHOLE)
            visitor.page.get_by_test_id("stFeedbackButton").first.click()
            for part in ("this_chat", "settings"):
                side(visitor, part, texts)
        else:
            visitor.open_tab(texts[tab])
        visitor.page.wait_for_timeout(900)
        for size in (DESK, PHONE):
            visitor.page.set_viewport_size(size)
            for scheme, rule in (("light", ""), ("dark", "color-contrast")):  # dark differs in colours alone
                visitor.page.emulate_media(color_scheme=scheme)
                visitor.page.wait_for_timeout(250)
                assert visitor.violations(rule=rule) == [], (tab, size, scheme)
            assert not visitor.page.evaluate("document.documentElement.scrollWidth > innerWidth")
    visitor.finish()


@pytest.mark.browser
def test_a_chinese_page_says_no_english_word(chromium, url: str):
    with chromium.beside() as no_camera:
        visitor = Visit(no_camera, url, "streamlit", viewport=DESK, locale="zh-CN")
        visitor.ask(ZH["examples"][0])
        visitor.sees(WHOLE)
        for part in ("this_chat", "settings"):
            side(visitor, part, ZH)
        upload = visitor.page.locator(f"{SIDEBAR} input[type=file]")
        for file in ({"name": "x.png", "mimeType": "image/png", "buffer": b"x"}, large_file()):
            upload.set_input_files(file)
            visitor.page.wait_for_timeout(500)
            assert english_in(visitor, KNOWN) == []
        visitor.page.get_by_text("x.json", exact=True).hover()
        visitor.sees("文件不能超过")
        visitor.page.get_by_label(ZH["preset"], exact=True).click()
        visitor.page.wait_for_timeout(300)
        assert english_in(visitor, KNOWN) == []
        visitor.page.keyboard.press("Escape")
        for tab in ("picture", "compare", "scorecard", "make"):
            visitor.open_tab(ZH[tab])
            visitor.page.wait_for_timeout(900)
            if tab == "picture":
                visitor.press(ZH["picture_camera"])
                visitor.page.get_by_text("摄像头").first.wait_for()
            assert english_in(visitor, KNOWN) == [], tab
            visitor.page.keyboard.press("Escape")
        visitor.finish()


def large_file() -> Any:
    return {"name": "x.json", "mimeType": "application/json", "buffer": b" " * 6_000_000}


@pytest.mark.browser
def test_what_a_person_wrote_is_read_as_it_was_written(visit, server: StandIn):
    visitor, said = visit(), "1. **b** :red[r] :smile: $x$ `c` <b> :material/home: [a](b)"
    visitor.ask(said)
    visitor.reads_answer()
    assert visitor.page.locator(".st-key-chats button").first.inner_text() == said
    side(visitor, "this_chat")
    title = visitor.page.get_by_role("textbox", name=EN["title"])
    title.fill("*a* :red[b]")
    title.press("Enter")
    visitor.page.get_by_role("button", name="*a* :red[b]", exact=True).wait_for()
    visitor.page.get_by_test_id("stFeedbackButton").nth(1).click()
    visitor.page.get_by_role("textbox", name=EN["comment"]).fill("**no** :smile:")
    visitor.page.get_by_role("textbox", name=EN["comment"]).press("Enter")
    visitor.page.reload()
    visitor.page.get_by_text("**no** :smile:", exact=True).wait_for()
    visitor.finish()


@pytest.mark.browser
def test_after_a_stop_the_answer_can_be_judged_copied_taken_back_and_an_older_one_edited(visit, server):
    visitor = visit()
    visitor.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    visitor.ask("Who are you?")
    visitor.reads_answer()
    visitor.ask("endless")
    visitor.sees("word20 ")
    visitor.stop()
    visitor.sees(EN["stopped"])
    assert visitor.page.get_by_test_id("stFeedbackButton").count() == 4
    visitor.press(EN["copy"])
    visitor.sees(EN["copied"])
    assert visitor.page.evaluate("navigator.clipboard.readText()").startswith("word0 word1 ")
    visitor.press(EN["undo"])
    visitor.page.get_by_text("word20 ").wait_for(state="detached")
    visitor.box.fill("One")
    visitor.box.press("Shift+Enter")
    visitor.page.keyboard.type("Two")
    visitor.box.press("Enter")
    wait_until(lambda: server.heard[-1] == "One\nTwo")
    visitor.page.wait_for_timeout(1500)
    visitor.press(EN["edit"])
    choose(visitor, EN["edit_which"], "Who are you?")
    box = visitor.page.get_by_role("textbox", name=EN["you"])
    box.fill("endless, but other words")
    box.press("Control+Enter")
    visitor.press(EN["send"])
    wait_until(lambda: server.heard == ["endless, but other words"])
    visitor.page.get_by_text("Two").last.wait_for(state="detached")
    box.wait_for(state="hidden")
    visitor.finish()


@pytest.mark.browser
def test_a_reload_in_the_middle_of_an_answer_frees_the_engine_and_keeps_the_words(visit, server: StandIn):
    server.closed.clear()
    visitor = visit()
    visitor.ask("endless")
    visitor.sees("word20 ")
    visitor.page.reload()
    assert server.closed.wait(15)
    visitor.sees(EN["stopped"])
    visitor.sees("word20 ")
    visitor.finish()


@pytest.mark.browser
def test_the_other_language_changes_every_word_and_no_choice(visit, server: StandIn):
    visitor = visit()
    side(visitor, "settings")
    choose(visitor, EN["model"], "base · endpoint")
    choose(visitor, EN["preset"], EN["presets"][1][0])
    visitor.page.get_by_text(ZH["language"]).click()
    visitor.page.get_by_text(ZH["settings"], exact=True).wait_for()
    visitor.page.wait_for_timeout(800)
    assert visitor.page.get_by_label(ZH["preset"], exact=True).input_value() == ZH["presets"][1][0]
    visitor.ask("Who are you?")
    visitor.sees(WHOLE)
    assert server.heard[0] == ZH["presets"][1][1] and server.requests[-1]["model"] == "base"
    side(visitor, "this_chat", ZH)
    visitor.page.wait_for_timeout(800)
    said = visitor.page.evaluate(READ)
    english = [text for text in said if any(text == word for word in EN["streamlit"] if "*" not in word)]
    assert english == [] and "上传" in said and "侧边栏" in said
    assert visitor.page.evaluate("document.documentElement.lang") == "zh"
    visitor.page.reload()  # the choice is kept in this browser
    visitor.page.get_by_text(ZH["settings"], exact=True).wait_for()
    visitor.page.get_by_text(EN["language"]).click()
    visitor.page.get_by_label("Send message").wait_for()
    visitor.leave()


@pytest.mark.browser
def test_chats_are_imported_drawn_renamed_exported_deleted_and_outlast_the_server(
    chromium, server: StandIn, stage: Path, tmp_path
):
    with page_of("streamlit", server, tmp_path, stage) as url:
        visitor = Visit(chromium, url, "streamlit", viewport=DESK)
        side(visitor, "this_chat")
        upload = visitor.page.locator(f"{SIDEBAR} input[type=file]")
        for content, said in ((b"no", "not JSON"), (chat_file(), EN.say("imported", number=1))):
            upload.set_input_files({"name": "x.json", "mimeType": "application/json", "buffer": content})
            visitor.sees(said)
        visitor.page.locator("pre .token.string, pre span[style*=color]").first.wait_for()
        wait_until(lambda: visitor.page.locator(".katex").count() == 3)
        title = visitor.page.get_by_role("textbox", name=EN["title"])
        title.fill("My title")
        title.press("Enter")
        visitor.page.get_by_role("button", name="My title").wait_for()
        markdown, kept = (download(visitor, EN[f"export_{kind}"]) for kind in ("markdown", "json"))
        assert (
            markdown.startswith("# My title")
            and json.loads(kept)["chats"][0]["messages"][1]["content"] == SAID
        )
    with page_of("streamlit", server, tmp_path, stage) as url:
        visitor.page.goto(url)
        visitor.page.get_by_role("button", name="My title").click()
        visitor.page.get_by_text("print").wait_for()
        side(visitor, "this_chat")
        visitor.press(EN["delete"])
        visitor.press(EN["really"])
        visitor.page.get_by_role("button", name="My title").wait_for(state="detached")
        visitor.leave()


def chat_file() -> bytes:
    return json.dumps({"chats": [CHAT]}).encode()


def download(visitor: Visit, name: str) -> str:
    with visitor.page.expect_download() as begun:
        visitor.press(name)
    return Path(begun.value.path()).read_text(encoding="utf-8")


@pytest.mark.browser
def test_pictures_are_pasted_dropped_and_taken_with_the_camera(visit, server: StandIn):
    visitor = visit()
    visitor.open_tab(EN["picture"])
    visitor.sees(EN["picture_hint"])
    for how in ("paste", "drop"):
        visitor.page.get_by_test_id("stChatInputTextArea").wait_for()
        visitor.page.evaluate(HAND_OVER, how)
        visitor.page.get_by_text(f"{how}.png").wait_for()
        look(visitor, server, f"by {how}")
    visitor.press(EN["picture_camera"])
    visitor.page.wait_for_function("document.querySelector('video')?.videoWidth > 0")
    visitor.page.get_by_role("button", name="Take Photo").click()
    visitor.sees(EN["picture_next"])
    visitor.page.keyboard.press("Escape")
    look(visitor, server, "by camera")
    assert len(server.requests[-1]["messages"]) == 5
    visitor.finish()


HAND_OVER = """async how => {
  const canvas = new OffscreenCanvas(8, 8);
  canvas.getContext("2d").fillRect(0, 0, 8, 8);
  const data = new DataTransfer();
  data.items.add(new File([await canvas.convertToBlob()], how + ".png", {type: "image/png"}));
  const shared = {clipboardData: data, dataTransfer: data, bubbles: true, cancelable: true};
  const box = document.querySelector("[data-testid=stChatInputTextArea]");
  if (how === "paste") return box.dispatchEvent(new ClipboardEvent(how, shared));
  document.body.dispatchEvent(new DragEvent("dragover", shared));
  await new Promise(done => setTimeout(done, 300));
  const place = document.querySelector("[data-testid=stChatInput] input[type=file]").parentElement;
  for (const step of ["dragenter", "dragover", "drop"]) place.dispatchEvent(new DragEvent(step, shared));
}"""


def look(visitor: Visit, server: StandIn, question: str) -> None:
    """Ask, and see that a picture went with it."""
    visitor.page.get_by_test_id("stChatInputTextArea").fill(question)
    visitor.page.locator("[data-testid=stChatInputSubmitButton]:not([disabled])").click()
    wait_until(lambda: server.requests and question in str(server.requests[-1]["messages"][-1]))
    assert "data:image" in str(server.requests[-1]["messages"][-1])
    visitor.stop_button.wait_for(state="hidden")
    visitor.page.wait_for_timeout(800)


@pytest.mark.browser
def test_the_scorecard_of_the_chosen_assistant_is_shown_with_its_picture(visit):
    visitor = visit()
    visitor.open_tab(EN["scorecard"])
    visitor.sees(EN.say("scorecard_none", name="ada")[:30])
    side(visitor, "settings")
    choose(visitor, EN["model"], "Eva · assistant")
    visitor.sees(EN["scorecard_passed"])
    visitor.page.get_by_alt_text(EN["scorecard_picture"]).wait_for()
    visitor.finish()


@pytest.mark.browser
def test_who_waits_sees_the_place_in_line_and_leaving_gives_it_to_the_next(chromium, tmp_path, monkeypatch):
    for name, value in {"WIDTH": 512, "INNER": 1024, "LAYERS": 8, "CONTEXT": 4096}.items():
        monkeypatch.setattr(tiny_gguf, name, value)  # slow enough to wait for
    model = tiny_gguf.make_tiny_run(tmp_path / "out" / "ada")
    root = make_narrow_stage(tmp_path / "stage")
    with serving("streamlit", tmp_path, root, ASSISTANT_MODEL=str(model)) as url:
        first, second, third = (Visit(chromium, url, "streamlit", viewport=DESK) for _ in range(3))
        second.box.fill("hello")
        third.box.fill("hello")
        side(first, "settings")
        longest = first.page.get_by_role("slider", name=EN["max_new_tokens"])
        longest.press("End")
        first.page.wait_for_timeout(600)
        first.ask("a" * 900)
        first.sees("],d<")  # what this model babbles
        second.box.press("Enter")
        second.sees(EN.say("waiting", number=1))
        third.box.press("Enter")
        third.sees(EN.say("waiting", number=2))
        second.page.close()
        third.sees(EN.say("waiting", number=1))
        first.stop()
        third.page.get_by_text(EN.say("waiting", number=1)).wait_for(state="detached")
        third.page.close()
        first.sees(EN["stopped"])
        longest.press("Home")
        first.page.wait_for_timeout(600)
        first.ask("b" * 3300)
        first.sees("The 2 oldest messages no longer fit")
        first.leave()


def test_a_copy_button_stands_beside_any_chat_whatever_its_id():
    from streamlit.testing.v1 import AppTest

    def page():
        from assistant.web.streamlit_parts import show_copy
        from assistant.web.texts import load_texts

        show_copy("Hello", "copy-a__b-0", load_texts()["en"])

    assert not AppTest.from_function(page, default_timeout=60).run().exception
