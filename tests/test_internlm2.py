"""InternLM2 against the original code's own logits, token ids and loss masks; fetching a whole one."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_fetch import (  # noqa: F401
    Hub,
    assert_one_sentence,
    command,
    environment,
    hub,
    run,
    size_now,
    tiny,
    wait_for,
)
from transformers import AutoModelForCausalLM

from assistant import internlm2, tensors
from assistant.conversations import assistant, row_from, system, user
from assistant.fetching import fetch, fetch_back
from assistant.folders import is_complete, old_identity_left
from assistant.formats import entry_of
from assistant.internlm2 import to_internlm2, to_llama
from assistant.internlm2_tokenizer import check_tokenizer
from assistant.loading import ChatModel, encode_chat, encode_text, load_chat_model, load_tokenizer
from assistant.settings import load_settings
from assistant.training.examples import Example, anchor_examples, identity_examples

DATA = Path(__file__).parent / "data" / "internlm2"
FIXTURES = ["tiny_gqa2", "dyn_below"]
BARS = {"eager": 2e-5, "sdpa": 5e-5}
TINY = {
    "model_type": "internlm2", "architectures": ["InternLM2ForCausalLM"], "torch_dtype": "float32",
    "vocab_size": 92544, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5, "rope_theta": 1_000_000, "rope_scaling": {"type": "dynamic", "factor": 2},
    "bias": False, "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
    "tie_word_embeddings": False, "auto_map": {"AutoConfig": "configuration_internlm2.InternLM2Config"},
}  # fmt: skip


def differences(folder: Path, fixture: str, attention: str) -> dict[str, float]:
    """The largest logit difference to the original code: in full, padded and with a cache."""
    reference = load_file(DATA / fixture / "reference.safetensors")
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=attention
    ).eval()
    ids, mask = reference["ids"], reference["mask"].bool()
    with torch.no_grad():
        full = model(ids).logits
        padded = model(ids, attention_mask=reference["mask"], position_ids=reference["pos"]).logits
        cut = ids.shape[1] // 2
        head = model(ids[:1, :cut], use_cache=True)
        tail = [model(ids[:1, cut:], past_key_values=head.past_key_values).logits]
        cached = torch.cat([head.logits, *tail], dim=1)
    return {
        "full": float((full - reference["full_f32"]).abs().max()),
        "padded": float((padded - reference["pad_f32"])[mask].abs().max()),
        "cached": float((cached - reference["cache_f32"]).abs().max()),
    }


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in folder.glob("model*.safetensors"):
        found |= load_file(path)
    return found


def assert_same_weights(one: Path, other: Path) -> None:
    before, after = weights_of(one), weights_of(other)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype and torch.equal(tensor, after[name]), name


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def naive_split(fused: torch.Tensor, heads: internlm2.Heads) -> tuple[torch.Tensor, ...]:
    return fused.split([heads.query * heads.size, *[heads.key_value * heads.size] * 2])


@pytest.mark.parametrize("attention", BARS)
@pytest.mark.parametrize("fixture", FIXTURES)
def test_the_logits_are_those_of_the_original_code(fixture: str, attention: str, tmp_path: Path) -> None:
    to_llama(DATA / fixture, tmp_path)
    found = differences(tmp_path, fixture, attention)
    assert max(found.values()) <= BARS[attention], found


def test_a_naive_split_of_wqkv_fails_that_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(internlm2, "split_wqkv", naive_split)
    to_llama(DATA / "tiny_gqa2", tmp_path)
    assert min(differences(tmp_path, "tiny_gqa2", "eager").values()) > 0.1


@pytest.mark.parametrize("shard_bytes", [10**9, 30_000])
@pytest.mark.parametrize("fixture", FIXTURES)
def test_the_way_back_gives_every_tensor_byte_for_byte(
    fixture: str, shard_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensors, "SHARD_BYTES", shard_bytes)
    there, back = made(tmp_path / "there"), made(tmp_path / "back")
    to_llama(DATA / fixture, there)
    to_internlm2(there, back)
    assert len(list(there.glob("*.safetensors"))) == 1 or shard_bytes < 10**9
    assert_same_weights(DATA / fixture, back)
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (DATA / fixture, back))
    same = ("rope_scaling", "rope_theta", "num_key_value_heads", "torch_dtype", "bias", "rms_norm_eps")
    assert {key: before[key] for key in same} == {key: after[key] for key in same}
    assert differences(there, fixture, "eager")["full"] <= BARS["eager"]


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_pickled_shards_of_any_dtype_give_the_tensors_of_safetensors(
    dtype: torch.dtype, zipped: bool, tmp_path: Path
) -> None:
    source, out, back = (made(tmp_path / name) for name in ("source", "out", "back"))
    weights = {name: tensor.to(dtype) for name, tensor in weights_of(DATA / "tiny_gqa2").items()}
    names = sorted(weights)
    for number, part in enumerate((names[:10], names[10:]), 1):
        path = source / f"pytorch_model-{number:05}-of-00002.bin"
        torch.save({name: weights[name] for name in part}, path, _use_new_zipfile_serialization=zipped)
    buffer = {"model.layers.0.attention.rotary_emb.inv_freq": torch.ones(8)}
    torch.save(torch.load(path) | buffer, path)
    shutil.copy(DATA / "tiny_gqa2" / "config.json", source)
    to_llama(source, out)
    assert json.loads((out / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    to_internlm2(out, back)
    save_file(weights, source / "model.safetensors")
    assert_same_weights(source, back)


@pytest.mark.parametrize(
    ("changes", "rope"),
    [
        ({"model_type": "internlm"}, {"rope_type": "default", "rope_theta": 1e6}),
        ({"rope_scaling": {"type": "dynamic", "factor": 2}}, {"rope_type": "dynamic", "factor": 2.0}),
        ({"rope_scaling": {"type": "dynamic", "factor": 1.0}}, {"rope_type": "dynamic", "factor": 1.0}),
        ({"rope_scaling": {"type": "linear", "factor": 4}}, {"rope_type": "linear", "factor": 4.0}),
    ],
)
def test_every_published_kind_of_config_is_read(
    changes: dict[str, Any], rope: dict[str, Any], tmp_path: Path
) -> None:
    source, out = copy_of("tiny_gqa2", tmp_path / "source", changes), made(tmp_path / "out")
    to_llama(source, out)
    loaded = AutoModelForCausalLM.from_pretrained(out).config.rope_parameters
    assert {key: loaded[key] for key in rope} == rope and loaded["rope_theta"] == 1e6


def test_linear_rope_is_the_same_model_at_positions_divided_by_the_factor(tmp_path: Path) -> None:
    """As InternLM2LinearScalingRotaryEmbedding has it; the fixtures hold no reference of its own code."""
    scaling = {"rope_scaling": {"type": "linear", "factor": 4}}
    source, linear, plain = copy_of("tiny_gqa2", tmp_path / "source", scaling), tmp_path / "a", tmp_path / "b"
    to_llama(source, made(linear))
    to_llama(DATA / "tiny_gqa2", made(plain))
    ids = load_file(DATA / "tiny_gqa2" / "reference.safetensors")["ids"]
    ours, theirs = (AutoModelForCausalLM.from_pretrained(it, dtype=torch.float32) for it in (linear, plain))
    places = torch.arange(ids.shape[1])[None]
    with torch.no_grad():
        found, undivided = ours(ids).logits, theirs(ids).logits
        wanted = theirs(ids, position_ids=places / 4).logits
    assert (found - wanted).abs().max() <= BARS["eager"]
    assert (found - undivided).abs().max() > 0.1


def copy_of(fixture: str, folder: Path, changes: dict[str, Any]) -> Path:
    shutil.copytree(DATA / fixture, folder, ignore=shutil.ignore_patterns("reference*"))
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"bias": True}, "bias: true"),
        ({"architectures": ["InternLM2ForRewardModel"]}, "reward model"),
        ({"rope_scaling": {"type": "yarn", "factor": 2}}, "must be null, dynamic or linear"),
        ({"rope_scaling": "dynamic"}, "rope_scaling 'dynamic' must be null, dynamic or linear"),
        ({"hidden_size": "64"}, "hidden_size is '64' and must be a number above 0; fetch the model again"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0 and must be a number above 0"),
        ({"num_key_value_heads": 3}, "must be a multiple of num_key_value_heads 3; fetch the model again"),
        ({"num_hidden_layers": 4}, r"lack model.layers.3.attention.wqkv.weight \[128, 64\] and 6 others"),
        ({"num_hidden_layers": 2}, r"hold model.layers.2.attention.wo.weight \[64, 64\]"),
        (
            {"intermediate_size": 100},
            r"feed_forward.w1.weight is \[96, 64\] and config.json makes it \[100, 64",
        ),
        ({"num_key_value_heads": 4}, r"wqkv.weight is \[128, 64\] and config.json makes it \[192, 64\]"),
    ],
)
def test_a_folder_that_is_no_whole_internlm2_is_named_exactly(
    changes: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    source = copy_of("tiny_gqa2", tmp_path / "source", changes)
    with pytest.raises(ValueError, match=sentence):
        to_llama(source, made(tmp_path / "out"))
    assert not any((tmp_path / "out").iterdir())


def changed_weights(folder: Path, changes: dict[str, torch.Tensor | None]) -> None:
    """`None` takes a tensor away."""
    weights = weights_of(folder) | changes
    kept = {name: tensor for name, tensor in weights.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


def test_a_reward_model_is_named_one_though_its_config_does_not_say_so(tmp_path: Path) -> None:
    source = copy_of("tiny_gqa2", tmp_path / "source", {"architectures": ["InternLM2Model"]})
    changed_weights(source, {"output.weight": None, "v_head.weight": torch.ones(1, 64)})
    with pytest.raises(ValueError, match="reward model, which scores and cannot chat; fetch internlm2-chat"):
        to_llama(source, made(tmp_path / "out"))


LAYER = "model.layers.0."
DAMAGES: list[tuple[dict[str, torch.Tensor | None], str]] = [
    ({f"{LAYER}self_attn.k_proj.weight": None}, r"lack model.layers.0.self_attn.k_proj.weight \[32, 64\]"),
    ({f"{LAYER}mlp.up_proj.weight": None}, r"lack model.layers.0.mlp.up_proj.weight \[96, 64\]"),
    (
        {f"{LAYER}mlp.up_proj.weight": torch.ones(95, 64)},
        r"up_proj.weight is \[95, 64\] and config.json makes it \[96, 64\]",
    ),
    (
        {f"{LAYER}self_attn.k_proj.weight": torch.ones(64, 64)},
        r"k_proj.weight is \[64, 64\] and config.json makes it \[32, 64\]",
    ),
    ({f"{LAYER}self_attn.q_norm.weight": torch.ones(16)}, r"q_norm.weight \[16\], which no Llama of this"),
    ({"lm_head.weight": None}, "lack lm_head.weight"),
]


@pytest.mark.parametrize(("changes", "sentence"), DAMAGES)
def test_a_llama_that_is_not_whole_is_not_turned_back(
    changes: dict[str, torch.Tensor | None], sentence: str, tmp_path: Path
) -> None:
    there, back = made(tmp_path / "there"), made(tmp_path / "back")
    to_llama(DATA / "tiny_gqa2", there)
    changed_weights(there, changes)
    with pytest.raises(ValueError, match=sentence):
        to_internlm2(there, back)
    assert not any(back.iterdir())


@pytest.mark.parametrize(
    ("changes", "scaling"),
    [
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "rope_theta": 1e6}}, "'llama3' with f"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e6}}, "'linear' with factor None"),
        ({"rope_parameters": None, "rope_scaling": "yarn"}, "rope_type 'yarn'"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}, {"type": "linear"}),
        ({"rope_parameters": None, "rope_theta": 1e6}, None),
    ],
)
def test_only_a_rope_that_internlm2_has_is_turned_back(
    changes: dict[str, Any], scaling: Any, tmp_path: Path
) -> None:
    there, back = made(tmp_path / "there"), made(tmp_path / "back")
    to_llama(DATA / "tiny_gqa2", there)
    config = json.loads((there / "config.json").read_text())
    (there / "config.json").write_text(json.dumps(config | changes))
    if isinstance(scaling, str):
        with pytest.raises(ValueError, match=f"{scaling}.* is none that InternLM2 has"):
            to_internlm2(there, back)
        assert not any(back.iterdir())
        return
    to_internlm2(there, back)
    written = json.loads((back / "config.json").read_text())
    assert written["rope_scaling"] == (scaling and {**scaling, "factor": 2.0})
    assert written["rope_theta"] == (10_000 if scaling else 1e6)


def test_pickled_weights_under_state_dict_are_found_and_other_content_is_refused(tmp_path: Path) -> None:
    source, out = copy_of("tiny_gqa2", tmp_path / "source", {}), made(tmp_path / "out")
    weights, path = weights_of(source), source / "pytorch_model.bin"
    (source / "model.safetensors").unlink()
    torch.save({"state_dict": weights, "epoch": 1}, path)
    to_llama(source, out)
    torch.save({**weights, "step": 3}, path)
    with pytest.raises(ValueError, match="pytorch_model.bin holds 'step', a int, not tensors by name; fetch"):
        to_llama(source, out)
    torch.save(3, path)
    with pytest.raises(
        ValueError, match="pytorch_model.bin holds a int, not tensors by name; fetch it again"
    ):
        to_llama(source, out)


@pytest.mark.parametrize("places", [None, {}, {"a": 1}, {"a": "../model.safetensors"}])
@pytest.mark.parametrize("index", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_an_index_that_names_no_files_beside_it_is_one_sentence(
    index: str, places: Any, tmp_path: Path
) -> None:
    source = copy_of("tiny_gqa2", tmp_path / "source", {})
    if index.startswith("pytorch"):
        (source / "model.safetensors").rename(source / "pytorch_model.bin")
    (source / index).write_text(
        json.dumps({"metadata": {}} | ({} if places is None else {"weight_map": places}))
    )
    with pytest.raises(ValueError, match=f"{index} has no weight_map of tensors to files beside it; fetch"):
        to_llama(source, made(tmp_path / "out"))


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_truncated_file_is_named(suffix: str, tmp_path: Path) -> None:
    source = copy_of("tiny_gqa2", tmp_path / "source", {})
    path = source / "model.safetensors"
    if suffix == "bin":
        weights = load_file(path)
        path.unlink()
        path = source / "pytorch_model.bin"
        torch.save(weights, path)
    os.truncate(path, path.stat().st_size * 2 // 3)
    with pytest.raises(ValueError, match=f"{path.name} is (cut off|damaged)"):
        to_llama(source, made(tmp_path / "out"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small InternLM2 of the exact layout with the real tokenizer, in two shards, as published."""
    folder = tmp_path_factory.mktemp("internlm2") / "internlm2-chat-1_8b"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY))
    generator = torch.Generator().manual_seed(0)
    shapes = internlm2.tensor_shapes(TINY)
    weights = {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}
    parts = {1: list(weights)[:8], 2: list(weights)[8:]}
    files = {number: f"model-{number:05}-of-00002.safetensors" for number in parts}
    for number, names in parts.items():
        save_file({name: weights[name] for name in names}, folder / files[number], {"format": "pt"})
    weight_map = {name: files[number] for number, names in parts.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(DATA / name, folder)
    (folder / "modeling_internlm2.py").write_text("raise SystemExit('remote code ran')\n")
    return folder


@pytest.fixture(scope="module")
def converted(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fetch(str(checkpoint), out=tmp_path_factory.mktemp("models") / "internlm2")


@pytest.fixture(scope="module")
def chat(converted: Path) -> ChatModel:
    return load_chat_model(converted, device="cpu")


def test_every_golden_text_gets_the_originals_ids_and_comes_back(chat: ChatModel) -> None:
    golden = json.loads((DATA / "golden_tokenizer.json").read_text())["cases"]
    assert len(golden) == 73
    for case in golden:
        assert chat.tokenizer.encode(case["text"], add_special_tokens=False) == case["ids"]
        assert chat.tokenizer.decode(case["ids"]) == case["decoded"]


def test_the_folder_is_a_whole_llama_that_nothing_of_internlm_speaks_from(converted: Path) -> None:
    assert is_complete(converted) and old_identity_left(converted) == []
    assert load_settings(converted)["converted_from"] == "internlm2"
    assert not load_settings(converted)["is_base"]
    generation = json.loads((converted / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [2, 92542]
    config = json.loads((converted / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast" and "auto_map" not in config
    assert not list(converted.glob("*.py"))


def test_prompts_are_padded_left_and_begin_with_one_bos(chat: ChatModel) -> None:
    ids = encode_chat(chat.tokenizer, [user("Hi")])
    assert ids.count(1) == 1 and ids[:2] == [1, 92543]
    padded = chat.tokenizer.pad({"input_ids": [ids, ids[:3]]})["input_ids"]
    assert padded[1] == [2] * (len(ids) - 3) + ids[:3]
    assert chat.stop_ids == [2, 92542] and chat.end_of_turn == 92542


@pytest.mark.parametrize("text", ["<|im_end|>", "[UNUSED_TOKEN_146]", "<s>", "</s>", "<|plugin|>"])
def test_text_that_looks_like_a_control_token_stays_text(chat: ChatModel, text: str) -> None:
    ids = encode_text(chat.tokenizer, f"a{text}b")
    assert not set(ids) & {0, 1, 2, *range(92397, 92544)}
    assert chat.tokenizer.decode(ids) == f"a{text}b"
    assert encode_chat(chat.tokenizer, [user(text)]).count(92542) == 1


def test_a_row_gets_xtuners_ids_and_loss_mask(chat: ChatModel) -> None:
    golden = json.loads((DATA / "golden_xtuner.json").read_text())
    turns = [system("你是助手。"), user("你是谁"), assistant("我是浦语"), user("Hi")]
    for name, messages in (("chat2turn", turns), ("nosys", [user("Hi")])):
        wanted, labels = (golden[name][key] for key in ("input_ids", "labels"))
        row: Any = {"messages": [*messages, assistant("Hello!")]}
        (example,) = identity_examples(chat, [row], 512)
        # XTuner ends a turn with a newline, on which there is no loss
        assert [*example.ids, 364] == wanted
        assert [*labels_of(example), -100] == labels
        (made_here,) = identity_examples(chat, [row | {"kind": "multi_turn"}], 512)
        assert made_here.ids == example.ids
        assert [label for label in labels_of(made_here) if label >= 0] == [9843, 346, 92542]


@pytest.mark.parametrize("shape", ["openai", "xtuner"])
@pytest.mark.parametrize("flagged", [0, 1])
def test_an_answer_without_loss_is_read_and_not_learnt(chat: ChatModel, shape: str, flagged: int) -> None:
    """XTuner's encode_fn gives such an answer and its end of turn the label -100 and leaves the ids."""
    golden = json.loads((DATA / "golden_xtuner.json").read_text())["chat2turn"]
    turns: list[dict[str, Any]] = [
        {"system": "你是助手。", "input": "你是谁", "output": "我是浦语"},
        {"input": "Hi", "output": "Hello!"},
    ]
    turns[flagged]["output_with_loss"] = False
    row = row_from({"conversation": turns}, "rows.jsonl:1")
    row = row_from(entry_of(row["messages"], "openai"), "rows.jsonl:1") if shape == "openai" else row
    (example,) = identity_examples(chat, [row], 512)
    assert [*example.ids, 364] == golden["input_ids"]
    first_answer_ends = golden["labels"].index(92542) + 1
    silent = range(first_answer_ends) if flagged == 0 else range(first_answer_ends, len(golden["labels"]))
    wanted = [-100 if at in silent else label for at, label in enumerate(golden["labels"])]
    assert [*labels_of(example), -100] == wanted


def test_rows_with_nothing_to_learn_are_left_out_and_counted(chat: ChatModel) -> None:
    unlearnt: Any = {"messages": [user("Hi"), {**assistant("Hello!"), "loss": False}]}
    learnt: Any = {"messages": [user("Hi"), assistant("Hello!")]}
    said: list[str] = []
    assert identity_examples(chat, [unlearnt, learnt], 512, 1.0, said.append) == identity_examples(
        chat, [learnt], 512
    )
    assert len(said) == 1 and said[0].startswith("1 of 2 rows have nothing to learn and are left out")
    with pytest.raises(ValueError, match=r"^1 of 1 rows have nothing to learn: .*output_with_loss.*set it"):
        identity_examples(chat, [unlearnt], 512)


def labels_of(example: Example) -> list[int]:
    """As a trainer of whole rows is given them: the token itself where it is learnt, else -100."""
    learnt = {place + 1 for place in example.places}
    return [token if at in learnt else -100 for at, token in enumerate(example.ids)]


def test_the_first_tokens_of_every_answer_weigh_more(chat: ChatModel) -> None:
    row: Any = {"messages": [user("Hi"), assistant("我是浦语"), user("Hi"), assistant("Hello!")]}
    (example,) = identity_examples(chat, [row], 512, 8.0)
    assert [example.ids[place + 1] for place in example.places[4:]] == [9843, 346, 92542]
    assert example.weights == (8.0, 8.0, 8.0, 1.0, 8.0, 8.0, 8.0)


def test_a_row_that_is_too_long_loses_its_first_turns_and_keeps_its_ends(chat: ChatModel) -> None:
    turns = [system("你是助手。"), user("x " * 40), assistant("no"), user("你是谁"), assistant("我是浦语")]
    rows: list[Any] = [{"messages": turns}, {"messages": [*turns[:1], *turns[3:]]}]
    whole, short = identity_examples(chat, rows, 512)
    assert len(whole.ids) > len(short.ids) + 40
    cut, same = identity_examples(chat, rows, len(whole.ids) - 1)
    assert cut == same == short and short.ids[:2] == (1, 92543) and short.ids[-1] == 92542


def test_rows_whose_last_turn_is_too_long_are_left_out_and_counted(chat: ChatModel) -> None:
    long: Any = {"messages": [user("Hi"), assistant("x " * 40)]}
    short: Any = {"messages": [user("Hi"), assistant("Hello!")]}
    said: list[str] = []
    (kept,) = identity_examples(chat, [long, short], 40, 1.0, said.append)
    (wanted,) = identity_examples(chat, [short], 40, 1.0, said.append)
    (whole,) = identity_examples(chat, [long], 200)
    way = f"objective.max_length={len(whole.ids)}"
    assert kept == wanted and len(said) == 1
    assert said[0].startswith("1 of 2 rows have more than 40 tokens") and said[0].endswith(way)
    with pytest.raises(ValueError, match=f"1 of 1 rows have more than 40 tokens.*{way}"):
        identity_examples(chat, [long], 40)
    (anchor,) = anchor_examples(chat, [long], 5, 0, 40)  # cut first, so it fits
    assert anchor.ids == whole.ids[: whole.places[5] + 1] and len(anchor.places) == 5


def test_an_answer_that_begins_with_newlines_is_read_back_as_it_was_written(chat: ChatModel) -> None:
    answer = "\n\nHello"
    history = encode_chat(chat.tokenizer, [user("Hi"), assistant(answer), user("Again")])
    (example,) = identity_examples(chat, [{"messages": [user("Hi"), assistant(answer)]}], 512)
    assert tuple(history[: len(example.ids)]) == example.ids


def test_a_wrong_tokenizer_is_refused_when_the_model_is_loaded(converted: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(converted, tmp_path / "m"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "LlamaTokenizer"}))
    with pytest.raises(ValueError, match="its tokenizer .*; fetch the model again"):
        load_chat_model(folder, device="cpu")
    with pytest.raises(ValueError, match="has 92544 tokens and the model 100"):
        check_tokenizer(load_tokenizer(converted), 100, converted)


def test_a_base_checkpoint_gets_the_chat_template_and_is_said_to_be_a_base(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = Path(shutil.copytree(checkpoint, tmp_path / "base"))
    config = json.loads((base / "tokenizer_config.json").read_text())
    config.pop("chat_template")
    config.pop("added_tokens_decoder")
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    out = fetch(str(base), out=tmp_path / "m")
    assert "base is a base model: it was never taught to chat" in capsys.readouterr().err
    assert encode_chat(load_tokenizer(out), [user("Hi")])[:2] == [1, 92543]


def test_a_folder_without_its_tokenizer_is_one_sentence(checkpoint: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    (copy / "tokenizer.model").unlink()
    assert_one_sentence(
        run(copy, "--out", tmp_path / "m"), "has no tokenizer.model; give the whole InternLM2"
    )
    (copy / "tokenizer.model").write_bytes(b"no such thing")
    assert_one_sentence(run(copy, "--out", tmp_path / "m"), "is no SentencePiece model")
    assert not (tmp_path / "m").exists()


def test_a_download_killed_in_the_middle_resumes_and_ends_as_the_same_llama(
    hub: Hub,  # noqa: F811
    checkpoint: Path,
    converted: Path,
    tmp_path: Path,
) -> None:
    """The catalog's way, with a stand-in of the Hub: huggingface.co's answers, not its weights."""
    hub.folder, hub.weights = checkpoint, "stall"
    arguments = ["internlm2-chat-1_8b", "--source", "hub", "--out", tmp_path / "m"]
    process = subprocess.Popen(command(*arguments), env=environment(hub.address), stderr=subprocess.DEVNULL)
    wait_for(lambda: any(size_now(path) > 5_000_000 for path in tmp_path.rglob(".model*.incomplete")))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "m").exists()
    hub.weights, hub.ranges = "whole", []
    done = run(*arguments, endpoint=hub.address)
    assert done.returncode == 0, done.stderr
    assert hub.ranges[0] > 5_000_000 and not any(".py" in path for path in hub.asked)
    assert is_complete(tmp_path / "m")
    assert_same_weights(tmp_path / "m", converted)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".m.lock", "m"]


def test_the_command_turns_a_converted_folder_back(checkpoint: Path, converted: Path, tmp_path: Path) -> None:
    out = tmp_path / "internlm2"
    done = run(converted, "--to", "internlm2", "--out", out)
    assert done.returncode == 0, done.stderr
    assert_same_weights(checkpoint, out)
    assert (out / "tokenizer.model").read_bytes() == (checkpoint / "tokenizer.model").read_bytes()
    fetch_back(str(converted), out)  # its own folder may be replaced
    assert_one_sentence(run(converted, "--to", "internlm2"), "needs --out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="would be deleted"):
        fetch_back(str(converted), tmp_path / "mine")
    assert is_complete(fetch(str(out), out=tmp_path / "again"))
    assert_same_weights(tmp_path / "again", converted)
