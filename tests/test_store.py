import json
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
from dataclasses import replace

import pytest

from assistant.backends import Counts, Notice, Sampling
from assistant.conversations import assistant, user
from assistant.web import Shown, answer, figures_line
from assistant.web.chats import RUNNING, ask, ask_again, rate, reply, spoken, undo
from assistant.web.comparison import can_judge, draw_pair, tally_line, together
from assistant.web.exchange import from_json, to_json, to_markdown
from assistant.web.models import Engines, base_of, find_models, labels_of, scorecard_of
from assistant.web.store import MOST_CHATS, Chat, Store, new_browser
from assistant.web.texts import load_texts

EN = load_texts()["en"]
ME = new_browser()


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "data" / "chats.sqlite")
    yield made
    made.close()


class Told:
    """An engine that says what it was told to."""

    name, backend, model = "Ada", None, "told"

    def __init__(self, *chunks: str | Exception) -> None:
        self.chunks, self.heard, self.is_closed = chunks, [], False

    def stream(self, messages, sampling, client=""):
        self.heard = messages
        try:
            for chunk in self.chunks:
                if isinstance(chunk, Exception):
                    raise chunk
                yield chunk
        finally:
            self.is_closed = True


def answered(store: Store, chat: Chat, *chunks: str | Exception) -> Shown:
    *_, last = reply(store, ME, chat, Told(*chunks), Sampling(), EN)
    return last


def chat_with(question: str = "Who are you?", said: str = "I'm Ada's assistant.") -> Chat:
    return Chat(turns=[user(question), assistant(said)])


# ---- the file


def test_a_chat_survives_a_restart_and_only_its_owner_may_read_the_file(tmp_path):
    path = tmp_path / "deep" / "chats.sqlite"
    chat = chat_with()
    first = Store(path)
    first.save(ME, chat)
    first.close()
    assert Store(path).load(ME, chat.id) == chat
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for beside in path.parent.glob("*.sqlite-*"):
        assert stat.S_IMODE(beside.stat().st_mode) == 0o600


def test_nobody_reads_renames_or_deletes_what_another_browser_wrote(store: Store):
    chat, other = chat_with(), new_browser()
    store.save(ME, chat)
    assert store.load(other, chat.id) is None and store.titles(other) == []
    store.rename(other, chat.id, "stolen")
    store.delete(other, chat.id)
    store.save(other, replace(chat, turns=[]))
    assert store.load(ME, chat.id) == chat


def test_a_page_without_a_browsers_secret_keeps_nothing(store: Store):
    with pytest.raises(ValueError, match="reload"):
        store.save("", chat_with())
    assert store.titles("") == []


def test_the_file_does_not_hold_the_browsers_secret(tmp_path):
    store = Store(tmp_path / "chats.sqlite")
    store.save(ME, chat_with())
    store.vote(ME, "q", "a", "b", "left")
    store.close()
    assert not any(ME.encode() in path.read_bytes() for path in tmp_path.iterdir())


def test_a_deleted_chat_is_gone_from_the_file_too(tmp_path):
    store, chat = Store(tmp_path / "chats.sqlite"), chat_with("the secret word is xylophone")
    store.save(ME, chat)
    store.delete(ME, chat.id)
    store.close()
    assert not any(b"xylophone" in path.read_bytes() for path in tmp_path.iterdir())


def test_chats_are_named_by_their_first_question_until_renamed_and_the_last_changed_is_first(store: Store):
    old, new = chat_with("an " + "old " * 40), chat_with("new")
    store.save(ME, old)
    store.save(ME, new)
    assert [title for title, _ in store.titles(ME)] == ["new", old.title] and old.title.endswith("…")
    store.rename(ME, old.id, "  my\nname ")
    store.save(ME, store.load(ME, old.id))
    assert store.titles(ME)[0] == ("my name", old.id)


def test_a_browser_that_keeps_too_many_is_told_so(store: Store, monkeypatch):
    monkeypatch.setattr("assistant.web.store.MOST_CHATS", 2)
    for _ in range(2):
        store.save(ME, chat_with())
    with pytest.raises(ValueError, match="2 conversations are kept already; delete one"):
        store.save(ME, chat_with())
    store.save(new_browser(), chat_with())
    assert MOST_CHATS > 100


def test_many_at_once_lose_nothing(store: Store):
    chats = [chat_with(f"question {number}") for number in range(8)]

    def write(chat: Chat) -> None:
        for length in range(10):
            chat.turns[1] = assistant("x" * length)
            store.save(ME, chat)

    threads = [threading.Thread(target=write, args=(chat,)) for chat in chats]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert sorted(title for title, _ in store.titles(ME)) == [f"question {number}" for number in range(8)]
    assert all(store.load(ME, chat.id).turns[1]["content"] == "x" * 9 for chat in chats)


