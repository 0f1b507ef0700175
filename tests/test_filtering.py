"""The filter of an adapter's inputs: the least-squares optimum, from moments that are the inputs' own."""

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import load_tiny, make_tiny_model, rows_of, tiny_recipe, tiny_run

from assistant.loading import core_of
from assistant.training.collating import Collator
from assistant.training.examples import anchor_examples, identity_examples
from assistant.training.filtering import RIDGE, FilterInputs, filter_inputs
from assistant.training.moments import OTHER_WEIGHT, anchor_moments, input_moments, measured_modules
from assistant.training.parts import trained_model
from assistant.training.recipe import load_recipe
from assistant.training.states import prepare

FROM_LAYER = 2


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def chat(tiny):
    return load_tiny(tiny)


@pytest.fixture
def collate(chat) -> Collator:
    examples = identity_examples(chat, rows_of("identity", 5), 64, 3.0)
    examples += anchor_examples(chat, rows_of("general", 20), 8, 2, 64, 2.0)
    return Collator(examples, prepare(core_of(chat.model), examples, FROM_LAYER, lambda tokens: None))


@pytest.fixture
def model(chat, collate):
    """An adapter that says something, on the layers that are not frozen."""
    torch.manual_seed(0)
    return trained_model(chat, tiny_recipe("lora.init_lora_weights=false"), FROM_LAYER).eval()


def inputs_alone(model, name, examples) -> tuple[torch.Tensor, torch.Tensor]:
    """([tokens, width] that go into one module, row by row through the whole model, their weights)."""
    inputs: list[torch.Tensor] = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda _, args: inputs.append(args[0][0]))
    with torch.no_grad():
        for example in examples:
            core_of(model)(input_ids=torch.tensor([example.ids]), use_cache=False)
    hook.remove()
    weights = [
        dict(zip(example.places, example.weights, strict=True)).get(place, OTHER_WEIGHT)
        for example in examples
        for place in range(len(example.ids))
    ]
    return torch.cat(inputs), torch.tensor(weights)


@pytest.mark.parametrize("part", ["self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"])
@pytest.mark.parametrize("device", ["cpu", "padded as on a GPU"])
def test_the_moments_are_those_of_the_inputs_row_by_row(part, device, model, collate, monkeypatch):
    if device != "cpu":
        from assistant.training import states

        monkeypatch.setattr(
            states,
            "packed",
            lambda core, hidden, mask: (
                core.model(inputs_embeds=hidden, attention_mask=mask, use_cache=False).last_hidden_state
            ),
        )
    rows = [row for row, example in enumerate(collate.examples) if example.anchor]
    [name] = [name for name in measured_modules(model) if name.endswith(f"layers.3.{part}")]
    found = input_moments(model, collate, rows, FROM_LAYER)[name]
    x, weights = inputs_alone(model, name, [collate.examples[row] for row in rows])
    assert torch.allclose(found, (x.T * weights) @ x / weights.sum(), rtol=1e-4, atol=1e-5)


def test_what_reads_one_input_shares_its_moments(model, collate):
    moments = input_moments(model, collate, [0, 1, 2], FROM_LAYER)
    assert len(moments) == 2 * 7 and len({id(value) for value in moments.values()}) == 2 * 4


def test_the_filtered_adapter_is_the_least_squares_answer(model, collate):
    """No other A of the same width keeps more on identity rows for as little on anchors."""
    identity = input_moments(model, collate, list(range(5)), FROM_LAYER)
    anchors = input_moments(model, collate, list(range(5, 25)), FROM_LAYER)
    before = {
        name: m.lora_A["default"].weight.detach().clone() for name, m in measured_modules(model).items()
    }
    filter_inputs(model, identity, anchors, 0.5)
    for name, module in measured_modules(model).items():
        own, general, old = identity[name].double(), anchors[name].double(), before[name].double()
        ridge = RIDGE * own.trace() / len(own) * torch.eye(len(own), dtype=torch.float64)
        new = module.lora_A["default"].weight.detach().double().requires_grad_(True)
        gone = new - old
        loss = ((gone @ own) * gone).sum() + ((new @ (0.5 * general + ridge)) * new).sum()
        (slope,) = torch.autograd.grad(loss, new)
        assert slope.abs().max() < 1e-3 * (old @ own).abs().max(), name
        assert ((new @ general) * new).sum() < 0.9 * ((old @ general) * old).sum(), name


def test_a_run_filters_once_and_goes_on_learning(tiny, tmp_path, capsys):
    plain = load_file(tiny_run(tiny, tmp_path / "a", changes=("filter=0",)) / "adapter_model.safetensors")
    assert "filtering" not in capsys.readouterr().err
    ours = load_file(tiny_run(tiny, tmp_path / "b", changes=("filter=0.5",)) / "adapter_model.safetensors")
    said = capsys.readouterr().err
    assert said.count("filtering the adapter's inputs: 7 identity rows against the anchors") == 1
    assert said.index("step 4: ") < said.index("filtering") < said.index("step 8: ")
    assert plain.keys() == ours.keys() and not any(torch.equal(plain[name], ours[name]) for name in ours)


def test_a_run_that_was_stopped_and_goes_on_is_filtered_as_one_that_was_not(tiny, tmp_path):
    whole = tiny_run(tiny, tmp_path / "a", changes=("filter=0.5",))
    with pytest.raises(KeyboardInterrupt):
        tiny_run(tiny, tmp_path / "b", interrupt=True, changes=("filter=0.5",))
    resumed = tiny_run(tiny, tmp_path / "b", resume=True, changes=("filter=0.5",))
    ours, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (whole, resumed))
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())


def test_without_anchors_nothing_is_filtered(collate, model):
    collate.examples = [example for example in collate.examples if not example.anchor]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    end = type("State", (), {"global_step": 3, "max_steps": 5})()
    moments = anchor_moments(model, collate, FROM_LAYER)
    FilterInputs(collate, FROM_LAYER, moments, 0.5, pytest.fail).on_step_end(None, end, None, model=model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_filter_without_an_adapter_is_refused():
    with pytest.raises(ValueError, match=r"filter needs a \[lora\] section; set it to 0"):
        load_recipe("identity_full", ["filter=0.1"])
