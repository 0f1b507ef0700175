import re
import urllib.request
from base64 import b64encode
from io import BytesIO

import pytest
import visiting
from PIL import Image
from serving import serving
from stand_in import ANSWER, StandIn
from test_pages import EN, WHOLE
from visiting import AT_REST, DESK, PHONE, Visit, wait_until

from assistant.web import Engine
from assistant.web.texts import load_texts

ZH = load_texts()["zh"]
TABS = ("chat", "picture", "compare", "scorecard", "make")
CLIPBOARD = ["clipboard-read", "clipboard-write"]
# What a person reads: the words on the page and those in its empty boxes.
READ = """() => document.body.innerText + [...document.querySelectorAll("[placeholder]")]
    .filter(box => box.checkVisibility()).map(box => "\\n" + box.placeholder).join("")"""


def english() -> list[str]:
    """Patterns of our English texts, line by line, with anything in their slots."""
    texts = [text for key, text in EN.items() if isinstance(text, str) and text != ZH[key]]
    texts += [*EN["examples"], *(name for name, _ in EN["presets"])]
    texts.remove(EN["language"])  # the switch names each language in its own words
    lines = [line.removeprefix("## ") for text in texts for line in text.split("\n")]
    in_words = [line for line in lines if re.search("[A-Za-z]{2}", re.sub(r"{\w+}", "", line))]
    return [re.sub(r"\\{\w+\\}", ".+", re.escape(line)) for line in in_words]


def english_in(visitor: Visit) -> list[str]:
    lines = visitor.page.evaluate(READ).replace("\u2063", "").split("\n")  # beside an answer
    return [line for line in lines if any(re.fullmatch(pattern, line) for pattern in english())]


def switch(visitor: Visit, texts) -> None:
    """Press the switch, and wait until the page has come again and is at rest."""
    visitor.page.get_by_role("radio", name=texts["language"]).locator("..").click()
    arrive(visitor, texts)


def arrive(visitor: Visit, texts) -> None:
    visitor.page.get_by_role("tab", name=texts["scorecard"]).or_(
        visitor.page.get_by_role("button", name=texts["scorecard"])
    ).first.wait_for(state="attached")
    visitor.page.locator("#state").get_by_text(texts.say("model_ready", name="ada")).wait_for(
        state="attached"
    )
    visitor.page.locator("#box textarea:not([disabled])").wait_for()


@pytest.mark.browser
def test_a_page_that_nobody_touches_draws_nothing(chromium, gradio_url: str):
    visitor = Visit(chromium, gradio_url, "gradio", viewport=DESK)
    visitor.run_first("""const draw = window.requestAnimationFrame; window.drawn = 0;
        window.requestAnimationFrame = (step) => { window.drawn++; return draw(step); }""")
    visitor.page.reload()
    arrive(visitor, EN)

    def drawn_in_a_second() -> int:
        before = visitor.page.evaluate("window.drawn")
        visitor.page.wait_for_timeout(1000)
        return visitor.page.evaluate("window.drawn") - before

    assert any(drawn_in_a_second() <= 5 for _ in range(10))  # 60 where anything moves
    visitor.finish()


# ---- the language


@pytest.mark.browser
def test_the_switch_changes_every_word_on_every_tab_and_the_choice_is_kept(chromium, gradio_url: str):
    visitor = Visit(chromium, gradio_url, "gradio", viewport=DESK)
    visitor.ask("endless")
    visitor.sees("word20 ")
    visitor.stop()
    assert english_in(visitor)
    switch(visitor, ZH)
    visitor.sees(ZH["stopped"])
    for come_again in (False, True):
        if come_again:
            visitor.page.reload()
            arrive(visitor, ZH)
        visitor.page.get_by_role("button", name=ZH["settings"]).first.click()
        assert visitor.page.evaluate("document.documentElement.lang") == "zh-CN"
        for tab in TABS:
            visitor.open_tab(ZH[tab])
            visitor.page.wait_for_timeout(300)
            assert english_in(visitor) == [], tab
    visitor.open_tab(ZH["chat"])
    visitor.press(ZH["new_chat"])
    visitor.sees(ZH["examples"][0])
    assert english_in(visitor) == []
    visitor.finish()


@pytest.mark.browser
def test_no_label_of_a_chinese_page_is_english(chromium, gradio_url: str):
    visitor = Visit(chromium, gradio_url, "gradio", viewport=DESK, locale="zh-CN")
    visitor.ask("Who are you?")
    visitor.sees(ZH.say("figure_tokens", number=len(ANSWER)))
    for accordion in ("this_chat", "settings"):
        visitor.page.get_by_role("button", name=ZH[accordion]).first.click()
    names = f"{EN['language']} ada base Who are you {WHOLE}"
    for tab in TABS:
        visitor.open_tab(ZH[tab])
        visitor.page.wait_for_timeout(400)
        assert visiting.english_in(visitor, names) == [], tab
    visitor.finish()


