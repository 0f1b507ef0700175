"""Put the start that was trained into data/start/: 16 bits a number, and without whose rows came first.

Run: python benchmarks/ship_start.py --adapter out/start/adapter
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from assistant.llava_adapter import SOMEBODYS, WEIGHTS, write_small
from assistant.settings import DATA, load_settings, run_command, save_settings


@dataclass(frozen=True)
class Settings:
    adapter: Path
    """What train.py --recipe identity_start wrote."""
    out: Path = DATA / "start"


def main(settings: Settings) -> None:
    made_by = load_settings(settings.adapter)
    out = settings.out / Path(made_by["model"]).name
    write_small(settings.adapter, out, base=out.name)
    save_settings(out, {key: value for key, value in made_by.items() if key not in SOMEBODYS})
    print(f"{out}: {(out / WEIGHTS).stat().st_size / 10**6:.1f} MB", file=sys.stderr)


if __name__ == "__main__":
    run_command(main, Settings)
