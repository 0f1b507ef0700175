"""What training goes on with from eyes that were made before: their LLaVA without their LoRA, and that LoRA.

Run: python benchmarks/eyes_again.py --llm out/ada/model --out out/eyes
Then: python scripts/train.py --recipe llava_instruct --model out/eyes/untrained --start out/eyes/start \\
        --data out/pictures --out out/eyes/instruct
Or, for stage 1 of the same tower: --afresh, then --recipe llava_align without --start.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from safetensors.torch import save_file
from shown_words import naming_projector

from assistant.folders import read_json, write_json
from assistant.llava import make_llava
from assistant.llava_adapter import CONFIG, WEIGHTS, read_trained
from assistant.published_tower import fetch_tower
from assistant.settings import (
    DATA,
    check_replaceable,
    load_settings,
    plain_values,
    run_command,
    save_settings,
)
from assistant.tensors import tensors_in
from assistant.vision_tower import with_known


@dataclass(frozen=True)
class Settings:
    llm: Path
    """The model that gets these eyes: an assistant's, so that its identity is seen beside pictures."""
    adapter: Path = DATA / "eyes"
    """Eyes that ship_eyes.py wrote, tower and all."""
    vision: Path = Path("efficientnet-lite0")
    """The tower that they were made of."""
    out: Path = Path("out/eyes")
    """Where untrained/ and start/ go."""
    afresh: bool = False
    """Keep the tower alone, with a projector that speaks names, as learn_things.py leaves it."""


def main(settings: Settings) -> None:
    vision, parts = fetch_tower(settings.vision), replace(read_trained(settings.adapter), llm=None)
    if settings.afresh:
        width = with_known(read_json(vision / "config.json"), parts.known)["hidden_size"]
        parts = replace(parts, projector=naming_projector(settings.llm, width))
    make_llava(settings.llm, vision, settings.out / "untrained", parts, plain_values(settings))
    if not settings.afresh:
        write_start(settings, settings.out / "start")


def write_start(settings: Settings, start: Path) -> None:
    """The adapter without the tower, which the LLaVA has: projector and LoRA."""
    check_replaceable(start, load_settings(start).get("begins") == "eyes")
    start.mkdir(exist_ok=True)
    weights = dict(tensors_in([settings.adapter / WEIGHTS]))
    learning = {name: tensor for name, tensor in weights.items() if "vision_tower." not in name}
    save_file(learning, start / WEIGHTS, metadata={"format": "pt"})
    write_json(start / CONFIG, read_json(settings.adapter / CONFIG))
    save_settings(start, {**plain_values(settings), "begins": "eyes"})


if __name__ == "__main__":
    run_command(main, Settings)
