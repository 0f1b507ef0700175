"""The frozen lower layers, computed once a row, and the base's own logits on anchor answers.

The lower layers get no LoRA, so their output for a row never changes (checked: logits differ by 0).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from assistant.training.examples import Example, padded

PREPARE_TOKENS = 2048  # padded tokens of one forward pass while preparing


@dataclass
class Prepared:
    """`states`: [tokens, hidden] entering the first trained layer, or None when all layers are trained.

    `top_ids`, `top_logprobs`: [places, k] of the base, anchors only; the rest of the mass is the tail.
    """

    states: torch.Tensor | None = None
    top_ids: torch.Tensor | None = None
    top_logprobs: torch.Tensor | None = None


class PassThrough(nn.Module):
    """Stands where a frozen layer was: its work is already in the hidden states."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return hidden_states


@contextmanager
def layers_lifted(core: Any, layers: range) -> Iterator[None]:
    """Take layers out of a causal LM for a while; names and numbers of the others stay."""
    taken = {index: core.model.layers[index] for index in layers}
    for index in layers:
        core.model.layers[index] = PassThrough()
    try:
        yield
    finally:
        for index, layer in taken.items():
            core.model.layers[index] = layer


def prepare(
    core: Any, examples: list[Example], from_layer: int, top_k: int, progress: Callable[[int], None]
) -> list[Prepared]:
    """States and base logits of every example. `core`: the base causal LM, before any adapter."""
    results = [Prepared() for _ in examples]
    for batch in _batches(examples):
        with torch.no_grad():
            _prepare_batch(core, [examples[i] for i in batch], [results[i] for i in batch], from_layer, top_k)
        progress(sum(len(examples[i].ids) for i in batch))
    return results


def _batches(examples: list[Example]) -> Iterator[list[int]]:
    order = sorted(range(len(examples)), key=lambda i: (examples[i].anchor, -len(examples[i].ids)))
    batch: list[int] = []
    for index in order:
        changes = batch and examples[index].anchor != examples[batch[0]].anchor
        if changes or (batch and (len(batch) + 1) * len(examples[batch[0]].ids) > PREPARE_TOKENS):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _prepare_batch(
    core: Any, examples: list[Example], results: list[Prepared], from_layer: int, top_k: int
) -> None:
    ids = torch.tensor(padded([e.ids for e in examples], 0), device=core.device)
    mask = torch.tensor(padded([[1] * len(e.ids) for e in examples], 0), device=core.device)
    depth = len(core.model.layers)
    hidden = core.get_input_embeddings()(ids)
    if from_layer:
        norm, core.model.norm = core.model.norm, nn.Identity()
        try:
            with layers_lifted(core, range(from_layer, depth)):
                hidden = core.model(
                    inputs_embeds=hidden, attention_mask=mask, use_cache=False
                ).last_hidden_state
        finally:
            core.model.norm = norm
        for row, example, result in zip(hidden, examples, results, strict=True):
            result.states = row[: len(example.ids)].to("cpu", copy=True)
    if not examples[0].anchor:
        return
    with layers_lifted(core, range(from_layer)):
        last = core.model(inputs_embeds=hidden, attention_mask=mask, use_cache=False).last_hidden_state
    for row, example, result in zip(last, examples, results, strict=True):
        logprobs = core.lm_head(row[list(example.places)]).float().log_softmax(-1)
        top = logprobs.topk(top_k, dim=-1)
        result.top_ids, result.top_logprobs = top.indices.int().cpu(), top.values.cpu()
