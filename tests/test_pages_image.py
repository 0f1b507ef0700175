import base64
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import save_file
from serving import Face, serving
from test_api import is_over
from test_llava import published, spacious_model, tower  # noqa: F401 (fixtures)

from assistant.backends import Sampling
from assistant.conversations import assistant, user
from assistant.folders import read_json, write_json
from assistant.llava import Parts, make_llava, random_projector
from assistant.settings import save_settings
from assistant.web import Engine, looking
from assistant.web.looking import Sights, find_seeing, projector_width, why_none
from assistant.web.picture_chat import Look, messages_of, reply, seen_by, take_picture
from assistant.web.texts import load_texts

EN = load_texts()["en"]
FIGURES = "16 tokens ·"  # without a speed where all of them came within a twentieth of a second
SLOW_MS = 180_000  # beside other work a model loads for minutes


def picture(path: Path, size: tuple[int, int] = (60, 40)) -> Path:
    Image.new("RGB", size, "orange").save(path)
    return path


def eyes_for(width: int, folder: Path) -> None:
    """As train.py writes them: a projector, by PEFT's names."""
    folder.mkdir(parents=True)
    tensors = {
        f"base_model.model.model.multi_modal_projector.{name}": tensor
        for name, tensor in random_projector(1280, width).items()
    }
    save_file(tensors, folder / looking.WEIGHTS)
    settings = {"r": 8, "lora_alpha": 16, "use_rslora": False, "lora_dropout": 0.0}
    write_json(folder / "adapter_config.json", {"base_model_name_or_path": "", **settings})


@pytest.fixture
def house(tower, tmp_path, monkeypatch) -> Path:  # noqa: F811
    """A repository with one assistant and eyes that fit it; the tower is a tiny one."""
    model = spacious_model(tmp_path / "out" / "ada" / "model")
    save_settings(model, {"card": {"name": "Ada"}})
    eyes_for(read_json(model / "config.json")["hidden_size"], tmp_path / looking.EYES)
    monkeypatch.setattr(looking, "TOWER", str(tower))
    return tmp_path


# ---- without a browser


def test_an_assistant_gets_eyes_behind_the_page_and_speaks_of_a_picture(house):
    sights = Sights(Engine(str(house / "out/ada/model")), house)
    (ada,) = sights.found()
    assert (ada.id, ada.name) == ("eyes:out/ada/model", "Ada")
    assert sights.progress(ada.id, 1, EN) == "" and sights.known(ada.id) is None
    engine = sights.get(ada.id)
    assert sights.progress(ada.id, 1, EN).startswith(("Ada is getting eyes", "Loading Ada", "Ada can see"))
    assert is_over(lambda: engine.status != "loading", 60) and not engine.error and engine.sees
    assert sights.progress(ada.id, 1, EN) == "Ada can see." and sights.get(None) is engine
    address, _ = take_picture(picture(house / "a.png"), EN)
    seen = seen_by(engine, address)
    assert seen.size == (64, 64) and seen.getpixel((32, 32)) == (255, 165, 0)
    assert seen.getpixel((32, 2)) != (255, 165, 0)  # the border that makes it square
    turns: list[Look] = [{"role": "user", "content": "what?", "images": [address]}]
    *_, last = reply(engine, turns, Sampling(16), EN)
    assert last.text and turns[1]["content"] == last.text and last.figures["tokens"] == 16
    assert not list((house / looking.MADE).glob(".*"))


def test_two_who_choose_different_eyes_load_each_once_however_often_they_look(house, monkeypatch):
    made = []

    class Loads:
        status, error, shared, line = "loading", "", None, None

        def __init__(self, model: str, *_: object) -> None:
            self.model = model
            made.append(model)

    monkeypatch.setattr(looking, "Engine", Loads)
    monkeypatch.setenv(
        "ASSISTANT_ENDPOINTS", "http://127.0.0.1:1/v1#a http://127.0.0.1:1/v1#b http://127.0.0.1:1/v1#c"
    )
    sights = Sights(Loads(str(house / "none")), house)
    made.clear()
    ids = ["endpoint:a", "endpoint:b"]
    for id in ids:
        sights.get(id)
    for _ in range(10):
        for id in ids:
            assert sights.progress(id, 1, EN) and sights.known(id) is sights.get(id)
    assert len(made) == 2
    sights.get("endpoint:c")
    for _ in range(10):
        assert sights.progress("endpoint:a", 1, EN) == "" and sights.known("endpoint:a") is None
    assert len(made) == 3 and sights.get("endpoint:b").model == "http://127.0.0.1:1/v1#b" and len(made) == 3


