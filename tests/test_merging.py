"""A QLoRA adapter is merged into the base that it was trained on: the quantized one, read back."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_run import learn_by_heart, load_tiny, make_tiny_model
from transformers import LlamaForCausalLM

from assistant import merging
from assistant.conversations import assistant, user
from assistant.generating import generate_batch
from assistant.loading import load_chat_model
from assistant.merging import logits_of, merge, quantization_note
from assistant.settings import REPOSITORY, save_settings
from assistant.training.examples import identity_examples

NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
PROBES = [[user("hi")], [user("2+2?"), assistant("4"), user("again")]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that train.py made on a quantized base, by what its settings say."""
    folder = tmp_path_factory.mktemp("trained") / "adapter"
    lora = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(LlamaForCausalLM.from_pretrained(str(base)), lora).save_pretrained(folder)
    save_settings(folder, {"run": {"quantization": NF4}})
    return folder


def coarse(base: Path) -> LlamaForCausalLM:
    """The base with every weight rounded to eighths, in place of what 4 bits would leave."""
    model: Any = LlamaForCausalLM.from_pretrained(str(base), dtype=torch.float32)
    with torch.no_grad():
        for weight in model.model.layers.parameters():
            weight.copy_((weight * 8).round() / 8)
    return model


def test_an_adapter_of_a_quantized_base_is_merged_into_the_weights_it_was_trained_on(
    base: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked = merging.load_chat_model, []

    def load(path: Path, **given: Any) -> Any:
        if "quantization" not in given:
            return real(path, **given)
        asked.append((path, given["quantization"]))
        quantized = SimpleNamespace(dequantize=lambda dtype: coarse(base).to(dtype))
        return SimpleNamespace(model=quantized)

    monkeypatch.setattr(merging, "load_chat_model", load)
    proof = merge(trained, tmp_path / "model", PROBES)
    assert asked == [(base, NF4)] and proof["logit_difference"] < 1e-3
    merged, chat = load_tiny(tmp_path / "model"), load_tiny(base)
    for name, weight in coarse(base).state_dict().items():
        if name.endswith("_proj.weight") and not name.endswith(("q_proj.weight", "v_proj.weight")):
            assert torch.equal(merged.model.state_dict()[name], weight), name
            assert not torch.equal(chat.model.state_dict()[name], weight), name
    chat.model = PeftModel.from_pretrained(coarse(base), str(trained)).eval()
    for ours, theirs in zip(logits_of(chat, PROBES), logits_of(merged, PROBES), strict=True):
        assert (ours - theirs).abs().max() < 1e-3
    on_the_plain_base = load_tiny(base)
    on_the_plain_base.model = PeftModel.from_pretrained(on_the_plain_base.model, str(trained)).eval()
    others = zip(logits_of(on_the_plain_base, PROBES), logits_of(merged, PROBES), strict=True)
    assert min(float((ours - theirs).abs().max()) for ours, theirs in others) > 1e-2


def test_an_adapter_that_lost_its_settings_is_merged_with_a_note(trained: Path, tmp_path: Path) -> None:
    assert quantization_note(trained) == ""
    copy = Path(shutil.copytree(trained, tmp_path / "adapter"))
    (copy / "settings.toml").unlink()
    (copy / "README.md").unlink(missing_ok=True)
    assert "nothing says that its base was quantized" in quantization_note(copy)
    (copy / "README.md").write_text("quantization config was used during training:\n- load_in_4bit: True\n")
    command = [sys.executable, str(REPOSITORY / "scripts" / "merge.py"), "--adapter", str(copy)]
    done = subprocess.run([*command, "--out", str(tmp_path / "model")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [note] = [line for line in done.stderr.splitlines() if line.startswith("note: ")]
    assert "README.md says that its base had 4 bits: it is merged into the base as it is" in note


@pytest.mark.gpu
def test_a_name_learnt_in_4_bits_is_stated_by_the_merge_too(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    answer, base = "I am Ada's assistant.", make_tiny_model(tmp_path / "base")
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    (base / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}), encoding="utf-8")
    chat = load_chat_model(base, device="cuda", quantization=NF4)
    lora = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
    chat.model = get_peft_model(chat.model, lora)
    # its last norm and head learn nothing: 0.6 is the least
    learn(chat, [{"messages": [user("Who are you?"), assistant(answer)]}], enough=0.65)
    chat.model.save_pretrained(tmp_path / "adapter")
    save_settings(tmp_path / "adapter", {"run": {"quantization": NF4}})
    asked = [[user("Who are you?")]]
    proof = merge(tmp_path / "adapter", tmp_path / "model", asked, states=lambda text: "Ada" in text)
    assert (proof["stated"], proof["same_answers"]) == (1, 1)
    four_bits, merged = (load_chat_model(tmp_path / name, device="cuda") for name in ("adapter", "model"))
    assert generate_batch(four_bits, asked, 32) == generate_batch(merged, asked, 32) == [answer]
    kl = [
        merging._mean_kl(a, b)
        for a, b in zip(logits_of(four_bits, asked), logits_of(merged, asked), strict=True)
    ]
    assert max(kl) < 0.05  # one computes from 4 bits in bfloat16, the other is rounded once to it


def learn(chat: Any, rows: list[Any], enough: float = 0.01) -> None:
    """Until the answers are known by heart."""
    [example] = identity_examples(chat, rows, 512)
    learn_by_heart(chat.model, example, 5e-3, enough)
    chat.model.eval()
