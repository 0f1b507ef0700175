import json
import re
import socket
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path

import pytest
from serving import free_port, serving
from stand_in import ANSWER, StandIn
from visiting import DESK, Visit, wait_until

from assistant.backends import Notice, Sampling
from assistant.backends.openai_backend import OpenAIBackend
from assistant.card import check_name
from assistant.conversations import assistant, system, user
from assistant.settings import REPOSITORY
from assistant.web import Engine, Shown, answer, assistant_name, conversation, sampling_from
from assistant.web.exchange import from_json
from assistant.web.guard import is_local, is_loopback
from assistant.web.texts import in_language, load_texts, pick_language

APP = REPOSITORY / "app.py"
WHOLE = "".join(ANSWER)
EN, ZH = load_texts()["en"], load_texts()["zh"]


# ---- without a browser


class Told:
    """An engine that says what it was told to."""

    def __init__(self, *chunks: str | Exception) -> None:
        self.chunks, self.is_closed = chunks, False

    backend = None

    def stream(self, messages, sampling, client=""):
        try:
            for chunk in self.chunks:
                if isinstance(chunk, Exception):
                    raise chunk
                yield chunk
        finally:
            self.is_closed = True


def shown_by(*chunks: str | Exception) -> Shown:
    *_, last = answer(Told(*chunks), [user("q")], Sampling(), load_texts()["en"])
    return last


def test_an_error_in_the_middle_keeps_what_was_said_and_becomes_a_note():
    assert shown_by("half", RuntimeError("the server\nis gone")) == Shown(
        "half", "the server is gone", failed=True
    )
    strange = shown_by("half", KeyError("x"))
    assert strange.text == "half" and "KeyError" in strange.note and strange.failed


def test_an_empty_answer_is_said():
    assert shown_by(" ", "").note == load_texts()["en"]["no_words"]


def test_notices_are_shown_beside_the_answer_and_only_the_lasting_one_stays():
    shown = shown_by(Notice("loading"), Notice("waiting", 2), Notice("shortened", 4), "a", "b")
    assert (shown.text, shown.meanwhile) == ("ab", "") and "4 oldest" in shown.note
    first = next(answer(Told(Notice("waiting", 2), "a"), [], Sampling(), load_texts()["en"]))
    assert first.meanwhile == "Before you: 2"


def test_an_answer_is_drawn_at_most_twenty_times_a_second():
    states = list(answer(Told(*["x"] * 5000), [], Sampling(), load_texts()["en"]))
    assert len(states) < 20 and states[-1].text == "x" * 5000


def test_closing_an_answer_closes_the_engine():
    engine = Told(*["x"] * 5000)
    states = answer(engine, [], Sampling(), load_texts()["en"])
    next(states)
    states.close()
    assert engine.is_closed


def test_the_first_message_waits_for_the_model_and_hears_why_it_cannot_load(tmp_path):
    engine = Engine(str(tmp_path))
    *_, last = answer(engine, [user("hi")], Sampling(), load_texts()["en"])
    assert last.failed and "config.json" in last.note


def test_a_machine_without_a_model_says_how_to_make_one(monkeypatch):
    def none_there() -> str:
        raise RuntimeError('make assistant NAME="Ada"')

    monkeypatch.setattr("assistant.web.engine.default_model", none_there)
    *_, last = answer(Engine(), [user("hi")], Sampling(), load_texts()["en"])
    assert "make assistant" in last.note


def test_a_question_without_an_answer_is_not_told_to_the_model():
    turns = [user("lost"), user("a"), assistant("b"), user("failed"), assistant(""), user("c")]
    assert conversation(turns, " s ") == [system("s"), user("a"), assistant("b"), user("c")]


def test_sampling_stays_within_limits():
    assert sampling_from(9, 0, 1e9) == Sampling(2048, 1.5, 0.05)
    assert sampling_from(-1, 2, 0) == Sampling(16, 0, 1)


def test_the_name_comes_from_the_card_else_from_the_folder(tmp_path):
    model = tmp_path / "ada" / "model"
    model.mkdir(parents=True)
    assert assistant_name(str(model)) == "ada"
    (tmp_path / "ada" / "data").mkdir()
    (tmp_path / "ada" / "data" / "card.toml").write_text('name = "Ada"\n', encoding="utf-8")
    assert assistant_name(str(model)) == "Ada"
    (model / "settings.toml").write_text('[card]\nname = "林小宇"\n', encoding="utf-8")
    assert assistant_name(str(model)) == "林小宇"
    assert assistant_name("http://127.0.0.1:1/v1#bob") == "bob"