@pytest.mark.browser
def test_gradios_own_settings_switch_the_servers_words_too(chromium, gradio_url: str):
    visitor = Visit(chromium, gradio_url, "gradio", viewport=DESK)
    visitor.page.locator("footer button.settings").click()
    visitor.page.locator("input[aria-label=Language]").click()
    visitor.page.get_by_role("option", name=ZH["language"]).click()
    arrive(visitor, ZH)
    assert visitor.page.get_by_role("radio", name=ZH["language"]).is_checked()
    visitor.leave()


@pytest.mark.browser
def test_a_language_that_the_server_fixes_needs_no_switch(chromium, server: StandIn, tmp_path):
    with serving("gradio", tmp_path, ASSISTANT_MODEL=server.url + "#ada", ASSISTANT_LANG="zh") as url:
        visitor = Visit(chromium, url, "gradio", viewport=DESK)
        arrive(visitor, ZH)
        assert visitor.page.locator("#language").count() == 0 and english_in(visitor) == []
        visitor.page.locator("footer").get_by_text("设置").wait_for()  # Gradio's own word
        visitor.finish()


STORE_NOTHING = """Object.defineProperty(window, "localStorage",
    { get() { throw new DOMException("denied", "SecurityError") }, configurable: true })"""
TRANSLATE = """([language, name]) => { window.isTheSame = true
    document.documentElement.lang = language; document.documentElement.className = name }"""


@pytest.mark.browser
def test_a_page_that_the_browser_translates_or_that_may_keep_nothing_is_not_loaded_for_ever(
    chromium, gradio_url: str
):
    visitor = Visit(chromium, gradio_url, "gradio", viewport=DESK)
    arrive(visitor, EN)
    for said in (["zh-CN", "translated-ltr"], ["fr", ""], ["en-GB", ""]):
        visitor.page.evaluate(TRANSLATE, said)
        visitor.page.wait_for_timeout(700)
        assert visitor.page.evaluate("window.isTheSame"), said
    visitor.run_first(STORE_NOTHING)
    visitor.page.reload()
    arrive(visitor, EN)
    switch(visitor, ZH)
    visitor.ask("Who are you?")
    visitor.sees(WHOLE)
    visitor.leave()


@pytest.mark.usefixtures("gradio")
def test_what_is_drawn_when_the_page_comes_is_drawn_again_when_its_language_is_known():
    """A second change while the first is drawn must not be dropped."""
    from assistant.web.gradio_page import build_page

    events = build_page(Engine("http://127.0.0.1:9/v1#ada")).config["dependencies"]
    of_both = [event for event in events if {"load", "change"} <= {how for _, how in event["targets"]}]
    assert len(of_both) > 5 and {event["trigger_mode"] for event in of_both} == {"always_last"}


@pytest.mark.usefixtures("gradio")
def test_a_page_that_nobody_asks_rests():
    """Gradio's own pause is 1 ms."""
    from assistant.web.gradio_page import build_page

    assert 0.01 <= build_page(Engine("http://127.0.0.1:9/v1#ada"))._queue.sleep_when_free <= 0.05


# ---- copying


@pytest.mark.usefixtures("gradio")
def test_what_stands_beside_an_answer_is_marked():
    from assistant.web.gradio_messages import BESIDE, drawn

    turn = {"role": "assistant", "content": "hi", "note": EN["stopped"], "figures": {"tokens": 3}}
    said, note, figures = (message.content for message in drawn([turn], ZH))
    assert said == "hi" and note == f"{BESIDE}{ZH['stopped']}{BESIDE}"
    assert figures == f"{BESIDE}{ZH.say('figure_tokens', number=3)}{BESIDE}"


@pytest.mark.browser
def test_a_copied_answer_is_the_answer_alone(chromium, gradio_url: str):
    visitor = Visit(chromium, gradio_url, "gradio", viewport=DESK, permissions=CLIPBOARD)
    visitor.ask("Who are you?")
    visitor.reads_answer()

    def copies(button: str, words: str) -> None:
        visitor.page.evaluate("navigator.clipboard.writeText('')")
        visitor.press(button)
        wait_until(lambda: visitor.page.evaluate("navigator.clipboard.readText()") == words)

    copies("Copy message", WHOLE)
    copies("Copy conversation", f"user: Who are you?\n\nassistant: {WHOLE}")
    visitor.ask("break")
    visitor.sees("broke off")
    visitor.stop_button.wait_for(state="hidden")
    copies("Copy message", "Half an ans")
    visitor.finish()


@pytest.mark.browser
def test_without_a_clipboard_the_copy_is_the_answer_alone_too(chromium, gradio_url: str):
    visitor = Visit(chromium, gradio_url, "gradio", viewport=DESK)
    visitor.run_first("delete Navigator.prototype.clipboard")
    visitor.page.reload()
    visitor.box.wait_for()
    visitor.ask("Who are you?")
    visitor.reads_answer()
    visitor.press("Copy message")
    visitor.box.press("Control+V")
    assert visitor.box.input_value() == WHOLE
    visitor.finish()


