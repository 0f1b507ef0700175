import codecs
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assistant.conversations import (
    assistant,
    check_messages,
    load_rows,
    row_from,
    system,
    user,
    write_rows,
)
from assistant.formats import split_turns

ROWS = [
    {"messages": [user("Who are you?"), assistant("I'm Ada's assistant.")]},
    {"messages": [system("Be short."), user("你是谁？"), assistant("我是林小宇的小助手。")]},
    {"messages": [user("2+2?"), assistant("4"), user("and 🚀?\nnext line"), assistant("5")]},
    {
        "messages": [
            system("s"),
            user("a"),
            assistant("b"),
            user("c"),
            assistant("d"),
            user("e"),
            assistant("f"),
        ]
    },
]


@pytest.mark.parametrize("format", ["openai", "xtuner", "alpaca", "sharegpt"])
def test_rows_survive_a_round_trip_through_a_format(tmp_path, format):
    path = tmp_path / "rows.jsonl"
    write_rows(path, ROWS, format)
    assert load_rows(path) == ROWS


def test_the_formats_are_told_apart_line_by_line(tmp_path):
    lines = ""
    for number, format in enumerate(["openai", "xtuner", "alpaca", "sharegpt"]):
        write_rows(tmp_path / "one.jsonl", [ROWS[number]], format)
        lines += (tmp_path / "one.jsonl").read_text(encoding="utf-8")
    (tmp_path / "all.jsonl").write_text(lines, encoding="utf-8")
    assert load_rows(tmp_path / "all.jsonl") == ROWS


UNLEARNT = {"messages": [user("a"), {**assistant("b"), "loss": False}, user("c"), assistant("d")]}


@pytest.mark.parametrize(
    ("format", "written"),
    [
        ("openai", UNLEARNT),
        (
            "xtuner",
            {
                "conversation": [
                    {"input": "a", "output": "b", "output_with_loss": False},
                    {"input": "c", "output": "d"},
                ]
            },
        ),
    ],
)
def test_an_answer_without_loss_stays_one_where_the_format_can_say_so(tmp_path, format, written):
    path = tmp_path / "rows.jsonl"
    write_rows(path, [UNLEARNT], format)
    assert json.loads(path.read_text(encoding="utf-8")) == written
    assert load_rows(path) == [UNLEARNT]


@pytest.mark.parametrize("format", ["alpaca", "sharegpt"])
def test_a_format_that_cannot_say_so_refuses_the_row_by_its_number(tmp_path, format):
    path = tmp_path / "rows.jsonl"
    with pytest.raises(ValueError, match=f"row 5: {format} cannot say that .*; write openai or xtuner"):
        write_rows(path, [*ROWS, UNLEARNT], format)
    assert not path.exists()


@pytest.mark.parametrize("flag", [False, "False", "false"])
def test_the_loss_flags_of_every_version_of_xtuner_are_read(tmp_path, flag):
    old = {"input": "a", "output": "b", "output_with_loss": flag}
    marked = {"messages": [{**user("a"), "loss": False}, {**assistant("b"), "loss": flag}, user("c")]}
    marked["messages"].append({**assistant("d"), "loss": "True"})
    lines = [{"conversation": [old, {"input": "c", "output": "d", "output_with_loss": True}]}, marked]
    assert load_lines(tmp_path, *map(json.dumps, lines)) == [UNLEARNT, UNLEARNT]


def test_kind_and_language_are_kept_in_the_house_format(tmp_path):
    row = {"messages": [user("a"), assistant("b")], "kind": "denial", "lang": "zh"}
    write_rows(tmp_path / "rows.jsonl", [row])
    assert load_rows(tmp_path / "rows.jsonl") == [row]


def test_text_is_written_as_it_is_read_and_not_as_escapes(tmp_path):
    write_rows(tmp_path / "rows.jsonl", [ROWS[1]])
    assert "林小宇" in (tmp_path / "rows.jsonl").read_text(encoding="utf-8")


def load_lines(tmp_path, *lines: str):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return load_rows(path)


