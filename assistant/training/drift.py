"""How far an adapter moves what its layers put out on general prompts: on all of them, at every step.

The losses see a few anchors a step; this sees all, for E|ΔW·x|² needs only the second moments K of the
inputs: it is tr(ΔW·K·ΔWᵀ), and with ΔW = s·B·A a product of two matrices of the adapter's rank.

K stays in 32 bits whatever the model has: rounded to 16 it is no longer positive, and where x'Kx is below 0
a long run is paid for moving without end (docs/log.md, 2026-11-29, evening).
"""

from typing import Any

import torch

from assistant.training.moments import Moments, measured_modules

ROUNDING = 1e-7  # of K's trace


class Drift:
    """Called, it gives the sum over the LoRA modules of the mean |ΔW·x|² on anchors, with its gradient.

    `anchors`: the moments of their inputs to the base, kept beside the model. `weight`: of the drift beside
    the losses.
    """

    def __init__(self, model: Any, anchors: Moments, weight: float) -> None:
        self.weight = weight
        kept = {id(value): _positive(value).to(model.device) for value in anchors.values()}
        readers: dict[int, list[Any]] = {}  # of one input
        for name, module in measured_modules(model).items():
            readers.setdefault(id(anchors[name]), []).append(module)
        alike: dict[tuple[int, ...], list[int]] = {}  # inputs whose readers have the same shapes
        for key, modules in readers.items():
            shape = (modules[0].in_features, *(module.out_features for module in modules))
            alike.setdefault(shape, []).append(key)
        self.groups = [
            _Group([readers[key] for key in keys], torch.stack([kept[key] for key in keys]))
            for keys in alike.values()
        ]
        self.bytes = sum(group.moments.nbytes for group in self.groups)

    def __call__(self) -> torch.Tensor:
        return torch.stack([group.drift() for group in self.groups]).sum()


class _Group:
    """Inputs of one width, each read by modules of the same shapes: a few products for all of them.

    `readers`: [inputs, modules]; `moments`: [inputs, width, width].
    """

    def __init__(self, readers: list[list[Any]], moments: torch.Tensor) -> None:
        self.readers, self.moments = readers, moments

    def drift(self) -> torch.Tensor:
        """The sum over the modules of tr(ΔW·K·ΔWᵀ)."""
        a = torch.stack([torch.cat([_half(m.lora_A, m) for m in modules]) for modules in self.readers])
        sent = a.detach() @ self.moments  # [inputs, modules · rank, width]
        total = sent.new_zeros(())
        parts = sent.chunk(len(self.readers[0]), 1), a.chunk(len(self.readers[0]), 1)
        for place, (seen, own) in enumerate(zip(*parts, strict=True)):
            modules = [each[place] for each in self.readers]
            b = torch.stack([_half(module.lora_B, module) * _scale(module) for module in modules])
            # K is symmetric: twice one side's gradient is both sides', without a second product with K
            inner, outer = seen @ own.mT, b.mT @ b
            total = total + ((2 * inner - inner.detach()) * outer).sum()
        return total


def _half(halves: Any, module: Any) -> torch.Tensor:
    [adapter] = module.active_adapters
    weight: torch.Tensor = halves[adapter].weight
    return weight.float()


def _scale(module: Any) -> float:
    [adapter] = module.active_adapters
    return float(module.scaling[adapter])


def _positive(moment: torch.Tensor) -> torch.Tensor:
    """K [width, width] with what sums in 32 bits may have lost added to its diagonal."""
    return moment + ROUNDING * moment.trace() * torch.eye(len(moment))
