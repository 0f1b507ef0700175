"""What a run says while it goes: the loss, its pace, the time left. Knows nothing of what is learnt."""

import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback


class Progress(TrainerCallback):
    """Loss, the pace of the last steps and the time left, every few steps, on standard error."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.start, self.first_step = time.monotonic(), 0
        self.shown, self.shown_step = self.start, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.start = self.shown = time.monotonic()
        self.first_step = self.shown_step = state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        steps, now = state.global_step - self.shown_step, time.monotonic()
        if not logs or "tokens" not in logs or not steps:
            return
        whole = (now - self.start) / (state.global_step - self.first_step)
        rate = logs["tokens"] * steps / (now - self.shown)
        self.shown, self.shown_step = now, state.global_step
        self.say(
            f"step {state.global_step}/{state.max_steps}  "
            + (f"cross-entropy {logs['cross_entropy']:.3f}  " if "cross_entropy" in logs else "")
            + (f"KL {logs['kl']:.4f}  " if "kl" in logs else "")
            + f"{rate:.0f} tokens/s  {whole * (state.max_steps - state.global_step):.0f} s left"
        )
