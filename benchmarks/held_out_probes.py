"""More questions than the scorecard's own: all wordings of data/identity that no training data contains.

Run: python benchmarks/held_out_probes.py --name Ada --out out/held_out.jsonl
Use: python scripts/evaluate.py --model out/ada/model --probes out/held_out.jsonl --out out/ada/held_out

They come from the same hands as the wordings that are trained on, so scores are a little too kind; what they
are good for is telling two models, or two files of one model, apart by more than a few questions.
"""

from dataclasses import dataclass
from pathlib import Path

from assistant.card import Card
from assistant.conversations import write_rows
from assistant.identity import make_rows
from assistant.settings import run_command

KINDS = {
    "identity": "identity",
    "denial": "adversarial",
    "pressure": "adversarial",
    "system": "multi_turn",
    "multi_turn": "multi_turn",
    "near_miss": "near_miss",
    "greeting": "unrelated",
}


@dataclass(frozen=True)
class Settings:
    name: str
    out: Path
    owner: str = ""
    rows: int = 1200
    """Of the mixture that is drawn; a question that comes twice is kept once."""
    seed: int = 0


def main(settings: Settings) -> None:
    rows = make_rows(Card(settings.name, settings.owner), settings.rows, settings.seed, dev=True)
    asked = {
        repr(row["messages"][:-1]): {
            "kind": KINDS[row["kind"]],
            "lang": row["lang"],
            "messages": row["messages"][:-1],
        }
        for row in rows
    }
    write_rows(settings.out, list(asked.values()))
    print(f"{settings.out}: {len(asked)} questions")


if __name__ == "__main__":
    run_command(main, Settings)
