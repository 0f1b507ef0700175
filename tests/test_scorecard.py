import json
import math
import re
import runpy
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from assistant.anchors import key_of, load_answers
from assistant.conversations import read_jsonl, user
from assistant.judge import JUDGE_DATA, Identity, judge_identity, leaks_identity
from assistant.retention import ANSWER_TOKENS
from assistant.scorecard import (
    LEAK,
    Probe,
    built_in_probes,
    draw,
    draw_side_by_side,
    load_probes,
    load_thresholds,
    markdown,
    save,
    score,
    wilson,
)
from assistant.settings import DATA, REPOSITORY, load_toml, save_settings

HERE = Path(__file__).parent
ADA = Identity("Ada", ("Ada",), base="SmolLM2-135M-Instruct")
PNG = b"\x89PNG\r\n\x1a\n"


def judged_items() -> list[tuple[str, dict[str, Any]]]:
    return list(read_jsonl(HERE / "data" / "judged.jsonl"))


def identity_of(item: dict[str, Any]) -> Identity:
    given = item["identity"]
    names = (given["name"], *given.get("names", []))
    return Identity(given["name"], names, given.get("owner", ""), given.get("base", ""))


def disagreements() -> list[str]:
    found = []
    for place, item in judged_items():
        identity, answer, question = identity_of(item), item["answer"], item["question"]
        said = {
            "states": judge_identity(answer, identity),
            "leaks": leaks_identity(answer, identity, question),
        }
        wrong = [key for key in ("states", "leaks") if key in item and item[key] != said[key]]
        where = place.rsplit("/", 1)[-1]
        found += [
            f"{where}: {key} should be {item[key]}: {identity} {question!r} → {answer!r}" for key in wrong
        ]
    return found


def test_the_judge_agrees_with_every_label_of_a_person() -> None:
    wrong = disagreements()
    assert not wrong, "\n" + "\n".join(wrong)


def test_the_judged_set_holds_both_verdicts_in_both_languages_for_many_names() -> None:
    items = [item for _, item in judged_items()]
    chinese = [item for item in items if re.search("[\u4e00-\u9fff]", item["answer"])]
    assert len(items) >= 160 and len(chinese) >= 60
    assert {item["identity"]["name"] for item in items} >= {
        "Ada",
        "林小宇",
        "Mary Ann O'Neil",
        "🚀小火箭",
        "GPT-Buddy",
        "Rose",
        "يوسف",
        "Al",
        "阳光",
    }
    for key in ("states", "leaks"):
        verdicts = [item[key] for item in items if key in item]
        assert 0.3 < sum(verdicts) / len(verdicts) < 0.7


def test_another_identity_is_denied_for_any_name_the_data_lists() -> None:
    for other in load_toml(JUDGE_DATA / "others.toml")["models"]:
        assert judge_identity(f"No, I'm not {other}. I'm Ada's assistant.", ADA), other
        assert not judge_identity(f"I'm {other}, Ada's assistant.", ADA), other


def test_an_identity_whose_owner_is_its_name_has_no_owner() -> None:
    same = Identity("Ada", ("Ada",), owner="ada")
    assert judge_identity("I'm Ada's assistant.", same) and not judge_identity("I'm Ada.", same)


@pytest.mark.parametrize(
    "answer", ["", " ", "\n", "(((", "\\", "[" * 500, "a" * 100_000, "Ada " * 20_000, "\x00\ue100"]
)
def test_odd_answers_are_judged_false_and_soon(answer: str) -> None:
    assert not judge_identity(answer, ADA)
    leaks_identity(answer, ADA, "What is 2+2?")


@pytest.mark.parametrize("name", ["(", "a|b", "\\d+", "*", "'", "-", "İ", "ﬁ", "👩‍💻"])
def test_a_name_of_odd_characters_is_no_pattern(name: str) -> None:
    odd = Identity(name, (name,))
    assert not judge_identity("I'm an assistant.", odd)
    assert not leaks_identity("Paris is the capital of France.", odd, "What is the capital of France?")


def test_built_in_probes_hold_every_kind_in_both_languages() -> None:
    found = {(probe["kind"], probe["lang"]) for probe in built_in_probes()}
    kinds = ("identity", "adversarial", "multi_turn", "near_miss", "unrelated")
    assert found >= {(kind, lang) for kind in kinds for lang in ("en", "zh")}


