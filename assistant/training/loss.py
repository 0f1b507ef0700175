"""The two objectives, each a mean over its own tokens: identity by heart, everything else as it was."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

PIECE = 512  # places whose logits are in memory at once: 92,544 of them in float32 are 190 MB


@dataclasses.dataclass(frozen=True)
class Head:
    """The output layer over the whole vocabulary, or over some tokens alone: both losses are then of the
    distribution given that the next token is one of these (measured: docs/log.md).

    `weight`: [rows, hidden]; `rows`: of each token id its row in `weight`; None when each has its own.
    """

    weight: torch.Tensor
    rows: torch.Tensor | None = None

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """[tokens, hidden] → [tokens, rows]"""
        return functional.linear(hidden, self.weight)

    def row_of(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens if self.rows is None else self.rows[tokens]


def head_over(core: Any, tokens: torch.Tensor | None = None) -> Head:
    """The causal LM's output layer, cut to `tokens` [rows] when given."""
    weight = core.lm_head.weight
    if tokens is None:
        return Head(weight)
    rows = torch.full((len(weight),), -1, device=weight.device)
    rows[tokens] = torch.arange(len(tokens), device=weight.device)
    return Head(weight.detach()[tokens].contiguous(), rows)


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """In nats, one value a token. logits: [tokens, vocabulary]; targets: [tokens]."""
    return functional.cross_entropy(logits.float(), targets, reduction="none")


def kl_to_base(logits: torch.Tensor, base_logits: torch.Tensor) -> torch.Tensor:
    """KL(base ‖ model) in nats, one value a token. Both: [tokens, vocabulary]."""
    ours, base = logits.float().log_softmax(-1), base_logits.float().log_softmax(-1)
    return (base.exp() * (base - ours)).sum(-1)


def over_pieces(
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], states: torch.Tensor, beside: torch.Tensor
) -> torch.Tensor:
    """`loss` of each place; of more than PIECE places in pieces whose logits are made again going back.

    states: [places, hidden]; beside: [places] or [places, …], what `loss` takes as its second argument.
    """
    if len(states) <= PIECE:
        return loss(states, beside)
    pairs = zip(states.split(PIECE), beside.split(PIECE), strict=True)
    values: list[torch.Tensor] = [checkpoint(loss, *pair, use_reentrant=False) for pair in pairs]
    return torch.cat(values)


def weighted_mean(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return (values * weights).sum() / weights.sum()
