"""What a person does to a conversation while an answer is being written in it."""

import json
import sqlite3
import threading
import time
from pathlib import Path

import pytest
from test_store import EN, ME, Told, chat_with
from test_store import store as store  # a fixture

from assistant.backends import Sampling
from assistant.web import chats, figures_line
from assistant.web.chats import ask, change_chat, delete_chat, rate, reply, undo
from assistant.web.exchange import from_json
from assistant.web.store import Chat, Store, new_browser


class Endless(Told):
    """An engine that speaks until it is stopped."""

    def stream(self, messages, sampling, client=""):
        while True:
            time.sleep(0.01)
            yield "word "


def writing(store: Store, chat: Chat):
    """An answer with its first words kept."""
    ask(chat, "q")
    states = reply(store, ME, chat, Endless(), Sampling(), EN)
    next(states), next(states)
    return states


@pytest.fixture
def impatient(monkeypatch):
    """An answer that nobody reads on is not waited for."""
    monkeypatch.setattr(chats.Running.end, "__defaults__", (0.1,))


@pytest.fixture
def always_saves(monkeypatch):
    monkeypatch.setattr(chats, "SAVE_S", 0)


def test_a_chat_that_is_deleted_while_it_is_answered_does_not_come_back(store: Store, impatient):
    for delete in (Store.delete, delete_chat):
        chat = Chat()
        states = writing(store, chat)
        delete(store, ME, chat.id)
        states.close()
        assert store.load(ME, chat.id) is None and store.titles(ME) == []


def test_a_chat_that_is_cleared_or_taken_back_while_it_is_answered_stays_so(store: Store, impatient):
    for how, left in ((lambda chat: chat.turns.clear(), 0), (undo, 2)):
        chat = chat_with()
        states = writing(store, chat)
        assert len(change_chat(store, ME, chat.id, how).turns) == left
        states.close()
        assert len(store.load(ME, chat.id).turns) == left


def test_a_verdict_and_a_name_given_while_an_answer_is_written_stay(store: Store, always_saves):
    chat = chat_with()
    states = writing(store, chat)
    for at in (1, 3):
        store.change(ME, chat.id, lambda kept, at=at: rate(kept, at, at == 1, "so so"))
    store.rename(ME, chat.id, "mine")
    next(states), next(states)
    states.close()
    kept = store.load(ME, chat.id)
    assert kept.title == "mine" and chat == kept
    assert [(turn.get("liked"), turn.get("comment")) for turn in kept.turns[1::2]] == [
        (True, "so so"),
        (False, "so so"),
    ]
    assert kept.turns[3]["content"].startswith("word word") and kept.turns[3]["note"] == EN["stopped"]


def test_a_verdict_given_in_the_last_moment_does_not_undo_the_end_of_the_answer(store: Store):
    chat = Chat()
    ask(chat, "q")
    states = reply(store, ME, chat, Told("a", "b"), Sampling(), EN)
    next(states)
    held = store.load(ME, chat.id)
    list(states)
    store.change(ME, chat.id, lambda kept: rate(kept, len(held.turns) - 1, True))
    turn = store.load(ME, chat.id).turns[-1]
    assert turn["content"] == "ab" and turn["liked"] and turn["note"] == ""


def test_whoever_changes_a_chat_waits_until_the_answer_there_has_ended(store: Store):
    chat = Chat()
    states = writing(store, chat)
    reader = threading.Thread(target=lambda: [time.sleep(0.01) for _ in states])
    reader.start()
    seen = change_chat(store, ME, chat.id, lambda kept: rate(kept, 1, True))
    assert seen.turns[-1]["note"] == EN["stopped"] and chat.id not in chats.RUNNING.stops
    reader.join(5)
    assert not reader.is_alive() and store.load(ME, chat.id).turns[-1]["liked"]


def test_an_error_while_an_answer_is_left_is_nobodys_to_read(store: Store, monkeypatch):
    def full(*_):
        raise sqlite3.OperationalError("database or disk is full")

    states = writing(store, Chat())
    monkeypatch.setattr(store, "change", full)
    states.close()  # "generator ignored GeneratorExit" before
    assert not chats.RUNNING.stops


# ---- the disk


def holds(folder: Path, word: bytes) -> bool:
    return any(word in path.read_bytes() for path in folder.iterdir())


def test_what_is_deleted_or_cleared_is_gone_from_the_disk_while_the_server_runs(tmp_path):
    store, one, other = Store(tmp_path / "chats.sqlite"), chat_with("xylophone"), chat_with("zeppelin")
    one.turns[1]["content"] = other.turns[1]["content"] = "marzipan " * 3000
    for chat in (one, other):
        store.save(ME, chat)
        store.rename(ME, chat.id, "t")
    assert holds(tmp_path, b"xylophone") and holds(tmp_path, b"zeppelin")
    delete_chat(store, ME, one.id)
    assert not holds(tmp_path, b"xylophone") and holds(tmp_path, b"zeppelin")
    change_chat(store, ME, other.id, lambda chat: chat.turns.clear())
    assert not any(holds(tmp_path, word) for word in (b"xylophone", b"zeppelin", b"marzipan"))
    store.close()


def test_one_browser_keeps_so_much_and_the_server_so_much(store: Store, monkeypatch):
    monkeypatch.setattr("assistant.web.store.MOST_OF_ONE", 2_000_000)
    long = chat_with("字" * 300_000)  # 900,000 bytes
    store.save(ME, long)
    store.save(ME, long)
    store.save(ME, chat_with("字" * 300_000))
    with pytest.raises(ValueError, match="fill the 2 MB that are kept for it; delete some first"):
        store.save(ME, chat_with("字" * 300_000))
    store.save(new_browser(), long)
    monkeypatch.setattr("assistant.web.store.MOST_BYTES", 1_000_000)
    for add in (lambda: store.save(new_browser(), chat_with()), lambda: store.vote(ME, "q", "a", "b", "tie")):
        with pytest.raises(ValueError, match="this server keeps 1 MB of conversations and no more; delete"):
            add()
    for _, id in store.titles(ME):
        store.delete(ME, id)
    monkeypatch.setattr("assistant.web.store.MOST_BYTES", 1_500_000)
    store.save(ME, chat_with())


# ---- files from elsewhere


@pytest.mark.parametrize("number", ["NaN", "1e999", "-1", "1" * 400, "true", '"x"', "null"])
def test_a_figure_that_is_no_number_is_left_out_and_never_keeps_a_chat_from_being_shown(number: str):
    file = f"""{{"messages": [{{"role": "user", "content": "q"}}, {{"role": "assistant", "content": "a",
        "figures": {{"tokens": {number}, "context": {number}, "per_s": 3.5, "other": 1}}}}]}}"""
    (chat,) = from_json(file.encode(), "a.json")
    assert chat.turns[1]["figures"] == {"per_s": 3.5}
    kept = {"tokens": json.loads(number), "context": json.loads(number), "per_s": 3.5}
    assert figures_line(kept, EN) == "3.5 tokens/s"


def test_figures_that_an_earlier_import_kept_are_shown_as_far_as_they_are_numbers():
    assert figures_line({"tokens": float("nan"), "context": 5e-324, "prompt": 1e8, "first_s": 1}, EN)


def test_a_file_with_too_many_turns_is_refused_in_one_sentence():
    talk = [{"role": role, "content": "x"} for role in ("user", "assistant")] * 10_001
    with pytest.raises(ValueError, match="a.json: conversation 1: 20002 messages; at most 2000 are kept"):
        from_json(json.dumps({"messages": talk}).encode(), "a.json")