def test_eyes_are_made_once_and_again_when_the_assistant_was_trained_again(house):
    model, made = house / "out/ada/model", house / looking.MADE / "ada"
    looking.give_eyes(model, made, house)
    first = (made / "config.json").stat().st_ino
    looking.give_eyes(model, made, house)
    assert (made / "config.json").stat().st_ino == first
    weights = next(model.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes())
    looking.give_eyes(model, made, house)
    assert (made / "config.json").stat().st_ino != first


def test_eyes_that_cannot_be_made_are_one_sentence_and_tried_again(house, monkeypatch):
    monkeypatch.setattr(looking, "TOWER", "no-such-tower")
    sights = Sights(Engine(str(house / "out/ada/model")), house)
    engine = sights.get(None)
    assert is_over(lambda: engine.status == "error", 60)
    said = sights.progress(None, 1, EN)
    assert "no-such-tower" in said and "\n" not in said
    assert sights.get(None) is engine and sights.get(None, again=True) is not engine


def test_who_can_look_is_found_and_the_page_says_what_is_missing(house, monkeypatch, tower):  # noqa: F811
    own = str(house / "out/ada/model")
    make_llava(Path(own), tower, house / "out/bob/llava", Parts(), {"card": {"name": "Bob"}})
    monkeypatch.setenv("ASSISTANT_ENDPOINTS", "http://127.0.0.1:1/v1#far")
    ids = ["eyes:out/ada/model", "out/bob/llava", "endpoint:far"]
    assert [seeing.id for seeing in find_seeing(own, house)] == ids
    assert find_seeing(str(house / "out/bob/llava"), house)[0].name == "Bob"
    assert find_seeing(str(house / "out/ada/ada-q8_0.gguf"), house)[0].name == "Ada"
    monkeypatch.delenv("ASSISTANT_ENDPOINTS")
    (house / looking.EYES / looking.WEIGHTS).write_bytes(b"version https://git-lfs.github.com/spec/v1")
    assert projector_width(house / looking.EYES) == 0 and why_none(house) == "eyes_missing"
    monkeypatch.setattr(looking, "can_load", lambda: False)
    assert not find_seeing(own, house) and why_none(house) == "eyes_no_torch"


def test_two_of_one_name_are_told_apart_also_where_out_is_a_link(house):
    (house / "out").rename(house / "disk")
    (house / "out").symlink_to(house / "disk")
    (house / "out" / "bob").symlink_to(house / "disk" / "ada")
    found = find_seeing(str(house / "out/ada/model"), house)
    labels = {"eyes:out/ada/model": "Ada (out/ada)", "eyes:out/bob/model": "Ada (out/bob)"}
    assert looking.labels_of(found) == labels
    assert looking.labels_of(found[:1]) == {"eyes:out/ada/model": "Ada"}


def test_the_pictures_of_a_question_without_an_answer_go_with_the_next():
    turns: list[Look] = [
        {"role": "user", "content": "a", "images": ["1"]},
        {"role": "assistant", "content": " "},
        {"role": "user", "content": "b", "images": ["2"]},
        {"role": "assistant", "content": "c", "note": "Stopped."},
        {"role": "user", "content": "d"},
    ]
    assert messages_of(turns) == [user("b", ["1", "2"]), assistant("c"), user("d")]


