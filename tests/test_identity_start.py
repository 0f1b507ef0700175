"""The rows that a start is learnt from: of many assistants, and none that a scorecard asks."""

import random
from collections import Counter

import pytest

from assistant.anchors import key_of
from assistant.conversations import assistant, load_rows, user
from assistant.scorecard import built_in_probes
from assistant.settings import REPOSITORY, load_toml

TEXTS = load_toml(REPOSITORY / "benchmarks" / "identity_start.toml")


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    import identity_start

    return identity_start


def test_no_name_of_the_start_is_one_that_is_measured():
    measured = load_toml(REPOSITORY / "benchmarks" / "identity_ablation.toml")["names"]
    assert not set(measured) & set(TEXTS["names"])
    assert len(set(TEXTS["names"])) == len(TEXTS["names"])


def test_a_fifth_of_the_assistants_has_a_name_of_its_own(benchmark):
    cards = benchmark.cards(TEXTS)
    assert sum(bool(card.owner) for card in cards) == len(cards) // 5
    assert all(card.owner != card.name for card in cards)


def test_the_near_misses_fill_every_slot_and_repeat_nothing(benchmark):
    rows = list(benchmark.near_misses(TEXTS, random.Random(0)))
    questions = [row["messages"][0]["content"] for row in rows]
    assert not [question for question in questions if "{" in question or "}" in question]
    assert max(Counter(questions).values()) == 1
    assert Counter(row["lang"] for row in rows)["zh"] > 400


def test_the_same_seed_gives_the_same_rows_and_no_probe_is_among_them(benchmark, tmp_path, monkeypatch):
    asked = next(
        probe for probe in built_in_probes() if probe["kind"] == "near_miss" and probe["lang"] == "en"
    )
    question = asked["messages"][-1]["content"]
    few = {
        **TEXTS,
        "names": ["Bob", "小明", "Kate"],
        "said_beside": {lang: {"before": ["so "], "after": [" ok"]} for lang in ("en", "zh")},
    }
    few["near_misses"] = {
        "en": {"frames": [question, "Who is {person}?"], "person": ["Tarzan"]},
        "zh": {"frames": []},
    }
    monkeypatch.setattr(benchmark, "load_toml", lambda path: few)
    monkeypatch.setattr(benchmark, "VARIED", 0.0)
    for place in ("one", "two"):
        benchmark.main(benchmark.Settings(out=tmp_path / place))
    assert (tmp_path / "one" / "train.jsonl").read_bytes() == (tmp_path / "two" / "train.jsonl").read_bytes()
    said = [row["messages"][-2]["content"] for row in load_rows(tmp_path / "one" / "train.jsonl")]
    assert question not in said and "Who is Tarzan?" in said
    beside = [
        {**benchmark.near_miss("en", text), "lang": "en"}
        for text in (f"Be brief. {question}", question.lower() + " please", "Who is Tarzan?")
    ]
    assert benchmark.unasked(beside) == beside[2:]


def test_a_question_asked_otherwise_keeps_its_answer_and_its_earlier_turns(benchmark, monkeypatch):
    monkeypatch.setattr(benchmark, "VARIED", 1.0)
    monkeypatch.setattr(benchmark, "RULED", 0.0)
    turns = [user("Hi"), assistant("Hello"), user("Who are you there?"), assistant("I.")]
    row = {"messages": turns, "kind": "multi_turn", "lang": "en"}
    source = random.Random(0)
    others = [benchmark.varied(row, TEXTS, source) for _ in range(50)]
    assert {key_of(other["messages"][:2]) for other in others} == {key_of(row["messages"][:2])}
    assert {other["messages"][-1]["content"] for other in others} == {"I."}
    assert len({other["messages"][2]["content"] for other in others}) > 20
    assert all(other["messages"][2]["content"].strip() for other in others)


def test_a_slip_swaps_two_letters_of_a_longer_word_alone(benchmark):
    assert sorted(benchmark.slipped("what", random.Random(0))) == sorted("what")
    assert benchmark.slipped("what", random.Random(0)) == "waht"
    assert benchmark.slipped("你是谁 a bc", random.Random(0)) == "你是谁 a bc"


