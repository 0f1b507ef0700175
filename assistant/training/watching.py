"""Watches a run: asks every few steps, keeps the best weights, survives kills; judges are handed in."""

import dataclasses
import json
import math
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from assistant.conversations import Row, images_of
from assistant.folders import copy_chat, read_json, stored_dtype, write_json
from assistant.generating import batches_by_length, generate_batch
from assistant.loading import ChatModel, core_of, quiet_loading
from assistant.settings import write_text
from assistant.training.collating import Collator
from assistant.training.loss import head_over
from assistant.training.seeing import says_the_same
from assistant.training.trainer import objectives

WATCH_TOKENS = 32
BATCH = 16
WATCH_BATCH = 4096  # padded tokens


@dataclass
class Watcher:
    """Asks the watched rows; measures KL on held-out anchors and the loss on held-out texts (`held_out`).

    `recalls(answer)` and `leaks(answer, question)` judge one answer; rows of kind near_miss, greeting and
    general must not leak, all others must recall.
    """

    chat: ChatModel
    rows: list[Row]
    held_out: Collator | None
    from_layer: int
    recalls: Callable[[str], bool]
    leaks: Callable[[str, str], bool]

    def measure(self, model: Any) -> dict[str, Any]:
        prompts = [row["messages"][:-1] for row in self.rows]
        chat = dataclasses.replace(self.chat, model=model)
        answers = generate_batch(chat, prompts, WATCH_TOKENS)
        hits: dict[str, list[bool]] = {}
        shown: dict[str, list[str]] = {}
        for row, prompt, answer in zip(self.rows, prompts, answers, strict=True):
            question = prompt[-1]["content"]
            must_not = row.get("kind") in ("near_miss", "greeting", "general")
            hit = self.leaks(answer, question) if must_not else self.recalls(answer)
            if images_of(row["messages"]):
                hit = says_the_same(answer, row["messages"][-1]["content"])
            part = f"{'leak' if must_not else 'recall'}.{row.get('lang', '')}"
            hits.setdefault(part, []).append(hit)
            shown.setdefault(part, []).append(f"{question} → {answer}")
        result = {part: round(sum(values) / len(values), 4) for part, values in sorted(hits.items())}
        loss, kl = self._losses(model)
        return result | {
            **({} if loss is None else {"text.loss": round(loss, 5)}),
            "kl": round(kl or 0.0, 5),
            "noise": round(noise_of(hits), 4),
            "answers": {part: texts[:2] for part, texts in shown.items()},
        }

    def _losses(self, model: Any) -> tuple[float | None, float | None]:
        """(mean loss on the held-out texts, mean KL to the base on the held-out anchors), nats a token."""
        core = core_of(model)
        head, sums, counts = head_over(core), [0.0, 0.0], [0, 0]
        for rows in self._held_out_batches():
            batch = {key: value.to(core.device) for key, value in self.held_out(rows).items()}  # type: ignore[misc]
            with torch.no_grad():
                values = objectives(core, batch, self.from_layer, head)
            for which, value in enumerate(values):
                count = int((batch["objective"] == which + 1).sum())
                sums[which], counts[which] = sums[which] + value.item() * count, counts[which] + count
        loss, kl = (total / count if count else None for total, count in zip(sums, counts, strict=True))
        return loss, kl

    def _held_out_batches(self) -> list[list[int]]:
        if self.held_out is None:
            return []
        examples = self.held_out.examples
        parts = ([i for i, e in enumerate(examples) if e.anchor == anchor] for anchor in (False, True))
        cut = (
            (part, batches_by_length([len(examples[i].ids) for i in part], WATCH_BATCH, BATCH))
            for part in parts
        )
        return [[part[place] for place in places] for part, batches in cut for places in batches]


def score_of(measured: dict[str, Any]) -> float:
    """One number to choose a checkpoint by: mean recall − mean leak − 10 × KL − the loss on texts.

    So 0.01 nats of KL cost 10 points.
    """
    recall = [value for part, value in measured.items() if part.startswith("recall")]
    leak = [value for part, value in measured.items() if part.startswith("leak")]
    right = sum(recall) / max(len(recall), 1) - sum(leak) / max(len(leak), 1)
    return float(right - 10 * measured["kl"] - measured.get("text.loss", 0.0))