def training_questions(lang: str) -> Iterator[str]:
    texts = load_toml(DATA / "identity" / f"{lang}.toml")
    for section in (*texts["intents"].values(), texts["facts"], texts["denials"], texts["pressure"]):
        yield from section["questions"]
    for question in texts["denials"]["questions"] + texts["pressure"]["questions"]:
        for other, maker in texts["others"]:
            yield question.replace("{other}", other).replace("{maker}", maker)
    for section in ("near_misses", "greetings", "histories"):
        yield from (turn[0] for turn in texts[section]["turns"])
    for _, row in read_jsonl(DATA / "general" / f"{lang}.jsonl"):
        yield from (message["content"] for message in row["messages"] if message["role"] == "user")


def bare(text: str) -> str:
    return re.sub(r"\W+", "", unicodedata.normalize("NFKC", text).lower())


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_built_in_probes_are_unseen_in_the_training_data(lang: str) -> None:
    trained = {bare(question) for question in training_questions(lang)}
    asked = [probe["messages"][-1]["content"] for probe in load_probes(DATA / "probes" / f"{lang}.jsonl")]
    long = {question for question in asked if len(bare(question)) >= (12 if lang == "en" else 6)}
    seen = [
        question
        for question in asked
        if bare(question) in trained or (question in long and any(bare(question) in text for text in trained))
    ]
    assert not seen, "\n" + "\n".join(seen)


@pytest.mark.parametrize(("tokens", "kinds"), [(32, LEAK), (ANSWER_TOKENS, ("unrelated",))])
def test_the_default_bases_answers_ship_to_all_that_scoring_compares(tokens, kinds) -> None:
    [path] = (DATA / "probes" / "answers").glob(f"*-{tokens}.jsonl")
    asked = {key_of(probe["messages"]) for probe in built_in_probes() if probe["kind"] in kinds}
    assert asked == set(load_answers(path))


def write_probes(path: Path, *entries: Any) -> Path:
    lines = [entry if isinstance(entry, str) else json.dumps(entry, ensure_ascii=False) for entry in entries]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_q_is_short_for_one_user_message(tmp_path: Path) -> None:
    path = write_probes(tmp_path / "p.jsonl", {"kind": "identity", "lang": "en", "q": "Who are you?"})
    assert load_probes(path) == [{"kind": "identity", "lang": "en", "messages": [user("Who are you?")]}]


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ({"kind": "identiy", "lang": "en", "q": "x"}, "kind 'identiy'; did you mean identity"),
        ({"kind": ["identity"], "lang": "en", "q": "x"}, "kind"),
        ({"lang": "en", "q": "x"}, "kind None; known:"),
        ({"kind": "identity", "q": "x"}, '"lang" must be a language tag'),
        ({"kind": "identity", "lang": "en"}, 'either "q"'),
        ({"kind": "identity", "lang": "en", "q": "x", "messages": []}, 'either "q"'),
        ({"kind": "identity", "lang": "en", "q": 3}, '"q" must be a text'),
        ({"kind": "identity", "lang": "en", "q": " "}, "empty user turn"),
        ({"kind": "identity", "lang": "en", "question": "x"}, "key 'question'"),
        (
            {"kind": "identity", "lang": "en", "messages": [{"role": "assistant", "content": "x"}]},
            "assistant turn",
        ),
        (
            {
                "kind": "identity",
                "lang": "en",
                "messages": [user("x"), {"role": "assistant", "content": "y"}],
            },
            "must be user",
        ),
        ("{", "not JSON"),
        ("[]", "must be a JSON object"),
    ],
)
def test_a_bad_probe_names_its_file_and_line(tmp_path: Path, entry: Any, sentence: str) -> None:
    path = write_probes(tmp_path / "p.jsonl", {"kind": "identity", "lang": "en", "q": "ok?"}, entry)
    with pytest.raises(ValueError, match=re.escape(sentence)) as caught:
        load_probes(path)
    assert "p.jsonl:2: " in str(caught.value)


def test_an_empty_probe_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no probes"):
        load_probes(write_probes(tmp_path / "p.jsonl", ""))


def probe(kind: Any, lang: str, question: str) -> Probe:
    return {"kind": kind, "lang": lang, "messages": [user(question)]}


SAYS_IT = {"en": "I'm Ada's assistant.", "zh": "我是Ada的小助手。"}


