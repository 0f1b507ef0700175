"""Put the eyes that were trained into data/eyes/, small enough to be shipped with the repository.

Run: python benchmarks/ship_eyes.py --adapter out/ada/eyes_adapter
Use: python scripts/make_llava.py --llm models/smollm2-135m-instruct --vision efficientnet-lite0 \\
        --adapter data/eyes --out out/eyes/llava
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from assistant.llava_adapter import read_trained, write_small
from assistant.settings import DATA, load_settings, run_command, save_settings

SOMEBODYS = ("card", "model", "data", "out", "images", "resume")  # whose it was and where it lay


@dataclass(frozen=True)
class Settings:
    adapter: Path
    """What train.py --recipe llava_instruct wrote."""
    out: Path = DATA / "eyes"


def main(settings: Settings) -> None:
    read_trained(settings.adapter)
    write_small(settings.adapter, settings.out)
    made_by = load_settings(settings.adapter)
    save_settings(settings.out, {key: value for key, value in made_by.items() if key not in SOMEBODYS})
    size = (settings.out / "adapter_model.safetensors").stat().st_size
    print(f"{settings.out}: {size / 10**6:.1f} MB", file=sys.stderr)


if __name__ == "__main__":
    run_command(main, Settings)
