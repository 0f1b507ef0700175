"""What programs may send to /chat of the Gradio page, and how often."""

from types import SimpleNamespace

import pytest
from test_engine import WORDS, Quick, opened

from assistant.conversations import assistant, system, user
from assistant.web.asking import Refused
from assistant.web.line import Line
from assistant.web.talk import MOST_CHARACTERS, read_sampling, read_talk


def test_a_talk_is_read_in_the_shapes_of_gradio_and_of_openai():
    blocks = [
        {"role": "user", "content": [{"type": "text", "text": "a"}], "metadata": None, "options": None},
        {"role": "assistant", "content": [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]},
    ]
    assert read_talk("d", blocks, "") == [user("a"), assistant("b\nc"), user("d")]
    assert read_talk("d", None, None) == [user("d")]
    plain = [system("s"), user("lost"), user("a"), assistant("b"), assistant(" ")]
    assert read_talk("d", plain, "p") == [system("p\n\ns"), user("a"), assistant("b"), user("d")]


@pytest.mark.parametrize(
    ("message", "history", "said"),
    [
        ("", None, "history"),
        (3, None, "message.content"),
        ("q", "history", "a list of at most 2000"),
        ("q", [user("a")] * 2001, "a list of at most 2000"),
        ("q", [3], r"history\[0\] must be an object"),
        ("q", [{"role": "root", "content": "a"}], "unknown role 'root'"),
        ("q", [{"role": "user", "content": {"path": "/etc/passwd"}}], "a text or a list"),
        (
            "q",
            [{"role": "user", "content": [{"type": "file", "file": {"path": "/x"}}]}],
            "file parts are not read",
        ),
        ("q", [user("a"), assistant("b"), assistant("c")], "two assistant turns in a row"),
        ("q", [user("x" * MOST_CHARACTERS)], "longer than 1000000 characters"),
        ("q" * MOST_CHARACTERS, None, "longer than 1000000 characters"),
        ("\ud800", None, "half a character"),
    ],
)
def test_what_is_no_talk_is_refused_in_one_sentence(message, history, said: str):
    with pytest.raises(Refused, match=said) as refused:
        read_talk(message, history, "")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("wrong", ["1", None, True, [], {}])
def test_a_number_that_is_none_is_refused(wrong):
    for asked in ((wrong, 0.9, 64), (0, wrong, 64), (0, 0.9, wrong)):
        with pytest.raises(Refused, match="must be a number"):
            read_sampling(*asked)
    assert read_sampling(float("nan"), 2, 1e12).max_new_tokens == 2048


def test_programs_have_the_same_limit_as_everyone(gradio, monkeypatch):
    from assistant.web.gradio_chat import chat_api

    with opened(monkeypatch, Quick(), Line(per_minute=2)) as engine:
        chat = chat_api(SimpleNamespace(engines=SimpleNamespace(own=engine)))

        def ask(client: str, **more) -> str:
            request = SimpleNamespace(client=SimpleNamespace(host=client), headers={})
            return list(chat("hello", request=request, **more))[-1]

        assert ask("192.0.2.1") == ask("192.0.2.1") == ask("192.0.2.2") == "".join(WORDS)
        with pytest.raises(gradio.Error, match="minute"):
            ask("192.0.2.1")
        with pytest.raises(gradio.Error, match="history must be a list"):
            ask("192.0.2.3", history=3)
