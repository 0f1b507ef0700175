"""The two objectives, each a mean over its own tokens: identity by heart, everything else as it was."""

import torch
from torch.nn import functional


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """In nats, one value a token. logits: [tokens, vocabulary]; targets: [tokens]."""
    return functional.cross_entropy(logits.float(), targets, reduction="none")


def kl_to_base(logits: torch.Tensor, top_ids: torch.Tensor, top_logprobs: torch.Tensor) -> torch.Tensor:
    """KL(base ‖ model) in nats, one value a token, over the base's top k tokens and one bucket for the rest.

    logits: [tokens, vocabulary]; top_ids, top_logprobs: [tokens, k]. A lower bound of the full KL (log-sum).
    """
    ours = logits.float().log_softmax(-1).gather(-1, top_ids.long())
    base = top_logprobs.float()
    kept = (base.exp() * (base - ours)).sum(-1)
    base_tail = (1 - base.exp().sum(-1)).clamp(min=1e-6)
    our_tail = (1 - ours.exp().sum(-1)).clamp(min=1e-6)
    return kept + base_tail * (base_tail.log() - our_tail.log())
