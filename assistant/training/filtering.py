"""Once in a run each LoRA's input is filtered: what general prompts send in moves it less from then on.

Knows nothing of losses. The least-squares answer that leaves ΔW·x as it is on identity rows and near 0 on
anchors is ΔW·C (C + μ·K)⁻¹, with C and K the second moments of their inputs: MEMIT's ridge (arXiv 2210.07229)
turned round. Its rank is ΔW's, so it is written into LoRA's A.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback

from assistant.training.collating import Collator
from assistant.training.moments import Moments, input_moments, measured_modules

IDENTITY_ROWS = 100  # whose inputs are looked at: twice as many changed no score
AT = 0.6  # of the steps: those that follow learn again what the filter took from the identity
RIDGE = 1e-4  # of the mean eigenvalue: directions that no row has are no reason to divide by 0


class FilterInputs(TrainerCallback):
    """Filters a PEFT model in place, once, at the end of the step number AT × steps.

    `anchors`: the moments of their inputs; `strength`: how much these count against an identity's, μ above.
    """

    def __init__(
        self,
        collate: Collator,
        from_layer: int,
        anchors: Moments,
        strength: float,
        say: Callable[[str], None],
    ) -> None:
        self.collate, self.from_layer, self.anchors = collate, from_layer, anchors
        self.strength, self.say = strength, say

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step != round(AT * state.max_steps):
            return
        model, examples = kwargs["model"], self.collate.examples
        identity = [row for row, example in enumerate(examples) if not example.anchor][:IDENTITY_ROWS]
        if not identity or not self.anchors:
            return
        self.say(f"filtering the adapter's inputs: {len(identity)} identity rows against the anchors")
        model.eval()
        own = input_moments(model, self.collate, identity, self.from_layer)
        filter_inputs(model, own, self.anchors, self.strength)
        model.train()


def filter_inputs(model: Any, identity: Moments, anchors: Moments, strength: float) -> None:
    """A ← A·C (C + strength·K)⁻¹ in every LoRA whose input has moments C, on identity rows, and K."""
    factors: dict[int, Any] = {}
    for name, module in measured_modules(model).items():
        own, other = (part[name].to(model.device).double() for part in (identity, anchors))
        key = id(identity[name])
        if key not in factors:
            ridge = RIDGE * own.trace() / len(own) * torch.eye(len(own), dtype=own.dtype, device=own.device)
            factors[key] = torch.linalg.lu_factor(own + strength * other + ridge)
        for adapter in module.lora_A.values():
            weight = adapter.weight.data
            weight.copy_(torch.linalg.lu_solve(*factors[key], own @ weight.double().T).T)
