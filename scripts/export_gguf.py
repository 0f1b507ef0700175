"""Write a model folder as one GGUF file for llama.cpp, with an Ollama Modelfile beside it.

Run: python scripts/export_gguf.py --model out/ada/model --out out/ada/ada-q8_0.gguf --type q8_0
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from assistant.export import GgufType, export_gguf
from assistant.settings import run_command


@dataclass(frozen=True)
class Settings:
    model: Path
    """A Llama model folder: what merge.py or fetch_model.py wrote."""
    out: Path
    """The .gguf file to write."""
    type: Annotated[GgufType, tyro.conf.arg(name="type")] = "q8_0"
    """q8_0 is half the folder's size; q4_k_m and q4_0 are smaller and lose more."""


def show(done: int, of: int) -> None:
    if sys.stderr.isatty() or done % 50 == 0 or done == of:
        print(
            f"  {done}/{of} tensors", file=sys.stderr, end="\r" if done < of and sys.stderr.isatty() else "\n"
        )


def main(settings: Settings) -> None:
    if settings.out.suffix != ".gguf" or settings.out.is_dir():
        raise ValueError(f"--out {settings.out} must be a file that ends in .gguf, for example ada.gguf")
    if not settings.model.is_dir():
        raise ValueError(f"{settings.model} is not a folder; give a model folder, for example out/ada/model")
    if (settings.model / "adapter_config.json").is_file():
        raise ValueError(f"{settings.model} is an adapter; merge it first with scripts/merge.py")
    is_known = export_gguf(settings.model, settings.out, settings.type, show)
    if not is_known:
        print("its chat is not ChatML: Ollama will look for the template in the GGUF file", file=sys.stderr)
    size_mb = settings.out.stat().st_size / 1e6
    print(f"{settings.out}: {settings.type}, {size_mb:.0f} MB, and a Modelfile beside it", file=sys.stderr)


if __name__ == "__main__":
    run_command(main, Settings)
