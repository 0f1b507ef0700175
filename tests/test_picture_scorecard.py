import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from test_llava import VISION, spacious_model

from assistant import scorecard
from assistant.judge import Identity
from assistant.llava import Parts, make_llava
from assistant.loading import load_chat_model
from assistant.picture_habits import heeds, is_title
from assistant.picture_questions import (
    even_part,
    load_picture_probes,
    load_probe_shares,
    stamp_probes,
)
from assistant.picture_report import markdown, save_pictures
from assistant.picture_scorecard import limits_of, score_pictures
from assistant.pictures.stamps import stamps
from assistant.settings import REPOSITORY, ThresholdMissed

ADA = Identity("Ada", ())
DOG = [["dog"]]
# kind, language, style, thing, question, accepted, a right answer
ROWS = [
    ("name_en", "en", "twemoji", "dog", "What is it?", DOG, "It is a dog."),
    ("name_zh", "zh", "fxemoji", "dog", "这是什么？", [["狗"]], "这是一只狗。"),
    ("kind", "en", "twemoji", "dog", "What sort of thing is it?", [["animal"]], "It is an animal."),
    ("yes_no", "en", "twemoji", "dog", "Is it a cat?", [["no"]], "No, it is a dog."),
    ("count", "zh", "fxemoji", "dog", "有几只狗？", [["3"]], "有三只狗。"),
    ("colour", "en", "twemoji", "dog", "What colour is it?", [["brown"]], "It is brown."),
    ("language", "zh", "twemoji", "dog", "Say it in Chinese.", [["狗"]], "这是一只狗。"),
    ("several", "en", "twemoji", "dog, cat", "List all.", [["dog"], ["cat"]], "I see a dog and a cat."),
    ("identity", "en", "twemoji", "dog", "Who are you?", [], "I'm Ada's assistant."),
    ("no_image", "en", None, None, "Describe my picture.", [], "There is no picture here. Please send one."),
]


