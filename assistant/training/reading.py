"""What a run reads: identity rows and anchors, or plain texts, and what of them is held out to watch.

Knows nothing of tensors; prompts are measured with the tokenizer alone.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from assistant.anchors import general_prompts
from assistant.card import Card
from assistant.conversations import Row, images_of, is_learnt, load_rows, read_jsonl
from assistant.identity import Wordings
from assistant.loading import ChatModel, encode_chat
from assistant.training.anchoring import answered_by_base
from assistant.training.examples import BASE_ANSWERS
from assistant.training.recipe import Recipe
from assistant.training.seeing import read_pictures

HELD_OUT_TEXTS = 0.02  # share of the texts on which the loss is watched, when there is no dev.jsonl


@dataclass
class Rows:
    """What a run learns from: identity rows or texts, answered anchor rows; and what it only watches."""

    identity: list[Row] = field(default_factory=list)
    anchors: list[Row] = field(default_factory=list)
    watched: list[Row] = field(default_factory=list)
    held_out: list[Row] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    held_out_texts: list[str] = field(default_factory=list)
    pictures: list[Row] = field(default_factory=list)
    held_out_pictures: list[Row] = field(default_factory=list)


def read_rows(
    chat: ChatModel,
    recipe: Recipe,
    data: Path,
    card: Card | None,
    cache: Path,
    say: Callable[[str], None],
    images: Path | None = None,
) -> Rows:
    """All rows of a run; the base's answers to anchors that are not there yet are made, and kept in `cache`.

    `card`: None for texts and pictures; `images`: where the pictures lie, when not beside their rows.
    Raises ValueError for a file that holds no rows.
    """
    rows = Rows()
    near: list[Row] = []
    if recipe.vision.stage:
        rows.pictures, rows.held_out_pictures = read_pictures(data, recipe, images)
        shown = [row for row in rows.held_out_pictures if images_of(row["messages"])]
        rows.watched = watched_of(shown, recipe.watch.questions)
    elif card is None:
        rows.texts, rows.held_out_texts = read_texts(data)
    else:
        rows.identity, near, dev = _identity_rows(data, recipe, card, say)
        rows.watched = watched_of(dev, recipe.watch.questions)
    general = general_prompts()
    random.Random(0).shuffle(general)
    general = [row for row in general if _is_short(row, chat, recipe.objective.anchor_prompt)]
    held_out, general = general[: recipe.watch.anchors], general[recipe.watch.anchors :]
    anchors = near + general[: recipe.objective.anchors] if recipe.objective.anchor_rows else []
    answered = answered_by_base(chat, held_out + anchors, cache, say)
    rows.held_out, rows.anchors = answered[: len(held_out)], answered[len(held_out) :]
    return rows


def read_texts(data: Path) -> tuple[list[str], list[str]]:
    """(texts to learn, held-out texts); without dev.jsonl some of the texts are held out, at least one."""
    texts = load_texts(data / "train.jsonl")
    if (data / "dev.jsonl").is_file():
        return texts, load_texts(data / "dev.jsonl")
    random.Random(0).shuffle(texts)
    count = max(round(HELD_OUT_TEXTS * len(texts)), 1)
    if len(texts) == 1:
        raise ValueError(f"{data / 'train.jsonl'} holds one text; at least two are needed, one to watch")
    return texts[count:], texts[:count]


def load_texts(path: Path) -> list[str]:
    """Texts for continued pretraining: {"text": …} lines, or XTuner's conversations without input.

    Raises ValueError with file and line; an empty file is an error too.
    """
    texts = [_text_from(entry, place) for place, entry in read_jsonl(path)]
    if not texts:
        raise ValueError(f"{path} holds no texts")
    return texts


def _text_from(entry: Any, place: str) -> str:
    if isinstance(entry, dict) and isinstance(entry.get("conversation"), list):
        turns = [turn for turn in entry["conversation"] if isinstance(turn, dict)]
        if any(turn.get("output_with_loss", True) is not True for turn in turns):
            raise ValueError(
                f'{place}: "output_with_loss" in a text: continued pretraining learns every text whole; '
                "leave the flag out, or take the turn out"
            )
        entry = {"text": "\n".join(str(turn.get("output", "")) for turn in turns)}
    text = entry.get("text") if isinstance(entry, dict) else None
    if isinstance(text, str) and text.strip():
        return text
    raise ValueError(f'{place}: continued pretraining takes lines like {{"text": "…"}}, with some text in it')


def _identity_rows(
    data: Path, recipe: Recipe, card: Card, say: Callable[[str], None]
) -> tuple[list[Row], list[Row], list[Row]]:
    """(rows to learn, rows whose answer is the base's own, held-out rows)."""
    rows, dev = load_rows(data / "train.jsonl"), load_rows(data / "dev.jsonl")
    if recipe.objective.copies:
        pairs = (Wordings(card, language, dev=False).introduction() for language in card.languages)
        one: list[Row] = [
            {"messages": pair, "kind": "identity", "lang": language}
            for pair, language in zip(pairs, card.languages, strict=True)
        ]
        return one * recipe.objective.copies, [], dev
    rows = deduplicated(rows, 4, say)
    own = [row for row in rows if row.get("kind") not in BASE_ANSWERS]
    near = [row for row in rows if row.get("kind") in BASE_ANSWERS and is_learnt(row["messages"][-1])]
    return own, near, [row for row in dev if is_learnt(row["messages"][-1])]


def deduplicated(rows: list[Row], most: int, say: Callable[[str], None]) -> list[Row]:
    """Rows without a pair more than `most` times; what was dropped is said in one sentence."""
    seen: dict[str, int] = {}
    kept: list[Row] = []
    for row in rows:
        key = repr([(message["content"], is_learnt(message)) for message in row["messages"]])
        seen[key] = seen.get(key, 0) + 1
        if seen[key] <= most:
            kept.append(row)
    if len(kept) < len(rows):
        say(
            f"{len(rows) - len(kept)} of {len(rows)} rows repeat a pair more than {most} times and are left "
            "out: copies teach nothing new, they make a parrot"
        )
    return kept


def watched_of(dev: list[Row], count: int) -> list[Row]:
    """`count` held-out rows of each kind of question (must recall, must not leak) and language."""
    parts: dict[tuple[bool, str], list[Row]] = {}
    for row in dev:
        parts.setdefault((row.get("kind") in BASE_ANSWERS, row.get("lang", "")), []).append(row)
    return [row for rows in parts.values() for row in rows[:count]]


def _is_short(row: Row, chat: ChatModel, tokens: int) -> bool:
    return len(encode_chat(chat.tokenizer, row["messages"])) <= tokens