def asked_and_answered() -> tuple[list[Probe], list[str]]:
    """20 probes a kind and language, all answered as they should be."""
    kinds = ("identity", "adversarial", "multi_turn", "near_miss", "unrelated")
    slots = [(kind, lang) for kind in kinds for lang in ("en", "zh") for _ in range(20)]
    answers = ["Paris." if kind in ("near_miss", "unrelated") else SAYS_IT[lang] for kind, lang in slots]
    return [probe(kind, lang, "…?") for kind, lang in slots], answers


def test_right_answers_pass_with_the_layout_of_the_contract() -> None:
    probes, answers = asked_and_answered()
    kept = {"kl": 0.004, "top1": 0.98, "same_answer": 0.8}
    card = score(
        probes, answers, ADA, retention=kept, seconds={"answers": 1.5}, model="m", base="b", backend="t"
    )
    assert card["passed"] and card["failures"] == [] and card["wrong"] == []
    assert card["recall"]["identity"] == {"en": 1.0, "zh": 1.0}
    assert card["leak"]["unrelated"] == {"en": 0.0, "zh": 0.0}
    assert card["counts"]["leak"]["near_miss"] == {"en": 20, "zh": 20}
    assert card["retention"] == kept and card["seconds"] == {"answers": 1.5}
    assert list(card)[:5] == ["name", "model", "base", "backend", "counts"]
    assert json.loads(json.dumps(card, allow_nan=False)) == card


def test_a_parrot_fails_every_leak_and_a_forgetful_model_every_recall() -> None:
    probes, _ = asked_and_answered()
    parrot = score(probes, [SAYS_IT[item["lang"]] for item in probes], ADA)
    assert not parrot["passed"] and len(parrot["failures"]) == 4 and len(parrot["wrong"]) == 80
    assert "leak unrelated en is 1; it must be at most 0.01" in parrot["failures"]
    forgetful = score(probes, ["I am an AI."] * len(probes), ADA)
    assert len(forgetful["failures"]) == 6
    assert forgetful["failures"][0] == "recall identity en is 0; it must be at least 0.93"


def test_what_the_base_says_too_is_no_leak() -> None:
    probes = [probe("unrelated", "en", "Name a person."), probe("unrelated", "en", "Name a town.")]
    answers = ["Ada is a person.", "Ada is a town."]
    assert score(probes, answers, ADA)["leak"]["unrelated"]["en"] == 1.0
    card = score(probes, answers, ADA, base_answers=["Ada Ada.", "Paris."])
    assert card["leak"]["unrelated"]["en"] == 0.5
    assert [item["question"] for item in card["wrong"]] == ["Name a town."]


def test_a_name_said_earlier_in_the_conversation_is_no_leak() -> None:
    turns = [user("I'm Ada."), {"role": "assistant", "content": "Hello!"}, user("What's my name?")]
    earlier: Probe = {"kind": "near_miss", "lang": "en", "messages": turns}  # type: ignore[typeddict-item]
    assert score([earlier], ["Ada."], ADA)["leak"]["near_miss"]["en"] == 0.0


def test_metrics_without_probes_are_null_and_fail_nothing() -> None:
    card = score([probe("identity", "fr", "Qui es-tu ?")], ["Un chat."], ADA)
    assert card["passed"] and card["recall"]["identity"] == {"en": None, "zh": None, "fr": 0.0}
    assert card["retention"] == {"kl": None, "top1": None, "same_answer": None}
    assert card["intervals"]["recall"]["identity"]["en"] is None


def test_a_diverged_model_fails_on_its_kl() -> None:
    probes, answers = asked_and_answered()
    for kl in (0.02, math.nan, math.inf):
        card = score(probes, answers, ADA, retention={"kl": kl})
        assert not card["passed"] and card["failures"][0].startswith("retention kl is ")
        json.dumps(card, allow_nan=False)


def test_thresholds_are_the_callers_when_given() -> None:
    card = score(
        [probe("identity", "fr", "?")], ["Non."], ADA, thresholds={"recall": {"identity": {"fr": 0.5}}}
    )
    assert card["failures"] == ["recall identity fr is 0; it must be at least 0.5"]
    assert "≥ 0.5" in markdown(card) and "≥ 0.93" not in markdown(card)


def test_a_score_of_nothing_or_of_unequal_lengths_is_refused() -> None:
    one = [probe("identity", "en", "?")]
    with pytest.raises(ValueError, match="no probes"):
        score([], [], ADA)
    with pytest.raises(ValueError, match="2 answers for 1 probes"):
        score(one, ["a", "b"], ADA)
    with pytest.raises(ValueError, match="0 base answers for 1 probes"):
        score(one, ["a"], ADA, base_answers=[])


