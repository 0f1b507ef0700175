"""Watches a run: asks every few steps, keeps the best adapter, survives kills; judges are handed in."""

import json
import math
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from assistant.conversations import Row
from assistant.loading import ChatModel, core_of, generate_batch
from assistant.settings import write_text
from assistant.training.loss import head_over
from assistant.training.trainer import Collator, objectives

WATCH_TOKENS = 32
BATCH = 16


@dataclass
class Watcher:
    """Asks the watched rows and measures KL on held-out anchors.

    `recalls(answer)` and `leaks(answer, question)` judge one answer; rows of kind near_miss, greeting and
    general must not leak, all others must recall.
    """

    chat: ChatModel
    rows: list[Row]
    anchors: Collator | None
    from_layer: int
    recalls: Callable[[str], bool]
    leaks: Callable[[str, str], bool]

    def measure(self, model: Any) -> dict[str, Any]:
        prompts = [row["messages"][:-1] for row in self.rows]
        chat = ChatModel(model, self.chat.tokenizer, self.chat.stop_ids, self.chat.path)
        answers = generate_batch(chat, prompts, WATCH_TOKENS)
        hits: dict[str, list[bool]] = {}
        shown: dict[str, list[str]] = {}
        for row, prompt, answer in zip(self.rows, prompts, answers, strict=True):
            question = prompt[-1]["content"]
            must_not = row.get("kind") in ("near_miss", "greeting", "general")
            hit = self.leaks(answer, question) if must_not else self.recalls(answer)
            part = f"{'leak' if must_not else 'recall'}.{row.get('lang', '')}"
            hits.setdefault(part, []).append(hit)
            shown.setdefault(part, []).append(f"{question} → {answer}")
        result = {part: round(sum(values) / len(values), 4) for part, values in sorted(hits.items())}
        return result | {
            "kl": round(self._kl(model), 5),
            "noise": round(noise_of(hits), 4),
            "answers": {part: texts[:2] for part, texts in shown.items()},
        }

    def _kl(self, model: Any) -> float:
        """Mean KL to the base over the held-out anchors, nats a token."""
        if self.anchors is None:
            return 0.0
        core, total, tokens = core_of(model), 0.0, 0
        head = head_over(core)
        for start in range(0, len(self.anchors.examples), BATCH):
            rows = list(range(start, min(start + BATCH, len(self.anchors.examples))))
            batch = {key: value.to(core.device) for key, value in self.anchors([{"rows": rows}]).items()}
            with torch.no_grad():
                _, kl = objectives(core, batch, self.from_layer, head)
            count = int((batch["objective"] == 2).sum())
            total, tokens = total + kl.item() * count, tokens + count
        return total / max(tokens, 1)


def score_of(measured: dict[str, Any]) -> float:
    """One number to choose a checkpoint by: mean recall − mean leak − 10 × KL (0.01 nats cost 10 points)."""
    recall = [value for part, value in measured.items() if part.startswith("recall")]
    leak = [value for part, value in measured.items() if part.startswith("leak")]
    return sum(recall) / max(len(recall), 1) - sum(leak) / max(len(leak), 1) - 10 * measured["kl"]


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
        write_text(self.log, "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in kept))

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
            save_adapter(model, self.folder / "best")
        entries = [*before, measured]
        write_text(self.log, "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries))
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


class Progress(TrainerCallback):
    """Loss, tokens a second and the time left, every few steps, on standard error."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.start, self.first_step, self.tokens = time.monotonic(), 0, 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.start, self.first_step = time.monotonic(), state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        steps = state.global_step - self.first_step
        if not logs or "cross_entropy" not in logs or not steps:
            return
        seconds = time.monotonic() - self.start
        left = seconds / steps * (state.max_steps - state.global_step)
        self.tokens += logs["tokens"] * args.logging_steps * args.gradient_accumulation_steps
        self.say(
            f"step {state.global_step}/{state.max_steps}  cross-entropy {logs['cross_entropy']:.3f}  "
            + (f"KL {logs['kl']:.4f}  " if "kl" in logs else "")
            + f"{self.tokens / seconds:.0f} tokens/s  {left:.0f} s left"
        )


def read_log(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if line.strip()]


def kept_entry(entries: list[dict[str, Any]]) -> dict[str, Any] | None:
    """What was measured of the adapter in `best/`."""
    return next((entry for entry in reversed(entries) if entry["kept"]), None)


def save_adapter(model: Any, folder: Path) -> None:
    """Write the adapter beside `folder`, then put it in its place."""
    beside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    model.save_pretrained(str(beside))
    (beside / "README.md").unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(beside, folder)


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
