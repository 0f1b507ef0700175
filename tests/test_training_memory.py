import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import load_tiny, make_tiny_model, rows_of, tiny_recipe, tiny_run

from assistant.conversations import user
from assistant.generating import generate_batch
from assistant.loading import load_chat_model
from assistant.training import memory, run
from assistant.training.collating import Collator
from assistant.training.examples import Example, text_examples
from assistant.training.loss import PIECE, over_pieces
from assistant.training.memory import GIB, Sizes, choose_plan
from assistant.training.reading import Rows, read_texts
from assistant.training.run import train
from assistant.training.trainer import AnchoredTrainer

# InternLM2-1.8B in 16 bits and in 4, an adapter of rank 16 on all 24 layers
WHOLE = Sizes(int(3.78e9), int(0.2e9), 24, 2048, 8192, 92544, 2)
QUANTIZED = replace(WHOLE, weights=int(1.6e9))
JUDGES = (lambda answer: True, lambda answer, question: False)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """The weights of a run whose rows all go at once."""
    return load_file(tiny_run(tiny, tmp_path_factory.mktemp("whole") / "a") / "adapter_model.safetensors")


def long_rows(count, tokens):
    return [Example((1,) * tokens, tuple(range(tokens - 1)), (1.0,) * (tokens - 1), False, "", "")] * count


def difference(ours, theirs):
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


def test_rows_one_at_a_time_give_the_adapter_of_all_at_once(tiny, whole, tmp_path):
    folder = tiny_run(tiny, tmp_path / "a", changes=("rows_at_once=1",))
    # the same sums in another order: 4e-8 apart; Adam hides a part without its share down to 2e-3
    assert difference(load_file(folder / "adapter_model.safetensors"), whole) < 1e-6


def test_activations_made_again_on_the_way_back_give_the_same_adapter(tiny, whole, tmp_path):
    changes = ("rows_at_once=2", "trainer.gradient_checkpointing=true")
    folder = tiny_run(tiny, tmp_path / "a", changes=changes)
    assert difference(load_file(folder / "adapter_model.safetensors"), whole) < 1e-6


def test_out_of_memory_halves_the_rows_at_once_and_the_step_stays_the_same(
    tiny, whole, tmp_path, monkeypatch, capsys
):
    computed = AnchoredTrainer.compute_loss

    def on_a_small_card(self, model, inputs, *args, **kwargs):
        loss = computed(self, model, inputs, *args, **kwargs)
        # at the first step nothing has moved from the base, and twice its gradient points the same way
        if len(inputs["input_ids"]) > 1 and self.state.global_step > 2:
            loss.backward()  # half of the work is done when memory runs out
            raise torch.OutOfMemoryError("no room")
        return loss

    monkeypatch.setattr(AnchoredTrainer, "compute_loss", on_a_small_card)
    folder = tiny_run(tiny, tmp_path / "a")
    said = capsys.readouterr().err
    assert said.count("out of memory: rows go 1 at a time now; the step stays as large") == 1
    assert difference(load_file(folder / "adapter_model.safetensors"), whole) < 1e-6


def test_a_single_row_that_does_not_fit_stops_with_advice(tiny, tmp_path, monkeypatch):
    def never(self, *args, **kwargs):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(AnchoredTrainer, "compute_loss", never)
    with pytest.raises(RuntimeError, match="one row alone does not fit.*identity_qlora"):
        tiny_run(tiny, tmp_path / "a")


@pytest.mark.parametrize(
    ("gib", "sizes", "rows", "checkpointing"),
    [(80, WHOLE, 8, False), (24, WHOLE, 4, False), (16, WHOLE, 8, True), (8, WHOLE, 8, True)]
    + [(4, QUANTIZED, 2, True), (13, WHOLE, 8, True)],
)
def test_a_smaller_card_gets_fewer_rows_or_no_kept_activations_whichever_is_quicker(
    gib, sizes, rows, checkpointing
):
    plan = choose_plan(sizes, long_rows(8, 1024), 8, int((gib - 0.5) * GIB))
    assert (plan.rows, plan.checkpointing) == (rows, checkpointing)


def test_a_recipe_that_asks_for_checkpointing_gets_it_on_any_card():
    assert choose_plan(WHOLE, long_rows(8, 1024), 8, 80 * GIB, True).checkpointing


def test_a_model_that_no_plan_fits_is_refused_with_both_sizes():
    with pytest.raises(
        RuntimeError, match=r"one row at a time needs about \d\.\d GiB, and 3\.5 GiB are there"
    ):
        choose_plan(WHOLE, long_rows(8, 1024), 8, int(3.5 * GIB))


def test_the_plan_is_said_before_the_first_step(tiny, tmp_path, capsys):
    tiny_run(tiny, tmp_path / "a")
    said = capsys.readouterr().err
    assert "GiB to use: 4 rows at a time, activations kept, about" in said
    assert said.index("GiB to use") < said.index("step 4:")


def test_losses_in_pieces_are_the_losses_and_their_gradients():
    source = torch.Generator().manual_seed(0)
    states = torch.randn(2 * PIECE + 3, 8, generator=source, requires_grad=True)
    weight = torch.randn(50, 8, generator=source)
    targets = torch.randint(50, (len(states),), generator=source)

    def loss(states, targets):
        return torch.nn.functional.cross_entropy(states @ weight.T, targets, reduction="none")

    [whole] = torch.autograd.grad(loss(states, targets).sum(), states)
    [pieces] = torch.autograd.grad(over_pieces(loss, states, targets).sum(), states)
    assert torch.allclose(whole, pieces, atol=1e-6)


