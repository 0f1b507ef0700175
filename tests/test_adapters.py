import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM

from assistant import adapters
from assistant.adapter_folders import to_internlm2_adapter, to_llama_adapter
from assistant.internlm2 import to_llama
from assistant.settings import load_settings

XTUNER = Path(__file__).parent / "data" / "xtuner_llava"
ALL = ["wqkv", "wo", "w1", "w2", "w3", "output"]
LLAMA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]
QUERY, KEY_VALUE, SIZE, HIDDEN, INNER, LAYERS, VOCABULARY = 4, 2, 8, 32, 48, 2, 61
CONFIG: dict[str, Any] = {
    "model_type": "internlm2",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": QUERY,
    "num_key_value_heads": KEY_VALUE,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000,
    "rope_scaling": None,
    "bias": False,
}
IDS = torch.tensor([[3, 14, 15, 9, 26, 5, 35, 8, 58, 60, 1, 0]])


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(HIDDEN).uniform_(0.5, 1.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + CONFIG["rms_norm_eps"])


class Attention(nn.Module):
    """Group by group, wqkv gives the query heads, then one key, then one value head."""

    def __init__(self) -> None:
        super().__init__()
        self.wqkv = nn.Linear(HIDDEN, (QUERY + 2 * KEY_VALUE) * SIZE, bias=False)
        self.wo = nn.Linear(QUERY * SIZE, HIDDEN, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        groups = self.wqkv(x).unflatten(-1, (KEY_VALUE, QUERY // KEY_VALUE + 2, SIZE))
        queries = rotated(groups[..., :-2, :].flatten(2, 3).transpose(1, 2))
        keys = rotated(groups[..., -2, :].transpose(1, 2)).repeat_interleave(QUERY // KEY_VALUE, 1)
        values = groups[..., -1, :].transpose(1, 2).repeat_interleave(QUERY // KEY_VALUE, 1)
        mixed = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        return self.wo(mixed.transpose(1, 2).flatten(2))


def rotated(x: torch.Tensor) -> torch.Tensor:
    frequencies = CONFIG["rope_theta"] ** (-torch.arange(0, SIZE, 2) / SIZE)
    angles = torch.outer(torch.arange(x.shape[2]), frequencies).repeat(1, 2)
    left, right = x.chunk(2, -1)
    return x * angles.cos() + torch.cat([-right, left], -1) * angles.sin()


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w3 = nn.Linear(HIDDEN, INNER, bias=False), nn.Linear(HIDDEN, INNER, bias=False)
        self.w2 = nn.Linear(INNER, HIDDEN, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w2(functional.silu(self.w1(x)) * self.w3(x))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.feed_forward = Attention(), FeedForward()
        self.attention_norm, self.ffn_norm = Norm(), Norm()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.ffn_norm(x))


class InternLM2(nn.Module):
    """The architecture written down once more, with wqkv fused and InternLM2's names."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.tok_embeddings = nn.Embedding(VOCABULARY, HIDDEN)
        self.model.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.model.norm = Norm()
        self.output = nn.Linear(HIDDEN, VOCABULARY, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.model.tok_embeddings(ids)
        for layer in self.model.layers:
            x = layer(x)
        return self.output(self.model.norm(x))


def fused_model() -> InternLM2:
    torch.manual_seed(5)
    return InternLM2().eval()


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """The Llama made of fused_model."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "raw").mkdir()
    (folder / "internlm2-tiny").mkdir()
    save_file(fused_model().state_dict(), folder / "raw" / "model.safetensors", metadata={"format": "pt"})
    (folder / "raw" / "config.json").write_text(json.dumps(CONFIG))
    to_llama(folder / "raw", folder / "internlm2-tiny")
    return folder / "internlm2-tiny"


def llama(base: Path, adapter: Path | None = None) -> Any:
    model = AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.float32)
    return PeftModel.from_pretrained(model, str(adapter)).eval() if adapter else model.eval()


def with_random_lora(model: Any, **fields: Any) -> Any:
    torch.manual_seed(6)
    tuned = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 8, "task_type": None, **fields})).eval()
    for name, weight in tuned.named_parameters():
        if "lora_" in name:
            nn.init.normal_(weight, std=0.1)
    return tuned


def fused_with(adapter: Path) -> Any:
    """PEFT's model of fused_model; the task would make PEFT ask for a way to generate."""
    config = LoraConfig.from_pretrained(str(adapter))
    config.task_type = None
    return PeftModel.from_pretrained(fused_model(), str(adapter), config=config).eval()


def saved(tuned: Any, folder: Path) -> Path:
    tuned.save_pretrained(str(folder))
    return folder


def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.inference_mode():
        output = model(ids)
    return output if isinstance(output, torch.Tensor) else output.logits


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


def adapter_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def adapter_config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "adapter_config.json").read_text())


