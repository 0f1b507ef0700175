"""Turn a LoRA that was trained on InternLM2 into an adapter for the Llama made of it, or back.

    python scripts/import_xtuner.py work_dirs/iter_5198.pth --out out/ada/adapter --alpha 256
    python scripts/import_xtuner.py out/ada/adapter --to internlm2 --out out/ada/xtuner_adapter
    python scripts/import_xtuner.py out/ada/llava --to xtuner --out out/ada/xtuner_llava

The first takes XTuner's .pth, the folder that DeepSpeed makes in its place, or an exported adapter folder.
The last turns a LLaVA, a folder or the adapter of a training on one, back (make_llava.py is the way in).
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from assistant.adapter_folders import to_internlm2_adapter, to_llama_adapter
from assistant.catalog import models_folder
from assistant.llava_to_xtuner import to_xtuner
from assistant.loading import is_adapter
from assistant.settings import plain_values, run_command
from assistant.xtuner import import_pth


@dataclass(frozen=True)
class Settings:
    path: tyro.conf.Positional[Path]
    """XTuner's .pth, DeepSpeed's folder, or an adapter folder; with --to xtuner a LLaVA."""
    out: Path
    """Where the adapter goes, for example out/ada/adapter."""
    base: Path | None = None
    """The Llama made of InternLM2; else models/internlm2-chat-1_8b, with --to internlm2 the adapter's."""
    alpha: float | None = None
    """lora_alpha of the training's config, for a .pth does not hold it; else that of XTuner's own recipe."""
    to: Literal["llama", "internlm2", "xtuner"] = "llama"
    """llama: for train.py, merge.py and chat.py; internlm2: for XTuner and InternLM2's own code; xtuner: a
    LLaVA in the layout of XTuner's export."""


def main(settings: Settings) -> None:
    base = settings.base or models_folder() / "internlm2-chat-1_8b"
    kept = plain_values(settings)
    if settings.alpha is not None and (settings.to != "llama" or is_adapter(settings.path)):
        raise ValueError("--alpha is for a .pth or DeepSpeed's folder: an adapter folder holds its own")
    if settings.to == "xtuner":
        to_xtuner(settings.path, settings.out, kept)
        return print(f"{settings.out}: a LLaVA in XTuner's layout", file=sys.stderr)
    if settings.to == "internlm2":
        to_internlm2_adapter(settings.path, settings.out, settings.base, kept)
    elif is_adapter(settings.path):
        to_llama_adapter(settings.path, settings.out, base, kept)
    else:
        for note in import_pth(settings.path, settings.out, base, settings.alpha, kept):
            print(note, file=sys.stderr)
    print(f"{settings.out}: an adapter for {settings.to}", file=sys.stderr)


if __name__ == "__main__":
    run_command(main, Settings)
