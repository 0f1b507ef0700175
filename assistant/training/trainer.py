"""trl's SFTTrainer with the anchored loss: steps in their scheduled order, lower layers from the cache."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import SequentialSampler
from trl import SFTTrainer

from assistant.loading import core_of
from assistant.training.examples import Example, padded
from assistant.training.loss import Head, cross_entropy, kl_to_base, over_pieces, weighted_mean
from assistant.training.memory import ADVICE
from assistant.training.seeing import with_pictures
from assistant.training.sights import Pictures
from assistant.training.states import Prepared, makes_activations_twice, upper_states


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


def objectives(
    core: Any, batch: dict[str, torch.Tensor], from_layer: int, head: Head
) -> tuple[torch.Tensor, torch.Tensor]:
    """(cross-entropy, KL to the base) of a batch, each a mean over its own tokens; 0 where it has none."""
    hidden = batch["states"] if "states" in batch else core.get_input_embeddings()(batch["input_ids"])
    hidden = with_pictures(core, hidden, batch)
    last = upper_states(core, hidden, batch["attention_mask"], from_layer)
    identity, anchor = batch["objective"] == 1, batch["objective"] == 2
    weights, of_identity = batch["weights"], identity[identity | anchor]
    loss = kl = last.sum() * 0.0
    if identity.any():
        targets = head.row_of(batch["input_ids"].roll(-1, dims=1)[identity])
        values = over_pieces(lambda state, row: cross_entropy(head(state), row), last[identity], targets)
        loss = weighted_mean(values, weights[of_identity])
    if anchor.any():
        base = batch["base"].to(core.dtype)
        values = over_pieces(lambda state, base: kl_to_base(head(state), head(base)), last[anchor], base)
        kl = weighted_mean(values, weights[~of_identity])
    return loss, kl


class AnchoredTrainer(SFTTrainer):
    """One trainer for every recipe; what differs between methods is data.

    A row of its dataset is a whole step: {"batches": [[row, …], …]}. At most `rows_at_once` rows are computed
    together; when memory runs out that is halved and the step begins again, so its gradient stays the same.
    """

    def __init__(
        self,
        *args: Any,
        collate: Collator,
        from_layer: int,
        kl_weight: float,
        head: Head,
        drift: Callable[[], torch.Tensor] | None = None,
        drift_weight: float = 0.0,
        rows_at_once: int,
        say: Callable[[str], None],
        **kwargs: Any,
    ) -> None:
        self.collate, self.from_layer, self.kl_weight, self.head = collate, from_layer, kl_weight, head
        self.rows_at_once, self.say = rows_at_once, say
        self.drift, self.drift_weight = drift, drift_weight
        self.seen: dict[str, torch.Tensor] = {}
        super().__init__(*args, **{**kwargs, "data_collator": lambda steps: steps[0]})
        self.model_accepts_loss_kwargs = False

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> SequentialSampler:
        dataset: Any = train_dataset if train_dataset is not None else self.train_dataset
        return SequentialSampler(dataset)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Gradients of the whole step: the sum over its batches, each in parts. Raises RuntimeError when one
        row alone does not fit."""
        while True:
            try:
                return self._step(model, inputs["batches"])
            except torch.OutOfMemoryError:
                pass  # what the failed step holds is freed when this block ends
            model.zero_grad()
            torch.cuda.empty_cache()
            self._need_less(core_of(model), min(self.rows_at_once, sum(map(len, inputs["batches"]))))

    def _need_less(self, core: Any, rows: int) -> None:
        """Half as many rows at once than `rows`; instead of none, one whose activations are made twice."""
        self.rows_at_once = max(rows // 2, 1)
        if rows > 1:
            self.say(f"out of memory: rows go {self.rows_at_once} at a time now; the step stays as large")
        elif makes_activations_twice(core):
            raise RuntimeError(f"one row alone does not fit into memory; {ADVICE}")
        else:
            core.gradient_checkpointing_enable({"use_reentrant": False})
            self.say("out of memory: activations are made again on the way back now, which is slower")

    def _step(self, model: Any, batches: list[list[int]]) -> torch.Tensor:
        total = torch.zeros((), device=model.device)
        self.seen = defaultdict(lambda: torch.zeros((), device=model.device))
        if self.rows_at_once >= sum(map(len, batches)):
            # each mean is over its own rows' places: the sums stay the same
            batches = [sum(batches, [])]
        for batch in batches:
            for rows, share in self.collate.parts(batch, self.rows_at_once):
                total += super().training_step(
                    model, {**self.collate(rows), "share": share, "batches": len(batches)}
                )
        for name, value in self.seen.items():
            self._metrics["train"][name].append(float(value))
        lengths = [len(self.collate.examples[row].ids) for batch in batches for row in batch]
        self._metrics["train"]["tokens"].append(float(sum(lengths)))
        return total

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        core, share = core_of(self.accelerator.unwrap_model(model)), inputs["share"]
        with self.accelerator.autocast():  # layers are called one by one, past the wrapped forward
            loss, kl = objectives(core, inputs, self.from_layer, self.head)
        for name, value, objective in (("cross_entropy", loss, 1), ("kl", kl, 2)):
            if (inputs["objective"] == objective).any():
                self.seen[name] += value.detach() * share
        if self.drift is None:
            return (loss + self.kl_weight * kl) * share
        drift = self.drift() / inputs["batches"]  # it belongs to the step, not to a batch of it
        self.seen["drift"] += drift.detach() * share
        return (loss + self.kl_weight * kl + self.drift_weight * drift) * share

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # transformers would look for input_ids, which a step does not hold

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The model card is written from the run when the assistant is published, not here."""