def test_the_reference_without_an_adapter_is_its_llama(base):
    assert difference(logits(fused_model()), logits(llama(base))) < 1e-5


VARIANTS = {
    "all": {"target_modules": ALL},
    "some": {"target_modules": ["wqkv", "w2"]},
    "one layer": {"target_modules": r"model\.layers\.1\.(attention\.wqkv|feed_forward\.w1)"},
    "rslora": {"target_modules": ALL, "use_rslora": True},
    "patterns": {
        "target_modules": ALL,
        "rank_pattern": {"wqkv": 2, "layers.1.feed_forward.w2": 6},
        "alpha_pattern": {"layers.1.attention.wqkv": 3, "output": 5},
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_fused_adapter_gives_the_same_logits_on_llama(variant, base, tmp_path):
    tuned = with_random_lora(fused_model(), **VARIANTS[variant])
    wanted = logits(tuned)
    to_llama_adapter(saved(tuned, tmp_path / "fused"), tmp_path / "adapter", base)
    adapted = llama(base, tmp_path / "adapter")
    assert difference(wanted, logits(fused_model())) > 0.1
    assert difference(wanted, logits(adapted)) < 1e-5
    assert difference(wanted, logits(adapted.merge_and_unload())) < 1e-5


def test_the_adapter_says_what_it_is(base, tmp_path):
    tuned = with_random_lora(fused_model(), target_modules=ALL, lora_dropout=0.05)
    to_llama_adapter(saved(tuned, tmp_path / "fused"), tmp_path / "adapter", base, {"alpha": 8})
    config = adapter_config(tmp_path / "adapter")
    assert config["target_modules"] == sorted(LLAMA)
    assert config["base_model_name_or_path"] == str(base)
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (4, 8, 0.05)
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    wanted = {"alpha": 8, "imported_from": str(tmp_path / "fused")}
    assert load_settings(tmp_path / "adapter") == wanted


def test_the_comparison_sees_a_lost_output_pair_and_a_plain_split(base, tmp_path, monkeypatch):
    tuned = with_random_lora(fused_model(), target_modules=ALL)
    fused = saved(tuned, tmp_path / "fused")
    halves = adapter_weights(fused)
    (tmp_path / "headless").mkdir()
    kept = {name: half for name, half in halves.items() if ".output." not in name}
    assert len(kept) == len(halves) - 2
    save_file(kept, tmp_path / "headless" / "adapter_model.safetensors")
    (tmp_path / "headless" / "adapter_config.json").write_text((fused / "adapter_config.json").read_text())
    to_llama_adapter(tmp_path / "headless", tmp_path / "lost", base)
    assert difference(logits(tuned), logits(llama(base, tmp_path / "lost"))) > 0.05

    rows = (QUERY * SIZE, KEY_VALUE * SIZE, KEY_VALUE * SIZE)
    plain = lambda fused, heads: tuple(part.clone() for part in fused.split(rows))  # noqa: E731
    monkeypatch.setattr(adapters, "split_wqkv", plain)
    to_llama_adapter(fused, tmp_path / "plain", base)
    assert difference(logits(tuned), logits(llama(base, tmp_path / "plain"))) > 0.05


@pytest.mark.parametrize("variant", ["all", "some", "rslora", "patterns"])
def test_there_and_back_is_the_same_adapter_byte_for_byte(variant, base, tmp_path):
    fused = saved(with_random_lora(fused_model(), **VARIANTS[variant]), tmp_path / "fused")
    to_llama_adapter(fused, tmp_path / "adapter", base)
    to_internlm2_adapter(tmp_path / "adapter", tmp_path / "back")
    before, after = adapter_weights(fused), adapter_weights(tmp_path / "back")
    assert set(before) == set(after)
    assert all(half.numpy().tobytes() == after[name].numpy().tobytes() for name, half in before.items())
    if variant != "patterns":
        keys = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")
        one, other = adapter_config(fused), adapter_config(tmp_path / "back")
        assert [one[key] for key in keys] == [other[key] for key in keys]
        assert sorted(one["target_modules"]) == other["target_modules"]
    assert torch.equal(logits(fused_with(fused)), logits(fused_with(tmp_path / "back")))


INDEPENDENT: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "all": (
        {"target_modules": LLAMA},
        {"r": 4, "rank_pattern": {"wqkv": 12}, "alpha_pattern": {"wqkv": 24}},
    ),
    "attention": (
        {"target_modules": ["q_proj", "k_proj", "v_proj"]},
        {"r": 12, "lora_alpha": 24, "rank_pattern": {}, "alpha_pattern": {}},
    ),
    "q and v": ({"target_modules": ["q_proj", "v_proj"]}, {"r": 8, "lora_alpha": 16}),
    "rslora": ({"target_modules": LLAMA, "use_rslora": True}, {"use_rslora": True}),
    "other sizes": (
        {"target_modules": LLAMA, "rank_pattern": {"k_proj": 2}, "alpha_pattern": {"v_proj": 1}},
        {"rank_pattern": {"wqkv": 10}},
    ),
    "one layer": ({"target_modules": ["layers.1.self_attn.k_proj", "lm_head"]}, {"r": 4}),
}


@pytest.mark.parametrize("variant", INDEPENDENT)
def test_an_adapter_trained_on_llama_gives_the_same_logits_when_fused(variant, base, tmp_path):
    fields, said = INDEPENDENT[variant]
    tuned = with_random_lora(llama(base), **fields)
    to_internlm2_adapter(saved(tuned, tmp_path / "adapter"), tmp_path / "fused")
    fused = fused_with(tmp_path / "fused")
    assert difference(logits(tuned), logits(fused_model())) > 0.05
    assert difference(logits(tuned), logits(fused)) < 1e-5
    config = adapter_config(tmp_path / "fused")
    assert {key: config[key] for key in said} == said


@pytest.fixture(scope="module")
def xtuner_base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("xtuner")
    to_llama(XTUNER / "base_llm", folder)
    return folder


def test_xtuners_own_export_gives_xtuners_own_logits(xtuner_base, tmp_path):
    """The numbers were made by XTuner 0.1.23 with InternLM2's modeling code."""
    golden = load_file(XTUNER / "reference.safetensors")
    to_llama_adapter(XTUNER / "hf" / "llm_adapter", tmp_path / "adapter", xtuner_base)
    adapted = llama(xtuner_base, tmp_path / "adapter")
    assert difference(golden["text_logits"], logits(llama(xtuner_base), golden["text_ids"])) > 0.05
    assert difference(golden["text_logits"], logits(adapted, golden["text_ids"])) < 1e-5
    merged = adapted.merge_and_unload()
    assert difference(golden["text_logits"], logits(merged, golden["text_ids"])) < 1e-5


def altered(folder: Path, **fields: Any) -> Path:
    """XTuner's exported adapter with another config."""
    folder.mkdir()
    source = XTUNER / "hf" / "llm_adapter"
    (folder / "adapter_model.bin").write_bytes((source / "adapter_model.bin").read_bytes())
    (folder / "adapter_config.json").write_text(json.dumps({**adapter_config(source), **fields}))
    return folder


MORE = [
    ({"use_dora": True}, "use_dora: True; only plain LoRA"),
    ({"bias": "all"}, "bias: 'all'; only plain LoRA"),
    ({"modules_to_save": ["tok_embeddings"]}, "modules_to_save"),
    ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights: 'pissa_niter_4'"),
    ({"peft_type": "IA3"}, "peft_type: 'IA3'"),
    ({"r": 16}, "do not fit together"),
    ({"lora_alpha": "4"}, "lora_alpha '4'"),
    ({"alpha_pattern": {"wo": 0}}, "lora_alpha 0 of model.layers.0.attention.wo"),
]


@pytest.mark.parametrize("fields, sentence", MORE, ids=[next(iter(fields)) for fields, _ in MORE])
def test_more_than_plain_lora_is_refused_and_nothing_is_written(fields, sentence, xtuner_base, tmp_path):
    with pytest.raises(ValueError) as error:
        to_llama_adapter(altered(tmp_path / "odd", **fields), tmp_path / "adapter", xtuner_base)
    assert sentence in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["odd"]


def test_weights_that_no_lora_of_a_linear_layer_has_are_refused(xtuner_base, tmp_path):
    folder = altered(tmp_path / "odd")
    halves = torch.load(folder / "adapter_model.bin", weights_only=True)
    name = "base_model.model.model.layers.0.attention.wqkv.lora_magnitude_vector"
    torch.save({**halves, name: torch.ones(128)}, folder / "adapter_model.bin")
    with pytest.raises(ValueError, match="lora_magnitude_vector, which is no LoRA"):
        to_llama_adapter(folder, tmp_path / "adapter", xtuner_base)


def test_an_adapter_of_another_model_is_refused_in_both_directions(base, xtuner_base, tmp_path):
    with pytest.raises(ValueError, match=r"changes model.layers.0.attention.wqkv \[128, 64\], there it is"):
        to_llama_adapter(XTUNER / "hf" / "llm_adapter", tmp_path / "adapter", base)
    to_llama_adapter(XTUNER / "hf" / "llm_adapter", tmp_path / "adapter", xtuner_base)
    with pytest.raises(ValueError, match="is --base its base"):
        to_internlm2_adapter(tmp_path / "adapter", tmp_path / "back", base)


def test_an_adapter_of_the_embedding_is_refused(base, tmp_path):
    tuned = with_random_lora(llama(base), target_modules=["embed_tokens", "q_proj"])
    with pytest.raises(ValueError, match="embed_tokens.lora_embedding_A, which is no LoRA of a linear layer"):
        to_internlm2_adapter(saved(tuned, tmp_path / "adapter"), tmp_path / "fused", base)


def test_only_an_imported_folder_is_replaced(xtuner_base, tmp_path):
    out, source = tmp_path / "adapter", altered(tmp_path / "source")
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="which would be deleted"):
        to_llama_adapter(source, out, xtuner_base)
    assert (out / "thesis.txt").read_text() == "years of work"
    with pytest.raises(ValueError, match="holds what is read"):
        to_llama_adapter(source, source, xtuner_base)
    with pytest.raises(ValueError, match="holds what is read"):
        to_llama_adapter(source, tmp_path, xtuner_base)
    (out / "thesis.txt").unlink()
    to_llama_adapter(source, out, xtuner_base)
    (out / "leftover").write_text("of an earlier run")
    to_llama_adapter(source, out, xtuner_base)
    assert not (out / "leftover").exists()


def test_a_stopped_import_leaves_nothing_and_keeps_what_was_there(xtuner_base, tmp_path, monkeypatch):
    out, source = tmp_path / "adapter", altered(tmp_path / "source")
    to_llama_adapter(source, out, xtuner_base)
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(adapters, "write_json", stopped)  # after the weights
    with pytest.raises(KeyboardInterrupt):
        to_llama_adapter(source, out, xtuner_base)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "source"]
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
