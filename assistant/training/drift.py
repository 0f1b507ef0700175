"""How far an adapter moves what its layers put out on general prompts: on all of them, at every step.

The losses see a few anchors a step; this sees all, for E|ΔW·x|² needs only the second moments K of the
inputs: it is tr(ΔW·K·ΔWᵀ), and with ΔW = s·B·A a product of two matrices of the adapter's rank.
"""

from typing import Any

import torch

from assistant.training.moments import Moments, measured_modules


class Drift:
    """Called, it gives the sum over the LoRA modules of the mean |ΔW·x|² on anchors, with its gradient.

    `anchors`: the moments of their inputs to the base. They are kept beside the model, in its own numbers.
    `weight`: of the drift beside the losses.
    """

    def __init__(self, model: Any, anchors: Moments, weight: float) -> None:
        self.modules, self.weight = measured_modules(model), weight
        device, dtype = model.device, model.dtype
        kept = {id(value): value.to(device, dtype) for value in anchors.values()}
        self.moments = {name: kept[id(value)] for name, value in anchors.items()}
        self.bytes = sum(value.nbytes for value in kept.values())

    def __call__(self) -> torch.Tensor:
        return torch.stack([self._of(name, module) for name, module in self.modules.items()]).sum()

    def _of(self, name: str, module: Any) -> torch.Tensor:
        [adapter] = module.active_adapters
        a, b = (part[adapter].weight.float() for part in (module.lora_A, module.lora_B))
        # K is symmetric: twice one side's gradient is both sides', without a second product with K
        inner, outer = a.detach() @ self.moments[name].float() @ a.T, b.T @ b
        moved = (2 * inner - inner.detach()) * outer
        return module.scaling[adapter] ** 2 * moved.sum()
