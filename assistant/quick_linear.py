"""A LLaVA that speaks on a CPU: one token reads every weight, and memory gives 16-bit ones twice as fast.

Knows no conversation. Weights stored as bfloat16 lose nothing that counts: float16 has more digits.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional


class QuickLinear(nn.Module):
    """A linear layer: one row is multiplied in float16 (sums in float32), several rows in float32.

    A row whose products float16 cannot hold (above 65,504) is multiplied in float32 too.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.short = nn.Parameter(linear.weight.detach().half(), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.numel() == x.shape[-1]:
            row = functional.linear(x.half(), self.short).float()
            if row.isfinite().all():
                return row if self.bias is None else row + self.bias
        return functional.linear(x, self.short.float(), self.bias)


def quicken(model: Any) -> int:
    """Exchange the linear layers of a LLaVA's language model, in place; how many.

    None on a GPU, in another format than float32, with an adapter, or where float16 cannot hold a weight.
    """
    if model.device.type != "cpu" or model.dtype != torch.float32 or hasattr(model, "peft_config"):
        return 0
    parents = [model, *model.model.language_model.modules()]
    found = [(parent, *child) for parent in parents for child in parent.named_children()]
    layers = [(parent, name, layer) for parent, name, layer in found if _is_quick(layer)]
    for parent, name, layer in layers:
        setattr(parent, name, QuickLinear(layer))
    return len(layers)


def _is_quick(layer: nn.Module) -> bool:
    most = torch.finfo(torch.float16).max
    return type(layer) is nn.Linear and bool(layer.weight.abs().max() < most)
