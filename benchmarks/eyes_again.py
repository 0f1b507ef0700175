"""What training goes on with from eyes that were made before: their LLaVA without their LoRA, and that LoRA.

Run: python benchmarks/eyes_again.py --llm out/ada/model --out out/eyes
Then: python scripts/train.py --recipe llava_instruct --model out/eyes/untrained --start out/eyes/start \\
        --data out/pictures --out out/eyes/instruct
Or, for stage 1 of the same tower: --afresh, then --recipe llava_align without --start.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from shown_words import naming_projector

from assistant.folders import read_json
from assistant.llava import make_llava
from assistant.llava_adapter import read_trained, write_without_tower
from assistant.published_tower import fetch_tower
from assistant.settings import (
    DATA,
    check_replaceable,
    load_settings,
    plain_values,
    run_command,
    save_settings,
)
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
    if settings.afresh:
        return
    start = settings.out / "start"
    check_replaceable(start, "adapter" in load_settings(start))
    write_without_tower(settings.adapter, start, read_json(settings.llm / "config.json"))
    save_settings(start, plain_values(settings))


if __name__ == "__main__":
    run_command(main, Settings)