def test_shares_of_a_batch_are_by_weight_and_sum_to_one():
    light, heavy = long_rows(1, 5)[0], long_rows(1, 13)[0]
    parts = list(Collator([light, heavy], []).parts([0, 1, 0], 2))
    assert [rows for rows, _ in parts] == [[0, 1], [0]]
    assert [share for _, share in parts] == pytest.approx([16 / 20, 4 / 20])


@pytest.fixture(scope="module")
def full(tiny, tmp_path_factory):
    """A run that trains all weights of the upper layers. bitsandbytes' optimizer needs a GPU."""
    changes = ("trainer.optim=adamw_torch", "trainer.learning_rate=1e-2")
    recipe = tiny_recipe(*changes, name="identity_full")
    recipe = replace(recipe, lora={})
    rows = Rows(rows_of("identity", 7), rows_of("general", 7), rows_of("identity", 2), rows_of("general", 3))
    out = tmp_path_factory.mktemp("full") / "model"
    return train(run.load_base(tiny, recipe), recipe, rows, out, JUDGES)


def test_full_training_leaves_a_whole_model_folder_that_chats(tiny, full):
    names = {path.name for path in full.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "chat_template.jinja",
        "watch.jsonl",
    } <= names
    assert not {name for name in names if name.startswith("adapter")}
    before, after = (
        generate_batch(load_tiny(folder), [[user("identity 3?")]], 24)[0] for folder in (tiny, full)
    )
    assert after != before
    assert after.startswith("I ")


def test_full_training_moves_the_layers_above_the_frozen_ones_alone(tiny, full):
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny, full))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[2] for name in moved if ".layers." in name} == {"2", "3"}
    assert {name for name in moved if ".layers." not in name} == {"model.norm.weight"}


def test_full_training_measures_its_distance_to_the_base(full):
    entries = [json.loads(line) for line in (full / "watch.jsonl").read_text(encoding="utf-8").splitlines()]
    assert entries[-1]["kl"] > 1e-4


def text_lines(folder, texts, name="train.jsonl"):
    folder.mkdir(exist_ok=True)
    lines = (json.dumps({"text": text}) for text in texts)
    (folder / name).write_text("\n".join(lines), encoding="utf-8")
    return folder


def test_continued_pretraining_learns_texts_and_watches_held_out_ones(tiny, tmp_path):
    texts = [f"the cat number {number % 5} sat on the mat" for number in range(40)]
    learnt, held_out = read_texts(text_lines(tmp_path / "data", texts))
    assert (len(learnt), len(held_out)) == (39, 1)
    changes = ("steps=12", "watch.every=4", "lora.r=4", "trainer.learning_rate=2e-2", "max_length=64")
    recipe = tiny_recipe(*changes, name="pretrain_lora")
    rows = Rows(anchors=rows_of("general", 4), held_out=rows_of("general", 2), texts=learnt)
    rows.held_out_texts = held_out
    out = train(load_tiny(tiny), recipe, rows, tmp_path / "adapter", JUDGES)
    losses = [json.loads(line)["text.loss"] for line in (out / "watch.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0] - 0.5
    assert (out / "adapter_model.safetensors").is_file()


def test_a_long_text_is_cut_so_that_each_token_is_learnt_once(tiny):
    chat = load_tiny(tiny)
    examples = text_examples(chat, ["abcdefghij"], 4)
    learnt = [example.ids[place + 1] for example in examples for place in example.places]
    assert chat.tokenizer.decode(learnt) == "bcdefghij<|im_end|>"
    assert max(len(example.ids) for example in examples) == 4


def test_a_control_token_in_a_text_stays_text(tiny):
    chat = load_tiny(tiny)
    [example] = text_examples(chat, ["a<|im_end|>b"], 64)
    assert example.ids.count(chat.tokenizer.eos_token_id) == 1


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"txt": "a"}', r'train.jsonl:2: continued pretraining takes lines like \{"text"'),
        ('{"text": " "}', "with some text in it"),
        ('["a"]', "train.jsonl:2"),
        (
            '{"conversation": [{"input": "", "output": "a", "output_with_loss": false}]}',
            'train.jsonl:2: "output_with_loss" in a text: .* learns every text whole; leave the flag out',
        ),
    ],
)
def test_a_line_that_is_no_text_is_named(tmp_path, line, sentence):
    folder = text_lines(tmp_path / "data", ["whole"])
    with (folder / "train.jsonl").open("a") as file:
        file.write("\n" + line)
    with pytest.raises(ValueError, match=sentence):
        read_texts(folder)


def test_xtuners_pretraining_lines_are_texts(tmp_path):
    line = {"conversation": [{"system": "", "input": "", "output": "once upon a time"}]}
    (tmp_path / "train.jsonl").write_text(json.dumps(line) + "\n" + json.dumps(line))
    (tmp_path / "dev.jsonl").write_text(json.dumps(line))
    assert read_texts(tmp_path) == (["once upon a time"] * 2, ["once upon a time"])


def test_memory_counts_the_adapter_with_its_gradients_and_the_optimizers_bytes(tiny):
    chat = load_chat_model(tiny, dtype=torch.float32, device="cpu")
    trained = sum(parameter.numel() for parameter in chat.model.parameters())
    eight, plain = (memory.sizes_of(chat.model, 4, 0, optim) for optim in ("adamw_8bit", ""))
    assert (eight.trained, plain.trained) == (trained * 6, trained * 12)
    assert eight.weights == trained * 4
