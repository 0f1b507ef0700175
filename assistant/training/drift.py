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
        self.modules, self.weight = measured_modules(model), weight
        kept = {id(value): _positive(value).to(model.device) for value in anchors.values()}
        self.moments = {name: kept[id(value)] for name, value in anchors.items()}
        self.bytes = sum(value.nbytes for value in kept.values())

    def __call__(self) -> torch.Tensor:
        return torch.stack([self._of(name, module) for name, module in self.modules.items()]).sum()

    def _of(self, name: str, module: Any) -> torch.Tensor:
        [adapter] = module.active_adapters
        a, b = (part[adapter].weight.float() for part in (module.lora_A, module.lora_B))
        # K is symmetric: twice one side's gradient is both sides', without a second product with K
        inner, outer = a.detach() @ self.moments[name] @ a.T, b.T @ b
        moved = (2 * inner - inner.detach()) * outer
        return module.scaling[adapter] ** 2 * moved.sum()


def _positive(moment: torch.Tensor) -> torch.Tensor:
    """K [width, width] with what sums in 32 bits may have lost added to its diagonal."""
    return moment + ROUNDING * moment.trace() * torch.eye(len(moment))
