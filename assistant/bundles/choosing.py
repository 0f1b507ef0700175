"""Which model a page shows, as its person named it, with its identity card and scorecard.

Knows nothing of hosts, and opens no weights.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from assistant.backends import default_model
from assistant.folders import read_json
from assistant.settings import load_settings, load_toml

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(/[\w.-]+\.gguf)?")


@dataclass(frozen=True)
class Choice:
    """The model that was chosen. `place` is its path, or its id on the host's hub."""

    kind: Literal["gguf", "folder", "adapter", "hub"]
    place: str
    card: dict[str, Any]
    scorecard: Path | None

    @property
    def path(self) -> Path:
        return Path(self.place)

    @property
    def run(self) -> Path:
        """The run that it came from: around it, or around the scorecard that was given for it."""
        around, scored = self.path.parent, self.scorecard.parent.parent if self.scorecard else None
        return scored if scored and not card_of(self.path) and card_of(scored / "model") else around

    @property
    def name(self) -> str:
        """Of the assistant; without a card the file's own."""
        return str(self.card.get("name") or self.path.name.removesuffix(".gguf"))

    @property
    def title(self) -> str:
        is_own_name = self.card.get("owner") or not self.card.get("name")
        return self.name if is_own_name else f"{self.name}'s assistant"


def choose_model(named: str = "", scorecard: Path | None = None) -> Choice:
    """The folder, .gguf file, run in out/, adapter folder or hub id that was named, else the page's default.

    A model without a card has that of the run whose scorecard was given.
    Raises ValueError for what is none of these, RuntimeError when there is no default.
    """
    if scorecard and not scorecard.is_file():
        raise ValueError(
            f"--scorecard {scorecard} does not exist; give the scorecard.json that evaluate.py wrote"
        )
    place = Path(named or default_model())
    if (place / "model" / "config.json").is_file():
        place = place / "model"
    kinds = {"adapter_config.json": "adapter", "config.json": "folder"}
    kind: Any = next((kind for file, kind in kinds.items() if (place / file).is_file()), "")
    if place.is_file() and place.suffix == ".gguf":
        kind = "gguf"
    scored = card_of(scorecard.parent.parent / "model") if scorecard else {}
    if not kind and not place.exists() and HUB_ID.fullmatch(named):
        return Choice("hub", named, scored, scorecard)
    if not kind:
        raise ValueError(
            f"--model {place} is no model folder, adapter folder, .gguf file or hub id OWNER/NAME; "
            "give for example out/ada/model"
        )
    place = place.resolve()
    beside = place.parent / "scorecard" / "scorecard.json"
    card = card_of(place) or scored
    _check_choice(place, kind, card)
    return Choice(kind, str(place), card, scorecard or (beside if beside.is_file() else None))


def _check_choice(place: Path, kind: str, card: dict[str, Any]) -> None:
    """Raises ValueError, before anything is built, for a config or a name that no page could be made of."""
    if kind == "folder":
        read_json(place / "config.json")
    if kind == "adapter" and not read_json(place / "adapter_config.json").get("base_model_name_or_path"):
        raise ValueError(f"{place}/adapter_config.json names no base model; give what train.py wrote")
    name = card.get("name", "")
    if not isinstance(name, str) or not name.isprintable():
        raise ValueError(
            f"the identity card of {place} has the name {name!r}; a name is one line of text without "
            "control characters"
        )


def card_of(place: Path) -> dict[str, Any]:
    """The identity card behind a model: in its settings, else in its run's data. Empty when there is none."""
    beside = place.parent / "data" / "card.toml"
    card = load_settings(place).get("card", {}) if place.is_dir() else {}
    return dict(card or (load_toml(beside) if beside.is_file() else {}))
