"""A scorecard as a short text in the reader's language; scorecard.md has the whole. Knows no framework."""

import json
from pathlib import Path
from typing import Any

from assistant.web.texts import Texts


def summary(folder: Path | None, name: str, texts: Texts) -> str:
    """Verdict and a table of recall, leak and retention; without a scorecard, how to make one."""
    if not folder:
        return texts.say("scorecard_none", name=name)
    card = json.loads((folder / "scorecard.json").read_text(encoding="utf-8"))
    languages = languages_of(card)
    verdict = texts["scorecard_passed" if card.get("passed") else "scorecard_failed"]
    head = f"| | {' | '.join(languages)} |\n|---|{'---|' * len(languages)}"
    rows = [
        f"| {texts.say('of', what=texts['scorecard_' + metric], said=texts['probe_' + kind])} "
        f"| {cells(values, languages)} |"
        for metric in ("recall", "leak")
        for kind, values in card.get(metric, {}).items()
        if "probe_" + kind in texts
    ]
    change, kept = card.get("retention", {}).get("kl"), []
    if isinstance(change, float):
        kept = [texts.say("of", what=texts["scorecard_kl"], said=f"{change:.3f}")]
    return "\n\n".join([f"### {verdict}", "\n".join([head, *rows]), *kept])


def languages_of(card: dict[str, Any]) -> list[str]:
    """The languages that most questions were asked in, in the order of the card."""
    return list(card.get("leak", {}).get("unrelated") or card.get("recall", {}).get("identity", {}))


def cells(values: dict[str, float], languages: list[str]) -> str:
    return " | ".join(f"{values[language]:.0%}" if language in values else "" for language in languages)
