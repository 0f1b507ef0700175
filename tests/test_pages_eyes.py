from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import Face, serving
from test_llava import published, spacious_model, tower  # noqa: F401 (fixtures)
from test_pages_image import picture
from visiting import DESK, Visit
from workshop import copy_project

from assistant.llava import Parts, make_llava
from assistant.web.texts import load_texts

EN = load_texts()["en"]
LOAD = "    def _load(self) -> None:\n"
WAIT = '        while not (REPOSITORY / "go").exists():\n            time.sleep(0.05)\n'


@pytest.fixture(params=["gradio", "streamlit"])
def late(request, tower, tmp_path) -> Iterator[tuple[Face, str, Path]]:  # noqa: F811
    """(page, its address, the file without which its model, which sees, goes on loading)"""
    root, model = tmp_path / "project", tmp_path / "out" / "tiny"
    copy_project(root)
    engine = root / "assistant" / "web" / "engine.py"
    text = engine.read_text(encoding="utf-8")
    assert LOAD in text
    engine.write_text(text.replace(LOAD, LOAD + WAIT), encoding="utf-8")
    make_llava(spacious_model(tmp_path / "llm"), tower, model, Parts(), {})
    with serving(request.param, tmp_path, root, ASSISTANT_MODEL=str(model)) as url:
        yield request.param, url, root / "go"


@pytest.mark.browser
def test_a_picture_that_comes_while_the_eyes_load_is_shown_as_they_see_it(late, chromium, tmp_path):
    face, url, go = late
    visitor = Visit(chromium, url, face, viewport=DESK)
    visitor.open_tab(EN["picture"])
    visitor.sees("Loading tiny…")
    show = show_in_gradio if face == "gradio" else ask_in_streamlit
    seen = show(visitor, picture(tmp_path / "orange.png"))
    assert not seen.is_visible()
    go.touch()
    visitor.sees("tiny can see.")
    if face == "streamlit":  # it stands behind a button beside the question
        visitor.press(EN["picture_seen"])
    seen.wait_for()
    assert seen.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [64, 64]
    visitor.finish()


def show_in_gradio(visitor: Visit, path: Path):
    visitor.page.set_input_files("#picture input[type=file]", path)
    visitor.page.locator("#picture img").wait_for()
    return visitor.page.locator("#seen img")


def ask_in_streamlit(visitor: Visit, path: Path):
    visitor.page.set_input_files("[data-testid=stChatInput] input[type=file]", path)
    visitor.sees(path.name)
    visitor.box.fill(EN["picture_what"])
    visitor.page.get_by_test_id("stChatInputSubmitButton").locator("visible=true").click()
    visitor.sees(EN["loading"])
    return visitor.page.get_by_test_id("stPopoverBody").locator("img")
