"""How one case gets its adapter: its rows are made as its variant says, then train.py's own function trains.

Heavy libraries are imported where they are used: the process that only hands out cases needs none.
"""

import random
import runpy
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import tomli_w

from ablation.variants import Case, Variant
from assistant.anchors import general_prompts
from assistant.card import Card
from assistant.conversations import Row, write_rows
from assistant.identity import DEV_SHARE, make_rows
from assistant.settings import DATA, REPOSITORY, plain_values, write_text

NEARLY_CUT = 2  # tokens by which a cut answer may come out shorter when it is read again


@cache
def command(name: str) -> dict[str, Any]:
    """The functions of a script."""
    return runpy.run_path(str(REPOSITORY / "scripts" / f"{name}.py"))


def adapter_of(case: Case, model: Path, work: Path) -> Path | None:
    """The case's trained adapter, made unless it is there; None where a system prompt does the work."""
    if case.variant.system:
        return None
    if case.variant.adapter:
        return Path(case.variant.adapter)
    adapter = work / "adapter"
    if not (adapter / "settings.toml").is_file():
        shutil.rmtree(work, ignore_errors=True)
        make_data(case, model, work / "data")
        train = command("train")
        changes = [*case.variant.set, f"trainer.seed={case.seed}"]
        recipe = case.variant.recipe
        train["main"](train["Settings"](model, work / "data", adapter, recipe=recipe, set=changes))
    return adapter


def make_data(case: Case, model: Path, out: Path) -> None:
    """As gen_identity_data.py, then only the rows that the variant keeps, and its general ones."""
    card, variant = Card(case.name), case.variant
    folder = Path(variant.wordings) if variant.wordings else DATA / "identity"
    rows = make_rows(card, variant.n, case.seed, folder=folder)
    dev = make_rows(card, variant.n // DEV_SHARE, case.seed, dev=True, folder=folder)
    if variant.rows:
        rows = [
            row for language, count in variant.rows.items() for row in _kept(rows, variant, language, count)
        ]
    rows += general_rows(model, variant.general)
    write_rows(out / "train.jsonl", rows)
    write_rows(out / "dev.jsonl", dev)
    write_text(out / "card.toml", tomli_w.dumps(plain_values(card)))


def _kept(rows: list[Row], variant: Variant, language: str, count: int) -> list[Row]:
    fitting = [row for row in rows if row.get("lang") == language and row.get("kind") in variant.kinds]
    if len(fitting) < count:
        raise ValueError(f"{variant.label}: {count} rows in {language} are wanted, {len(fitting)} are there")
    return fitting[:count] * variant.times


def general_rows(model: Path, counts: dict[str, int]) -> list[Row]:
    """General prompts with the base's answers, to be learnt by heart; what is cut there ends nowhere here."""
    if not counts:
        return []
    from assistant.loading import encode_text, load_chat_model
    from assistant.training import anchoring
    from assistant.training.examples import UNFINISHED

    prompts = general_prompts()
    random.Random(1).shuffle(prompts)
    chosen = [row for lang, n in counts.items() for row in [p for p in prompts if p.get("lang") == lang][:n]]
    chat = load_chat_model(model)
    answered = anchoring.answered_by_base(chat, chosen, command("train")["CACHE"], command("train")["say"])
    lengths = [len(encode_text(chat.tokenizer, row["messages"][-1]["content"])) for row in answered]
    whole = anchoring.ANSWER_TOKENS - NEARLY_CUT
    return [
        {**row, "kind": UNFINISHED if length >= whole else "replay"}
        for row, length in zip(answered, lengths, strict=True)
    ]
