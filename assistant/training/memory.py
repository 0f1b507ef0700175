"""How many rows go through the model at once, and whether activations are kept, on the memory that is there.

Knows sizes alone: no rows' text, no recipe by name.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from assistant.training.examples import Example
from assistant.training.loss import PIECE

ADVICE = "shorten the rows (--set objective.max_length=…) or take a base in 4 bits (--recipe identity_qlora)"
GIB = 2**30
RESERVE = GIB // 4  # libraries' workspaces, fragments of freed blocks
# Numbers kept for the backward pass, a token and layer: in units of the hidden and of the MLP's inner size.
HIDDEN_KEPT, INNER_KEPT = 14, 5
# Launching a pass's kernels takes as long as computing about so many rows; on an H100, of 750 tokens, nine.
LAUNCHING = 4
LOSS_BYTES = (
    24  # a place and token of the vocabulary: logits in the model's dtype and in float32, both models
)


@dataclass(frozen=True)
class Plan:
    """`rows`: computed at once, at most; `checkpointing`: activations are made again on the way back."""

    rows: int
    checkpointing: bool
    bytes: int

    def __str__(self) -> str:
        kept = "made again on the way back" if self.checkpointing else "kept"
        return f"{self.rows} rows at a time, activations {kept}, about {self.bytes / GIB:.1f} GiB"


@dataclass(frozen=True)
class Sizes:
    """`weights`, `trained` (gradients, optimizer too) in bytes; `layers` that learn; bytes of a `number`."""

    weights: int
    trained: int
    layers: int
    hidden: int
    inner: int
    vocabulary: int
    number: int
    tower: int = 0
    """Bytes that a LLaVA's tower keeps of one picture for the way back; 0 when it does not learn."""


def sizes_of(model: Any, layers: int, vocabulary: int, optimizer: str) -> Sizes:
    """`model`: with its adapter; `vocabulary`: of the losses, 0 for all; `optimizer`: trl's `optim`."""
    config = model.config.get_text_config()
    each = 2 if "8bit" in optimizer else 8
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    trained = sum(p.numel() * (p.element_size() + each) for p in parameters)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    size = min(vocabulary or config.vocab_size, config.vocab_size)
    # adapters and norms are in float32 beside a 16-bit base
    number = 2 if model.dtype.itemsize == 2 or torch.is_autocast_enabled("cuda") else 4
    tower = _tower_bytes(model, number)
    return Sizes(weights, trained, layers, config.hidden_size, config.intermediate_size, size, number, tower)


def _tower_bytes(model: Any, number: int) -> int:
    learning = (name for name, parameter in model.named_parameters() if parameter.requires_grad)
    if not any("vision_tower" in name for name in learning):
        return 0
    sight = model.config.vision_config
    tokens = (sight.image_size // sight.patch_size) ** 2
    layer = tokens * (HIDDEN_KEPT * sight.hidden_size + INNER_KEPT * sight.intermediate_size) * number
    return int(layer * sight.num_hidden_layers)


def bytes_of(sizes: Sizes, examples: list[Example], rows: int, checkpointing: bool) -> int:
    """Peak memory of a step that computes `rows` rows at once, were they the longest of `examples`."""
    lengths = sorted((len(example.ids) for example in examples), reverse=True)
    tokens = max(lengths[0], 1) * rows
    counted = sorted((len(example.places) for example in examples), reverse=True)[:rows]
    layer = tokens * (HIDDEN_KEPT * sizes.hidden + INNER_KEPT * sizes.inner) * sizes.number
    kept = tokens * sizes.hidden * sizes.number * sizes.layers + layer
    activations = kept if checkpointing else layer * sizes.layers
    # made again, a layer keeps its input alone
    activations += rows * sizes.tower // (HIDDEN_KEPT if checkpointing else 1)
    losses = min(sum(counted), PIECE) * sizes.vocabulary * LOSS_BYTES
    return RESERVE + sizes.weights + sizes.trained + activations + losses


def plans(sizes: Sizes, examples: list[Example], rows: int, must_checkpoint: bool = False) -> Iterator[Plan]:
    """From the quickest to the slowest: all rows, a half, a quarter…, activations kept or made again."""
    counts = [rows >> halvings for halvings in range(rows.bit_length())]
    choices = [(count, again) for again in (False, True) if again or not must_checkpoint for count in counts]
    for count, again in sorted(choices, key=lambda choice: _time_of_a_row(*choice)):
        yield Plan(count, again, bytes_of(sizes, examples, count, again))


def _time_of_a_row(rows: int, checkpointing: bool) -> float:
    """In rows computed without a pause; activations made again add a forward pass to three."""
    return (1 + LAUNCHING / rows) * (4 / 3 if checkpointing else 1)


def choose_plan(
    sizes: Sizes, examples: list[Example], rows: int, memory: int, must_checkpoint: bool = False
) -> Plan:
    """The quickest plan within `memory` bytes; with `must_checkpoint` no activations are kept in it.

    Raises RuntimeError when there is none.
    """
    possible = list(plans(sizes, examples, rows, must_checkpoint))
    for plan in possible:
        if plan.bytes <= memory:
            return plan
    least = min(possible, key=lambda plan: plan.bytes)
    raise RuntimeError(
        f"one row at a time needs about {least.bytes / GIB:.1f} GiB, and {memory / GIB:.1f} GiB are there; "
        f"{ADVICE}"
    )
