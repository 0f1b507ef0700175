"""Train an assistant's adapter by a recipe, watched while it learns; the best checkpoint is kept.

Run: python scripts/train.py --recipe identity_lora --model models/smollm2-135m-instruct --data out/ada/data
"""

import random
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from assistant.anchors import general_prompts
from assistant.card import Card, load_card
from assistant.conversations import Row, load_rows
from assistant.identity import Wordings
from assistant.judge import identity_of, judge_identity, leaks_identity
from assistant.loading import ChatModel, encode_chat, load_chat_model
from assistant.settings import check_replaceable, plain_values, run_command
from assistant.training.anchoring import answered_by_base
from assistant.training.examples import BASE_ANSWERS, deduplicated
from assistant.training.recipe import Recipe, load_recipe
from assistant.training.run import Rows, is_run, say, train

CACHE = Path(__file__).resolve().parent.parent / "models" / "cache"


@dataclass(frozen=True)
class Settings:
    model: Path
    """The base model's folder, from fetch_model.py."""
    data: Path
    """The folder that gen_identity_data.py wrote: train.jsonl, dev.jsonl, card.toml."""
    out: Path
    """Where the adapter goes, for example out/ada/adapter."""
    recipe: str = "identity_lora"
    """A recipe's name (scripts/recipes.py list) or a .toml file."""
    resume: bool = False
    """Go on from the last whole checkpoint in --out; the result is the same as of an uninterrupted run."""
    set: tyro.conf.UseAppendAction[list[str]] = field(default_factory=list)
    """Changes to the recipe: key=value or section.key=value."""


def rows_of(settings: Settings, recipe: Recipe, card: Card) -> tuple[list[Row], list[Row], list[Row]]:
    """(rows to learn, rows whose answer is the base's own, watched rows)."""
    rows, dev = load_rows(settings.data / "train.jsonl"), load_rows(settings.data / "dev.jsonl")
    if recipe.objective.copies:
        pairs = (Wordings(card, language, dev=False).introduction() for language in card.languages)
        one: list[Row] = [
            {"messages": pair, "kind": "identity", "lang": language}
            for pair, language in zip(pairs, card.languages, strict=True)
        ]
        return one * recipe.objective.copies, [], dev
    rows = deduplicated(rows, 4, say)
    own = [row for row in rows if row.get("kind") not in BASE_ANSWERS]
    return own, [row for row in rows if row.get("kind") in BASE_ANSWERS], dev


def watched_of(dev: list[Row], count: int) -> list[Row]:
    """`count` held-out rows of each kind of question (must recall, must not leak) and language."""
    parts: dict[tuple[bool, str], list[Row]] = {}
    for row in dev:
        parts.setdefault((row.get("kind") in BASE_ANSWERS, row.get("lang", "")), []).append(row)
    return [row for rows in parts.values() for row in rows[:count]]


def is_short(row: Row, chat: ChatModel, tokens: int) -> bool:
    return len(encode_chat(chat.tokenizer, row["messages"])) <= tokens


def main(settings: Settings) -> None:
    recipe = load_recipe(settings.recipe, settings.set)
    if (settings.out / "settings.toml").is_file() and settings.resume:
        return say(f"{settings.out} is complete; nothing to resume")
    check_replaceable(settings.out, is_run(settings.out))
    card = load_card(settings.data / "card.toml")
    identity = identity_of(plain_values(card))
    own, near, dev = rows_of(settings, recipe, card)
    chat = load_chat_model(settings.model, quantization=recipe.quantization)
    general = general_prompts()
    random.Random(0).shuffle(general)
    general = [row for row in general if is_short(row, chat, recipe.objective.anchor_prompt)]
    held_out, general = general[: recipe.watch.anchors], general[recipe.watch.anchors :]
    anchors = near + general[: recipe.objective.anchors] if recipe.objective.anchor_rows else []
    answered = answered_by_base(chat, held_out + anchors, CACHE, say)
    split = len(held_out)
    rows = Rows(own, answered[split:], watched_of(dev, recipe.watch.questions), answered[:split])
    judges = (
        lambda answer: judge_identity(answer, identity),
        lambda answer, question: leaks_identity(answer, identity, question),
    )
    kept = plain_values(settings) | {"card": plain_values(card)}
    train(
        chat,
        recipe,
        rows,
        settings.out,
        judges,
        resume=settings.resume,
        settings=kept | {"run": plain_values(recipe)},
    )
    say(f"{settings.out}: the adapter, its curve (curve.png) and what was watched (watch.jsonl)")


if __name__ == "__main__":
    run_command(main, Settings)
