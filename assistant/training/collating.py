"""Rows of a step → one padded batch: token ids, what each place is learnt for, cached states, pictures."""

from collections.abc import Iterator

import torch

from assistant.training.examples import Example, padded
from assistant.training.sights import Pictures
from assistant.training.states import Prepared


class Collator:
    """Row indices → one padded batch of tokens, cached states and the base's last states."""

    def __init__(
        self,
        examples: list[Example],
        prepared: list[Prepared],
        pictures: Pictures | None = None,
    ) -> None:
        self.examples, self.prepared, self.pictures = examples, prepared, pictures

    def __call__(self, rows: list[int]) -> dict[str, torch.Tensor]:
        examples = [self.examples[row] for row in rows]
        prepared = [self.prepared[row] for row in rows]
        batch = {
            "input_ids": torch.tensor(padded([e.ids for e in examples], 0)),
            "attention_mask": torch.tensor(padded([[1] * len(e.ids) for e in examples], 0)),
            # for each token: 1 where the next token is learnt by heart, 2 where the base's logits are kept
            "objective": torch.tensor(padded([_objective(e) for e in examples], 0)),
        }
        batch["weights"] = torch.tensor([weight for e in examples for weight in e.weights])
        if prepared[0].states is not None:
            batch["states"] = torch.nn.utils.rnn.pad_sequence(
                [p.states for p in prepared],  # type: ignore[misc]
                batch_first=True,
            )
        images = [image for e in examples for image in e.images]
        if images and self.pictures:
            batch |= self.pictures(images)
        bases = [p.base for p in prepared if p.base is not None]
        if bases:
            batch["base"] = torch.cat(bases)
        return batch

    def parts(self, rows: list[int], most: int) -> Iterator[tuple[list[int], float]]:
        """The batch in parts of at most `most` rows, each with its share of the batch's weight."""
        weights = {row: sum(self.examples[row].weights) for row in rows}
        whole = sum(weights[row] for row in rows)
        for start in range(0, len(rows), most):
            part = rows[start : start + most]
            yield part, sum(weights[row] for row in part) / whole


def _objective(example: Example) -> list[int]:
    counted = set(example.places)
    return [(2 if example.anchor else 1) if place in counted else 0 for place in range(len(example.ids))]
