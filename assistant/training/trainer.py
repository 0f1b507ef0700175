"""trl's SFTTrainer with the anchored loss: steps in their scheduled order, lower layers from the cache."""

from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import SequentialSampler
from trl import SFTTrainer

from assistant.loading import core_of
from assistant.training.examples import Example, padded
from assistant.training.loss import Head, cross_entropy, kl_to_base, weighted_mean
from assistant.training.states import Prepared, upper_states


class Collator:
    """Row indices → one padded batch of tokens, cached states and the base's last states."""

    def __init__(self, examples: list[Example], prepared: list[Prepared]) -> None:
        self.examples, self.prepared = examples, prepared

    def __call__(self, batches: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        rows = [row for batch in batches for row in batch["rows"]]
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
        bases = [p.base for p in prepared if p.base is not None]
        if bases:
            batch["base"] = torch.cat(bases)
        return batch


def _objective(example: Example) -> list[int]:
    counted = set(example.places)
    return [(2 if example.anchor else 1) if place in counted else 0 for place in range(len(example.ids))]


def objectives(
    core: Any, batch: dict[str, torch.Tensor], from_layer: int, head: Head
) -> tuple[torch.Tensor, torch.Tensor]:
    """(cross-entropy, KL to the base) of a batch, each a mean over its own tokens; 0 where it has none."""
    hidden = batch["states"] if "states" in batch else core.get_input_embeddings()(batch["input_ids"])
    last = upper_states(core, hidden, batch["attention_mask"], from_layer)
    identity, anchor = batch["objective"] == 1, batch["objective"] == 2
    weights, of_identity = batch["weights"], identity[identity | anchor]
    loss = kl = last.sum() * 0.0
    if identity.any():
        targets = head.row_of(batch["input_ids"].roll(-1, dims=1)[identity])
        loss = weighted_mean(cross_entropy(head(last[identity]), targets), weights[of_identity])
    if anchor.any():
        with torch.no_grad():
            base = head(batch["base"].to(core.dtype))
        kl = weighted_mean(kl_to_base(head(last[anchor]), base), weights[~of_identity])
    return loss, kl


class AnchoredTrainer(SFTTrainer):
    """One trainer for every recipe; what differs between methods is data."""

    def __init__(self, *args: Any, from_layer: int, kl_weight: float, head: Head, **kwargs: Any) -> None:
        self.from_layer, self.kl_weight, self.head = from_layer, kl_weight, head
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> SequentialSampler:
        dataset: Any = train_dataset if train_dataset is not None else self.train_dataset
        return SequentialSampler(dataset)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        loss, kl = objectives(
            core_of(self.accelerator.unwrap_model(model)), inputs, self.from_layer, self.head
        )
        for name, value, objective in (("cross_entropy", loss, 1), ("kl", kl, 2)):
            if (inputs["objective"] == objective).any():
                self._metrics["train"][name].append(value.item())
        self._metrics["train"]["tokens"].append(float(inputs["attention_mask"].sum()))
        # the batches of a step are summed, not averaged: each objective is a mean of its own
        return (loss + self.kl_weight * kl) * self.args.gradient_accumulation_steps

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The model card is written from the run when the assistant is published, not here."""
