"""LoRA's products on a CPU: the values and gradients of PEFT's own, and where they are left to PEFT."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_run import load_tiny, make_tiny_model, tiny_recipe

from assistant.training import fusing
from assistant.training.fusing import Product, fuse
from assistant.training.parts import trained_model

IDS = torch.tensor([[7, 30, 12, 99, 4]])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def products(monkeypatch) -> list[torch.Size]:
    """The shapes of what went through a fused product."""
    seen: list[torch.Size] = []
    apply = Product.apply
    monkeypatch.setattr(fusing.Product, "apply", lambda x, *rest: (seen.append(x.shape), apply(x, *rest))[1])
    return seen


def adapted(folder, dtype=torch.float32, **changes):
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False, **changes)
    model = get_peft_model(load_tiny(folder).model.to(dtype), config)
    return model.train()


def trained(model) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits, and the gradients of a loss that weighs each of them differently."""
    logits = model(input_ids=IDS, use_cache=False).logits
    (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    return logits.detach(), {
        name: part.grad for name, part in model.named_parameters() if part.grad is not None
    }


def test_values_and_gradients_are_those_of_two_products(tiny, products):
    wanted, wanted_gradients = trained(adapted(tiny))
    assert not products
    model = adapted(tiny)
    fuse(model)
    logits, gradients = trained(model)
    assert len(products) == 4 * 7
    assert torch.allclose(logits, wanted, rtol=1e-4, atol=1e-5)
    assert gradients.keys() == wanted_gradients.keys() and len(gradients) == 2 * 4 * 7
    for name, gradient in gradients.items():
        scale = wanted_gradients[name].abs().max()
        assert (gradient - wanted_gradients[name]).abs().max() < 1e-4 * scale, name


def test_an_adapter_in_32_bits_on_a_base_in_16_is_multiplied_in_16_and_learns_in_32(tiny, products):
    wanted, wanted_gradients = trained(adapted(tiny, torch.bfloat16))
    model = adapted(tiny, torch.bfloat16)
    fuse(model)
    logits, gradients = trained(model)
    assert len(products) == 4 * 7 and logits.dtype == torch.bfloat16
    assert (logits - wanted).abs().max() < 0.05 * wanted.abs().max()
    for name, gradient in gradients.items():
        assert gradient.dtype == torch.float32
        cosine = torch.cosine_similarity(gradient.flatten(), wanted_gradients[name].flatten(), dim=0)
        assert cosine > 0.99, name


def test_a_recipe_on_a_cpu_is_trained_so(tiny, products):
    model = trained_model(load_tiny(tiny), tiny_recipe(), 2)
    trained(model.train())
    assert len(products) == 2 * 7


@pytest.mark.parametrize(
    "changes", [{"lora_dropout": 0.5}, {"use_dora": True}, {"lora_bias": True}, {"dtype": torch.float16}]
)
def test_what_is_no_plain_lora_is_left_to_peft(tiny, products, changes):
    model = adapted(tiny, **changes)
    fuse(model)
    trained(model)
    assert not products


def test_answers_are_written_and_the_base_is_asked_as_before(tiny, products):
    model = adapted(tiny)
    fuse(model)
    with torch.no_grad():
        spoken = model(input_ids=IDS).logits
    with model.disable_adapter():
        base = model(input_ids=IDS).logits
    assert not products and not torch.allclose(spoken, base)
    assert torch.equal(base, load_tiny(tiny).model(input_ids=IDS).logits)


@pytest.mark.parametrize(("dtype", "is_fused"), [(torch.bfloat16, True), (torch.float32, False)])
def test_beside_a_gpu_weights_in_32_bits_are_left_to_autocast(dtype, is_fused):
    """The meta device stands for one: what is chosen is looked at, not what is computed."""
    base = torch.nn.Sequential(torch.nn.Linear(8, 8, bias=False, dtype=dtype))
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["0"])).to("meta")
    [layer] = [module for module in model.modules() if isinstance(module, fusing.Linear)]
    usual = layer.forward
    fuse(model)
    assert (layer.forward != usual) == is_fused


def test_an_input_of_another_format_is_left_to_peft(tiny, products):
    model = adapted(tiny, torch.bfloat16)
    fuse(model)
    [layer, *_] = [module for module in model.modules() if isinstance(module, fusing.Linear)]
    layer(torch.randn(1, 3, layer.in_features, dtype=torch.bfloat16))
    assert len(products) == 1
    with torch.autocast("cpu", torch.bfloat16):
        layer(torch.randn(1, 3, layer.in_features))
    assert len(products) == 1
