"""What a run says while it goes: the loss, its pace, the time left. Knows nothing of what is learnt."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from assistant.training.watching import read_log, write_log

KEPT = ("cross_entropy", "kl", "drift")


class Progress(TrainerCallback):
    """Loss, the pace of the last steps and the time left, every few steps: said, and kept in `log`.

    A line of it: {"step", "of", "cross_entropy", "kl", "drift", "left_s"}; whoever watches the run reads it
    meanwhile.
    """

    def __init__(self, say: Callable[[str], None], log: Path) -> None:
        self.say, self.log = say, log
        self.start, self.first_step = time.monotonic(), 0
        self.shown, self.shown_step = self.start, 0
        self.entries: list[dict[str, Any]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.start = self.shown = time.monotonic()
        self.first_step = self.shown_step = state.global_step
        self.entries = [entry for entry in read_log(self.log) if entry["step"] <= state.global_step]
        write_log(self.log, self.entries)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        steps, now = state.global_step - self.shown_step, time.monotonic()
        if not logs or "tokens" not in logs or not steps:
            return
        whole = (now - self.start) / (state.global_step - self.first_step)
        left = whole * (state.max_steps - state.global_step)
        rate = logs["tokens"] * steps / (now - self.shown)
        self.shown, self.shown_step = now, state.global_step
        self._keep(state, logs, left)
        self.say(
            f"step {state.global_step}/{state.max_steps}  "
            + (f"cross-entropy {logs['cross_entropy']:.3f}  " if "cross_entropy" in logs else "")
            + (f"KL {logs['kl']:.4f}  " if "kl" in logs else "")
            + f"{rate:.0f} tokens/s  {left:.0f} s left"
        )

    def _keep(self, state: Any, logs: Any, left_s: float) -> None:
        losses = {key: round(logs[key], 5) for key in KEPT if key in logs}
        entry = {"step": state.global_step, "of": state.max_steps, **losses, "left_s": round(left_s)}
        self.entries.append(entry)
        write_log(self.log, self.entries)
