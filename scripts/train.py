"""Train an assistant's adapter by a recipe, watched while it learns; the best checkpoint is kept.

Run: python scripts/train.py --model models/smollm2-135m-instruct --data out/ada/data
"""

from dataclasses import dataclass, field
from pathlib import Path

import tyro

from assistant.card import load_card
from assistant.devices import limit_gpu_memory
from assistant.judge import identity_of, judge_identity, leaks_identity
from assistant.loading import is_adapter
from assistant.settings import check_replaceable, plain_values, run_command
from assistant.training.reading import read_rows
from assistant.training.recipe import default_recipe, load_recipe
from assistant.training.run import is_run, load_base, say, train

CACHE = Path(__file__).resolve().parent.parent / "models" / "cache"


@dataclass(frozen=True)
class Settings:
    model: Path
    """The base model's folder, from fetch_model.py."""
    data: Path
    """The folder that gen_identity_data.py wrote (train.jsonl, dev.jsonl, card.toml); for pretrain_lora one
    whose train.jsonl holds texts; for llava_align and llava_instruct LLaVA's .json, or a folder with
    train.jsonl."""
    out: Path
    """Where the adapter goes, for example out/ada/adapter."""
    recipe: str = ""
    """A recipe's name (scripts/recipes.py list) or a .toml file; default: identity_warm for a base that
    data/start knows, else identity_lora."""
    images: Path | None = None
    """Where the pictures of the rows lie, when not beside them."""
    start: Path | None = None
    """An adapter whose weights the new one begins with: to teach it more. Trained with the same [lora]."""
    resume: bool = False
    """Go on from the last whole checkpoint in --out; the result is the same as of an uninterrupted run."""
    set: tyro.conf.UseAppendAction[list[str]] = field(default_factory=list)
    """Changes to the recipe: key=value or section.key=value."""
    gpu_memory_gib: float = 0.0
    """Use no more of the GPU than this, as if it were a smaller card; 0: all that is free."""


def main(settings: Settings) -> None:
    recipe = load_recipe(settings.recipe or default_recipe(settings.model), settings.set)
    if (settings.out / "settings.toml").is_file() and settings.resume:
        return say(f"{settings.out} is complete; nothing to resume")
    check_replaceable(settings.out, is_run(settings.out))
    if settings.start and not recipe.lora:
        raise ValueError(f"--start gives an adapter, and {recipe.name} trains none: leave it out")
    if settings.start and not is_adapter(settings.start):
        raise ValueError(f"--start {settings.start} is no adapter: give a folder that train.py wrote")
    named = (settings.data.parent if settings.data.is_file() else settings.data) / "card.toml"
    needs_card = not recipe.objective.texts and not recipe.vision.stage
    card = load_card(named) if needs_card or (recipe.vision.stage and named.is_file()) else None
    identity = identity_of(plain_values(card)) if card else None
    limit_gpu_memory(settings.gpu_memory_gib)
    chat = load_base(settings.model, recipe)
    rows = read_rows(chat, recipe, settings.data, card, CACHE, say, settings.images)
    judges = (
        lambda answer: identity is not None and judge_identity(answer, identity),
        lambda answer, question: identity is not None and leaks_identity(answer, identity, question),
    )
    kept = plain_values(settings) | ({"card": plain_values(card)} if card else {})
    kept |= {"recipe": settings.recipe or recipe.name, "run": plain_values(recipe)}
    train(
        chat, recipe, rows, settings.out, judges,
        begin=settings.start, resume=settings.resume, settings=kept,
    )  # fmt: skip
    say(f"{settings.out}: the result, its curve (curve.png) and what was watched (watch.jsonl)")


if __name__ == "__main__":
    run_command(main, Settings)
