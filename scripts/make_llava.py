"""Give an LLM eyes: LLM + vision tower (+ what XTuner trained) → one LLaVA folder for transformers.

    python scripts/make_llava.py --llm models/smollm2-135m-instruct --vision efficientnet-lite0 --out out/eyes
    python scripts/make_llava.py --llm models/internlm2-chat-1_8b --xtuner work_dirs/iter_5198.pth \\
        --vision models/clip-vit-large-patch14-336 --out out/ada/llava

With --adapter what train.py made of such a folder is merged in. Without both the projector begins at random:
train it with --recipe llava_align, then llava_instruct.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from assistant.llava import Parts, make_llava
from assistant.llava_adapter import read_trained
from assistant.llava_xtuner import read_parts
from assistant.published_tower import fetch_tower
from assistant.settings import load_settings, plain_values, run_command


@dataclass(frozen=True)
class Settings:
    llm: Path
    """A model folder of a Llama kind: SmolLM2, or an InternLM2 from fetch_model.py."""
    vision: Path
    """A CLIP folder (whole or its vision half), or efficientnet-lite0, which is fetched."""
    out: Path
    """Where the LLaVA goes, for example out/ada/llava."""
    xtuner: Path | None = None
    """XTuner's .pth, the folder DeepSpeed makes in its place, or the folder that pth_to_hf wrote."""
    adapter: Path | None = None
    """What train.py made of such a LLaVA (or data/eyes): its projector and LoRA are merged in."""
    alpha: float | None = None
    """lora_alpha of the LLM's LoRA, for a .pth does not hold it; else that of XTuner's recipe of its rank."""
    vision_alpha: float | None = None
    """The same for the vision tower's LoRA."""


def main(settings: Settings) -> None:
    if settings.xtuner is None and (settings.alpha, settings.vision_alpha) != (None, None):
        raise ValueError("--alpha and --vision-alpha belong to --xtuner; give it or leave them out")
    if settings.xtuner and settings.adapter:
        raise ValueError("--xtuner and --adapter both bring a projector; give one of them")
    vision, parts = fetch_tower(settings.vision), Parts()
    notes: list[str] = []
    if settings.adapter:
        parts = read_trained(settings.adapter)
    if settings.xtuner:
        parts, notes = read_parts(
            settings.xtuner, settings.llm, vision, settings.alpha, settings.vision_alpha
        )
    for note in notes:
        print(note, file=sys.stderr)
    made_by = load_settings(settings.adapter) if settings.adapter else {}
    card = made_by.get("card") or load_settings(settings.llm).get("card", {})
    make_llava(settings.llm, vision, settings.out, parts, {**plain_values(settings), "card": card})
    projector = "a trained one" if parts.projector else "random: train it with --recipe llava_align"
    print(f"{settings.out}: a LLaVA; its projector is {projector}", file=sys.stderr)


if __name__ == "__main__":
    run_command(main, Settings)