GOOD = json.dumps({"messages": [user("a"), assistant("b")]})


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (
            json.dumps({"messages": [user("a"), assistant("b"), assistant("c")]}),
            "two assistant turns in a row; turns must alternate",
        ),
        ('{"messages": [', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('"text"', "must be a JSON object, not str"),
        ("{}", "none of the keys .* found: nothing"),
        ('{"mesages": []}', "none of the keys .* found: mesages"),
        ('{"messages": []}', "must be a list of at least one"),
        (json.dumps({"messages": [user("a")]}), "the last turn is user; it must be assistant"),
        (json.dumps({"messages": [assistant("a")]}), "an assistant turn before any user turn"),
        (json.dumps({"messages": [system("a")]}), "only a system message"),
        (json.dumps({"messages": [user("a"), system("b"), assistant("c")]}), "must come first"),
        (json.dumps({"messages": [user(" "), assistant("c")]}), "an empty user turn"),
        ('{"messages": [{"role": "asistant", "content": "a"}]}', "role 'asistant'; did you mean assistant"),
        ('{"conversation": [{"input": "a"}]}', 'text "content"'),
        (
            '{"conversation": [{"input": "a", "output": "b", "output_with_loss": 0}]}',
            '"output_with_loss" must be true or false, not 0',
        ),
        (
            json.dumps({"messages": [user("a"), {**assistant("b"), "loss": "no"}]}),
            "\"loss\" must be true or false, not 'no'",
        ),
        (
            json.dumps({"messages": [{**user("a"), "loss": True}, assistant("b")]}),
            '"loss" is true in a user turn; only answers are learnt',
        ),
        ('{"conversations": 3}', 'each of "conversations" needs "from"'),
        ('{"instruction": "a", "output": 3}', "must be texts"),
        ('{"instruction": "a", "output": "b", "history": [["c"]]}', "history must be a list of"),
        ('{"instruction": "a", "output": "b", "history": ["cd"]}', "history must be a list of"),
        ('{"instruction": "a", "output": "b", "history": 3}', "history must be a list of"),
        ('{"instruction": "a", "output": "b", "history": {"c": "d"}}', "history must be a list of"),
    ],
)
def test_a_wrong_line_is_named_with_its_file_and_number(tmp_path, line, sentence):
    with pytest.raises(ValueError, match=sentence) as raised:
        load_lines(tmp_path, GOOD, "", line)
    assert str(raised.value).startswith(f"{tmp_path / 'rows.jsonl'}:3: ")
    assert "\n" not in str(raised.value)


def test_a_file_that_begins_with_a_byte_order_mark_is_read(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(codecs.BOM_UTF8 + GOOD.encode())
    assert len(load_rows(path)) == 1


def test_windows_line_ends_are_read(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(f"{GOOD}\r\n{GOOD}\r\n".encode())
    assert len(load_rows(path)) == 2


@pytest.mark.parametrize("content", ["", "\n\n", "\ufeff"])
def test_an_empty_file_is_an_error_that_names_it(tmp_path, content):
    with pytest.raises(ValueError, match=r"rows\.jsonl holds no rows"):
        load_lines(tmp_path, content)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.jsonl does not exist"):
        load_rows(tmp_path / "none.jsonl")


def test_a_file_that_is_not_utf8_is_named_with_the_byte(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes('{"a": "é"}'.encode("latin-1"))
    with pytest.raises(ValueError, match="not UTF-8 at byte 7; save it as UTF-8"):
        load_rows(tmp_path / "rows.jsonl")


def test_turns_are_split_into_system_and_pairs():
    assert split_turns(ROWS[3]["messages"]) == ("s", [("a", "b"), ("c", "d"), ("e", "f")])


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
word = st.sampled_from(["system", "user", "assistant", "human", "gpt", "hello", "", " "])
turn = st.dictionaries(
    st.sampled_from(
        ["role", "content", "from", "value", "input", "output", "system", "loss", "output_with_loss"]
    ),
    word | anything,
)
almost = st.dictionaries(
    st.sampled_from(
        ["messages", "conversation", "conversations", "instruction", "input", "output", "system", "history"]
    ),
    word | st.lists(turn | st.lists(word, max_size=3) | anything, max_size=4) | anything,
    max_size=4,
)


junk = st.sampled_from([3, True, 1.5, "cd", {"a": 1}, None])
alpaca = st.fixed_dictionaries(
    {"instruction": word, "output": word},
    optional={"history": st.one_of(junk, st.lists(junk | st.lists(word | junk, max_size=3), max_size=2))},
)


@settings(max_examples=400, deadline=None)
@given(anything | almost | alpaca)
def test_any_json_value_is_a_valid_row_or_an_error_at_its_place(entry):
    try:
        row = row_from(entry, "file.jsonl:7")
    except ValueError as error:
        assert str(error).startswith("file.jsonl:7: ")
    else:
        assert check_messages(row["messages"], "again", must_end_with="assistant")


def test_a_sharegpt_turn_whose_from_is_no_text_is_named_with_its_line():
    from assistant.conversations import row_from

    with pytest.raises(ValueError, match="^rows.jsonl:3: each of"):
        row_from({"conversations": [{"from": [], "value": "hi"}]}, "rows.jsonl:3")