def write_data(folder: Path, rows: list[Any] = ROWS) -> Path:
    """A folder as gen_image_data.py makes it, its pictures single colours."""
    (folder / "images").mkdir(parents=True)
    lines = []
    for index, (kind, lang, style, thing, question, answers, answer) in enumerate(rows):
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        entry = {"id": f"{kind}-{index}", "kind": kind, "conversations": turns, "lang": lang}
        entry |= {"question": question, "answers": answers}
        if kind != "no_image":
            entry |= {"image": f"images/{index}.png", "style": style, "thing": thing}
            Image.new("RGB", (40, 30), (index * 20, 90, 90)).save(folder / f"images/{index}.png")
        lines.append(json.dumps(entry, ensure_ascii=False))
    (folder / "dev.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "seen.jsonl").write_text("", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("pictures") / "data")


@pytest.fixture(scope="module")
def llm(tmp_path_factory) -> Path:
    return spacious_model(tmp_path_factory.mktemp("llm") / "llm")


@pytest.fixture(scope="module")
def llava(llm, tmp_path_factory) -> Path:
    """A tiny model that sees, and babbles."""
    folder = tmp_path_factory.mktemp("eyes") / "llava"
    make_llava(llm, VISION, folder, Parts(), {})
    return folder


@pytest.fixture
def evaluate(monkeypatch, tmp_path) -> Any:
    """scripts/evaluate.py, keeping what it caches to itself, with few prompts of text alone."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "scripts"))
    import evaluate

    monkeypatch.setattr(evaluate, "CACHE", tmp_path / "cache")
    unrelated = [probe for probe in scorecard.built_in_probes() if probe["kind"] == "unrelated"]
    monkeypatch.setattr(evaluate, "built_in_probes", lambda: unrelated[::25])
    return evaluate


def asked(data: Path) -> list[Any]:
    """The questions of the file alone, in its order."""
    return load_picture_probes(data)[: len(ROWS)]


def score(data: Path, answers: list[str], identity: Identity | None = ADA, **more: Any) -> dict[str, Any]:
    return score_pictures(asked(data), answers, identity, **more)


RIGHT = [row[-1] for row in ROWS]
TITLES = [
    "A dog", "一只狗", "A dog", "A dog", "三只狗", "A dog", "一只狗", "A dog and a cat", "A dog", "A dog",
]  # fmt: skip


def test_right_answers_score_one_and_pass(data):
    card = score(data, RIGHT)
    held_out = card["right"]["held_out"]
    assert {kind: set(shares.values()) for kind, shares in held_out.items()} == dict.fromkeys(held_out, {1.0})
    assert len(held_out) == 9, "name_en and name_zh are one kind"
    assert card["heeded"] == card["right"]
    assert card["titled"] == 0
    assert card["passed"], card["failures"]
    assert card["wrong"] == []


def test_titles_whatever_was_asked_are_told_from_answers(data):
    card = score(data, TITLES)
    right = {kind: list(shares.values()) for kind, shares in card["right"]["held_out"].items()}
    assert right["name"] == [1, 1], "to this question a title is an answer"
    assert (
        right["kind"] == right["yes_no"] == right["colour"] == right["identity"] == right["no_image"] == [0]
    )
    # of kind, yes_no, count, colour and identity: the count is right, so no mere title
    assert card["titled"] == 4 / 5
    assert card["heeded"]["held_out"]["yes_no"]["en"] == 0
    assert not card["passed"]
    assert "right held_out kind en is 0.0000, wanted at least 0.9" in card["failures"]
    assert {item["answer"] for item in card["wrong"]} == {"A dog"}


def test_a_share_is_of_its_kind_language_and_style(tmp_path):
    rows = [
        ("name_en", "en", style, "dog", "What is it?", DOG, "") for style in ("twemoji",) * 4 + ("fxemoji",)
    ]
    probes = load_picture_probes(write_data(tmp_path / "data", rows))[:5]
    answers = ["It is a dog.", "It is a cat.", "It is a dog.", "一只狗", "It is a cat."]
    card = score_pictures(probes, answers)
    assert card["right"]["held_out"]["name"] == {"en": 2 / 5}
    assert card["styles"] == {
        "fxemoji": {"en": {"right": 0.0, "of": 1}}, "twemoji": {"en": {"right": 0.5, "of": 4}},
    }  # fmt: skip
    assert card["heeded"]["held_out"]["name"]["en"] == 4 / 5, "Chinese was not asked for"


@pytest.mark.parametrize(("ceiling", "passes"), [(0.55, True), (0.7, False)])
def test_names_are_compared_with_the_linear_probe_on_the_same_styles(tmp_path, ceiling, passes):
    rows = [("name_en", "en", "twemoji", "dog", "What is it?", DOG, "")] * 4
    probes = load_picture_probes(write_data(tmp_path / "data", rows))[:4]
    limits = {"of_probe": {"held_out": {"name": {"en": 0.9}}}}
    shares = {"twemoji": (ceiling, 100), "fxemoji": (0.1, 100)}
    answers = ["A dog", "A dog", "A cat", "A cat"]
    card = score_pictures(probes, answers, probe_shares=shares, thresholds=limits)
    assert card["of_probe"]["held_out"]["name"]["en"] == pytest.approx(0.5 / ceiling)
    assert card["passed"] is passes
    without = score_pictures(probes, answers, probe_shares={"fxemoji": (0.9, 9)}, thresholds=limits)
    assert without["of_probe"] == {}, "a style that the probe was not asked about has no ceiling"


@pytest.mark.parametrize(("kl", "passes"), [(0.003, True), (0.005, False), (float("nan"), False)])
def test_chat_without_a_picture_must_stay_as_it_was(data, kl, passes):
    card = score(data, RIGHT, retention={"kl": kl, "top1": 0.99})
    assert card["passed"] is passes
    json.dumps(card, allow_nan=False)


def test_identity_counts_only_when_a_name_is_known(data):
    assert "identity" not in score(data, RIGHT, None)["right"]["held_out"]
    assert score(data, RIGHT, Identity("Bo", ()))["right"]["held_out"]["identity"] == {"en": 0.0}


def test_answers_must_be_as_many_as_questions(data):
    with pytest.raises(ValueError, match="1 answers for 10 questions"):
        score(data, ["A dog"])


@pytest.mark.parametrize(
    "answer",
    ["A dog", "Popcorn", "Three dogs", "A dog, a cat and an apple", "一只狗", "三只狗、一只猫和一个苹果"],
)
def test_a_title_is_known(answer):
    assert is_title(answer)


@pytest.mark.parametrize(
    "answer",
    ["It is a dog.", "No, it is a dog.", "Yes.", "A dog is here", "Brown", "这是一只狗。", "三只", ""],
)
def test_an_answer_is_no_title(answer):
    assert not is_title(answer)


@pytest.mark.parametrize(
    ("kind", "lang", "to_it", "beside_it"),
    [
        ("yes_no", "en", "Yes, it is a fruit.", "A dog"),
        ("yes_no", "zh", "不是。", "一只狗"),
        ("count", "en", "There are two dogs.", "This is a dog."),
        ("count", "zh", "有两只狗。", "一只狗"),
        ("colour", "en", "It is purple.", "It is a dog."),
        ("kind", "zh", "它属于食物。", "这是一只狗。"),
        ("name", "en", "This is a cat.", "这是一只猫。"),
        ("name_zh", "zh", "这是一只猫。", "This is a cat."),
        ("language", "en", "This is a cat.", "这是一只猫。"),
        ("several", "en", "A cat and a dog", "A cat"),
        ("no_image", "en", "I see no picture.", "A dog"),
    ],
)
def test_an_answer_to_another_question_is_told(kind, lang, to_it, beside_it):
    rule = {"kind": kind, "lang": lang}
    assert heeds(rule, to_it)
    assert not heeds(rule, beside_it)


def test_a_missing_picture_is_named_with_its_line(tmp_path):
    folder = write_data(tmp_path / "data")
    (folder / "images" / "2.png").unlink()
    with pytest.raises(ValueError, match=r"dev\.jsonl:3: its picture images/2\.png is not in"):
        load_picture_probes(folder)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"kind": "colours"}, "dev.jsonl:1: kind 'colours'; did you mean colour"),
        ({"lang": "fr"}, 'dev.jsonl:1: "lang" must be one of en, zh'),
        ({"answers": None}, 'dev.jsonl:1: needs "question"'),
        ({"image": None}, 'dev.jsonl:1: needs "image"'),
    ],
)
def test_a_bad_line_is_named(tmp_path, change, sentence):
    folder = write_data(tmp_path / "data", ROWS[:1])
    entry = json.loads((folder / "dev.jsonl").read_text(encoding="utf-8"))
    (folder / "dev.jsonl").write_text(json.dumps(entry | change), encoding="utf-8")
    with pytest.raises(ValueError) as error:
        load_picture_probes(folder)
    assert sentence in str(error.value)


def test_a_folder_without_questions_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"dev\.jsonl does not exist"):
        load_picture_probes(tmp_path)


def test_in_turn_2_the_picture_is_in_turn_1_and_the_name_is_not_said(data):
    later = [probe for probe in load_picture_probes(data) if probe.kind == "multi_turn"]
    assert {(probe.lang, probe.rule["kind"]) for probe in later} == {
        ("en", "name_en"), ("zh", "name_zh"), ("en", "colour"),
    }  # fmt: skip
    for probe in later:
        first, said, last = probe.messages
        assert first["images"] and "images" not in last
        assert "dog" not in said["content"] and "狗" not in said["content"]
    card = score_pictures([later[0]], ["It is a dog."])
    assert card["right"] == {"held_out": {"multi_turn": {"en": 1.0}}}


def test_questions_without_a_picture_have_no_picture_in_the_prompt(data, llava):
    chat = load_chat_model(llava)
    assert chat.eyes
    counts = {}
    for probe in load_picture_probes(data):
        number = chat.encode(probe.messages).count(chat.eyes.token)
        counts.setdefault(probe.kind, set()).add(number)
    assert counts["no_image"] == counts["blind"] == {0}
    assert {
        kind: found for kind, found in counts.items() if kind not in ("no_image", "blind")
    } == dict.fromkeys(
        ("name", "kind", "yes_no", "count", "colour", "language", "several", "identity", "multi_turn"),
        {chat.eyes.tokens},
    )


def test_inventing_a_picture_that_was_not_given_is_wrong(data):
    blind = [probe for probe in load_picture_probes(data) if probe.kind == "blind" and probe.lang == "en"]
    card = score_pictures(blind, ["It is a dog.", "I see no picture. Please send one."])
    assert card["right"]["held_out"]["blind"]["en"] == 0.5


def test_a_part_is_even_and_the_same_each_time(data, tmp_path):
    probes = load_picture_probes(write_data(tmp_path / "data", ROWS * 20))
    part = even_part(probes, 110)
    assert part == even_part(probes, 110)
    assert part != even_part(probes, 110, seed=1)
    assert len(part) == 110
    of_kind = {row[0]: sum(probe.kind == row[0] for probe in part) for row in ROWS[2:9]}
    assert max(of_kind.values()) - min(of_kind.values()) <= 1
    more = even_part(load_picture_probes(write_data(tmp_path / "more", ROWS * 20 + ROWS[2:3] * 60)), 110)
    kinds = [probe.kind for probe in more]
    assert 3 < kinds.count("kind") / kinds.count("yes_no") < 5, "four times as many are asked as are there"
    assert even_part(probes, 0) == probes
    with pytest.raises(ValueError, match="0 \\(all questions\\) or more"):
        even_part(probes, -1)


def test_a_stamp_is_asked_for_its_name_in_each_language(tmp_path):
    Image.new("RGB", (20, 20), "brown").save(tmp_path / "dog.png")
    (tmp_path / "dog.txt").write_text("A dog.\n", encoding="utf-8")
    probes = stamp_probes(stamps(tmp_path))
    assert [(probe.lang, probe.style) for probe in probes] == [("en", "stamps"), ("zh", "stamps")]
    assert score_pictures(probes, ["A dog", "一只狗"])["right"] == {
        "stamps": {"name": {"en": 1.0, "zh": 1.0}}
    }


def test_the_linear_probes_file_is_read_and_another_refused(tmp_path):
    path = tmp_path / "probe.json"
    path.write_text('{"pictures": 9, "styles": {"twemoji": {"right": 0.75, "of": 100}}}', encoding="utf-8")
    assert load_probe_shares(path) == {"twemoji": (0.75, 100)}
    path.write_text('{"styles": {"twemoji": 0.75}}', encoding="utf-8")
    with pytest.raises(ValueError, match="is no file of benchmarks/picture_probe"):
        load_probe_shares(path)
    with pytest.raises(ValueError, match="does not exist"):
        load_probe_shares(tmp_path / "none.json")


def test_every_threshold_can_be_missed_and_met(data):
    """A misspelt one would be met by everything."""
    known = {kind for shares in score(data, RIGHT)["right"].values() for kind in shares} | {"multi_turn"}
    paths = [path for path in limits_of(score(data, RIGHT)["thresholds"]) if path != ("retention", "kl")]
    assert {path[0] for path in paths} == {"right", "heeded", "of_probe"}
    assert {path[1] for path in paths} <= {"held_out", "seen", "stamps"}
    assert {path[2] for path in paths} <= known
    assert {path[3] for path in paths} == {"en", "zh"}


def test_the_card_is_saved_as_json_table_and_picture(data, tmp_path):
    shares = {"twemoji": (0.8, 10), "fxemoji": (0.7, 10)}
    card = score(data, TITLES, model="models/a|b", probe_shares=shares, retention={"kl": 0.001})
    save_pictures(card, tmp_path)
    kept = json.loads((tmp_path / "scorecard.json").read_text(encoding="utf-8"))
    assert kept["right"] == card["right"] and kept["titled"] == card["titled"]
    table = (tmp_path / "scorecard.md").read_text(encoding="utf-8")
    assert table == markdown(card)
    assert "models/a\\|b" in table
    assert (
        "| unseen styles 未见画风 / kind 种类 | en | 0.000 | 0.000 – 0.793 | 0.000 | 1.000 | 1 | ≥ 0.9 |"
        in table
    )
    assert "| twemoji | 1.000 (1) | - | 0.800 (10) |" in table
    assert "| KL 散度 (nats/token) | 0.00100 | ≤ 0.004 |" in table
    with Image.open(tmp_path / "scorecard.png") as picture:
        assert picture.width > 600
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "scorecard.json", "scorecard.md", "scorecard.png",
    ]  # fmt: skip


def test_evaluate_asks_a_model_with_eyes_and_keeps_its_chat(data, llava, llm, tmp_path, evaluate, capsys):
    settings = evaluate.Settings(
        model=str(llava), out=tmp_path / "card", name="Ada", base=str(llm), images=data, image_probes=12,
        stamps=False, max_new_tokens=4,
    )  # fmt: skip
    with pytest.raises(ThresholdMissed, match="right held_out .* wanted at least"):
        evaluate.main(settings)
    card = json.loads((tmp_path / "card" / "scorecard.json").read_text(encoding="utf-8"))
    assert sum(n for kinds in card["counts"]["held_out"].values() for n in kinds.values()) == 12
    assert abs(card["retention"]["kl"]) < 1e-6, "eyes alone change no word of chat"
    assert card["retention"]["top1"] == 1 and card["retention"]["same_answer"] == 1
    assert "unseen styles" in capsys.readouterr().out
    assert (tmp_path / "card" / "settings.toml").is_file()


def test_evaluate_tells_a_base_whose_chat_is_another(data, llava, llm, tmp_path, evaluate):
    other = spacious_model(tmp_path / "other")
    from safetensors.torch import load_file, save_file

    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * 1.5
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    settings = evaluate.Settings(
        model=str(llava), out=tmp_path / "card", base=str(other), images=data, image_probes=4,
        stamps=False, max_new_tokens=4,
    )  # fmt: skip
    with pytest.raises(ThresholdMissed, match="retention kl is"):
        evaluate.main(settings)


def test_a_model_of_text_alone_is_refused_with_one_sentence(data, llm, tmp_path):
    command = [sys.executable, "scripts/evaluate.py", "--images", str(data), "--model", str(llm)]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "card"), "--no-stamps"],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    sentence = done.stderr.strip().splitlines()[-1]
    assert sentence.startswith("error:") and "reads text alone; --images asks" in sentence
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "card").exists()


def test_the_sample_sheet_shows_every_kind_and_is_small(data, tmp_path):
    samples = runpy.run_path(str(REPOSITORY / "benchmarks" / "picture_samples.py"))
    try:
        font = samples["find_font"]()
    except RuntimeError as missing:
        pytest.skip(str(missing))
    probes = load_picture_probes(data)
    chosen = samples["chosen"](probes, 8, 0)
    assert chosen == samples["chosen"](probes, 8, 0)
    assert [probe.kind for probe in chosen[:3]] == ["name", "yes_no", "count"], "languages in turn"
    assert {probe.kind for probe in chosen} == {
        row[0].partition("_e")[0].partition("_z")[0] for row in ROWS[:8]
    }
    path = tmp_path / "sheet.png"
    samples["save_sheet"](samples["draw_sheet"](chosen, ["A dog"] * 8, ["一只狗" * 90] * 8, font, 0), path)
    assert path.stat().st_size < 300_000
    with Image.open(path) as sheet:
        colours = {colour for _, colour in sheet.convert("RGB").getcolors(300)}
    assert (21, 128, 61) in colours and (185, 28, 28) in colours, "right and wrong are both drawn"


def test_a_long_answer_is_cut_on_the_sheet(tmp_path):
    samples = runpy.run_path(str(REPOSITORY / "benchmarks" / "picture_samples.py"))

    class Fixed:
        def getlength(self, text: str) -> float:
            return float(len(text))

    assert samples["wrapped"]("a dog and a cat", Fixed(), 9) == ["a dog and", "a cat"]
    assert samples["wrapped"]("one two three four five", Fixed(), 9) == ["one two", "three…"]
    assert samples["wrapped"]("一二三四五六七八九", Fixed(), 3) == ["一二三", "四五…"]


def test_the_room_loads_no_heavy_library():
    heavy = "{'torch', 'transformers', 'matplotlib'}"
    code = f"import sys, assistant.picture_report; print({heavy} & set(sys.modules))"
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == "set()"