def test_a_crash_in_the_middle_of_an_answer_loses_at_most_its_last_second(tmp_path):
    script = f"""
import os, time
from pathlib import Path
from assistant.backends import Sampling
from assistant.web.chats import ask, reply
from assistant.web.store import Chat, Store
from assistant.web.texts import load_texts
class Slow:
    name, backend = "Ada", None
    def stream(self, messages, sampling, client=""):
        for number in range(40):
            time.sleep(0.05)
            yield f"word{{number}} "
        os._exit(9)
chat = Chat(id="c")
ask(chat, "q")
store = Store(Path({str(tmp_path / "chats.sqlite")!r}))
list(reply(store, "me", chat, Slow(), Sampling(), load_texts()["en"]))
"""
    assert subprocess.run([sys.executable, "-c", script]).returncode == 9
    kept = Store(tmp_path / "chats.sqlite").load("me", "c").turns
    assert kept[0]["content"] == "q" and "word15 " in kept[1]["content"] and kept[1]["note"] == EN["stopped"]


def test_a_full_disk_becomes_a_note_and_does_not_lose_the_answer(store: Store, monkeypatch):
    def full(*_):
        raise sqlite3.OperationalError("database or disk is full")

    chat = Chat()
    ask(chat, "q")
    monkeypatch.setattr(store, "save", full)
    shown = answered(store, chat, "a")
    assert shown.failed and "disk is full" in shown.note


# ---- asking


def test_an_answer_is_kept_with_its_figures_and_who_gave_it(store: Store):
    chat = Chat(system_prompt="be kind")
    ask(chat, "q")
    answered(store, chat, "I'm ", "Ada.", Counts(9, 4, "stop"))
    turn = store.load(ME, chat.id).turns[-1]
    assert turn["content"] == "I'm Ada." and turn["model"] == "Ada" and turn["note"] == ""
    assert turn["figures"]["tokens"] == 4 and turn["figures"]["prompt"] == 9


def test_the_figures_are_one_line_in_both_languages():
    figures = {"tokens": 42, "prompt": 22, "context": 2048, "first_s": 0.2, "per_s": 31.0}
    assert figures_line(figures, EN) == (
        "42 tokens · 31.0 tokens/s · first word after 0.2 s · 3 % of the context"
    )
    assert "42 个 token" in figures_line(figures, load_texts()["zh"])
    assert figures_line({}, EN) == ""


def test_an_answer_that_was_cut_says_so():
    *_, last = answer(Told("long", Counts(1, 512, "length")), [user("q")], Sampling(), EN)
    assert last.note == EN["cut"] and not last.failed


def test_stop_keeps_what_was_said_and_closes_the_engine(store: Store):
    chat, engine = Chat(), Told(*["word "] * 9000)
    ask(chat, "q")
    states = reply(store, ME, chat, engine, Sampling(), EN)
    next(states)
    RUNNING.stop(chat.id)
    *_, last = states
    assert last.note == EN["stopped"] and not last.failed and engine.is_closed
    assert store.load(ME, chat.id).turns[-1]["content"].startswith("word ")
    assert chat.id not in RUNNING.stops


def test_leaving_keeps_what_was_said_and_closes_the_engine(store: Store):
    chat, engine = Chat(), Told(*["word "] * 9000)
    ask(chat, "q")
    states = reply(store, ME, chat, engine, Sampling(), EN)
    next(states), next(states)
    states.close()
    turn = store.load(ME, chat.id).turns[-1]
    assert turn["content"].startswith("word ") and turn["note"] == EN["stopped"] and engine.is_closed


def test_a_stop_works_while_others_are_answered_first(store: Store):
    chat, engine = Chat(), Told(*[Notice("waiting", 2)] * 9000)
    ask(chat, "q")
    states = reply(store, ME, chat, engine, Sampling(), EN)
    assert next(states).meanwhile == "Before you: 2"
    RUNNING.stop(chat.id)
    *_, last = states
    assert last.note == EN["stopped"] and engine.is_closed


def test_one_conversation_is_answered_once_at_a_time(store: Store):
    chat = Chat()
    ask(chat, "q")
    states = reply(store, ME, chat, Told("a", "b"), Sampling(), EN)
    next(states)
    twin = Chat(id=chat.id, turns=[user("q2")])
    assert answered(store, twin, "x").note == EN["answering"]
    states.close()
    assert answered(store, twin, "x").text == "x"