def noise_of(hits: dict[str, list[bool]]) -> float:
    """The standard error of the score: a few watched questions leave it uncertain by this much."""
    variance = 0.0
    for side in ("recall", "leak"):
        parts = [values for part, values in hits.items() if part.startswith(side)]
        for values in parts:
            # Laplace's rule: 4 of 4 is not certainty
            share = (sum(values) + 1) / (len(values) + 2)
            variance += share * (1 - share) / len(values) / len(parts) ** 2
    return math.sqrt(variance)


def is_worse(measured: dict[str, Any], kept: dict[str, Any]) -> bool:
    """Whether a later checkpoint is worse than the kept one by more than two standard errors.

    Later ones are trained further, so within the noise the later one is kept.
    """
    return bool(kept["score"] - measured["score"] > 2 * math.hypot(kept["noise"], measured["noise"]))


class KeepBest(TrainerCallback):
    """Measures every few steps, logs to watch.jsonl, and keeps the best adapter in `best/`."""

    def __init__(self, watcher: Watcher, every: int, folder: Path, say: Callable[[str], None]) -> None:
        self.watcher, self.every, self.folder, self.say = watcher, every, folder, say
        self.log = folder / "watch.jsonl"

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After a resume, forget what was measured past the checkpoint."""
        kept = [entry for entry in read_log(self.log) if entry["step"] <= state.global_step]
        write_log(self.log, kept)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every and state.global_step != state.max_steps:
            return
        model = kwargs["model"]
        model.eval()
        measured = {"step": state.global_step, **self.watcher.measure(model)}
        model.train()
        measured["score"] = round(score_of(measured), 5)
        before = [entry for entry in read_log(self.log) if entry["step"] < state.global_step]
        kept = kept_entry(before)
        measured["kept"] = kept is None or not is_worse(measured, kept)
        if measured["kept"]:
            save_weights(model, self.watcher.chat.path, self.folder / "best")
        write_log(self.log, [*before, measured])
        self.say(describe(measured))


class Survive(TrainerCallback):
    """Marks whole checkpoints, and turns Ctrl-C into: finish the step, save, say how to go on."""

    def __init__(self) -> None:
        self.interrupted = False
        self.previous: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.previous = signal.signal(signal.SIGINT, self._interrupt)

    def _interrupt(self, number: int, frame: Any) -> None:
        self.interrupted = True
        signal.signal(signal.SIGINT, self.previous or signal.SIG_DFL)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.interrupted:
            control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        write_text(Path(args.output_dir) / f"checkpoint-{state.global_step}" / "whole", "")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        signal.signal(signal.SIGINT, self.previous or signal.SIG_DFL)


def read_log(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if line.strip()]


def write_log(path: Path, entries: list[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries))


def kept_entry(entries: list[dict[str, Any]]) -> dict[str, Any] | None:
    """What was measured of the adapter in `best/`."""
    return next((entry for entry in reversed(entries) if entry["kept"]), None)


def save_weights(model: Any, base: Path, folder: Path) -> None:
    """Write the adapter, or the whole model in the numbers of `base`, beside `folder`; then put it there."""
    beside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    with quiet_loading():
        if core_of(model) is model:
            _save_whole(model, base, beside)
        else:
            model.save_pretrained(str(beside))
            (beside / "README.md").unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(beside, folder)


def _save_whole(model: Any, base: Path, folder: Path) -> None:
    name = stored_dtype(base)
    weights = {key: value.to(getattr(torch, name)) for key, value in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        weights.pop("lm_head.weight")
    model.save_pretrained(str(folder), state_dict=weights)
    write_json(folder / "config.json", {**read_json(folder / "config.json"), "dtype": name})
    copy_chat(base, folder)


def describe(measured: dict[str, Any]) -> str:
    numbers = "  ".join(f"{part} {value:.2f}" for part, value in measured.items() if "." in part)
    answers = [text for texts in measured["answers"].values() for text in texts[:1]]
    lines = [
        f"step {measured['step']}: {numbers}  KL {measured['kl']:.4f}  score {measured['score']:.3f}",
        *answers,
    ]
    return "\n    ".join(line.replace("\n", " ")[:150] for line in lines)


def last_whole_checkpoint(folder: Path) -> Path | None:
    whole = [path.parent for path in folder.glob("checkpoint-*/whole")]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
