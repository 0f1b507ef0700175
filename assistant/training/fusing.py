"""LoRA's products as one step of the gradient: what is added is added in place, not written anew.

Exact but for rounding (docs/log.md has the time it saves). An adapter in 32 bits on a base in 16 is
multiplied in 16, as mixed precision does; its own numbers and their gradients stay in 32. A CPU saves the
writing, a GPU the launching of small kernels, which is what a short step waits for.
"""

from functools import partial
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import nn


class Product(torch.autograd.Function):
    """x·(W + s·B·A)ᵀ of a frozen W. x: [..., in]; W: [out, in]; A: [rank, in]; B: [out, rank]."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float
    ) -> torch.Tensor:
        rows = x.flatten(0, -2)
        learnt, a, b = a.dtype, a.to(weight.dtype), b.to(weight.dtype)
        inner = rows @ a.T
        ctx.save_for_backward(rows, inner, weight, a, b)
        ctx.scale, ctx.shape, ctx.learnt = scale, x.shape, learnt
        product = (rows @ weight.T).addmm_(inner, b.T, alpha=scale)
        return product.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        rows, inner, weight, a, b = ctx.saved_tensors
        grad = grads[0].flatten(0, -2)
        grad_inner = (grad @ b).mul_(ctx.scale)
        grad_x = (grad @ weight).addmm_(grad_inner, a).view(ctx.shape) if ctx.needs_input_grad[0] else None
        grad_a, grad_b = grad_inner.T @ rows, (grad.T @ inner).mul_(ctx.scale)
        return grad_x, None, grad_a.to(ctx.learnt), grad_b.to(ctx.learnt), None


def fuse(model: nn.Module) -> None:
    """Lets every plain LoRA layer of a PEFT model compute so; others stay as they are."""
    for module in model.modules():
        if isinstance(module, Linear) and (layer := _plain(module)):
            module.forward = partial(_forward, module, module.forward, *layer)  # type: ignore[method-assign]


def _plain(module: Linear) -> tuple[nn.Linear, nn.Linear, nn.Linear, float] | None:
    """(base, A, B, scale) of a layer with one adapter, no bias and no dropout."""
    base: Any = module.get_base_layer()
    if len(module.lora_A) != 1 or base.bias is not None:
        return None
    (name,) = module.lora_A
    a: Any = module.lora_A[name]
    b: Any = module.lora_B[name]
    # weights in 32 bits are multiplied in 16 on a GPU, by autocast, which does not look in here
    as_learnt = base.weight.dtype == a.weight.dtype and base.weight.device.type == "cpu"
    is_plain = (
        isinstance(module.lora_dropout[name], nn.Identity)
        and not module.lora_variant
        and b.bias is None
        and (as_learnt or base.weight.dtype == torch.bfloat16)
    )
    return (base, a, b, float(module.scaling[name])) if is_plain else None


def _forward(
    module: Linear,
    usual: Any,
    base: nn.Linear,
    a: nn.Linear,
    b: nn.Linear,
    scale: float,
    x: torch.Tensor,
    *args: Any,
    **kwargs: Any,
) -> torch.Tensor:
    is_plain = torch.is_grad_enabled() and x.dtype == base.weight.dtype
    if not is_plain or module.disable_adapters or module.merged:
        output: torch.Tensor = usual(x, *args, **kwargs)
        return output
    product: torch.Tensor = Product.apply(x, base.weight, a.weight, b.weight, scale)
    return product