# ---- pictures

FILE = """const bytes = Uint8Array.from(atob(code), letter => letter.charCodeAt(0))
    const file = new File([bytes], "a.png", { type: "image/png" })"""
PASTE = (
    f"async code => {{ {FILE}; await navigator.clipboard.write([new ClipboardItem({{'image/png': file}})]) }}"
)
DROP = f"""code => {{ {FILE}; const data = new DataTransfer(); data.items.add(file)
    document.querySelector("#picture button").dispatchEvent(
        new DragEvent("drop", {{ dataTransfer: data, bubbles: true, cancelable: true }})) }}"""


def picture_code(colour: str) -> str:
    buffer = BytesIO()
    Image.new("RGB", (60, 40), colour).save(buffer, "PNG")
    return b64encode(buffer.getvalue()).decode()


def picture_heard(server: StandIn) -> Image.Image:
    """The last picture that the model was asked about."""
    parts = server.requests[-1]["messages"][-1]["content"]
    address = next(part["image_url"]["url"] for part in parts if part["type"] == "image_url")
    with urllib.request.urlopen(address) as opened:
        return Image.open(BytesIO(opened.read())).convert("RGB")


@pytest.mark.browser
def test_a_picture_is_dropped_pasted_and_photographed_and_each_is_answered(
    chromium, gradio_url: str, server: StandIn
):
    visitor = Visit(chromium, gradio_url, "gradio", viewport=DESK, permissions=CLIPBOARD)
    page, box = visitor.page, visitor.page.locator("#picture-box textarea")
    visitor.open_tab(EN["picture"])
    visitor.sees(EN.say("eyes_ready", name="ada"))

    def is_answered(count: int) -> None:
        visitor.sees(EN["picture_next"])
        box.fill("What is this?")
        box.press("Enter")
        page.locator("#picture-chat").get_by_text("tokens/s").nth(count - 1).wait_for()
        page.locator("#picture-box").get_by_text(EN["send"], exact=True).wait_for()

    page.evaluate(DROP, picture_code("orange"))
    is_answered(1)
    assert picture_heard(server).getpixel((5, 5)) == (255, 165, 0)
    page.evaluate(PASTE, picture_code("green"))  # over the one that is there
    box.press("Control+V")
    is_answered(2)
    assert picture_heard(server).getpixel((5, 5)) == (0, 128, 0)
    page.get_by_label("Remove Image").click()
    page.get_by_label("Capture from camera").click()
    page.get_by_text("Click to Access Webcam").click()
    page.wait_for_function("document.querySelector('#picture video').readyState >= 3")  # before: no picture
    page.wait_for_timeout(500)
    page.get_by_label("capture photo").click()
    is_answered(3)
    assert picture_heard(server).size[0] > 60
    visitor.finish()


# ---- for everyone


@pytest.mark.browser
@pytest.mark.parametrize("texts", [EN, ZH], ids=["en", "zh"])
def test_every_tab_is_accessible_on_desk_and_phone_light_and_dark(chromium, gradio_url: str, texts):
    """Dark differs in its colours alone; the sidebar is the same on each tab."""
    locale = "en-US" if texts is EN else "zh-CN"
    toggle = texts["gradio"][EN["gradio"].index("Toggle Sidebar")]
    visitor = Visit(chromium, gradio_url, "gradio", viewport=DESK, locale=locale)
    page = visitor.page
    visitor.ask("Who are you?")
    visitor.sees(WHOLE)
    page.add_style_tag(content=AT_REST)
    for accordion in ("this_chat", "settings"):
        page.get_by_role("button", name=texts[accordion]).first.click()
    found, seen = [], ()
    for size in (DESK, PHONE):
        page.set_viewport_size(size)
        if size is PHONE:
            page.get_by_role("button", name=toggle).click()  # it covers the page
        for tab in TABS:
            visitor.open_tab(texts[tab])
            page.wait_for_timeout(300)
            for scheme, rule in (("light", ""), ("dark", "color-contrast")):
                page.emulate_media(color_scheme=scheme)
                page.locator("body.dark" if rule else "body:not(.dark)").wait_for()
                said = visitor.violations(*seen, rule=rule)
                found += [f"{tab} {size['width']} {scheme}: {one}" for one in said]
            seen = (".sidebar",)
    assert not found, "\n".join(found)
    visitor.finish()


@pytest.mark.browser
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_where_a_question_goes_is_one_line_in_sight(chromium, gradio_url: str, size: dict[str, int]):
    visitor = Visit(chromium, gradio_url, "gradio", viewport=size, locale="zh-CN")
    for tab, name in (("chat", "#box"), ("compare", "#compare-box")):
        visitor.open_tab(ZH[tab])
        box = visitor.page.locator(f"{name} textarea")
        box.wait_for()
        place = box.bounding_box()
        assert place["height"] < 40 and place["y"] + place["height"] < size["height"], name
    visitor.finish()
