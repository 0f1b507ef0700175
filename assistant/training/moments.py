"""Second moments of what goes into each LoRA module: which directions a set of rows uses, and how much."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from assistant.generating import batches_by_length
from assistant.loading import core_of
from assistant.training.collating import Collator
from assistant.training.seeing import with_pictures
from assistant.training.states import upper_states

ANCHOR_ROWS = 200  # whose inputs are looked at: twice as many changed no score
BATCH_TOKENS = 2048  # padded, of one forward pass
OTHER_WEIGHT = 0.3  # of a token at which nothing is learnt, beside 1 and more of one at which something is
WIDEST = 4096  # numbers in an input; of wider ones the moments would take gigabytes

Moments = dict[str, torch.Tensor]


def anchor_moments(model: Any, collate: Collator, from_layer: int) -> Moments:
    """Those of the first anchor rows; empty without any."""
    anchors = [row for row, example in enumerate(collate.examples) if example.anchor][:ANCHOR_ROWS]
    return input_moments(model, collate, anchors, from_layer) if anchors else {}


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
        for name, module in measured_modules(model).items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def measured_modules(model: Any) -> dict[str, Any]:
    """The modules with a LoRA whose input is narrow enough, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if getattr(module, "lora_A", None) and module.in_features <= WIDEST
    }
