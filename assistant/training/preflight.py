"""Before the first step: what the rows are, and a plain warning when it will not stick or will parrot."""

from collections import Counter

from assistant.training.examples import Example
from assistant.training.recipe import Objective

# forward passes of a layer that training it on a token costs: back, LoRA, losses, watching (on 2 cores)
TRAINED_PASS = 4.0


def training_share(examples: list[Example], order: list[list[int]], depth: int, from_layer: int) -> float:
    """Layer passes of all training steps as a multiple of those that preparing took; 0 when it took none.

    `examples`: all that were prepared, those of `order` first. `depth`: layers of the model.
    """
    prepared = sum(len(e.ids) * (depth if e.anchor else from_layer) for e in examples)
    trained = sum(len(examples[i].ids) for batch in order for i in batch) * (depth - from_layer)
    return TRAINED_PASS * trained / prepared if prepared else 0.0


def warnings_for(examples: list[Example], objective: Objective) -> list[str]:
    """Sentences about what will go wrong with these rows under this objective."""
    identity = [example for example in examples if not example.anchor]
    questions = len({example.ids[: example.places[0] + 1] for example in identity})
    found: list[str] = []
    if objective.identity_rows * objective.steps < 300:
        found.append(
            f"{objective.steps} updates of {objective.identity_rows} identity rows are few: the name will "
            "hardly stick; give at least 300 rows in all, for example --set objective.steps=100"
        )
    if not objective.anchor_rows or not any(example.anchor for example in examples):
        found.append(
            "no anchor rows: nothing tells the model when NOT to speak of itself, so it will parrot; "
            "the recipe identity_lora has an anchor"
        )
    if questions < 30:
        found.append(
            f"only {questions} distinct questions: the model learns these sentences and not the meaning; "
            "scripts/gen_identity_data.py makes hundreds of wordings"
        )
    repeats = objective.identity_rows * objective.steps / max(len(identity), 1)
    if repeats > 8:
        found.append(f"each identity row is seen {repeats:.0f} times; more than 8 costs what the model knew")
    return found


def counts_of(examples: list[Example]) -> str:
    counts = Counter(
        f"{example.kind}/{example.lang}" if example.lang else example.kind for example in examples
    )
    return ", ".join(f"{kind} {count}" for kind, count in sorted(counts.items()))
