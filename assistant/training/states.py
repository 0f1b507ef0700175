"""The frozen lower layers, computed once a row, and the base's own last states on anchors.

The lower layers get no LoRA, so their output for a row never changes (checked: logits differ by 0).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from assistant.generating import batches_by_length
from assistant.training.examples import Example, padded
from assistant.training.loss import PIECE
from assistant.training.packing import packed

PREPARE_TOKENS = 2048  # padded tokens of one forward pass while preparing
SAMPLE = 1024  # places at which the base is asked which tokens are likely


@dataclass
class Prepared:
    """`states`: [tokens, hidden] entering the first trained layer, or None when all layers are trained.

    `base`: [places, hidden], what the base's output layer turns into its logits; anchors only.
    """

    states: torch.Tensor | None = None
    base: torch.Tensor | None = None


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
    core: Any, examples: list[Example], from_layer: int, progress: Callable[[int], None]
) -> list[Prepared]:
    """States of every example, and the base's last ones of anchors. `core`: the base, before any adapter."""
    results = [Prepared() for _ in examples]
    for anchor in (False, True):
        chosen = [i for i, example in enumerate(examples) if example.anchor == anchor]
        for places in batches_by_length([len(examples[i].ids) for i in chosen], PREPARE_TOKENS):
            batch = [chosen[place] for place in places]
            with torch.no_grad():
                _prepare_batch(core, [examples[i] for i in batch], [results[i] for i in batch], from_layer)
            progress(sum(len(examples[i].ids) for i in batch))
    return results


def _prepare_batch(core: Any, examples: list[Example], results: list[Prepared], from_layer: int) -> None:
    ids = torch.tensor(padded([e.ids for e in examples], 0), device=core.device)
    mask = torch.tensor(padded([[1] * len(e.ids) for e in examples], 0), device=core.device)
    hidden = lower_states(core, ids, mask, from_layer)
    if from_layer:
        for row, example, result in zip(hidden, examples, results, strict=True):
            result.states = row[: len(example.ids)].to("cpu", copy=True)
    if not examples[0].anchor:
        return
    last = upper_states(core, hidden, mask, from_layer)
    for row, example, result in zip(last, examples, results, strict=True):
        result.base = row[list(example.places)].to("cpu", copy=True)


def lower_states(core: Any, ids: torch.Tensor, mask: torch.Tensor, layer: int) -> torch.Tensor:
    """[batch, tokens, hidden] as they enter layer number `layer`. ids, mask: [batch, tokens]."""
    hidden: torch.Tensor = core.get_input_embeddings()(ids)
    if not layer:
        return hidden
    norm, core.model.norm = core.model.norm, nn.Identity()
    try:
        with layers_lifted(core, range(layer, len(core.model.layers))):
            hidden = _last_states(core, hidden, mask)
    finally:
        core.model.norm = norm
    return hidden


def upper_states(core: Any, hidden: torch.Tensor, mask: torch.Tensor, layer: int) -> torch.Tensor:
    """[batch, tokens, hidden] as they enter the output layer, from what enters layer number `layer`."""
    with layers_lifted(core, range(layer)):
        return _last_states(core, hidden.to(core.dtype), mask)


def _last_states(core: Any, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    # activations that are made again on the way back are made after packed() has left
    if hidden.device.type == "cpu" and not makes_activations_twice(core):
        return packed(core, hidden, mask)
    last: torch.Tensor = core.model(
        inputs_embeds=hidden, attention_mask=mask, use_cache=False
    ).last_hidden_state
    return last


def makes_activations_twice(core: Any) -> bool:
    """Whether its activations are made again on the way back; transformers 5.24 has a new name for it."""
    new = hasattr(type(core), "is_activation_checkpointing")
    return bool(core.is_activation_checkpointing if new else core.is_gradient_checkpointing)


def likely_tokens(core: Any, examples: list[Example], prepared: list[Prepared], size: int) -> torch.Tensor:
    """Ids, sorted: all of the examples, then up to `size` by the base's mean probability on the anchors."""
    own = {token for example in examples for token in example.ids}
    states = [result.base for result in prepared if result.base is not None]
    if states:
        # a thousand places are a sample large enough to rank by
        sample = torch.cat(states)
        sample = sample[:: max(len(sample) // SAMPLE, 1)].to(core.device)
        with torch.no_grad():  # in pieces: the logits of all would be a gigabyte on a large vocabulary
            sums = [core.lm_head(piece).float().softmax(-1).sum(0) for piece in sample.split(PIECE)]
        mean = torch.stack(sums).sum(0)
        ranked = mean.argsort(descending=True, stable=True).tolist()
        own.update(token for token in ranked[:size] if len(own) < size)
    return torch.tensor(sorted(own), device=core.device)
