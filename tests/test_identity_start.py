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


def test_a_question_asked_otherwise_keeps_its_answer_and_its_earlier_turns(benchmark, monkeypatch):
    monkeypatch.setattr(benchmark, "VARIED", 1.0)
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
