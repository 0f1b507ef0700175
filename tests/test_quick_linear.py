import torch
from test_llava import published, spacious_model, tower  # noqa: F401 (fixtures)
from torch import nn

from assistant.llava import Parts, make_llava
from assistant.loading import load_chat_model
from assistant.quick_linear import QuickLinear, quicken


def stored_as_bfloat16(columns: int, rows: int) -> nn.Linear:
    linear = nn.Linear(columns, rows)
    linear.weight.data = linear.weight.data.bfloat16().float()
    return linear


def test_several_rows_are_exact_and_one_row_is_as_good_as_float16():
    torch.manual_seed(0)
    linear = stored_as_bfloat16(300, 200)
    quick, rows, row = QuickLinear(linear), torch.randn(1, 5, 300), torch.randn(1, 1, 300)
    with torch.inference_mode():
        assert torch.allclose(quick(rows), linear(rows), atol=1e-5)
        off = (quick(row) - linear(row)).norm() / linear(row).norm()
        assert 0 < off < 1e-3 and quick(row).dtype == torch.float32


def test_a_row_that_float16_cannot_hold_is_multiplied_in_float32():
    linear = stored_as_bfloat16(300, 200)
    row = torch.full((1, 1, 300), 1e6)
    with torch.inference_mode():
        assert torch.allclose(QuickLinear(linear)(row), linear(row), rtol=1e-5)


def test_a_llavas_speaking_half_is_exchanged_and_speaks_the_same(tower, tmp_path):  # noqa: F811
    make_llava(spacious_model(tmp_path / "llm"), tower, tmp_path / "llava", Parts(), {})
    chat = load_chat_model(tmp_path / "llava", dtype=torch.float32, device="cpu")
    ids = torch.tensor([[5, 9, 12, 7]])

    def said() -> list[int]:
        with torch.inference_mode():
            return chat.model.generate(input_ids=ids, max_new_tokens=12, do_sample=False)[0].tolist()

    before, layers = said(), chat.model.config.text_config.num_hidden_layers
    assert quicken(chat.model) == 7 * layers + 1 and quicken(chat.model) == 0
    assert said() == before
    assert type(chat.model.model.multi_modal_projector.linear_1) is nn.Linear
