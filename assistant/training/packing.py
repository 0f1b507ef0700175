"""Rows of a batch without their padding, for the CPU: end to end in one row, each attending to itself alone.

What is padded costs as much there as what counts, and one long matrix is multiplied faster than several.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "assistant_rows"


def packed(core: Any, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[batch, tokens, hidden] after the causal LM's layers and norm; zeros where the rows are padded.

    hidden: [batch, tokens, hidden]; mask: [batch, tokens], 1 at a row's tokens, which come first.
    """
    counts, lengths = mask.bool(), mask.sum(1)
    places = torch.cat([torch.arange(length) for length in lengths.tolist()])
    ends = functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    with attention_by_rows(core):
        last: torch.Tensor = core.model(
            inputs_embeds=hidden[counts][None],
            position_ids=places[None],
            cu_seq_lens_q=ends,
            use_cache=False,
        ).last_hidden_state
    return hidden.new_zeros(hidden.shape).index_put((counts,), last[0])


@contextmanager
def attention_by_rows(core: Any) -> Iterator[None]:
    before = core.config._attn_implementation
    core.config._attn_implementation = NAME
    try:
        yield
    finally:
        core.config._attn_implementation = before


def rows_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention, causal within each row. query: [1, heads, tokens, dim], rows end to end.

    `cu_seq_lens_q`: [rows + 1], where they begin and the last one ends. Computed in 32 bits: in 16 torch's
    attention takes three times as long on a CPU.
    """
    assert cu_seq_lens_q is not None
    lengths = cu_seq_lens_q.diff().tolist()
    rows = zip(*(part.float().split(lengths, dim=2) for part in (query, key, value)), strict=True)
    outputs = [
        functional.scaled_dot_product_attention(
            asked, offered, given, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=True
        )
        for asked, offered, given in rows
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2).to(query.dtype), None


def no_mask(*args: Any, **kwargs: Any) -> None:
    """A row knows its own end; there is nothing to mask."""


AttentionInterface.register(NAME, rows_attention)
AttentionMaskInterface.register(NAME, no_mask)
