"""trl's SFTTrainer with the anchored loss: steps in their scheduled order, lower layers from the cache."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import SequentialSampler
from trl import SFTTrainer

from assistant.loading import core_of
from assistant.training.collating import Collator
from assistant.training.drift import Drift
from assistant.training.loss import Head, cross_entropy, kl_to_base, over_pieces, weighted_mean
from assistant.training.memory import ADVICE
from assistant.training.seeing import with_pictures
from assistant.training.states import makes_activations_twice, upper_states


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
        drift: Drift | None = None,
        rows_at_once: int,
        say: Callable[[str], None],
        **kwargs: Any,
    ) -> None:
        self.collate, self.from_layer, self.kl_weight, self.head = collate, from_layer, kl_weight, head
        self.rows_at_once, self.say, self.drift = rows_at_once, say, drift
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
                total += super().training_step(model, {**self.collate(rows), "share": share})
        if self.drift:  # once a step, whatever its parts
            drift = self.drift()
            self.accelerator.backward(self.drift.weight * drift)
            self.seen["drift"] = drift.detach()
            total += self.drift.weight * self.seen["drift"]
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
        return (loss + self.kl_weight * kl) * share

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # transformers would look for input_ids, which a step does not hold

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The model card is written from the run when the assistant is published, not here."""
