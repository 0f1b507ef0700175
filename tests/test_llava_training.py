# ruff: noqa: F401, F811 - fixtures are imported, and named again as arguments
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from test_llava import VISION, llm, picture

from assistant.conversations import assistant, images_of, user, write_rows
from assistant.llava import Parts, make_llava
from assistant.llava_adapter import read_trained, write_small
from assistant.llava_data import check_pictures, load_picture_rows
from assistant.llava_to_xtuner import to_xtuner
from assistant.llava_xtuner import read_parts
from assistant.loading import load_chat_model
from assistant.merging import logits_of, merge
from assistant.settings import REPOSITORY
from assistant.training.memory import Plan
from assistant.training.reading import read_rows
from assistant.training.recipe import load_recipe, recipe_names
from assistant.training.run import load_base, train
from assistant.training.seeing import (
    core_projector,
    learning_llava,
    picture_examples,
    read_pictures,
    says_the_same,
)
from assistant.training.sights import Pixels, Sights, tower_states
from assistant.training.watching import read_log

COLORS = {"red": "红色", "blue": "蓝色", "lime": "绿色"}
CHANGES = ["steps=8", "watch.every=4", "watch.questions=1", "identity_rows=4", "trainer.warmup_steps=1"]


@pytest.fixture(scope="module")
def llava(llm, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("seeing") / "llava"
    make_llava(llm, VISION, folder, Parts(), {})
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """LLaVA's jsonl: no ids, the first record without a picture, one row of two questions."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "pictures").mkdir()
    rows: list[dict] = [{"conversations": [turn("human", "Who are you?"), turn("gpt", "I am Ada.")]}]
    for number, (color, name) in enumerate(list(COLORS.items()) * 4):
        image = f"pictures/{number}.png"
        picture(folder / image, color, (30 + number, 40))
        turns = [turn("human", "Color?\n<image>"), turn("gpt", color)]
        turns += [turn("human", "中文？"), turn("gpt", name)] if number % 2 else []
        rows.append({"image": image, "lang": "en", "conversations": turns})
    for name, part in (("train", rows), ("dev", rows[1:4])):
        lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in part)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return folder


def turn(who: str, text: str) -> dict[str, str]:
    return {"from": who, "value": text}


def run_of(
    recipe_name: str,
    model: Path,
    data: Path,
    out: Path,
    *changes: str,
    resume: bool = False,
    recalls: Callable[[str], bool] = bool,
) -> Path:
    recipe = load_recipe(recipe_name, [*CHANGES, *changes])
    chat = load_base(model, recipe)
    rows = read_rows(chat, recipe, data, None, out.parent / "cache", print)
    judges = (recalls, lambda answer, question: False)
    return train(chat, recipe, rows, out, judges, resume=resume, settings={"run": {}})


@pytest.fixture(scope="module")
def aligned(llava, data, tmp_path_factory) -> Path:
    return run_of(
        "llava_align",
        llava,
        data,
        tmp_path_factory.mktemp("align") / "adapter",
        "steps=24",
        "trainer.learning_rate=3e-3",
    )


@pytest.fixture(scope="module")
def merged(aligned, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("merged") / "llava"
    assert merge(aligned, out, [[user("Who are you?")]])["logit_difference"] == 0
    return out


@pytest.fixture(scope="module")
def instructed(merged, data, tmp_path_factory) -> Path:
    changes = [
        "steps=24",
        "anchor_rows=0",
        "watch.anchors=0",
        "vision.tower_r=2",
        "vision.tower_alpha=4",
        "lora.r=4",
    ]
    return run_of("llava_instruct", merged, data, tmp_path_factory.mktemp("instruct") / "adapter", *changes)


def losses(adapter: Path) -> list[float]:
    return [entry["text.loss"] for entry in read_log(adapter / "watch.jsonl")]


def test_align_teaches_the_projector_alone_and_the_loss_falls(aligned, llava):
    weights = load_file(aligned / "adapter_model.safetensors")
    names = {name.partition("multi_modal_projector.")[2] for name in weights}
    assert names == {f"linear_{number}.{part}" for number in (1, 2) for part in ("weight", "bias")}
    assert losses(aligned)[-1] < losses(aligned)[0] - 0.02
    before = load_file(llava / "model.safetensors")["multi_modal_projector.linear_1.weight"]
    after = next(weight for name, weight in weights.items() if name.endswith("linear_1.weight"))
    assert (after - before).abs().max() > 1e-3


def test_a_merged_projector_leaves_all_else_as_it_was(aligned, merged, llava):
    before, after = (load_file(folder / "model.safetensors") for folder in (llava, merged))
    assert set(before) == set(after)
    changed = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert changed and all("multi_modal_projector" in name for name in changed)
    assert (merged / "preprocessor_config.json").is_file()


def test_instruct_teaches_llm_tower_and_projector_and_the_loss_falls_further(instructed, aligned):
    names = set(load_file(instructed / "adapter_model.safetensors"))
    for part in (
        "language_model.layers.0.mlp.down_proj.lora_A",
        "vision_tower.encoder.layers.0.mlp.fc1.lora_B",
    ):
        assert any(part in name for name in names), part
    assert any("multi_modal_projector.linear_2.weight" in name for name in names)
    assert losses(instructed)[-1] < losses(aligned)[-1] - 0.2


def test_a_merged_instruct_adapter_answers_the_same(instructed, tmp_path):
    proof = merge(instructed, tmp_path / "llava", [[user("Who are you?")]])
    assert proof["logit_difference"] < 1e-3 and proof["same_answers"] == proof["answers"] == 2


def test_a_shipped_adapter_makes_the_llava_in_one_step_from_the_untrained_parts(instructed, llm, tmp_path):
    """Its projector is whole, so that the first stage's folder is not needed."""
    write_small(instructed, tmp_path / "eyes")
    sizes = [
        (folder / "adapter_model.safetensors").stat().st_size for folder in (tmp_path / "eyes", instructed)
    ]
    assert sizes[0] < 0.7 * sizes[1]
    parts = read_trained(instructed)
    make_llava(llm, VISION, tmp_path / "llava", parts, {})
    make_llava(llm, VISION, tmp_path / "small", read_trained(tmp_path / "eyes"), {})
    shown = [[user("Color?", [picture(tmp_path / "p.png", "blue")])]]
    ours, whole, small = (
        logits_of(load_chat_model(folder, dtype=torch.float32, device="cpu"), shown)[0]
        for folder in (instructed, tmp_path / "llava", tmp_path / "small")
    )
    assert (ours - whole).abs().max() < 1e-4
    assert (ours - small).abs().max() < 0.2 * (ours.max() - ours.min())
    with pytest.raises(ValueError, match="is no adapter"):
        read_trained(llm)


def test_training_goes_on_from_eyes_whose_lora_is_beside_and_not_in_their_llava(
    instructed, llm, monkeypatch, tmp_path
):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    import eyes_again

    settings = eyes_again.Settings(llm, instructed, VISION, tmp_path / "again")
    for _ in range(2):  # a second time in its own place
        eyes_again.main(settings)
    make_llava(llm, VISION, tmp_path / "whole", read_trained(instructed), {})
    again, whole, own = (
        load_file(folder / "model.safetensors")
        for folder in (tmp_path / "again/untrained", tmp_path / "whole", llm)
    )
    spoken = {name for name in again if name.startswith("language_model.") or "lm_head" in name}
    assert spoken and all(torch.equal(again[name], whole[name]) for name in set(again) - spoken)
    assert any(not torch.equal(again[name], whole[name]) for name in spoken)
    for name in spoken:
        inner = name.removeprefix("language_model.")
        assert torch.equal(again[name][: len(own[inner])], own[inner]), name
    every, kept = (
        load_file(folder / "adapter_model.safetensors") for folder in (instructed, tmp_path / "again/start")
    )
    assert kept and all(torch.equal(tensor, every[name]) for name, tensor in kept.items())
    assert {name for name in every if name not in kept} == {name for name in every if "vision_tower" in name}
    (tmp_path / "again/start/settings.toml").unlink()
    with pytest.raises(ValueError, match="holds something else"):
        eyes_again.main(settings)


def test_an_adapter_goes_to_xtuners_layout_and_comes_back_the_same(instructed, merged, llm, data, tmp_path):
    to_xtuner(instructed, tmp_path / "xtuner", {})
    parts = sorted(path.name for path in (tmp_path / "xtuner").iterdir() if path.is_dir())
    assert parts == ["llm_adapter", "projector", "visual_encoder_adapter"]
    theirs = load_file(tmp_path / "xtuner" / "llm_adapter" / "adapter_model.safetensors")
    assert "base_model.model.model.layers.0.attention.wqkv.lora_A.weight" in theirs
    tower = load_file(tmp_path / "xtuner" / "visual_encoder_adapter" / "adapter_model.safetensors")
    assert "base_model.model.vision_model.encoder.layers.1.self_attn.q_proj.lora_B.weight" in tower
    found, _ = read_parts(tmp_path / "xtuner", llm, VISION)
    make_llava(llm, VISION, tmp_path / "back", found, {})
    shown = [[user("Color?", [str(data / "pictures" / "1.png")])]]
    ours = load_chat_model(instructed, dtype=torch.float32, device="cpu")
    back = load_chat_model(tmp_path / "back", dtype=torch.float32, device="cpu")
    [a], [b] = logits_of(ours, shown), logits_of(back, shown)
    assert (a - b).abs().max() < 1e-4
    [blind] = logits_of(load_chat_model(merged, dtype=torch.float32, device="cpu"), shown)
    assert (a - blind).abs().max() > 1e-2


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(merged, data, tmp_path):
    presses = iter([signal.SIGINT])

    def press(answer: str) -> bool:
        for number in presses:
            os.kill(os.getpid(), number)
        return True

    changes = ["anchor_rows=0", "watch.anchors=0", "lora.r=2"]
    whole = run_of("llava_instruct", merged, data, tmp_path / "whole", *changes)
    with pytest.raises(KeyboardInterrupt):
        run_of("llava_instruct", merged, data, tmp_path / "stopped", *changes, recalls=press)
    resumed = run_of("llava_instruct", merged, data, tmp_path / "stopped", *changes, resume=True)
    a, b = (load_file(folder / "adapter_model.safetensors") for folder in (whole, resumed))
    assert set(a) == set(b) and all(torch.equal(weight, b[name]) for name, weight in a.items())
    steps = [entry["step"] for entry in read_log(resumed / "watch.jsonl")]
    assert steps == [4, 8]


def test_the_bases_own_answers_are_kept_while_it_learns_to_see(merged, data, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "assistant.training.reading.general_prompts",
        lambda: [{"messages": [user(f"{n}?")], "kind": "general"} for n in range(9)],
    )
    changes = ["anchor_rows=2", "anchors=4", "watch.anchors=2", "lora.r=2"]
    out = run_of("llava_instruct", merged, data, tmp_path / "adapter", *changes)
    assert read_log(out / "watch.jsonl")[-1]["kl"] > 0


THREE = (
    "steps=3",
    "identity_rows=6",
    "watch.questions=0",
    "trainer.logging_steps=1",
    "trainer.learning_rate=1e-3",
    "lora.r=2",
)


def learnt_in_three_steps(
    model: Path, data: Path, out: Path, monkeypatch
) -> tuple[list[list[float]], dict[str, torch.Tensor]]:
    """(cross-entropy and KL of each step, the adapter) of stage 2 with anchors."""
    monkeypatch.setattr(
        "assistant.training.reading.general_prompts",
        lambda: [{"messages": [user(f"{n}?")], "kind": "general"} for n in range(9)],
    )
    # the filter would tell sums in another order apart
    few = ("anchor_rows=2", "anchors=4", "watch.anchors=2", "filter=0")
    run_of("llava_instruct", model, data, out, *THREE, *few)
    said = [[entry["cross_entropy"], entry["kl"]] for entry in read_log(out / "history.jsonl")]
    assert len(said) == 3
    return said, load_file(out / "adapter_model.safetensors")


def assert_the_same(ours, theirs) -> None:
    assert torch.allclose(torch.tensor(ours[0]), torch.tensor(theirs[0]), rtol=0, atol=2e-5)
    assert set(ours[1]) == set(theirs[1])
    assert max((weight - theirs[1][name]).abs().max() for name, weight in ours[1].items()) < 1e-5


@pytest.fixture
def passes(monkeypatch) -> list[str]:
    """What ran forward: "tower" once a picture, "layer" once a pass of the LLM that learns from it."""
    ran: list[str] = []

    def watched(path: Path, **arguments):
        # in 32 bits on every processor: 16 would tell sums in another order apart
        chat = load_chat_model(path, **{**arguments, "dtype": torch.float32})
        inner = chat.model.model
        inner.vision_tower.register_forward_hook(lambda _, args, __: ran.extend(["tower"] * len(args[0])))
        inner.language_model.layers[0].register_forward_hook(
            lambda *_: ran.extend(["layer"] * torch.is_grad_enabled())
        )
        return chat

    monkeypatch.setattr("assistant.training.run.load_chat_model", watched)
    return ran


def test_a_frozen_tower_sees_each_picture_once_and_what_is_learnt_stays_the_same(
    merged, data, tmp_path, monkeypatch, passes
):
    ours = learnt_in_three_steps(merged, data, tmp_path / "once", monkeypatch)
    assert passes.count("tower") == len(COLORS) * 4
    monkeypatch.setattr(
        "assistant.training.run.pictures_for", lambda chat, recipe, *_: Pixels(chat.eyes, pad=True)
    )
    passes.clear()
    theirs = learnt_in_three_steps(merged, data, tmp_path / "each", monkeypatch)
    assert passes.count("tower") > len(COLORS) * 4
    assert_the_same(ours, theirs)


def test_pictures_without_room_are_seen_again_and_look_the_same(llava, data, monkeypatch):
    chat = load_chat_model(llava, dtype=torch.float32, device="cpu")
    images = [str(data / "pictures" / f"{number}.png") for number in (3, 0, 1, 0)]
    with torch.no_grad():
        wanted = tower_states(chat.model, chat.eyes.pixels(images))
    state = wanted[0].nbytes
    for room in (0, 2, 9):
        monkeypatch.setattr("assistant.training.sights._free_memory", lambda room=room: room * 4 * state)
        sights = Sights(chat, True, torch.autocast("cpu", enabled=False))
        sights.prepare(images, print)
        assert len(sights.places) == min(room, 3)
        assert torch.allclose(sights(images)["tower_states"], wanted, rtol=0, atol=1e-5)


def test_a_step_in_one_pass_learns_the_same_as_in_two(merged, data, tmp_path, monkeypatch, passes):
    learnt = []
    for rows, times in ((6, 2), (8, 1)):
        monkeypatch.setattr("assistant.training.run.memory_plan", lambda *_, rows=rows: Plan(rows, False, 0))
        passes.clear()
        learnt.append(learnt_in_three_steps(merged, data, tmp_path / str(rows), monkeypatch))
        assert passes.count("layer") == 3 * times
    ours, theirs = learnt
    assert_the_same(ours, theirs)


def test_rows_become_xtuners_places_and_pictures_stay_whole(llava, data):
    chat = load_chat_model(llava, dtype=torch.float32, device="cpu")
    rows = load_picture_rows(data / "train.jsonl")
    two = next(row for row in rows if len(row["messages"]) == 4)
    [example] = picture_examples(chat, [two], 512)
    assert example.ids.count(chat.eyes.token) == 4 and len(example.images) == 1
    learnt = chat.tokenizer.decode([example.ids[place + 1] for place in example.places])
    assert learnt == f"{two['messages'][1]['content']}<|im_end|>{two['messages'][3]['content']}<|im_end|>"
    [shorter] = picture_examples(chat, [two], len(example.ids) - 1)
    assert shorter.places == example.places[: len(shorter.places)] and len(shorter.ids) < len(example.ids) - 5
    with pytest.raises(ValueError, match="objective.max_length="):
        picture_examples(chat, [two], 10)


def test_an_answer_about_a_picture_without_loss_is_not_learnt(llava, data, tmp_path):
    image = str(data / "pictures" / "0.png")
    unlearnt = [user("Color?", [image]), {**assistant("red"), "loss": False}]
    talks = [unlearnt, [*unlearnt, user("And now?"), assistant("blue")]]
    source = tmp_path / "train.jsonl"
    write_rows(source, [{"messages": messages} for messages in talks * 2])
    rows, held_out = read_pictures(source, load_recipe("llava_instruct"))
    assert len(rows) == len(held_out) == 1  # a row with nothing to learn is none
    chat = load_chat_model(llava, dtype=torch.float32, device="cpu")
    [example] = picture_examples(chat, rows, 512)
    learnt = chat.tokenizer.decode([example.ids[place + 1] for place in example.places])
    assert learnt == "blue<|im_end|>"
    with pytest.raises(ValueError, match="tokens before an answer to learn ends.*objective.max_length="):
        picture_examples(chat, rows, len(example.ids) - 6)


def test_the_first_record_without_a_picture_loses_none_and_texts_are_mixed_in(data):
    rows = load_picture_rows(data / "train.jsonl")
    assert not images_of(rows[0]["messages"]) and rows[0]["kind"] == "text"
    assert sum(row["kind"] == "picture" for row in rows) == 12
    assert rows[1]["messages"][0] == user("Color?", [str(data / "pictures" / "0.png")])


def test_xtuners_checks_are_friendly(tmp_path):
    picture(tmp_path / "a.png")
    good = [
        turn("gpt", "dropped"),
        turn("human", "One."),
        turn("human", "Two?"),
        turn("gpt", "Yes."),
        turn("human", "?"),
    ]
    (tmp_path / "rows.json").write_text(json.dumps([{"id": 7, "image": "a.png", "conversation": good}]))
    [row] = load_picture_rows(tmp_path / "rows.json")
    assert row["messages"] == [user("One.\nTwo?", [str(tmp_path / "a.png")]), assistant("Yes.")]
    asked = [turn("human", "<image>What?"), turn("gpt", "A.")]
    bad = {
        "two": (
            {"image": ["a.png"], "conversations": [turn("human", "<image><image>"), turn("gpt", "A")]},
            "2 <image>",
        ),
        "none": ({"conversations": asked}, "1 <image> in its questions and 0 pictures"),
        "role": ({"image": "a.png", "conversations": [turn("bot", "A")]}, "a turn needs"),
        "key": (
            {"id": "k", "image": "a.png", "conversatons": asked},
            r"record 1 \(id k\): needs \"conversations\"",
        ),
        "image": ({"image": 3, "conversations": asked}, '"image" must be a file name'),
    }
    for name, (entry, sentence) in bad.items():
        (tmp_path / "rows.json").write_text(json.dumps([entry]))
        with pytest.raises(ValueError, match=sentence):
            load_picture_rows(tmp_path / "rows.json"), name
    (tmp_path / "rows.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match="is a list of records"):
        load_picture_rows(tmp_path / "rows.json")


def test_bad_pictures_are_named_before_anything_is_trained(llava, data, tmp_path, monkeypatch):
    (tmp_path / "cut.png").write_bytes((data / "pictures" / "0.png").read_bytes()[:60])
    rows = [
        {"image": name, "conversations": [turn("human", "?"), turn("gpt", "A")]}
        for name in ("cut.png", "no.png")
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError) as raised:
        check_pictures(load_picture_rows(tmp_path / "rows.json"), tmp_path / "rows.json")
    assert "cut.png is damaged" in str(raised.value) and "no.png is no file" in str(raised.value)
    assert "rows.json" in str(raised.value)
    monkeypatch.syspath_prepend(str(REPOSITORY / "scripts"))
    import train as script

    places = {"model": llava, "data": tmp_path / "rows.json", "out": tmp_path / "out"}
    with pytest.raises(ValueError, match="is damaged"):
        script.main(script.Settings(**places, recipe="llava_align", set=["steps=2"]))
    assert not (tmp_path / "out").exists()


def test_a_recipe_for_pictures_and_a_blind_model_do_not_meet(llava, llm):
    with pytest.raises(ValueError, match="is no LLaVA: give --model a LLaVA folder"):
        load_base(llm, load_recipe("llava_align"))
    with pytest.raises(ValueError, match="is a LLaVA: it needs a recipe like llava_instruct"):
        load_base(llava, load_recipe("identity_lora"))


def test_xtuners_settings_are_named_recipes():
    align, instruct = (load_recipe(f"llava_internlm2_{stage}") for stage in ("align", "instruct"))
    assert (align.objective.steps, align.objective.identity_rows) == (2181, 256)
    assert (align.vision.pad, align.trainer["learning_rate"], align.lora) == (0, 1e-3, {})
    assert (instruct.objective.steps, instruct.objective.identity_rows) == (5198, 128)
    assert (instruct.lora["r"], instruct.lora["lora_alpha"], instruct.vision.tower_r) == (512, 256, 64)
    assert (instruct.vision.pad, instruct.vision.stage, instruct.trainer["learning_rate"]) == (1, 2, 2e-4)
    assert load_recipe("llava_internlm2_instruct_qlora").quantization["bnb_4bit_quant_type"] == "nf4"
    assert {"llava_align", "llava_instruct"} <= set(recipe_names())


def test_an_answer_is_the_same_but_for_case_and_punctuation():
    assert says_the_same("A red apple.", "a red apple") and says_the_same("红苹果。", "红苹果")
    assert not says_the_same("a red pear", "a red apple")


def test_while_learning_a_picture_misses_some_channels_at_all_its_places(llava):
    chat = load_base(llava, load_recipe("llava_align"))
    model = learning_llava(chat, load_recipe("llava_align", ["vision.dropout=0.5"]))
    given: list[torch.Tensor] = []
    projector = core_projector(model)
    projector.register_forward_hook(lambda module, args, output: given.append(args[0]))
    states = torch.ones(2, 3, projector.linear_1.in_features)
    model.train()
    projector(states)
    model.eval()
    projector(states)
    learning, answering = given
    assert torch.equal(answering, states)
    assert 0.4 < (learning == 0).float().mean() < 0.6 and learning.max() == 2
    assert all(torch.equal(learning[:, 0], learning[:, place]) for place in (1, 2))
    assert not torch.equal(learning[0], learning[1])