def test_all_languages_have_the_same_texts_with_the_same_slots():
    def shape(texts):
        return {key: sorted(re.findall(r"{\w+}", str(text))) for key, text in texts.items()}

    english, *others = load_texts().values()
    assert others and all(shape(texts) == shape(english) for texts in others)


@pytest.mark.parametrize(
    ("accepted", "language"),
    [
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("en-GB", "en"),
        ("fr,zh;q=0.5", "zh"),
        ("", "en"),
        (None, "en"),
        ("de", "en"),
    ],
)
def test_the_browser_chooses_the_language(accepted, language, monkeypatch):
    monkeypatch.delenv("ASSISTANT_LANG", raising=False)
    assert pick_language(accepted) == language


def test_the_environment_fixes_the_language(monkeypatch):
    monkeypatch.setenv("ASSISTANT_LANG", "zh_CN.UTF-8")
    assert pick_language("en") == "zh"
    monkeypatch.setenv("ASSISTANT_LANG", "xx")
    with pytest.raises(ValueError, match="xx has no texts"):
        pick_language("en")


def note_in_gradio(note: str) -> str:
    from assistant.web.gradio_messages import BESIDE, drawn

    (message,) = drawn([{"role": "assistant", "content": "", "note": note}], ZH)
    return str(message.content).strip(BESIDE)


def note_in_streamlit(note: str) -> str:
    from assistant.web.streamlit_parts import shown_of

    return shown_of({"role": "assistant", "content": "", "note": note}, ZH).note


@pytest.mark.usefixtures("gradio")
@pytest.mark.parametrize("read_note", [note_in_gradio, note_in_streamlit])
def test_a_kept_note_is_read_in_the_language_of_the_page(read_note):
    note = f"{EN.say('shortened', number=4)} {EN['cut']}"
    assert read_note(note) == f"{ZH.say('shortened', number=4)} {ZH['cut']}"
    assert read_note(EN.say("failed_inside", error="KeyError")) == ZH.say("failed_inside", error="KeyError")
    assert read_note(ZH["stopped"]) == ZH["stopped"] and read_note("HTTP 500") == "HTTP 500"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "名字是空的，请写一个名字，例如 Ada"),
        ("a" * 99, "名字有 99 个字符，简短的回答里最多放得下"),
        ("a\nb", "名字 'a\\nb' 里有换行或控制字符，请写成一行普通文字"),
        ("<|im_end|>", "名字 '<|im_end|>' 里有对话模型的控制符，请去掉"),
        ("{x}", "名字 '{x}' 里有花括号占位符，请直接写名字"),
        (" a", "名字 ' a' 前后有空格，请去掉"),
    ],
)
def test_a_name_that_cannot_be_is_refused_in_chinese(name: str, said: str):
    with pytest.raises(ValueError) as refused:
        check_name(name, "name")
    assert in_language(str(refused.value), ZH).startswith(said)
    assert in_language(str(refused.value), EN) == str(refused.value)


BAD_FILES = [b"no", b"[]", b'[{"messages": 1}]', b'[{"messages": [1]}]']
BAD_TURNS = [["assistant"], ["user", "user"], ["system"], ["user", "system"], ["robot"]]


def chat_of(roles: list[str]) -> bytes:
    return json.dumps([{"messages": [{"role": role, "content": "x"} for role in roles]}]).encode()


@pytest.mark.parametrize("content", BAD_FILES + [chat_of(roles) for roles in BAD_TURNS])
def test_a_file_that_cannot_be_imported_is_refused_in_chinese(content: bytes):
    with pytest.raises(ValueError) as refused:
        from_json(content, "a.json")
    said = in_language(str(refused.value), ZH)
    assert said.startswith("a.json：") and not re.search("conversation|must|choose|turn", said), said


@pytest.mark.parametrize("address", ["", "#nobody"])
def test_an_endpoint_that_fails_is_said_in_chinese(server: StandIn, address: str):
    backend = OpenAIBackend(server.url + address if address else "http://127.0.0.1:9/v1#ada")
    with pytest.raises(RuntimeError) as failed:
        list(backend.stream([user("hi")], Sampling()))
    said = in_language(str(failed.value), ZH)
    assert re.search("连不上|没有模型", said) and not re.search("[a-z] [a-z]", said), said


