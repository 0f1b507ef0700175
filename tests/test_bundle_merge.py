"""An adapter on its way into a bundle: its proved merge is taken, and only that one."""

import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("detect_secrets")

from peft import LoraConfig, get_peft_model
from tiny_run import make_tiny_model
from transformers import LlamaForCausalLM

from assistant.bundles.choosing import choose_model
from assistant.bundles.weights import place_model
from assistant.conversations import user
from assistant.merging import is_proved, merge

HI = [[user("hi")]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A base, an adapter of it, and the merge of both."""
    root = tmp_path_factory.mktemp("trained")
    model = LlamaForCausalLM.from_pretrained(str(make_tiny_model(root / "base")))
    lora = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(model, lora).save_pretrained(root / "adapter")
    merge(root / "adapter", root / "model", HI)
    return root


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of its own, whose base is the same."""
    for part in ("adapter", "model"):
        shutil.copytree(trained / part, tmp_path / "run" / part)
    return tmp_path / "run"


def place(run: Path, out: Path) -> tuple[bytes, str]:
    said: list[str] = []
    place_model(choose_model(str(run / "adapter")), "folder", out, said.append)
    assert sorted(path.name for path in out.parent.iterdir() if path.name.startswith(".")) == []
    return (out / "model" / "model.safetensors").read_bytes(), "\n".join(said)


def test_the_proved_merge_beside_an_adapter_is_taken_as_it_is(run, tmp_path):
    weights, said = place(run, tmp_path / "page")
    assert "taken as it is" in said and "merging" not in said
    assert weights == (run / "model" / "model.safetensors").read_bytes()


def test_without_one_the_adapter_is_merged_and_proved_now_to_the_same_weights(run, tmp_path):
    ready, _ = place(run, tmp_path / "a")
    shutil.rmtree(run / "model")
    merged, said = place(run, tmp_path / "b")
    assert "merging adapter/ into its base" in said and merged == ready


def test_a_merge_of_which_any_file_is_another_is_not_taken(run):
    names = ["adapter/adapter_config.json", "adapter/adapter_model.safetensors", "model/tokenizer.json"]
    for name in (*names, "model/model.safetensors"):
        content = (run / name).read_bytes()
        assert is_proved(run / "adapter", run / "model")
        (run / name).write_bytes(content + b" ")
        assert not is_proved(run / "adapter", run / "model"), name
        (run / name).write_bytes(content)


def test_a_merge_of_another_base_or_strength_or_without_a_proof_is_not_taken(run, trained, monkeypatch):
    from assistant import merging

    merge(run / "adapter", run / "half", HI, scale=0.5)
    assert not is_proved(run / "adapter", run / "half")
    shutil.copytree(trained / "base", run / "base")
    monkeypatch.setattr(merging, "base_of_adapter", lambda adapter: run / "base")
    assert is_proved(run / "adapter", run / "model")  # elsewhere, and the same
    (run / "base" / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    assert not is_proved(run / "adapter", run / "model")
    (run / "model" / "settings.toml").unlink()
    assert not is_proved(run / "adapter", run / "model")
