"""How far an adapter moves its layers' outputs on anchors: a mean over tokens, and its weight in a run."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import load_tiny, make_tiny_model, rows_of, tiny_recipe, tiny_run

from assistant.loading import core_of
from assistant.training.collating import Collator
from assistant.training.drift import Drift
from assistant.training.examples import anchor_examples, identity_examples
from assistant.training.moments import OTHER_WEIGHT, anchor_moments, measured_modules
from assistant.training.parts import trained_model
from assistant.training.recipe import load_recipe
from assistant.training.states import prepare

FROM_LAYER = 2
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def measured(tiny):
    """(an adapter that says something, its examples, its drift as told from the moments)"""
    chat = load_tiny(tiny)
    examples = identity_examples(chat, rows_of("identity", 5), 64, 3.0)
    examples += anchor_examples(chat, rows_of("general", 20), 8, 2, 64, 2.0)
    collate = Collator(examples, prepare(core_of(chat.model), examples, FROM_LAYER, lambda tokens: None))
    torch.manual_seed(0)
    model = trained_model(chat, tiny_recipe("lora.init_lora_weights=false"), FROM_LAYER).eval()
    return model, examples, Drift(model, anchor_moments(model, collate, FROM_LAYER), 1.0)


def moved_by_hand(model, examples) -> float:
    """The weighted mean over the tokens of |W'x - Wx|², summed over the modules, each row alone."""
    sums, total = dict.fromkeys(measured_modules(model), 0.0), 0.0
    weights = torch.empty(0)

    def add(name, module, args, output):
        gone = output - module.base_layer(args[0])
        sums[name] += float((gone[0].pow(2).sum(-1) * weights).sum())

    hooks = [
        module.register_forward_hook(lambda module, args, output, name=name: add(name, module, args, output))
        for name, module in measured_modules(model).items()
    ]
    for example in examples:
        counted = dict(zip(example.places, example.weights, strict=True))
        weights = torch.tensor([counted.get(place, OTHER_WEIGHT) for place in range(len(example.ids))])
        total += float(weights.sum())
        with torch.no_grad():
            core_of(model)(input_ids=torch.tensor([example.ids]), use_cache=False)
    for hook in hooks:
        hook.remove()
    return sum(sums.values()) / total


def test_the_drift_is_the_mean_change_of_the_outputs_on_anchors(measured):
    model, examples, drift = measured
    wanted = moved_by_hand(model, [example for example in examples if example.anchor])
    assert drift().item() == pytest.approx(wanted, rel=1e-3)


def test_no_adapter_of_a_model_in_16_bits_moves_less_than_nothing(measured):
    """Rounded to 16 bits, moments with a few loud channels have directions that count below 0."""
    model, _, _ = measured
    model.bfloat16()  # but for what learns
    source = torch.Generator().manual_seed(0)
    moments = {}
    for name, module in measured_modules(model).items():
        inputs = torch.randn(module.in_features // 2, module.in_features, generator=source)
        inputs[:, ::7] *= 300
        moments[name] = inputs.T @ inputs / len(inputs)
        rounded = torch.linalg.eigh(moments[name].bfloat16().float())
        assert rounded.eigenvalues[0] < 0
        a, b = (half.float()["default"].weight.data for half in (module.lora_A, module.lora_B))
        a.copy_(rounded.eigenvectors[:, 0].expand(a.shape))
        b.fill_(1.0)
    assert Drift(model, moments, 1.0)() > 0


def test_both_halves_of_each_adapter_get_a_gradient(measured):
    model, _, drift = measured
    drift().backward()
    for module in measured_modules(model).values():
        for half in (module.lora_A["default"], module.lora_B["default"]):
            assert half.weight.grad.abs().max() > 0


def test_a_run_with_it_drifts_less(tiny, tmp_path):
    plain = tiny_run(tiny, tmp_path / "a", changes=("drift_weight=1e-6",))
    held = tiny_run(tiny, tmp_path / "b", changes=("drift_weight=1.0",))
    last = [_last(folder)["drift"] for folder in (plain, held)]
    assert 0 < last[1] < 0.8 * last[0]


def _last(folder):
    lines = (folder / "history.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if "drift" in line][-1]


def test_a_step_in_parts_counts_it_once(tiny, tmp_path):
    whole = load_file(tiny_run(tiny, tmp_path / "a", changes=("drift_weight=1.0",)) / WEIGHTS)
    parts = ("drift_weight=1.0", "rows_at_once=1")
    cut = load_file(tiny_run(tiny, tmp_path / "b", changes=parts) / WEIGHTS)
    assert all(torch.allclose(whole[name], cut[name], rtol=1e-3, atol=1e-5) for name in whole)


def test_a_run_that_was_stopped_and_goes_on_drifts_as_one_that_was_not(tiny, tmp_path):
    whole = tiny_run(tiny, tmp_path / "a", changes=("drift_weight=1.0",))
    with pytest.raises(KeyboardInterrupt):
        tiny_run(tiny, tmp_path / "b", interrupt=True, changes=("drift_weight=1.0",))
    resumed = tiny_run(tiny, tmp_path / "b", resume=True, changes=("drift_weight=1.0",))
    assert (whole / WEIGHTS).read_bytes() == (resumed / WEIGHTS).read_bytes()


def test_without_an_adapter_it_is_refused():
    with pytest.raises(ValueError, match=r"drift_weight needs a \[lora\] section; set it to 0"):
        load_recipe("identity_full", ["drift_weight=0.1"])