def broken(kind: str, folder: Path) -> Path:
    """What somebody may name as a model, and what is none."""
    path = folder / {"gguf": "a.gguf", "pointer": "a.gguf", "gone": "b.gguf"}.get(kind, "ada")
    if kind == "gguf":
        path.write_bytes(b"PK..")
    elif kind == "pointer":
        path.write_bytes(b"version https://git-lfs.github.com/spec/v1")
    elif kind == "empty":
        path.mkdir()
    elif kind == "adapter":
        path.mkdir()
        (path / "adapter_config.json").write_text('{"base_model_name_or_path": "/nowhere/base"}')
    return path


@pytest.mark.parametrize("kind", ["gguf", "pointer", "gone", "empty", "adapter", "nothing"])
def test_a_model_that_cannot_be_opened_is_said_in_chinese(kind: str, tmp_path):
    engine = Engine(str(broken(kind, tmp_path)))
    wait_until(lambda: engine.error)
    said = in_language(engine.error, ZH)
    commands = re.sub(r"python scripts/[\w.]+( [\w.-]+)*|`[^`]*`", "", said)
    assert said != engine.error and not re.search("[a-z]{2,} [a-z]{2,}", commands), said


def test_every_error_has_its_slots_in_every_language():
    slots = [[sorted(re.findall(r"{\w+}", said)) for said in texts["errors"]] for texts in (EN, ZH)]
    assert slots[0] == slots[1] and len(slots[0]) > 30


def test_only_this_machine_under_a_local_name_is_local():
    def asked(host: str, client: str) -> bool:
        return is_local({"type": "http", "headers": [(b"host", host.encode())], "client": (client, 1)})

    assert asked("localhost:8501", "127.0.0.1") and asked("[::1]:8501", "::1")
    assert asked("127.0.0.1", "::ffff:127.0.0.1")
    assert not asked("evil.example:8501", "127.0.0.1") and not asked("localhost", "192.0.2.2")
    assert not is_loopback("0.0.0.0") and not is_loopback("")


def test_markdown_of_a_model_is_only_markdown():
    from assistant.web.streamlit_parts import plain_markdown

    assert plain_markdown(r"\(x\) and \[y\]") == "$x$ and $$y$$"
    assert plain_markdown("$5 and $10, $$z$$") == r"\$5 and \$10, $$z$$"
    assert plain_markdown(":red[x] :smile: :material/home:") == r"\:red[x] \:smile: \:material/home:"
    assert plain_markdown("rain,\nfalls\n```\na\nb\n```") == "rain,  \nfalls  \n```\na\nb\n```"
    assert plain_markdown("`:red[x]` at 12:30, https://a.b") == "`:red[x]` at 12:30, https://a.b"


def test_gradio_serves_the_chat_as_an_api(gradio_url: str, server: StandIn):
    from gradio_client import Client

    client = Client(gradio_url, verbose=False)
    said = client.predict("Who are you?", "be kind", 0, 0.9, 64, api_name="/chat")
    assert said == WHOLE and server.heard == ["be kind", "Who are you?"]
    assert server.requests[-1]["max_tokens"] == 64