def test_a_stopped_answer_keeps_its_words(house):
    class Talking:
        backend, name = None, "x"

        def stream(self, messages, sampling, client=""):
            while True:
                time.sleep(0.06)
                yield "word "

    turns: list[Look] = [{"role": "user", "content": "q"}]
    states: Any = reply(Talking(), turns, Sampling(), EN)  # type: ignore[arg-type]
    while not next(states).text:
        pass
    states.close()
    assert turns[1]["content"].startswith("word") and turns[1]["note"] == EN["stopped"]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_what_is_no_picture_is_said_in_the_persons_language(language: str, tmp_path):
    texts = load_texts()[language]
    Image.new("1", (12_000, 6_000)).save(tmp_path / "bomb.png")
    whole = picture(tmp_path / "a.png", (300, 300)).read_bytes()
    for content, key in [
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "picture_svg"),
        (whole[: len(whole) // 2], "picture_damaged"),
        ((tmp_path / "bomb.png").read_bytes(), "picture_large"),
        (b"plain text", "picture_unknown"),
        (b"", "picture_unknown"),
    ]:
        assert take_picture(content, texts) == ("", texts[key])


def test_a_huge_photo_becomes_small_and_keeps_its_shape(tmp_path):
    address, why = take_picture(picture(tmp_path / "a.png", (4000, 1000)), EN)
    kept = tmp_path / "kept.png"
    kept.write_bytes(base64.b64decode(address.partition(",")[2]))
    assert not why and Image.open(kept).size == (1024, 256)


# ---- in a browser, with a tiny model that sees


@pytest.fixture(scope="module", params=["gradio", "streamlit"])
def served(request, tower, tmp_path_factory) -> Iterator[tuple[Face, str, Path]]:  # noqa: F811
    folder = tmp_path_factory.mktemp(request.param)
    make_llava(spacious_model(folder / "llm"), tower, folder / "out" / "tiny", Parts(), {})
    own = {"ASSISTANT_MODEL": str(folder / "out" / "tiny"), "PYTHONPROFILEIMPORTTIME": "1"}  # it logs them
    with serving(request.param, folder, **own) as url:
        yield request.param, url, folder / f"{request.param}.log"


@pytest.fixture
def looks(served, chromium) -> Iterator["Gradio"]:
    """A page of its own, so that a test which is asked once more begins at its beginning."""
    face, url, _ = served
    context = chromium.browser.new_context(locale="en-US")
    opened = context.new_page()
    opened.goto(url + ("/picture" if face == "streamlit" else ""))
    yield Gradio(opened) if face == "gradio" else Streamlit(opened)
    context.close()


@pytest.mark.browser
def test_a_picture_is_shown_asked_about_twice_and_a_bad_one_refused(looks, tmp_path):
    looks.ask_for_short_answers()
    looks.open()
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"<svg xmlns='http://www.w3.org/2000/svg'/>")
    looks.show(bad)
    looks.wait_for(EN["picture_svg"])
    looks.show(picture(tmp_path / "good.png"))
    looks.ask("What is this?")
    looks.wait_for_answers(1)
    looks.ask("And its colour?")
    looks.wait_for_answers(2)
    assert looks.pictures() == 1
    looks.wait_for(EN["picture_seen"])


@pytest.mark.browser
def test_a_model_is_opened_behind_a_page_that_is_there(served, looks):
    face, _, log = served
    looks.open()
    said = log.read_text(encoding="utf-8")
    served_at = said.index("(Ctrl-C ends it)" if face == "gradio" else "You can now view")
    assert served_at < re.search(r"\| +torch\n", said).start()


class Gradio:
    sidebar = ".sidebar-content"

    def __init__(self, page: Any) -> None:
        self.page = page

    def ask_for_short_answers(self) -> None:
        self.page.locator(self.sidebar).get_by_text(EN["settings"], exact=True).click()
        self.page.get_by_role("slider", name=EN["max_new_tokens"]).press("Home")
        self.page.wait_for_timeout(500)

    def open(self) -> None:
        self.page.get_by_role("tab", name=EN["picture"]).click()
        self.wait_for("tiny can see.")

    def show(self, path: Path) -> None:
        if self.page.locator("#picture button[aria-label='Clear']").count():
            self.page.locator("#picture button[aria-label='Clear']").click()
        self.page.set_input_files("#picture input[type=file]", path)

    def ask(self, question: str) -> None:
        if question.startswith("What"):
            self.wait_for(EN["picture_next"])
        self.page.locator("#picture-box textarea").fill(question)
        self.page.keyboard.press("Enter")

    def wait_for_answers(self, number: int) -> None:
        figures = self.page.locator("#picture-chat").get_by_text(FIGURES)
        figures.nth(number - 1).wait_for(timeout=SLOW_MS)
        self.page.locator("#picture-box").get_by_text(EN["send"], exact=True).wait_for()

    def pictures(self) -> int:
        return int(self.page.locator("#picture-chat .user img").count())

    def wait_for(self, text: str) -> None:
        self.page.get_by_text(text).first.wait_for(timeout=SLOW_MS)


class Streamlit(Gradio):
    sidebar = "[data-testid=stSidebar]"

    def open(self) -> None:
        self.wait_for("tiny can see.")

    def show(self, path: Path) -> None:
        self.page.set_input_files("[data-testid=stChatInput] input[type=file]", path)
        self.page.get_by_text(path.name).first.wait_for()
        if path.name == "bad.png":
            self.ask("What?")

    def ask(self, question: str) -> None:
        # off while a file is on its way, or the page is being drawn
        self.page.locator("[data-testid=stChatInputTextArea]").fill(question, timeout=SLOW_MS)
        send = self.page.locator("[data-testid=stChatInputSubmitButton]:not([disabled])")
        send.click(timeout=SLOW_MS)

    def wait_for_answers(self, number: int) -> None:
        self.page.get_by_text(FIGURES).nth(number - 1).wait_for(timeout=SLOW_MS)

    def pictures(self) -> int:
        return int(self.page.locator("[data-testid=stChatMessage] [data-testid=stImage]").count())
