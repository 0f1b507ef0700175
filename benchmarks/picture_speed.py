"""How soon an answer about a picture begins, and how fast it goes on; one conversation at a time.

Run: python benchmarks/picture_speed.py --model out/ada/llava --pictures out/pictures/images
"""

import random
import time
from dataclasses import dataclass, field
from pathlib import Path

from assistant.backends import Backend, Counts, Kind, Sampling, open_backend
from assistant.conversations import user
from assistant.settings import run_command


@dataclass(frozen=True)
class Settings:
    model: str
    """A LLaVA folder, from make_llava.py."""
    pictures: Path
    """A folder of pictures."""
    count: int = 6
    backends: list[Kind] = field(default_factory=lambda: ["auto", "transformers"])


def main(settings: Settings) -> None:
    found = sorted(path for path in settings.pictures.iterdir() if path.is_file())
    if len(found) < settings.count:
        raise ValueError(
            f"{settings.pictures} holds {len(found)} pictures and --count asks for {settings.count}"
        )
    chosen = random.Random(0).sample(found, settings.count)
    for kind in settings.backends:
        begin = time.monotonic()
        backend = open_backend(settings.model, kind)
        print(f"{backend.label}: loaded in {time.monotonic() - begin:.1f} s", flush=True)
        for seed, path in enumerate(chosen):
            print(f"  {measured(backend, path, seed)}", flush=True)


def measured(backend: Backend, picture: Path, seed: int) -> str:
    begin, first, count = time.monotonic(), 0.0, 0
    # warm, so that some answers are long
    sampling = Sampling(max_new_tokens=64, temperature=1.2, top_p=1.0, seed=seed)
    for chunk in backend.stream([user("What is this?", [str(picture)])], sampling):
        if isinstance(chunk, Counts):
            count = chunk.answer
        elif chunk and not first:
            first = time.monotonic() - begin
    rest = time.monotonic() - begin - first
    return f"first word after {first:.2f} s, {count} tokens, {(count - 1) / rest:.1f} tokens/s"


if __name__ == "__main__":
    run_command(main, Settings)
