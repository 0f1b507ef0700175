import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import openai
import pytest
from crowd import check_fair
from serving import api_of

from assistant.backends import Counts, Notice, Sampling
from assistant.backends.pump import Turns
from assistant.conversations import user
from assistant.web import answer, sampling_from
from assistant.web.engine import Engine
from assistant.web.line import Busy, Line, network_of
from assistant.web.texts import load_texts

WORDS = ["one ", "two ", "three ", "four ", "five"]


class Quick:
    """A backend that takes turns as the real ones do, and needs `word_s` for a word."""

    label, context = "quick", 1000

    def __init__(self, word_s: float = 0.002) -> None:
        self.word_s, self.turns = word_s, Turns()
        self.asked: list[str] = []
        self.at_once = self.most_at_once = 0

    def count_prompt(self, messages) -> int:
        return sum(len(message["content"].split()) for message in messages)

    def count_text(self, text: str) -> int:
        return len(text.split())

    def stream(self, messages, sampling, stop=None):
        def speak(emit, is_stopped) -> None:
            self.asked.append(messages[-1]["content"])
            self.at_once += 1
            self.most_at_once = max(self.at_once, self.most_at_once)
            for word in WORDS:
                time.sleep(self.word_s)
                if is_stopped():
                    break
                emit(word)
            self.at_once -= 1
            emit(Counts(1, len(WORDS), "stop"))

        return self.turns.stream(speak, stop)


@contextmanager
def opened(monkeypatch, backend, line: Line | None = None, delay_s: float = 0) -> Iterator[Engine]:
    """An engine whose model loads `delay_s` and is `backend`."""

    def load(model: str, **shared: object):
        time.sleep(delay_s)
        return backend

    monkeypatch.setattr("assistant.web.engine.open_backend", load)
    engine = Engine("out/quick/model", line)
    is_over(lambda: engine.status == "ready" or delay_s)
    yield engine


def is_over(condition, seconds: float = 5) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return bool(condition())


def say(engine: Engine, question: str, client: str = "") -> str:
    return "".join(engine.stream([user(question)], Sampling(), client))


@pytest.mark.parametrize("ask", [Engine.begin, lambda engine: say(engine, "hi")], ids=["page", "question"])
def test_the_model_waits_for_its_page_or_the_first_question(monkeypatch, ask):
    loaded = []
    monkeypatch.setattr("assistant.web.engine.open_backend", lambda *_, **__: loaded.append(1) or Quick())
    engine = Engine("out/quick/model", head_start_s=60)
    assert not is_over(lambda: loaded, 0.2) and engine.status == "loading"
    ask(engine)
    assert is_over(lambda: engine.status == "ready") and loaded == [1]


def test_without_a_visitor_the_model_is_loaded_all_the_same(monkeypatch):
    monkeypatch.setattr("assistant.web.engine.open_backend", lambda *_, **__: Quick())
    monkeypatch.setattr("assistant.web.engine.FIRST_VISIT_S", 0.1)
    engine = Engine("out/quick/model", head_start_s=60)
    engine.begin_soon()
    assert is_over(lambda: engine.status == "ready")


def test_who_comes_while_the_model_loads_is_answered_in_the_order_of_coming(monkeypatch):
    backend = Quick()
    with opened(monkeypatch, backend, delay_s=0.6) as engine, ThreadPoolExecutor(8) as pool:
        answers = []
        for number in range(8):
            answers.append(pool.submit(say, engine, str(number)))
            assert is_over(lambda: len(engine._early) == len(answers))
        assert engine.status == "loading"
        assert {answer.result() for answer in answers} == {"".join(WORDS)}
    assert backend.asked == list("01234567") and not engine._early


def test_who_leaves_while_the_model_loads_holds_nobody_up(monkeypatch):
    with opened(monkeypatch, Quick(), delay_s=0.4) as engine:
        gone = engine.stream([user("gone")], Sampling())
        assert next(gone).kind == "loading"
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(say, engine, "there")
            gone.close()
            assert waiting.result(5) == "".join(WORDS)


