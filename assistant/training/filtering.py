"""Once in a run each LoRA's input is filtered: what general prompts send in moves it less from then on.

Knows nothing of losses. The least-squares answer that leaves ΔW·x as it is on identity rows and near 0 on
anchors is ΔW·C (C + μ·K)⁻¹, with C and K the second moments of their inputs: MEMIT's ridge (arXiv 2210.07229)
turned round. Its rank is ΔW's, so it is written into LoRA's A.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback

from assistant.loading import batches_by_length, core_of
from assistant.training.seeing import with_pictures
from assistant.training.states import upper_states
from assistant.training.trainer import Collator

IDENTITY_ROWS, ANCHOR_ROWS = 100, 200  # whose inputs are looked at: twice as many changed no score
BATCH_TOKENS = 2048  # padded, of one forward pass
AT = 0.6  # of the steps: those that follow learn again what the filter took from the identity
OTHER_WEIGHT = 0.3  # of a token at which nothing is learnt, beside 1 and more of one at which something is
WIDEST = 4096  # numbers in an input; of wider ones the moments would take gigabytes
RIDGE = 1e-4  # of the mean eigenvalue: directions that no row has are no reason to divide by 0

Moments = dict[str, torch.Tensor]


class FilterInputs(TrainerCallback):
    """Filters a PEFT model in place, once, at the end of the step number AT × steps.

    `strength`: how much a general input counts against an identity's, μ above.
    """

    def __init__(
        self, collate: Collator, from_layer: int, strength: float, say: Callable[[str], None]
    ) -> None:
        self.collate, self.from_layer, self.strength, self.say = collate, from_layer, strength, say

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step != round(AT * state.max_steps):
            return
        model, examples = kwargs["model"], self.collate.examples
        identity = [row for row, example in enumerate(examples) if not example.anchor][:IDENTITY_ROWS]
        anchors = [row for row, example in enumerate(examples) if example.anchor][:ANCHOR_ROWS]
        if not identity or not anchors:
            return
        self.say(f"filtering the adapter's inputs by {len(identity)} identity and {len(anchors)} anchor rows")
        model.eval()
        own, general = (
            input_moments(model, self.collate, rows, self.from_layer) for rows in (identity, anchors)
        )
        filter_inputs(model, own, general, self.strength)
        model.train()


def input_moments(model: Any, collate: Collator, rows: list[int], from_layer: int) -> Moments:
    """[width, width] of each LoRA module by its name: the weighted mean of x·xᵀ over the tokens of `rows`.

    Modules that read one and the same input share their tensor.
    """
    core, sums, total = core_of(model), Moments(), 0.0
    for places in batches_by_length([len(collate.examples[row].ids) for row in rows], BATCH_TOKENS):
        chosen = collate([rows[place] for place in places])
        batch = {name: value.to(core.device) for name, value in chosen.items()}
        weights = token_weights(batch)
        total += weights.sum().item()
        hidden = batch["states"] if "states" in batch else core.get_input_embeddings()(batch["input_ids"])
        with torch.no_grad(), summed(model, weights, batch["attention_mask"], sums):
            upper_states(core, with_pictures(core, hidden, batch), batch["attention_mask"], from_layer)
    for value in {id(value): value for value in sums.values()}.values():
        value /= total
    return sums


def token_weights(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """[rows, tokens]: what the losses weigh, a little for every other token, 0 for padding."""
    weights = batch["attention_mask"] * OTHER_WEIGHT
    return weights.masked_scatter(batch["objective"] > 0, batch["weights"].to(weights.dtype))


@contextmanager
def summed(model: Any, weights: torch.Tensor, mask: torch.Tensor, sums: Moments) -> Iterator[None]:
    """While it lasts, a forward pass adds its inputs' weighted moments to `sums`."""
    last: tuple[torch.Tensor | None, str] = None, ""

    def add(name: str, x: torch.Tensor) -> None:
        nonlocal last
        if x is last[0]:  # modules that read one input run one after another
            sums[name] = sums[last[1]]
            return
        last = x, name
        # on a CPU the rows come without their padding, end to end
        counted = weights.reshape(-1) if x.shape[:2] == weights.shape else weights[mask.bool()]
        flat = x.reshape(-1, x.shape[-1]).float()
        moment = (flat.T @ (flat * counted[:, None])).cpu()
        sums[name] = sums[name].add_(moment) if name in sums else moment

    hooks = [
        module.register_forward_pre_hook(lambda _, args, name=name: add(name, args[0]))
        for name, module in filtered_modules(model).items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def filtered_modules(model: Any) -> dict[str, Any]:
    """The modules with a LoRA whose input is narrow enough, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if getattr(module, "lora_A", None) and module.in_features <= WIDEST
    }


def filter_inputs(model: Any, identity: Moments, anchors: Moments, strength: float) -> None:
    """A ← A·C (C + strength·K)⁻¹ in every LoRA whose input has moments C, on identity rows, and K."""
    filters: dict[int, torch.Tensor] = {}
    for name, module in filtered_modules(model).items():
        own = identity[name].double()
        key = id(identity[name])
        if key not in filters:
            ridge = RIDGE * own.trace() / len(own) * torch.eye(len(own), dtype=own.dtype)
            filters[key] = torch.linalg.solve(own + strength * anchors[name].double() + ridge, own).T
        for adapter in module.lora_A.values():
            weight = adapter.weight.data
            weight.copy_(weight.double().cpu() @ filters[key])