def test_regenerate_edit_and_undo_go_back_to_a_question():
    chat = Chat(turns=[user("a"), assistant("1"), user("b"), assistant("2")])
    assert ask_again(chat, 3) and spoken(chat.turns) == [user("a"), assistant("1"), user("b")]
    assert ask_again(chat, 0, "A") and spoken(chat.turns) == [user("A")]
    assert undo(chat) == "A" and chat.turns == [] and undo(chat) == ""
    assert not ask_again(chat, 0) and not ask(chat, "  ")


def test_a_verdict_is_kept_with_its_comment_and_can_be_taken_back(store: Store):
    chat = chat_with()
    rate(chat, 1, False, " too short ")
    assert chat.turns[1]["liked"] is False and chat.turns[1]["comment"] == "too short"
    rate(chat, 1, None)
    rate(chat, 0, True)
    rate(chat, 99, True)
    assert not any("liked" in turn or "comment" in turn for turn in chat.turns)


# ---- files


def test_what_is_exported_can_be_imported_again_as_a_chat_of_its_own():
    chat = Chat(title="t", system_prompt="be kind", turns=chat_with().turns)
    chat.turns[1] |= {"figures": {"tokens": 4}, "liked": True, "comment": "good", "model": "Ada", "note": "n"}
    chat.turns += [user("stopped before a word"), assistant("")]
    (back,) = from_json(to_json([chat]).encode(), "a.json")
    assert back.id != chat.id and replace(back, id=chat.id) == chat


def test_a_list_of_messages_from_elsewhere_can_be_imported():
    (chat,) = from_json(json.dumps({"messages": [user("a"), assistant("b")]}).encode(), "a.json")
    assert spoken(chat.turns) == [user("a"), assistant("b")]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"3", "no list of 1 to 100 conversations"),
        (b"[]", "no list of 1 to 100 conversations"),
        (b"[3]", "conversation 1"),
        (b'{"messages": 3}', "conversation 1"),
        (b'{"messages": [{"role": "assistant", "content": "x"}]}', "turns must begin with user"),
        (b'{"messages": [{"role": "user", "content": ""}]}', "an empty user turn"),
        (b'{"messages": [{"role": "user", "content": ["x"]}]}', "conversation 1"),
        (b'{"messages": [{"role": "root", "content": "x"}]}', "role 'root'"),
        (b" " * 5_000_001, "larger than 5 MB"),
    ],
)
def test_a_bad_file_is_refused_in_one_sentence(data: bytes, said: str):
    with pytest.raises(ValueError, match=said) as refused:
        from_json(data, "a.json")
    assert str(refused.value).startswith("a.json: ") and "\n" not in str(refused.value)


def test_strange_values_beside_a_message_are_left_out():
    strange = user("a") | {"note": 3, "liked": "yes", "figures": {"tokens": "x"}, "id": "x"}
    (chat,) = from_json(json.dumps({"messages": [strange]}).encode(), "a.json")
    assert chat.turns == [user("a")]


def test_markdown_names_the_speakers():
    chat = Chat(title="t", system_prompt="be kind", turns=chat_with().turns)
    text = to_markdown(chat, EN)
    assert text.startswith("# t\n\n**System prompt**\n\nbe kind\n\n**You**\n\nWho are you?\n\n**Assistant**")


# ---- comparing and choosing


def test_votes_are_counted_whichever_side_a_model_stood_on(store: Store):
    store.vote(ME, "q", "a", "b", "left")
    store.vote(new_browser(), "q", "b", "a", "right")
    store.vote(ME, "q", "b", "a", "left")
    store.vote(ME, "q", "a", "b", "tie")
    store.vote(ME, "q", "a", "c", "left")
    assert store.tally("a", "b") == (2, 1, 1) and store.tally("b", "a") == (1, 2, 1)


def test_two_answers_grow_together_and_closing_ends_both_and_says_so():
    engines, shown = [Told(*["a"] * 50), Told(*["b"] * 9000)], [Shown(), Shown()]
    growing = together([answer(engine, [user("q")], Sampling(), EN) for engine in engines], shown, EN)
    next(growing)
    assert shown[1].meanwhile == EN["thinking"] or shown[1].text
    growing.close()
    assert all(engine.is_closed for engine in engines)
    assert (shown[1].note, shown[1].meanwhile) == (EN["stopped"], "")
    shown = [Shown(), Shown()]
    for _ in together([answer(Told(*t), [user("q")], Sampling(), EN) for t in ("ab", "cde")], shown, EN):
        pass
    assert [one.text for one in shown] == ["ab", "cde"] and not any(one.note for one in shown)