def test_who_leaves_the_line_frees_the_place_and_is_never_spoken_to(monkeypatch):
    backend, line = Quick(0.1), Line(most_waiting=1)
    with opened(monkeypatch, backend, line) as engine:
        first = engine.stream([user("first")], Sampling())
        next(chunk for chunk in first if chunk)
        second = engine.stream([user("second")], Sampling())
        heard = [next(second) for _ in range(3)]
        assert [(c.kind, c.number) for c in heard if isinstance(c, Notice)] == [("waiting", 1)]
        with pytest.raises(Busy, match="too many people"):
            say(engine, "third")
        second.close()
        fourth = engine.stream([user("fourth")], Sampling())
        next(fourth)
        first.close()
        assert "".join(fourth) == "".join(WORDS)
    assert backend.asked == ["first", "fourth"] and backend.most_at_once == 1


def test_a_full_line_is_said_on_the_page_as_a_note(monkeypatch):
    with opened(monkeypatch, Quick(0.1), Line(most_waiting=0)) as engine:
        first = engine.stream([user("first")], Sampling())
        next(first)
        *_, shown = answer(engine, [user("second")], Sampling(), load_texts()["zh"])
        first.close()
        assert shown.failed and shown.note == load_texts()["zh"].say("busy_full", seconds=10)
        *_, shown = answer(engine, [user("third")], Sampling(), load_texts()["zh"])
        assert shown.text == "".join(WORDS)


def test_one_client_may_ask_so_often_and_the_others_are_not_touched():
    clock = iter(range(100))
    line = Line(per_minute=3, now=lambda: 10.0 * next(clock))
    for client in ("192.0.2.1", "192.0.2.1", "192.0.2.1", "192.0.2.2"):
        with line.enter(client):
            pass
    with pytest.raises(Busy) as raised, line.enter("192.0.2.1"):
        pass
    assert (raised.value.kind, raised.value.retry_s) == ("often", 21)
    for _ in range(4):
        with line.enter("127.0.0.1"), line.enter("::1"), line.enter(""):
            pass
    for _ in range(2):
        next(clock)
    with line.enter("192.0.2.1"):
        pass


def test_a_refused_question_does_not_take_a_place():
    line = Line(most_waiting=0, per_minute=1)
    for _ in range(3):
        with pytest.raises(Busy), line.enter("192.0.2.1"), line.enter("192.0.2.2"):
            pass
        line._asked.clear()
    with line.enter("192.0.2.3"):
        pass


def test_a_household_is_one_client():
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff") != network_of("2001:db8:0:1::1")
    assert network_of("::ffff:192.0.2.1") == network_of("192.0.2.1") != network_of("192.0.2.2")


def test_clients_are_forgotten(monkeypatch):
    monkeypatch.setattr("assistant.web.line.MOST_CLIENTS", 5)
    line = Line(per_minute=3)
    for number in range(20):
        with line.enter(f"192.0.2.{number}"):
            pass
    assert len(line._asked) == 5


@pytest.mark.alone
def test_fifty_clients_of_page_and_api_are_all_served_and_fairly(monkeypatch):
    """Each asks three times in a row; a wait is from the question to the last word."""
    backend = Quick()
    with (
        opened(monkeypatch, backend) as engine,
        api_of(engine) as url,
        openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0) as client,
    ):

        def by_page(question: str) -> str:
            *_, shown = answer(engine, [user(question)], Sampling(), load_texts()["en"])
            assert not shown.failed, shown.note
            return shown.text

        def by_api(question: str) -> str:
            chunks = client.chat.completions.create(
                model="quick", messages=[{"role": "user", "content": question}], stream=True
            )
            return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

        def ask(number: int) -> None:
            assert (by_page if number % 2 else by_api)(f"{number}") == "".join(WORDS)

        check_fair(ask)
    assert len(backend.asked) % 150 == 0 and backend.most_at_once == 1
    assert is_over(lambda: not any(thread.name == "answer" for thread in threading.enumerate()))


def test_no_number_from_outside_breaks_the_sampling():
    nan, inf = float("nan"), float("inf")
    assert sampling_from(nan, nan, nan) == Sampling(16, 0.0, 0.05)
    assert sampling_from(inf, inf, inf) == Sampling(2048, 1.5, 1.0)
    assert sampling_from(1e-9, 0.5, 100).temperature == 0
