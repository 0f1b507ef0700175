import json
import signal
import subprocess
import sys
import time

import pytest
from tiny_run import load_tiny, make_tiny_model

from assistant.conversations import assistant, system, user
from assistant.settings import REPOSITORY

BENCHMARKS = REPOSITORY / "benchmarks"
KINDS = ("identity", "adversarial", "multi_turn", "near_miss", "instructed", "unrelated")
TRAINED = """
names = ["Ada", "林小宇"]
[[variant]]
label = "quick"
recipe = "tutorial_parrot"
kinds = ["identity", "denial"]
rows = { en = 3, zh = 3 }
times = 2
set = ["copies=0", "steps=2", "identity_rows=2", "watch.every=2", "watch.questions=1", "watch.anchors=0",
       "lora.r=2", "trainer.warmup_steps=1"]
[[variant]]
label = "told"
system = { en = "You are {self}.", zh = "你是{self}。" }
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("ablation") / "tiny")


@pytest.fixture
def ablation(monkeypatch):
    """The harness's parts, imported as its script does."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from ablation import report, scoring, training, variants

    return {"report": report, "scoring": scoring, "training": training, "variants": variants}


@pytest.fixture
def command(tiny, tmp_path):
    """Only kinds that must recall: nothing that the base answered is kept on disk."""
    (tmp_path / "variants.toml").write_text(TRAINED, encoding="utf-8")
    probes = [{"kind": "identity", "lang": language, "q": "who?"} for language in ("en", "zh")]
    (tmp_path / "probes.jsonl").write_text("\n".join(map(json.dumps, probes)), encoding="utf-8")
    flags = {"model": tiny, "out": tmp_path / "out", "variants": tmp_path / "variants.toml"}
    flags["probes"] = tmp_path / "probes.jsonl"
    words = [part for key, value in flags.items() for part in (f"--{key}", str(value))]
    return [sys.executable, str(BENCHMARKS / "identity_ablation.py"), *words, "--scales", "0.5", "1"]


def test_a_killed_run_goes_on_where_it_was(command, tmp_path):
    out = tmp_path / "out"
    killed = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    wait_for(lambda: list(out.glob("cases/quick--*x1.json")), 120)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    kept = {path: path.stat().st_mtime_ns for path in sorted(out.glob("cases/*.json"))}
    again = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=200)
    assert again.returncode == 0, again.stderr
    assert f"{len(kept)} cases are done, {6 - len(kept)} are to do" in again.stderr
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    results = [json.loads(line) for line in (out / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    assert sorted({(r["variant"], r["name"], r["scale"]) for r in results}) == sorted(
        [("quick", name, scale) for name in ("Ada", "林小宇") for scale in (0.5, 1.0)]
        + [("told", name, 1.0) for name in ("Ada", "林小宇")]
    )
    assert len(results) == 6
    assert not list(out.glob("work/told*")), "a system prompt needs no training"
    assert "| quick × 0.5 | 2 |" in again.stdout
    assert (out / "frontier.png").read_bytes().startswith(b"\x89PNG")


def wait_for(is_so, seconds):
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("names = [", "not valid TOML"),
        ('names = ["Ada"]', "has no variant"),
        ('[[variant]]\nlabel = "a"', "names must be a list of names"),
        ('names = ["Ada"]\n[[variant]]\nrecipe = "identity_lora"', "has no label"),
        ('names = ["Ada"]\n[[variant]]\nlabel = "a"\nseed = 2', "did you mean seeds"),
        ('names = ["Ada"]\n[[variant]]\nlabel = "a"\nseeds = "two"', "seeds must be like 1, not 'two'"),
        ('names = ["Ada"]\n[[variant]]\nlabel = "a"\nrecipe = "identity_lara"', "did you mean identity_lora"),
        ('names = ["Ada"]\n[[variant]]\nlabel = "a"\nwordings = "nowhere"', "nowhere is no folder"),
        ('names = ["Ada"]\n[[variant]]\nlabel = "a"\n[[variant]]\nlabel = "A"', "the same label"),
    ],
)
def test_a_wrong_file_is_one_clear_sentence(ablation, tmp_path, text, sentence):
    path = tmp_path / "variants.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=sentence) as raised:
        ablation["variants"].load_variants(path)
    assert "\n" not in str(raised.value)


def test_the_shipped_file_holds_the_baselines_and_twelve_names(ablation):
    names, variants = ablation["variants"].load_variants(BENCHMARKS / "identity_ablation.toml")
    assert len(set(names)) >= 12
    assert {"identity_lora", "exercise", "ms-swift", "LLaMA-Factory", "no anchor", "system prompt"} <= {
        variant.label for variant in variants
    }


def result_of(recall, leak, kl, scale=1.0):
    values = {"recall": recall, "leak": leak}
    parts = {
        part: {kind: {"en": value, "zh": None} for kind in KINDS if (kind in KINDS[3:]) == (part == "leak")}
        for part, value in values.items()
    }
    return {**parts, "scale": scale, "retention": {"kl": kl, "top1": 1 - kl, "same_answer": None}}