def test_only_two_whole_answers_can_be_judged():
    said, failed = Shown("yes"), Shown("half", "broke off", failed=True)
    assert can_judge([said, Shown("partly", EN["stopped"])])
    assert not can_judge([said, failed]) and not can_judge([Shown(" "), said])


def test_a_blind_pair_does_not_always_stand_the_same_way():
    sides = {draw_pair("a", "b", "q", True).left for _ in range(60)}
    assert sides == {"a", "b"}
    assert {draw_pair("a", "b", "q", False).left for _ in range(20)} == {"a"}


@pytest.fixture
def root(tmp_path):
    def folder(place: str, config: str = '{"architectures": ["LlamaForCausalLM"]}', settings: str = ""):
        path = tmp_path / place
        path.mkdir(parents=True)
        (path / ("adapter_config.json" if "adapter" in place else "config.json")).write_text(config)
        (path / "settings.toml").write_text(settings)

    card = '[card]\nname = "Ada"\nbase = "Small-1B"\n'
    folder("models/small-1b", settings='title = "Small-1B"\n')
    folder("models/other")
    folder("models/eyes", config='{"architectures": ["CLIPVisionModel"]}')
    folder("out/ada/model", settings=card)
    folder("out/ada/adapter", settings=card + "")
    folder("out/.bob/model", settings=card)
    (tmp_path / "out/ada/ada.gguf").write_bytes(b"GGUF")
    (tmp_path / "out/ada/scorecard").mkdir()
    (tmp_path / "out/ada/scorecard/scorecard.json").write_text("{}")
    return tmp_path


def test_the_models_of_this_machine_are_found_and_the_pages_own_is_first(root, monkeypatch):
    monkeypatch.setenv("ASSISTANT_ENDPOINTS", "http://127.0.0.1:1/v1#bob")
    found = find_models(str(root / "out/ada/model"), root)
    assert [(model.id, model.kind) for model in found] == [
        ("out/ada/model", "merged"),
        ("out/ada/adapter", "adapter"),
        ("out/ada/ada.gguf", "gguf"),
        ("models/other", "base"),
        ("models/small-1b", "base"),
        ("endpoint:bob", "endpoint"),
    ]
    assert not any("127.0.0.1" in model.id or str(root) in model.id for model in found)
    assert find_models("http://x/v1#me", root)[0].id == "endpoint:me"


def test_models_are_found_also_where_the_checkout_lies_below_a_dot_folder(root):
    hidden = root / ".work"
    shutil.copytree(root / "models", hidden / "models")
    assert [model.id for model in find_models("", hidden)] == ["models/other", "models/small-1b"]


def test_two_models_that_would_read_the_same_are_told_apart(root):
    models = find_models("", root)
    read = labels_of([*models, replace(models[0], id="out/bob/model")], EN)
    assert read["out/ada/adapter"] == "Ada · adapter"
    assert read["out/bob/model"] == "Ada · assistant (out/bob/model)" and len(set(read.values())) == len(read)


def test_an_assistant_knows_its_base_and_its_scorecard(root):
    models = find_models(str(root / "out/ada/model"), root)
    assert base_of(models[0], models).id == "models/small-1b"
    assert scorecard_of(models[0]).name == "scorecard" and scorecard_of(models[-1]) is None


class Loads:
    """An engine that only remembers its model."""

    def __init__(self, model: str, line: object = None, shared: object = None) -> None:
        self.model, self.line, self.shared, self.status, self.name = model, line, shared, "ready", model


def test_engines_of_the_models_used_last_stay_and_a_path_from_outside_opens_nothing(root, monkeypatch):
    monkeypatch.setattr("assistant.web.models.Engine", Loads)
    monkeypatch.setattr("assistant.web.models.MOST_LOADED", 2)
    engines = Engines(Loads(str(root / "out/ada/model")), root)
    assert engines.get("../../etc") is engines.own and engines.get(None) is engines.own
    base, adapter = engines.get("models/small-1b"), engines.get("out/ada/adapter")
    assert base is engines.get("models/small-1b")
    engines.get("models/other")
    assert base is engines.get("models/small-1b") and adapter is not engines.get("out/ada/adapter")


def test_the_tally_is_said_in_words(store: Store, root):
    engines = Engines(Loads(str(root / "out/ada/model")), root)
    pair = ("out/ada/model", "models/small-1b")
    assert tally_line(store, engines, *pair, EN) == EN["tally_none"]
    store.vote(ME, "q", *pair, "left")
    assert tally_line(store, engines, *pair, EN) == "Ada: 1 · Small-1B: 0 · equal: 0"
