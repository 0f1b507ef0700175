"""Two adapters on one base: what opening a second one takes, a turn to another one, and the memory of both.

Run: python benchmarks/identities.py --adapters out/ada/adapter out/bob/adapter [--apart]
"""

import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from assistant.backends import Sampling, Shared, open_backend
from assistant.conversations import user
from assistant.settings import run_command

QUESTION = [user("Who are you?")]
TURNS = 20


@dataclass(frozen=True)
class Settings:
    adapters: tuple[Path, Path]
    apart: bool = False
    """Each on a base of its own, for comparison."""


def main(settings: Settings) -> None:
    together, process = Shared(), psutil.Process()
    one_token, opened = Sampling(max_new_tokens=1), []
    for adapter in settings.adapters:
        start = time.monotonic()
        backend = open_backend(str(adapter), shared=Shared() if settings.apart else together)
        print(f"{adapter}: opened in {time.monotonic() - start:.2f} s")
        opened.append(backend)
    for backend in opened:
        print(f"{backend.label}: {backend.answer_all([QUESTION], Sampling(max_new_tokens=24))[0]}")
    seconds = []
    for order in ((0, 0), (0, 1)):  # the same one again and again, then each in turn
        start = time.monotonic()
        for turn in range(TURNS):
            opened[order[turn % 2]].answer_all([QUESTION], one_token)
        seconds.append((time.monotonic() - start) / TURNS)
    print(f"a first token by the same: {seconds[0] * 1000:.0f} ms; by the other: {seconds[1] * 1000:.0f} ms")
    print(f"{process.memory_info().rss / 2**20:.0f} MiB in all")


if __name__ == "__main__":
    run_command(main, Settings)
