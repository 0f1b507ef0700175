"""The two objectives, each a mean over its own tokens: identity by heart, everything else as it was."""

import dataclasses
from typing import Any

import torch
from torch.nn import functional


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


def weighted_mean(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return (values * weights).sum() / weights.sum()
