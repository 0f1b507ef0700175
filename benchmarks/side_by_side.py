"""Draw several scorecards beside each other, with the thresholds of the first.

Run: python benchmarks/side_by_side.py --cards out/ada/scorecard out/parrot/scorecard --out out/cards.png
"""

import json
from dataclasses import dataclass
from pathlib import Path

from assistant.scorecard import draw_side_by_side
from assistant.settings import load_settings, run_command


@dataclass(frozen=True)
class Settings:
    cards: list[Path]
    """Folders that scripts/evaluate.py wrote."""
    out: Path
    labels: list[str] | None = None
    """One a card; default: the recipe each model was trained by."""


def recipe_of(card: Path) -> str:
    return str(load_settings(card.parent / "adapter").get("recipe", card.parent.name))


def main(settings: Settings) -> None:
    labels = settings.labels or [recipe_of(card) for card in settings.cards]
    if len(labels) != len(settings.cards):
        raise ValueError(f"{len(labels)} labels for {len(settings.cards)} cards; there must be one for each")
    cards = [json.loads((card / "scorecard.json").read_text(encoding="utf-8")) for card in settings.cards]
    draw_side_by_side(dict(zip(labels, cards, strict=True)), settings.out, title="Scorecards")


if __name__ == "__main__":
    run_command(main, Settings)