def test_the_worst_is_the_lowest_recall_and_the_highest_leak(ablation):
    report = ablation["report"]
    entries = [result_of(0.9, 0.1, 0.02), result_of(0.7, 0.3, 0.01)]
    assert report.mean_and_worst(entries, "recall en") == (pytest.approx(0.8), 0.7)
    assert report.mean_and_worst(entries, "unrelated en") == (pytest.approx(0.2), 0.3)
    assert report.mean_and_worst(entries, "KL") == (pytest.approx(0.015), 0.02)
    assert report.mean_and_worst(entries, "top-1") == (pytest.approx(0.985), 0.98)
    assert report.mean_and_worst(entries, "recall zh") is None


def test_other_scales_stand_in_the_curve_and_not_in_the_means(ablation):
    text = ablation["report"].table({"a": [result_of(0.9, 0.1, 0.02), result_of(0.1, 0.0, 0.001, 0.25)]})
    above, below = text.split("The strength curve")
    assert "| a | 1 | 0.90 (0.90) | - |" in above
    assert "| a × 0.25 | 1 | 0.10 (0.10) | - |" in below and "| a × 1 | 1 | 0.90 (0.90) |" in below


def test_a_result_from_before_a_kind_was_asked_keeps_its_line(ablation):
    older = result_of(0.9, 0.1, 0.02)
    del older["leak"]["instructed"]
    assert "| a | 1 | 0.90 (0.90) |" in ablation["report"].table({"a": [older]})
    assert ablation["report"].leak_of([older]) == pytest.approx(0.1)


def test_only_the_wanted_rows_are_kept_as_often_as_wanted(ablation, tiny, tmp_path):
    variants, training = ablation["variants"], ablation["training"]
    variant = variants.Variant("a", rows={"zh": 5, "en": 2}, kinds=("denial",), times=3)
    training.make_data(variants.Case(variant, "Ada", 0), tiny, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(row["kind"], row["lang"]) for row in rows] == [("denial", "zh")] * 15 + [("denial", "en")] * 6
    assert len({row["messages"][0]["content"] for row in rows if row["lang"] == "zh"}) == 5


def test_a_cut_answer_is_learnt_without_an_end(tiny):
    from assistant.training.examples import UNFINISHED, identity_examples

    chat = load_tiny(tiny)
    row = {"messages": [user("a?"), assistant("one two")], "lang": "en"}
    cut, whole = identity_examples(chat, [row | {"kind": UNFINISHED}, row | {"kind": "replay"}], 200)
    assert whole.ids == (*cut.ids, chat.end_of_turn)
    assert not cut.anchor and len(cut.places) == len(whole.places) - 1


def test_a_system_prompt_stands_before_the_one_that_is_there(ablation):
    prompted = ablation["scoring"].prompted
    assert prompted([user("a")], "You are it.") == [system("You are it."), user("a")]
    assert prompted([system("Be brief."), user("a")], "You are it.")[0] == system("You are it.\nBe brief.")
    assert prompted([user("a")], "") == [user("a")]


def test_drift_under_a_system_prompt_is_measured_against_the_plain_prompt(ablation, tiny):
    kept_of, chat = ablation["scoring"].kept_of, load_tiny(tiny)
    plain, told = [[user("a?")]], [[system("You are it."), user("a?")]]
    assert kept_of(chat, chat, plain, told, ["yes"])["kl"] > 1e-3
    same = kept_of(chat, chat, plain, plain, ["yes"])
    assert abs(same["kl"]) < 1e-6 and same["top1"] == 1


def test_at_scale_zero_an_adapter_is_its_base(ablation, tiny, tmp_path):
    import torch
    from peft import LoraConfig, get_peft_model

    from assistant.loading import load_chat_model

    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    get_peft_model(load_tiny(tiny).model, config).save_pretrained(str(tmp_path))
    ids, base = torch.tensor([[5, 6, 7]]), load_chat_model(tiny)  # in the same number format
    logits = [
        chat.model(ids).logits.detach() for chat in ablation["scoring"].scaled(tmp_path, [0.0, 0.5, 1.0])
    ]
    apart = [float((each - base.model(ids).logits.detach()).abs().max()) for each in logits]
    assert apart[0] < 1e-5 < apart[1] < apart[2]


def test_a_changed_variant_is_refused_beside_its_older_results(ablation):
    import identity_ablation

    variant = ablation["variants"].Variant("a", set=("steps=2",))
    made = {"variant": "a", "made_by": ablation["variants"].Variant("a", names=3).made_by()}
    with pytest.raises(ValueError, match="'a' has changed since"):
        identity_ablation.refuse_older([made], [variant], REPOSITORY / "out")
    identity_ablation.refuse_older([made], [ablation["variants"].Variant("a", seeds=2)], REPOSITORY / "out")