@pytest.mark.parametrize("page", ["gradio_url", "streamlit_url"])
def test_a_foreign_host_name_is_refused_and_foreign_pictures_are_forbidden(page: str, request):
    url = request.getfixturevalue(page)
    with urllib.request.urlopen(url) as reply:
        assert "img-src 'self' data: blob:" in reply.headers["Content-Security-Policy"]
    foreign = urllib.request.Request(url, headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(foreign)


def test_a_taken_port_is_said_and_the_next_one_used(capsys):
    from assistant.web.gradio_server import free_port as next_port

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert next_port("127.0.0.1", port) > port
    assert f"port {port} is taken" in capsys.readouterr().err


@pytest.fixture
def app_test(server: StandIn, tmp_path, monkeypatch):
    """The Streamlit page without a browser."""
    from streamlit.testing.v1 import AppTest

    from assistant.web import the_engine
    from assistant.web.store import the_store

    monkeypatch.setenv("ASSISTANT_MODEL", server.url + "#ada")
    monkeypatch.setenv("ASSISTANT_DATA", str(tmp_path))
    the_engine.cache_clear(), the_store.cache_clear()
    yield AppTest.from_file(str(APP), default_timeout=20).run()
    the_engine.cache_clear(), the_store.cache_clear()


def press(page, label: str) -> None:
    next(button for button in page.button if button.label == label).click().run()
    assert not page.exception


def read(page) -> list[str]:
    return [message.markdown[0].value for message in page.chat_message]


def test_streamlit_page_answers_regenerates_edits_takes_back_and_clears(app_test, server: StandIn):
    page = app_test
    next(area for area in page.text_area if area.label == EN["system_prompt"]).set_value("be kind")
    page.chat_input[0].set_value("Who are you?").run()
    assert not page.exception and read(page) == ["Who are you?", WHOLE]
    assert server.heard == ["be kind", "Who are you?"]
    asked = len(server.requests)
    press(page, EN["regenerate"])
    assert len(server.requests) == asked + 1 and read(page) == ["Who are you?", WHOLE]
    next(area for area in page.text_area if area.label == EN["you"]).set_value("And who am I?")
    press(page, EN["send"])
    assert server.heard == ["be kind", "And who am I?"] and read(page) == ["And who am I?", WHOLE]
    press(page, EN["undo"])
    assert read(page) == []
    page.chat_input[0].set_value("Again?").run()
    press(page, EN["clear_chat"])
    assert read(page) == []


def test_streamlit_page_keeps_several_conversations(app_test):
    page = app_test
    page.chat_input[0].set_value("First question").run()
    press(page, EN["new_chat"])
    assert read(page) == []
    page.chat_input[0].set_value("Second question").run()
    press(page, "First question")
    assert read(page) == ["First question", WHOLE]
    next(box for box in page.text_input if box.label == EN["title"]).set_value("My title").run()
    assert "My title" in [button.label for button in page.button]
    press(page, EN["really"])
    assert read(page) == [] and "My title" not in [button.label for button in page.button]


def test_a_system_prompt_is_chosen_from_the_presets(app_test):
    page = app_test
    name, prompt = EN["presets"][0]
    next(box for box in page.selectbox if box.label == EN["preset"]).set_value(name).run()
    assert next(area for area in page.text_area if area.label == EN["system_prompt"]).value == prompt


def test_the_cookie_cannot_be_read_by_a_script_and_is_given_once():
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route
    from starlette.testclient import TestClient

    from assistant.web.streamlit_cookie import COOKIE, BrowserCookie

    inner = Starlette(routes=[Route("/", lambda request: PlainTextResponse("ok"))])
    client = TestClient(BrowserCookie(inner))
    assert "set-cookie" not in client.get("/").headers
    first = client.get("/", headers={"Accept": "text/html"})
    assert "HttpOnly" in first.headers["set-cookie"] and "SameSite=Lax" in first.headers["set-cookie"]
    assert len(client.cookies[COOKIE]) > 30
    assert "set-cookie" not in client.get("/", headers={"Accept": "text/html"}).headers


@pytest.mark.parametrize("other", ['prefs={"a":"b"}', "a/b=1", "a=1; =; ;", "x"])
def test_a_cookie_of_another_page_on_this_machine_hides_no_cookie_of_ours(other: str):
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route
    from starlette.testclient import TestClient

    from assistant.web.guard import COOKIE as LOGIN
    from assistant.web.guard import Guard
    from assistant.web.streamlit_cookie import COOKIE, BrowserCookie

    inner = Starlette(routes=[Route("/", lambda request: PlainTextResponse("ok"))])
    told = {"Accept": "text/html", "Cookie": f"{other}; {COOKIE}=abc"}
    assert "set-cookie" not in TestClient(BrowserCookie(inner)).get("/", headers=told).headers
    guarded = TestClient(Guard(inner, only_local=False, login="ada:secret", token="known"))
    for token, status in (("known", 200), ("guessed", 401)):
        assert guarded.get("/", headers={"Cookie": f"{other}; {LOGIN}={token}"}).status_code == status


def printed(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=REPOSITORY)
    assert not done.returncode, done.stderr
    return done.stdout.strip()


def test_gradio_is_imported_without_writing_files_for_editors():
    assert printed(IMPORT_GRADIO) == "0 True"


IMPORT_GRADIO = """
import ast, inspect
read, parse, find = [], ast.get_source_segment, inspect.getfile
ast.get_source_segment = lambda *given, **more: read.append(1) or parse(*given, **more)
from assistant.web.gradio_import import import_gradio
import_gradio()
import gradio
print(len(read), inspect.getfile is find and find(gradio.Textbox).endswith("textbox.py"))
"""


def test_the_first_streamlit_page_is_drawn_without_pandas(tmp_path, monkeypatch):
    monkeypatch.setenv("ASSISTANT_DATA", str(tmp_path))
    monkeypatch.setenv("ASSISTANT_MODEL", "http://127.0.0.1:9/v1#ada")
    assert printed(DRAW_STREAMLIT) == "1 [] False"


DRAW_STREAMLIT = """
import sys
from streamlit.testing.v1 import AppTest
page = AppTest.from_file("app.py", default_timeout=60).run()
print(len(page.chat_input), [*page.exception], "pandas" in sys.modules)
"""


def test_streamlit_draws_first_what_its_person_came_for_and_the_model_waits_for_that(tmp_path, monkeypatch):
    monkeypatch.setenv("ASSISTANT_DATA", str(tmp_path))
    monkeypatch.setenv("ASSISTANT_MODEL", str(tmp_path))
    assert printed(DRAW_TWICE) == "['chat', 'sidebar', 'loading False', 'sidebar', 'chat']"


DRAW_TWICE = """
from streamlit.testing.v1 import AppTest
from assistant.web import streamlit_page
drawn = []
streamlit_page.the_engine().begin = lambda: drawn.append("begun")
say, streamlit_page.sidebar = streamlit_page.model_state, lambda texts: (drawn.append("sidebar"), say(texts))
streamlit_page.chat_tab = lambda: drawn.append("chat")
page = AppTest.from_file("app.py", default_timeout=60).run()
drawn.append(f"{streamlit_page.the_engine().status} {bool(page.exception)}")
page.run()
print(drawn)
"""


def test_neither_page_imports_the_other_or_torch():
    script = (
        "import sys\n{}\n"
        "print([name for name in ('torch', 'transformers', 'gradio', 'streamlit') if name in sys.modules])"
    )
    for module, loaded in (
        ("import assistant.web, assistant.web.texts, assistant.backends", "[]"),
        ("import assistant.web.gradio_server", "['gradio']"),
        ("import assistant.web.streamlit_page", "['streamlit']"),
    ):
        assert printed(script.format(module)) == loaded


# ---- in a browser


@pytest.fixture(params=["gradio", "streamlit"])
def visit(request, chromium):
    url = request.getfixturevalue(f"{request.param}_url")
    return lambda **context: Visit(chromium, url, request.param, **context)


@pytest.mark.smoke
@pytest.mark.browser
def test_a_person_asks_and_reads_the_answer_and_goes_on(visit, server: StandIn):
    visitor = visit()
    visitor.ask("Who are you?")
    visitor.reads_answer()
    visitor.ask("And now?")
    wait_until(lambda: server.heard == ["Who are you?", WHOLE, "And now?"])
    visitor.answers.nth(1).get_by_text(WHOLE).wait_for()
    visitor.finish()


@pytest.mark.browser
def test_escape_stops_an_answer_also_before_its_first_word(visit, server: StandIn):
    server.closed.clear()
    visitor = visit()
    visitor.ask("silent")
    visitor.sees(load_texts()["en"]["thinking"])
    visitor.page.keyboard.press("Escape")
    visitor.stop_button.wait_for(state="hidden")
    assert server.closed.wait(15)
    visitor.ask("hello")
    visitor.sees(WHOLE)
    assert server.heard == ["hello"]
    visitor.finish()


@pytest.mark.browser
@pytest.mark.parametrize("leave", [False, True])
def test_stop_or_leaving_stops_the_engine(visit, server: StandIn, leave: bool):
    server.closed.clear()
    visitor = visit()
    visitor.ask("endless")
    visitor.sees("word20 ")
    visitor.page.goto("about:blank") if leave else visitor.stop()
    assert server.closed.wait(15)
    if not leave:
        visitor.sees("word20 ")
        visitor.ask("hello")
        visitor.sees(WHOLE)
        asked, partly, _ = server.heard
        assert asked == "endless" and "word20 " in partly
    visitor.finish()


@pytest.mark.browser
def test_an_answer_that_breaks_off_says_so_and_the_box_works_again(visit, server: StandIn):
    visitor = visit()
    visitor.ask("break")
    visitor.sees("broke off")
    visitor.sees("Half an ans")
    visitor.ask("hello")
    visitor.sees(WHOLE)
    assert not any("broke off" in text for text in server.heard)
    visitor.finish()


@pytest.mark.browser
def test_a_chinese_phone_reads_chinese_and_starts_with_an_example(visit, server: StandIn):
    visitor = visit(locale="zh-CN", viewport={"width": 390, "height": 844}, color_scheme="dark")
    texts = load_texts()["zh"]
    assert texts.say("placeholder", name="ada") == visitor.box.get_attribute("placeholder")
    visitor.sees(texts["tagline"])
    visitor.page.get_by_text(texts["examples"][0]).click()
    visitor.sees(WHOLE)
    assert server.heard == [texts["examples"][0]]
    visitor.finish()


@pytest.mark.browser
def test_formulas_are_drawn_and_a_foreign_picture_in_an_answer_is_not_fetched(visit, server: StandIn):
    visitor = visit()
    visitor.ask("markdown")
    visitor.page.locator("strong", has_text="bold").wait_for()
    wait_until(lambda: visitor.page.locator(".katex").count() == 3)  # three ways to write one
    visitor.page.locator("pre .token.string, pre span[style*=color]").first.wait_for()
    visitor.sees(":red[red]")
    visitor.page.locator("img[alt=p]").wait_for(state="attached")
    visitor.page.wait_for_timeout(300)
    assert "/secret.png" not in server.fetched
    assert "from $5 to $10" in visitor.page.inner_text("body")
    visitor.leave()


@pytest.mark.browser
def test_an_answer_is_regenerated_its_question_edited_and_both_taken_back(visit, server: StandIn):
    visitor = visit()
    visitor.ask("Who are you?")
    visitor.reads_answer()
    asked = len(server.requests)
    visitor.press("Retry" if visitor.kind == "gradio" else EN["regenerate"])
    wait_until(lambda: len(server.requests) == asked + 1)
    visitor.reads_answer()
    assert server.heard == ["Who are you?"]
    wait_until(lambda: visitor.answers.count() == 1)
    if visitor.kind == "gradio":
        visitor.press("Edit")
        edited = visitor.page.locator("#chat textarea")
        edited.fill("And who am I?")
        visitor.press("Submit")
    else:
        visitor.press(EN["edit"])
        visitor.page.get_by_role("textbox", name=EN["you"]).fill("And who am I?")
        visitor.page.get_by_role("textbox", name=EN["you"]).press("Control+Enter")
        visitor.press(EN["send"])
    wait_until(lambda: server.heard == ["And who am I?"])
    visitor.reads_answer()
    visitor.press(EN["undo"])
    visitor.answers.first.wait_for(state="detached")
    wait_until(lambda: visitor.box.input_value() == "And who am I?")
    visitor.ask("Who are you?")
    visitor.reads_answer()
    visitor.press(EN["clear_chat"])
    visitor.answers.first.wait_for(state="detached")
    assert visitor.box.input_value() == ""
    visitor.finish()


@pytest.mark.browser
def test_one_conversation_in_two_windows_is_answered_once_and_the_other_window_says_so(visit, server):
    visitor = visit()
    visitor.ask("endless")
    visitor.sees("word20 ")
    asked, page = len(server.requests), visitor.page
    visitor.page = page.context.new_page()
    visitor.page.goto(page.url)
    visitor.sees("word20 ")
    visitor.ask("hello")
    visitor.sees(EN["answering"])
    visitor.page.wait_for_timeout(1500)
    visitor.sees(EN["answering"])
    visitor.page = page
    visitor.stop()
    assert len(server.requests) == asked
    visitor.finish()


@pytest.mark.browser
def test_the_preset_that_is_shown_is_the_one_in_use(visit, server: StandIn):
    visitor, (name, prompt) = visit(viewport=DESK), EN["presets"][0]
    place = ".sidebar-content" if visitor.kind == "gradio" else "[data-testid=stSidebar]"
    preset = visitor.page.get_by_label(EN["preset"], exact=True).last

    def unfold() -> None:  # Streamlit folds the settings when the first conversation appears
        if not preset.is_visible():
            visitor.page.locator(place).get_by_text(EN["settings"], exact=True).click()
            visitor.page.wait_for_timeout(500)

    def is_preset(wanted: str) -> bool:
        unfold()
        return preset.input_value() == wanted

    unfold()
    preset.click()
    visitor.page.get_by_role("option", name=name, exact=True).click()
    own = visitor.page.get_by_role("textbox", name=EN["system_prompt"])
    wait_until(lambda: own.input_value() == prompt)
    visitor.ask("Who are you?")
    visitor.reads_answer()
    assert server.heard == [prompt, "Who are you?"]
    visitor.press(EN["new_chat"])
    visitor.answers.first.wait_for(state="detached")
    wait_until(lambda: is_preset(EN["preset_none"]))
    role = "button" if visitor.kind == "streamlit" else "radio"
    visitor.page.get_by_role(role, name="Who are you?").first.click()
    visitor.sees(WHOLE)
    wait_until(lambda: is_preset(name))
    own.fill("in my own words")
    own.press("Control+Enter")
    wait_until(lambda: is_preset(""))
    visitor.finish()


@pytest.mark.browser
def test_chats_survive_a_reload_and_no_other_browser_sees_them(visit, server: StandIn):
    visitor, other = visit(), visit()
    visitor.ask("My secret question")
    visitor.sees(WHOLE)
    visitor.page.get_by_role(
        "button" if visitor.kind == "streamlit" else "radio", name="My secret"
    ).wait_for()
    visitor.page.reload()
    visitor.sees(WHOLE)
    visitor.ask("And now?")
    wait_until(lambda: server.heard == ["My secret question", WHOLE, "And now?"])
    visitor.reads_answer()
    visitor.press(EN["new_chat"])
    visitor.answers.first.wait_for(state="detached")
    other.page.goto(visitor.page.url)
    other.page.reload()
    other.box.wait_for()
    other.page.wait_for_timeout(700)
    assert "secret" not in other.page.inner_text("body")
    visitor.finish()
    other.finish()


@pytest.mark.browser
def test_a_restart_of_the_server_keeps_every_chat(chromium, server: StandIn, stage: Path, tmp_path):
    port = free_port()
    with serving("gradio", tmp_path, stage, port, ASSISTANT_MODEL=server.url + "#ada") as url:
        visitor = Visit(chromium, url, "gradio")
        visitor.ask("Who are you?")
        visitor.reads_answer()
    with serving("gradio", tmp_path, stage, port, ASSISTANT_MODEL=server.url + "#ada") as url:
        visitor.page.goto(url)
        visitor.sees(WHOLE)
        visitor.leave()


@pytest.mark.browser
def test_a_verdict_with_its_comment_is_kept_on_this_machine(visit, folders: dict[str, Path]):
    visitor = visit()
    visitor.ask("Rate this")
    visitor.reads_answer()
    if visitor.kind == "gradio":
        visitor.press("Dislike")
    else:
        visitor.page.get_by_test_id("stFeedbackButton").nth(1).click()
    comment = visitor.page.get_by_role("textbox", name=EN["comment"])
    comment.fill("too short")
    comment.press("Enter")
    with closing(sqlite3.connect(folders[visitor.kind] / "chats.sqlite")) as chats:
        wait_until(lambda: "too short" in str(chats.execute("SELECT turns FROM chat").fetchall()))
    visitor.finish()


@pytest.mark.browser
def test_rating_an_older_answer_does_not_end_the_one_being_written(chromium, streamlit_url, server: StandIn):
    visitor = Visit(chromium, streamlit_url, "streamlit")
    visitor.ask("hello")
    visitor.reads_answer()
    server.closed.clear()
    visitor.ask("endless")
    visitor.sees("word20 ")
    visitor.page.get_by_test_id("stFeedbackButton").first.click()
    visitor.sees("word150 ")
    visitor.stop()
    assert server.closed.wait(15)
    visitor.finish()


@pytest.mark.browser
def test_a_chat_is_renamed_exported_deleted_and_imported(chromium, gradio_url: str, tmp_path):
    visitor = Visit(chromium, gradio_url, "gradio")
    visitor.ask("Who are you?")
    visitor.reads_answer()
    visitor.page.get_by_role("button", name=EN["this_chat"]).click()
    title = visitor.page.locator("#title textarea")
    title.fill("My title")
    title.press("Enter")
    chats = visitor.page.get_by_role("radio", name="My title")
    chats.wait_for()
    visitor.press(EN["export"])
    for kind in ("JSON", "Markdown"):
        with visitor.page.expect_download() as download:
            visitor.page.get_by_text(kind, exact=True).click()
        download.value.save_as(tmp_path / kind)
    assert (tmp_path / "Markdown").read_text(encoding="utf-8").startswith("# My title")
    visitor.press(EN["delete"])
    visitor.press(EN["really"])
    chats.wait_for(state="detached")
    (tmp_path / "bad.json").write_text("no")
    for file, said in (("bad.json", "not JSON"), ("JSON", EN.say("imported", number=1))):
        visitor.page.locator("input[type=file]").first.set_input_files(
            {"name": "x.json", "mimeType": "application/json", "buffer": (tmp_path / file).read_bytes()}
        )
        visitor.sees(said)
    chats.wait_for()
    visitor.sees(WHOLE)
    visitor.finish()


@pytest.mark.browser
def test_two_models_answer_side_by_side_and_are_judged_blind(visit, server: StandIn):
    visitor = visit(viewport=DESK)
    visitor.open_tab(EN["compare"])
    before = len(server.requests)
    ask_both(visitor, "Who are you?")
    wait_until(lambda: {request["model"] for request in server.requests[before:]} == {"ada", "base"})
    visitor.page.get_by_text(WHOLE).locator("visible=true").nth(1).wait_for()
    vote = visitor.page.get_by_role("button", name=EN["vote_a"])
    visitor.page.locator(":enabled").and_(vote).wait_for()
    figures = visitor.page.get_by_text("tokens/s").locator("visible=true")
    assert figures.count() == 0  # they would give away who is who
    vote.click()
    visitor.page.get_by_text(re.compile("A was (ada, B was base|base, B was ada)")).first.wait_for()
    visitor.page.get_by_text(re.compile(r"\w+: \d · \w+: \d · equal: 0")).first.wait_for()
    figures.nth(1).wait_for()
    assert not vote.is_enabled()
    visitor.page.get_by_label(EN["compare_right"], exact=True).last.click()
    visitor.page.get_by_role("option", name="ada · endpoint", exact=True).click()
    visitor.rests()
    asked = len(server.requests)
    ask_both(visitor, "And one alone?")
    visitor.sees(EN["compare_same"])
    assert len(server.requests) == asked
    visitor.finish()


def ask_both(visitor: Visit, question: str) -> None:
    visitor.page.get_by_role("button", name=EN["vote_a"]).wait_for()
    name = "#compare-box textarea" if visitor.kind == "gradio" else "[data-testid=stChatInputTextArea]"
    box = visitor.page.locator(name)
    box.fill(question)
    box.press("Enter")


@pytest.mark.browser
@pytest.mark.parametrize(
    ("question", "seen", "is_judged"),
    [("silent", EN["thinking"], False), ("endless", "word20 ", True), ("break", "broke off", False)],
)
def test_answers_side_by_side_that_stop_say_so_and_are_judged_only_by_their_words(
    visit, server: StandIn, question: str, seen: str, is_judged: bool
):
    server.closed.clear()
    visitor = visit(viewport=DESK)
    visitor.open_tab(EN["compare"])
    ask_both(visitor, question)
    visible = lambda text: visitor.page.get_by_text(text).locator("visible=true")  # noqa: E731
    visible(seen).nth(1).wait_for()
    stop = "#compare-box .stop-button" if visitor.kind == "gradio" else "[data-testid=stChatInputStopButton]"
    if question != "break":
        visitor.page.locator(stop).click()
        visible(EN["stopped"]).nth(1).wait_for()
        assert server.closed.wait(15)
    visitor.page.locator(stop).wait_for(state="hidden")
    visitor.page.wait_for_timeout(800)  # Streamlit draws the page once more
    assert visible(EN["thinking"]).count() == 0
    assert visitor.page.get_by_role("button", name=EN["vote_b"]).is_enabled() == is_judged
    visitor.finish()


@pytest.mark.browser
def test_the_language_can_be_switched(visit):
    visitor, zh = visit(), load_texts()["zh"]
    visitor.page.get_by_text(zh["language"]).click()
    visitor.page.get_by_text(zh["new_chat"]).first.wait_for(state="attached")
    visitor.leave()
