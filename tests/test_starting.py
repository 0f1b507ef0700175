"""What an identity begins with: the start that data/start holds for its base, or nothing."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import make_tiny_model, tiny_run

from assistant.folders import read_json
from assistant.llava_adapter import write_small
from assistant.settings import DATA
from assistant.training import recipe
from assistant.training.recipe import default_recipe, load_recipe
from assistant.training.run import load_base

DEFAULT = Path("models/smollm2-135m-instruct")
WEIGHTS = "adapter_model.safetensors"
STANDING = ("start=1", "trainer.learning_rate=0.0")  # what is kept is what the run began with


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def learnt(tiny, tmp_path_factory):
    """The adapter of a run that began with nothing."""
    return tiny_run(tiny, tmp_path_factory.mktemp("learnt") / "adapter")


@pytest.fixture
def shipped(tiny, learnt, tmp_path, monkeypatch):
    """The same as the start of that base, in a data folder of its own."""
    monkeypatch.setattr(recipe, "DATA", tmp_path / "data")
    write_small(learnt, tmp_path / "data" / "start" / tiny.name)
    return tmp_path / "data" / "start" / tiny.name


def weights_of(folder) -> dict[str, torch.Tensor]:
    return {name: tensor.float() for name, tensor in load_file(folder / WEIGHTS).items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_begins_with_the_start_of_its_base_and_goes_on_from_there(tiny, shipped, tmp_path, capsys):
    stood = tiny_run(tiny, tmp_path / "stood", changes=STANDING)
    assert equal(weights_of(stood), weights_of(shipped))
    assert f"begins with {shipped}" in capsys.readouterr().err
    went_on = tiny_run(tiny, tmp_path / "on", changes=("start=1",))
    assert not equal(weights_of(went_on), weights_of(shipped))


def test_without_the_recipes_word_it_begins_with_nothing(tiny, learnt, shipped, tmp_path):
    assert equal(weights_of(tiny_run(tiny, tmp_path / "off")), weights_of(learnt))


def test_the_default_is_a_warm_start_where_there_is_one_and_else_says_what_to_take(tiny, shipped, tmp_path):
    other = shutil.copytree(tiny, tmp_path / "another-model")
    assert (default_recipe(tiny), default_recipe(other)) == ("identity_warm", "identity_lora")
    with pytest.raises(ValueError, match="nothing for another-model; take --recipe identity_lora"):
        tiny_run(other, tmp_path / "other", changes=STANDING)
    with pytest.raises(ValueError, match="nothing for not-even-a-folder"):
        load_base(tmp_path / "not-even-a-folder", load_recipe("identity_warm"))


@pytest.mark.parametrize("change", ["lora.r=2", "lora.lora_alpha=8", "from_layer=0.75"])
def test_a_start_of_another_lora_is_left_out_and_said(change, tiny, shipped, tmp_path, capsys):
    stood = tiny_run(tiny, tmp_path / "stood", changes=(*STANDING, change))
    assert all(not tensor.any() for name, tensor in weights_of(stood).items() if "lora_B" in name)
    assert "another LoRA than this recipe's" in capsys.readouterr().err


def test_an_adapter_that_is_named_is_what_a_run_begins_with_or_a_reason_to_stop(tiny, learnt, tmp_path):
    stood = tiny_run(tiny, tmp_path / "stood", changes=STANDING[1:], begin=learnt)
    assert equal(weights_of(stood), weights_of(learnt))
    with pytest.raises(ValueError, match="another LoRA than this recipe's; give --start an adapter"):
        tiny_run(tiny, tmp_path / "other", changes=("lora.r=2",), begin=learnt)


def test_an_interrupted_run_with_a_start_goes_on_to_the_same_bytes(tiny, shipped, tmp_path):
    whole = tiny_run(tiny, tmp_path / "whole", changes=("start=1",))
    with pytest.raises(KeyboardInterrupt):
        tiny_run(tiny, tmp_path / "broken", interrupt=True, changes=("start=1",))
    resumed = tiny_run(tiny, tmp_path / "broken", resume=True, changes=("start=1",))
    assert (resumed / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()


def test_what_is_measured_of_a_run_with_a_start_is_measured_against_the_base(tiny, shipped, tmp_path):
    """The drift is not 0 at the first step, as it would be if the start counted as the base."""
    out = tiny_run(tiny, tmp_path / "on", changes=("start=1", "drift_weight=0.1", "trainer.logging_steps=1"))
    first = json.loads((out / "history.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert first["drift"] > 0


def test_the_start_that_is_shipped_is_of_the_default_recipes_lora():
    folder, warm = DATA / "start" / "smollm2-135m-instruct", load_recipe(default_recipe(DEFAULT))
    config, weights = read_json(folder / "adapter_config.json"), weights_of(folder)
    assert (config["r"], config["lora_alpha"]) == (warm.lora["r"], warm.lora["lora_alpha"])
    layers = {int(name.split(".layers.")[1].split(".")[0]) for name in weights}
    assert layers == set(range(15, 30)) and len(weights) == 15 * 3
    assert config["target_modules"] == warm.lora["target_modules"] == ["mlp"]
    assert warm.objective.start == 1 and warm.objective.from_layer == 0.5