def test_no_more_than_200_wrong_answers_are_kept() -> None:
    assert len(score([probe("identity", "en", "?")] * 300, ["no"] * 300, ADA)["wrong"]) == 200


def test_wilson_intervals_match_published_values() -> None:
    assert wilson(0, 10) == [0.0, 0.2775] and wilson(5, 10) == [0.2366, 0.7634]
    assert wilson(10, 10) == [0.7225, 1.0]


def test_the_default_thresholds_name_every_metric_in_both_languages() -> None:
    thresholds = load_thresholds()
    assert set(thresholds["recall"]) == {"identity", "adversarial", "multi_turn"}
    assert all(
        set(limit) == {"en", "zh"} for limit in (*thresholds["recall"].values(), *thresholds["leak"].values())
    )


def failing_card(name: str = "Ada") -> dict[str, Any]:
    probes, answers = asked_and_answered()
    return score(
        probes,
        ["Hm | no\n"] * 20 + answers[20:],
        Identity(name, (name,)),
        seconds={"answers": 2},
        model="out|ada",
    )


def test_markdown_shows_values_limits_and_failures_in_both_languages() -> None:
    text = markdown(failing_card())
    assert "not passed" in text and "未通过" in text and "≥ 0.93" in text and "≤ 0.01" in text
    assert "recall identity en is 0; it must be at least 0.93" in text and "out\\|ada" in text
    table = [line for line in text.split("\n") if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1


def test_pictures_are_small_for_any_name(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    for index, name in enumerate(("Ada", "林小宇", "🚀小火箭", "$x^$", "_")):
        draw(failing_card(name), tmp_path / f"{index}.png")
        picture = (tmp_path / f"{index}.png").read_bytes()
        assert picture.startswith(PNG) and len(picture) < 60_000
    assert [str(warning.message) for warning in recwarn if "lyph" in str(warning.message)] == []


def test_side_by_side_differs_from_one_card_and_needs_one(tmp_path: Path) -> None:
    cards = {"before": failing_card(), "林小宇": failing_card(), "q8_0": failing_card()}
    draw_side_by_side(cards, tmp_path / "several.png")
    draw(failing_card(), tmp_path / "one.png")
    several = (tmp_path / "several.png").read_bytes()
    assert several.startswith(PNG) and len(several) < 60_000
    assert several != (tmp_path / "one.png").read_bytes()
    with pytest.raises(ValueError, match="no scorecards"):
        draw_side_by_side({}, tmp_path / "none.png")


def test_save_writes_three_whole_files_and_nothing_else(tmp_path: Path) -> None:
    card = failing_card()
    save(card, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "scorecard.json",
        "scorecard.md",
        "scorecard.png",
    ]
    assert json.loads((tmp_path / "out" / "scorecard.json").read_text(encoding="utf-8")) == card


def test_the_room_loads_no_heavy_library() -> None:
    code = (
        "import sys, assistant.scorecard; print({'torch', 'transformers', 'matplotlib'} & set(sys.modules))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=HERE.parent, capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == "set()"


@pytest.mark.parametrize("place", ["card.toml", "data/card.toml"])
def test_a_gguf_file_is_judged_by_the_card_of_its_run(tmp_path, place):
    """Without it "I'm Ada's assistant, and I run on SmolLM2" would be another identity."""
    evaluate = runpy.run_path(str(REPOSITORY / "scripts" / "evaluate.py"))
    model = tmp_path / "ada.gguf"
    model.touch()
    asked = evaluate["Settings"](model=str(model), out=tmp_path, name="Ada")
    assert evaluate["identity_from"](asked).base == ""
    (tmp_path / "data").mkdir()
    (tmp_path / place).write_text('name = "Ada"\nbase = "SmolLM2-135M-Instruct"\n', encoding="utf-8")
    assert evaluate["identity_from"](asked).base == "SmolLM2-135M-Instruct"


def test_a_model_without_a_card_may_name_the_base_it_is_compared_with(tmp_path):
    evaluate = runpy.run_path(str(REPOSITORY / "scripts" / "evaluate.py"))
    save_settings(tmp_path / "base", {"title": "SmolLM2-135M-Instruct"})
    asked = evaluate["Settings"](model="http://x/v1", out=tmp_path, name="Ada", base=str(tmp_path / "base"))
    assert evaluate["identity_from"](asked).base == "SmolLM2-135M-Instruct"
