"""Neurons that an adapter adds: through PEFT and a training run, merged, exported, and beside eyes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from test_export import logits_difference, make_byte_level
from tiny_run import load_tiny, make_tiny_model, tiny_run
from transformers import LlamaConfig, LlamaForCausalLM

from assistant.adapters import Adapter, Pair, beside_neurons
from assistant.conversations import assistant, user
from assistant.folders import read_json
from assistant.identities import Identities
from assistant.loading import load_chat_model
from assistant.merging import logits_of, merge
from assistant.model_card.usage import use_lines
from assistant.neurons import adapter_config, known_to_peft
from assistant.settings import DATA, load_toml
from assistant.strength import has_neurons, has_strength
from assistant.training.recipe import load_recipe

PROBES = [[user("hi")], [user("2+2?"), assistant("4"), user("again")]]
NEURONS = ('lora.target_modules=["mlp"]', "lora.r=8", "lora.lora_alpha=8")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("base") / "base")


def make_adapter(base: Path, folder: Path, seed: int = 0, layers: tuple[int, ...] = (2, 3)) -> Path:
    torch.manual_seed(seed)
    config = LoraConfig(
        r=8, lora_alpha=8, target_modules=["mlp"], layers_to_transform=list(layers), task_type="CAUSAL_LM"
    )
    model = get_peft_model(load_tiny(base).model, known_to_peft(config))
    for name, weight in model.named_parameters():
        if "lora_down" in name:
            torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(base, tmp_path_factory.mktemp("adapter") / "ada")


def by_hand(model: Any, adapter: Path, strength: float) -> list[torch.Tensor]:
    """Logits where a hook adds to each MLP what its neurons say, times `strength`."""
    tensors = dict(
        PeftModel.from_pretrained(model, str(adapter), config=adapter_config(adapter)).named_parameters()
    )
    chat = load_tiny(Path(model.config._name_or_path))

    def hook(index: int) -> None:
        gate, up, down = (
            tensors[f"base_model.model.model.layers.{index}.mlp.lora_{part}.default.weight"].detach()
            for part in ("gate", "up", "down")
        )

        def add(module: Any, given: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
            inner = torch.nn.functional.silu(given[0] @ gate.T) * (given[0] @ up.T)
            return output + strength * inner @ down.T

        chat.model.model.layers[index].mlp.register_forward_hook(add)

    hook(2), hook(3)
    return logits_of(chat, PROBES)


def largest(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))


def test_an_adapter_adds_its_neurons_and_strength_scales_what_they_say(base, adapter):
    chat = load_chat_model(adapter, dtype=torch.float32, device="cpu")
    before = logits_of(load_tiny(base), PROBES)
    whole, half = (by_hand(load_tiny(base).model, adapter, strength) for strength in (1.0, 0.5))
    assert largest(logits_of(chat, PROBES), whole) < 1e-4 < 0.1 < largest(whole, before)
    identities = Identities(load_tiny(base))
    key = identities.add(adapter)
    with identities.speaking(key, 0.5):
        assert largest(logits_of(identities.chat, PROBES), half) < 1e-4 < 0.01 < largest(half, whole)
    assert largest(logits_of(identities.chat, PROBES), before) == 0


def test_two_of_them_take_turns_on_one_base_and_leave_it_as_it_was(base, adapter, tmp_path):
    bob = make_adapter(base, tmp_path / "bob", seed=1)
    chat = load_tiny(base)
    names, before = (
        list(chat.model.state_dict()),
        [tensor.clone() for tensor in chat.model.state_dict().values()],
    )
    identities = Identities(chat)
    keys = [identities.add(folder) for folder in (adapter, bob)]
    for key, folder in zip(keys, (adapter, bob), strict=True):
        with identities.speaking(key):
            alone = load_chat_model(folder, dtype=torch.float32, device="cpu")
            assert largest(logits_of(chat, PROBES), logits_of(alone, PROBES)) == 0
    for key in keys:
        identities.leave(key)
    with identities.speaking(None):
        after = chat.model.state_dict()
    assert list(after) == names and all(map(torch.equal, after.values(), before))


def test_beside_an_adapter_of_linear_layers_it_is_refused_and_the_other_stays(base, adapter, tmp_path):
    config = LoraConfig(target_modules=["gate_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(load_tiny(base).model, config).save_pretrained(str(tmp_path / "linear"))
    identities = Identities(load_tiny(base))
    key = identities.add(tmp_path / "linear")
    with pytest.raises(ValueError, match="of another kind than the adapters beside it"):
        identities.add(adapter)
    alone = load_chat_model(tmp_path / "linear", dtype=torch.float32, device="cpu")
    with identities.speaking(key):
        assert largest(logits_of(identities.chat, PROBES), logits_of(alone, PROBES)) == 0


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_a_merge_is_a_wider_llama_that_says_the_same(base, adapter, tmp_path, strength):
    proof = merge(adapter, tmp_path / "model", PROBES, strength)
    config = read_json(tmp_path / "model" / "config.json")
    assert config["intermediate_size"] == 64 + 8 and config["added_neurons"] == 8
    merged = load_tiny(tmp_path / "model")
    assert largest(logits_of(merged, PROBES), by_hand(load_tiny(base).model, adapter, strength)) < 1e-3
    assert proof["logit_difference"] < 1e-3
    lower = merged.model.model.layers[0].mlp  # not trained: its new neurons are zeros
    assert not lower.gate_proj.weight[64:].any() and not lower.down_proj.weight[:, 64:].any()


def test_merged_in_place_and_taken_out_again_the_base_is_as_it_was(base, adapter):
    chat = load_chat_model(adapter, dtype=torch.float32, device="cpu")
    speaking, before = logits_of(chat, PROBES), logits_of(load_tiny(base), PROBES)
    chat.model.merge_adapter()
    assert largest(logits_of(chat, PROBES), speaking) < 1e-4
    chat.model.unmerge_adapter()
    assert largest(logits_of(chat, PROBES), speaking) == 0
    with chat.model.disable_adapter():
        assert largest(logits_of(chat, PROBES), before) == 0


def test_an_mlp_with_a_bias_gets_none():
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=8, mlp_bias=True, **sizes))
    config = LoraConfig(r=8, target_modules=["mlp"], task_type="CAUSAL_LM")
    with pytest.raises(ValueError, match="have a bias and cannot get neurons; take --recipe identity_lora"):
        get_peft_model(model, known_to_peft(config))


def test_its_gguf_file_gives_the_logits_of_the_folder(tmp_path):
    base = make_byte_level(tmp_path / "base")
    layers = range(read_json(base / "config.json")["num_hidden_layers"])
    adapter = make_adapter(base, tmp_path / "adapter", layers=(max(layers),))
    merge(adapter, tmp_path / "model", PROBES)
    merged, narrow = (load_tiny(path) for path in (tmp_path / "model", base))
    assert largest(logits_of(merged, PROBES), logits_of(narrow, PROBES)) > 0.2
    assert logits_difference(tmp_path / "model") < 2e-2  # as any folder's: test_export.py


def test_a_run_learns_neurons_goes_on_from_them_and_merges(base, tmp_path):
    first = tiny_run(base, tmp_path / "first", changes=NEURONS)
    assert has_neurons(first) and has_strength(first)
    again = tiny_run(base, tmp_path / "again", changes=NEURONS, begin=first)
    chat, before = (load_chat_model(path, dtype=torch.float32, device="cpu") for path in (again, first))
    assert largest(logits_of(chat, PROBES), logits_of(before, PROBES)) > 1e-3
    merge(again, tmp_path / "model", PROBES)
    assert largest(logits_of(load_tiny(tmp_path / "model"), PROBES), logits_of(chat, PROBES)) < 1e-3


def test_a_stopped_run_goes_on_to_the_same_bytes(base, tmp_path):
    whole = tiny_run(base, tmp_path / "whole", changes=NEURONS)
    with pytest.raises(KeyboardInterrupt):
        tiny_run(base, tmp_path / "broken", interrupt=True, changes=NEURONS)
    resumed = tiny_run(base, tmp_path / "broken", resume=True, changes=NEURONS)
    name = "adapter_model.safetensors"
    assert (resumed / name).read_bytes() == (whole / name).read_bytes()


def test_a_run_begun_with_another_kind_of_adapter_says_so(base, tmp_path):
    linear = tiny_run(base, tmp_path / "linear")
    with pytest.raises(ValueError, match="is of another LoRA than this recipe's"):
        tiny_run(base, tmp_path / "neurons", changes=NEURONS, begin=linear)


@pytest.mark.parametrize("key", ["filter", "drift_weight"])
def test_what_is_of_linear_layers_is_refused_for_neurons(key):
    with pytest.raises(ValueError, match=f"{key} is of linear layers, and .lora. adds neurons; set it to 0"):
        load_recipe("identity_warm", [f"{key}=0.1"])


def test_eyes_of_a_narrower_or_wider_llama_fit_and_change_nothing_else():
    torch.manual_seed(0)
    shapes = {"gate_proj": (64, 32), "up_proj": (64, 32), "down_proj": (32, 64), "q_proj": (32, 32)}
    pairs = {
        f"model.layers.0.mlp.{name}": Pair(torch.randn(4, inner), torch.randn(outer, 4), 8)
        for name, (outer, inner) in shapes.items()
    }
    wider = {"intermediate_size": 72, "added_neurons": 8}
    wide = beside_neurons(Adapter(pairs), 0, wider).pairs
    for name, (outer, inner) in shapes.items():
        ours, theirs = wide[f"model.layers.0.mlp.{name}"], pairs[f"model.layers.0.mlp.{name}"]
        change = ours.b @ ours.a
        assert torch.equal(change[:outer, :inner], theirs.b @ theirs.a)
        assert not change[outer:].any() and not change[:, inner:].any()
        assert ours.shape == [72 if size == 64 else size for size in (outer, inner)]
    back = beside_neurons(Adapter(wide), 8, {"intermediate_size": 64}).pairs
    same = beside_neurons(Adapter(wide), 8, wider).pairs
    for ours, theirs in ((back, pairs), (same, wide)):
        assert all(torch.equal(ours[name].a, pair.a) for name, pair in theirs.items())
        assert all(torch.equal(ours[name].b, pair.b) for name, pair in theirs.items())
    other = beside_neurons(Adapter(pairs), 0, {"intermediate_size": 80, "added_neurons": 8}).pairs
    assert other == pairs  # another model's: refused by its shapes


def test_a_card_tells_how_to_use_it_without_plain_peft(adapter):
    base: Any = type("Base", (), {"id": "org/base", "title": "SmolLM2-135M-Instruct"})
    text = "\n".join(use_lines("adapter", adapter, base, "me/ada", load_toml(DATA / "model_card.toml")))
    assert "scripts/merge.py --adapter adapter" in text and "AutoPeftModel" not in text
    assert "fetch_model.py smollm2-135m-instruct" in text