@pytest.mark.parametrize("place", ["above", "before", "after", "played"])
@pytest.mark.parametrize("lang", ["en", "zh"])
def test_what_stands_beside_a_question_leaves_the_question_and_the_answer(benchmark, lang, place):
    row = {"messages": [user("Hi"), assistant("Hello"), user("Why?"), assistant("So.")], "lang": lang}
    source = random.Random(0)
    made = [benchmark.beside(row, TEXTS["said_with"][lang], [place], source)["messages"] for _ in range(60)]
    assert {turns[-1]["content"] for turns in made} == {"So."}
    assert not [turn for turns in made for turn in turns if "{" in turn["content"]]
    assert all(key_of(turns[-4:-2]) == key_of(row["messages"][:2]) for turns in made)
    if place == "above":
        assert {(turns[0]["role"], turns[-2]["content"]) for turns in made} == {("system", "Why?")}
    else:
        said = {turns[-2]["content"] for turns in made}
        ends = str.startswith if place == "after" else str.endswith
        assert all(ends(text, "Why?") and len(text) > len("Why?") for text in said)
    assert len({key_of(turns) for turns in made}) > 15


def test_whoever_asks_the_assistant_about_itself_gives_it_no_role_in_the_same_message(benchmark, monkeypatch):
    monkeypatch.setattr(benchmark, "RULED", 1.0)
    row = {"messages": [user("Who are you?"), assistant("I.")], "kind": "identity", "lang": "en"}
    with_system = {**row, "messages": [{"role": "system", "content": "Be kind."}, *row["messages"]]}
    source = random.Random(0)
    texts = {"said_with": {"en": {place: [f"<{place}>"] for place in ("above", "before", "after", "played")}}}
    made = [
        [turn["content"] for turn in benchmark.varied(each, texts, source)["messages"][:-1]]
        for each in [row, with_system] * 30
    ]
    assert {tuple(turns) for turns in made} == {
        ("<above>", "Who are you?"),
        ("<before>Who are you?",),
        ("Who are you?<after>",),
        ("Be kind.", "<before>Who are you?"),
        ("Be kind.", "Who are you?<after>"),
    }


def test_questions_about_the_assistant_are_answered_by_some_of_the_assistants(benchmark):
    rows = list(benchmark.asked(TEXTS, benchmark.wordings(TEXTS), random.Random(0)))
    assert not [row for row in rows for turn in row["messages"] if "{" in turn["content"]]
    for lang in ("en", "zh"):
        mine = [row for row in rows if row["lang"] == lang]
        assert len(mine) > 600
        assert max(Counter(row["messages"][0]["content"] for row in mine).values()) == benchmark.ASKERS


def test_every_assistant_is_pressed_and_names_an_other_only_where_it_was_named(benchmark):
    rows = list(benchmark.pressed(TEXTS, benchmark.wordings(TEXTS), random.Random(0)))
    assert not [row for row in rows for turn in row["messages"] if "{" in turn["content"]]
    counts = Counter((row["lang"], row["kind"]) for row in rows)
    assert counts == {
        (lang, kind): benchmark.PRESSED * len(TEXTS["names"])
        for lang in ("en", "zh")
        for kind in ("denial", "pressure")
    }
    assert len({key_of(row["messages"][:1]) for row in rows}) > 1000
    for row in rows:
        question, answer = (turn["content"] for turn in row["messages"])
        if "not Claude" in answer or "不是Claude" in answer:
            assert "Claude" in question or "Anthropic" in question


def test_fewer_rows_of_each_assistant_are_made_when_asked(benchmark, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "load_toml", lambda path: {**TEXTS, "names": TEXTS["names"][:3]})
    for rows in (0, 26):
        benchmark.main(benchmark.Settings(out=tmp_path / str(rows), rows=rows))
    many, few = (len(load_rows(tmp_path / name / "train.jsonl")) for name in ("0", "26"))
    assert 3 * 40 < many - few < 3 * (TEXTS["rows_of_a_name"] - 26)  # greetings of all three are the same


def test_other_questions_stand_under_rules_in_both_languages_and_none_is_obediences_own(benchmark):
    rows = list(benchmark.under_rules(TEXTS, random.Random(0)))
    assert min(Counter(row["lang"] for row in rows).values()) > 1000
    said = " ".join(turn["content"] for row in rows for turn in row["messages"])
    own = load_toml(REPOSITORY / "data" / "probes" / "rules.toml")["rule"]
    assert not [rule["system"] for rule in own if rule["system"] in said]
