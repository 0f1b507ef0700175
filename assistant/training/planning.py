"""Which rows a run learns from, in which steps, and what it is measured on."""

from collections.abc import Callable

from assistant.loading import ChatModel
from assistant.training.examples import (
    Example,
    anchor_examples,
    identity_examples,
    schedule,
    text_examples,
)
from assistant.training.reading import Rows
from assistant.training.recipe import Objective, Recipe
from assistant.training.seeing import picture_examples


def plan_steps(
    chat: ChatModel, recipe: Recipe, rows: Rows, say: Callable[[str], None]
) -> tuple[list[Example], list[list[list[int]]]]:
    """The examples that some step uses, and the batches of each step as indices of them."""
    objective = recipe.objective
    examples = identity_examples(chat, rows.identity, objective.max_length, objective.first_weight, say)
    examples += text_examples(chat, rows.texts, objective.max_length)
    examples += picture_examples(chat, rows.pictures, objective.max_length)
    examples += anchor_examples(
        chat,
        rows.anchors,
        objective.anchor_tokens,
        objective.prompt_every,
        objective.max_length,
        objective.anchor_first_weight,
        objective.anchor_clause_weight,
        say,
    )
    order = schedule(
        examples,
        objective.identity_rows,
        objective.anchor_rows if rows.anchors else 0,
        objective.steps,
        recipe.trainer.get("seed", 0),
        recipe.languages,
    )
    # a row that no step uses costs nothing
    taken = dict.fromkeys(row for step in order for batch in step for row in batch)
    used = {row: place for place, row in enumerate(taken)}
    return [examples[row] for row in used], [
        [[used[row] for row in batch] for batch in step] for step in order
    ]


def held_out_examples(chat: ChatModel, rows: Rows, objective: Objective) -> list[Example]:
    """Held-out anchors, on which KL is measured, then held-out texts, on which the loss is."""
    anchors = anchor_examples(chat, rows.held_out, objective.anchor_tokens, 0, objective.max_length)
    pictures = picture_examples(chat, rows.held_out_pictures, objective.max_length)
    return anchors + text_examples(chat, rows.held_out_texts, objective.max_length) + pictures
