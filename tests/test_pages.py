import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from stand_in import ANSWER, StandIn, stand_in

from assistant.backends import Notice, Sampling
from assistant.conversations import assistant, system, user
from assistant.settings import REPOSITORY
from assistant.web import Engine, Shown, answer, assistant_name, conversation, sampling_from
from assistant.web.guard import is_local, is_loopback
from assistant.web.texts import load_texts, pick_language

APP = REPOSITORY / "app.py"
WHOLE = "".join(ANSWER)


@pytest.fixture(scope="module")
def server() -> Iterator[StandIn]:
    with stand_in() as standing:
        yield standing


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(command: list[str], url: str, log, **environment: str) -> Iterator[str]:
    with log.open("w") as out:
        process = subprocess.Popen(
            command, cwd=REPOSITORY, stdout=out, stderr=out, env=os.environ | environment
        )
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, log.read_text()
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="module")
def gradio_url(server: StandIn, tmp_path_factory) -> Iterator[str]:
    port = free_port()
    log = tmp_path_factory.mktemp("gradio") / "log"
    with running(
        [sys.executable, "app.py"],
        f"http://127.0.0.1:{port}",
        log,
        ASSISTANT_MODEL=server.url + "#ada",
        GRADIO_SERVER_PORT=str(port),
        GRADIO_TEMP_DIR=str(log.parent),
    ) as url:
        yield url


@pytest.fixture(scope="module")
def streamlit_url(server: StandIn, tmp_path_factory) -> Iterator[str]:
    port = free_port()
    log = tmp_path_factory.mktemp("streamlit") / "log"
    command = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.port", str(port)]
    with running(command, f"http://127.0.0.1:{port}", log, ASSISTANT_MODEL=server.url + "#ada") as url:
        yield url


# ---- without a browser


class Told:
    """An engine that says what it was told to."""

    def __init__(self, *chunks: str | Exception) -> None:
        self.chunks, self.is_closed = chunks, False

    def stream(self, messages, sampling):
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

    monkeypatch.setattr("assistant.web.default_model", none_there)
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


def test_only_this_machine_under_a_local_name_is_local():
    def asked(host: str, client: str) -> bool:
        return is_local({"type": "http", "headers": [(b"host", host.encode())], "client": (client, 1)})

    assert asked("localhost:8501", "127.0.0.1") and asked("[::1]:8501", "::1")
    assert asked("127.0.0.1", "::ffff:127.0.0.1")
    assert not asked("evil.example:8501", "127.0.0.1") and not asked("localhost", "192.0.2.2")
    assert not is_loopback("0.0.0.0") and not is_loopback("")


def test_markdown_of_a_model_is_only_markdown():
    from assistant.web.streamlit_page import plain_markdown

    assert plain_markdown(r"\(x\) and \[y\]") == "$x$ and $$y$$"
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


def test_streamlit_page_answers_and_clears(server: StandIn, monkeypatch):
    from streamlit.testing.v1 import AppTest

    from assistant.web import the_engine

    monkeypatch.setenv("ASSISTANT_MODEL", server.url + "#ada")
    the_engine.cache_clear()
    page = AppTest.from_file(str(APP), default_timeout=20).run()
    page.sidebar.text_area[0].set_value("be kind")
    page.chat_input[0].set_value("Who are you?").run()
    assert not page.exception
    assert [message.markdown[0].value for message in page.chat_message] == ["Who are you?", WHOLE]
    assert server.heard == ["be kind", "Who are you?"]
    page.sidebar.button[0].click().run()
    assert not page.chat_message and not page.exception
    the_engine.cache_clear()


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
        done = subprocess.run(
            [sys.executable, "-c", script.format(module)], capture_output=True, text=True, cwd=REPOSITORY
        )
        assert done.stdout.strip() == loaded, done.stderr


# ---- in a browser


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium")
    if not path:
        pytest.skip("chromium is not installed: apt-get install chromium fonts-wqy-microhei")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path)
        yield browser
        browser.close()


class Visit:
    """One person's browser on one of the two pages; it notes foreign requests and page errors."""

    def __init__(self, chromium, url: str, kind: str, **context) -> None:
        self.kind, self.complaints = kind, []
        self.page = chromium.new_context(**({"locale": "en-US"} | context)).new_page()
        self.page.set_default_timeout(15_000)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", self._note_request)
        self.page.goto(url)
        self.box.wait_for()

    def _note_request(self, request) -> None:
        if not re.match(r"(http|ws)://127\.0\.0\.1:|data:|blob:", request.url):
            self.complaints.append(request.url)

    @property
    def box(self):
        name = "[data-testid=stChatInputTextArea]" if self.kind == "streamlit" else "textarea"
        return self.page.locator(name).first

    @property
    def answers(self):
        if self.kind == "gradio":
            return self.page.locator(".message.bot")
        return self.page.get_by_test_id("stChatMessage").filter(
            has=self.page.get_by_test_id("stChatMessageAvatarAssistant")
        )

    def ask(self, question: str) -> None:
        self.box.fill(question)
        self.box.press("Enter")

    def stop(self) -> None:
        if self.kind == "gradio":
            self.page.locator("button.stop-button").click()
        else:
            self.page.get_by_test_id("stChatInputStopButton").click()

    def sees(self, text: str) -> None:
        self.page.get_by_text(text).last.wait_for()

    def finish(self) -> None:
        assert not self.page.evaluate("document.documentElement.scrollWidth > innerWidth")
        self.page.context.close()
        assert self.complaints == []


@pytest.fixture(params=["gradio", "streamlit"])
def visit(request, chromium):
    url = request.getfixturevalue(f"{request.param}_url")
    return lambda **context: Visit(chromium, url, request.param, **context)


@pytest.mark.browser
def test_a_person_asks_and_reads_the_answer_and_goes_on(visit, server: StandIn):
    visitor = visit()
    visitor.ask("Who are you?")
    visitor.sees(WHOLE)
    visitor.ask("And now?")
    visitor.answers.nth(1).wait_for()
    visitor.answers.nth(1).get_by_text(WHOLE).wait_for()
    assert server.heard == ["Who are you?", WHOLE, "And now?"]
    visitor.finish()


@pytest.mark.browser
def test_stop_works_before_the_first_word(visit, server: StandIn):
    server.closed.clear()
    visitor = visit()
    visitor.ask("silent")
    visitor.sees(load_texts()["en"]["thinking"])
    visitor.stop()
    assert server.closed.wait(4)
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
    assert server.closed.wait(4)
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
    visitor.page.locator(".katex").first.wait_for()
    visitor.sees(":red[red]")
    visitor.page.locator("img[alt=p]").wait_for(state="attached")
    visitor.page.wait_for_timeout(300)
    assert "/secret.png" not in server.fetched
    visitor.page.context.close()
