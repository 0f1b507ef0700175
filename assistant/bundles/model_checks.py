"""Whether a model may be shown: its weights whole, its chat template ours, its scorecard passed."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from assistant.bundles.choosing import Choice
from assistant.bundles.gguf_header import check_whole, read_text_field
from assistant.folders import check_weights, has_chat_template, old_identity_in, old_identity_left

HOW_TO_SCORE = "score the model first: python scripts/evaluate.py --model MODEL --out RUN/scorecard"


def weight_faults(model: Path) -> Iterator[tuple[str, str]]:
    """(file, sentence) for each fault of the GGUF files and the model folder at `model`."""
    for path in sorted(model.glob("*.gguf")):
        yield from ((path.name, fault) for fault in _gguf_faults(path))
    for path in sorted(model.glob("*.safetensors")):
        try:
            check_weights(path)
        except ValueError as error:
            yield path.name, str(error).removeprefix(f"{path} ")
    if (model / "config.json").is_file():
        if not has_chat_template(model):
            yield (
                "config.json",
                "no chat template beside it; fetch its base again with scripts/fetch_model.py",
            )
        for left in old_identity_left(model):
            file, _, sentence = left.partition(": ")
            yield file, f"would still say {sentence!r}; merge the model again"


def _gguf_faults(path: Path) -> Iterator[str]:
    try:
        template = read_text_field(path, "tokenizer.chat_template")
        check_whole(path)
    except ValueError as error:
        yield str(error)
        return
    if not template:
        yield "has no chat template; export it with scripts/export_gguf.py"
    for sentence in old_identity_in(template):
        yield f"its template would still say {sentence!r}; export it again from a model folder of ours"


def score_faults(scorecard: Path | None) -> Iterator[tuple[str, bool]]:
    """(sentence, whether --force overrules it) for a scorecard that is missing, broken or not passed."""
    if not scorecard or not scorecard.is_file():
        yield f"is missing; {HOW_TO_SCORE}, or publish with --force", True
        return
    try:
        scores: Any = json.loads(scorecard.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        scores = None
    if not isinstance(scores, dict):
        yield f"is no JSON object; {HOW_TO_SCORE}", False
    elif scores.get("passed") is not True:
        failures = "; ".join(map(str, scores.get("failures") or ["it did not pass"]))
        yield f"below the thresholds: {failures}; train again, or publish with --force", True


def fit_faults(model: Choice) -> Iterator[tuple[str, bool]]:
    """(sentence, whether --force overrules it) for a scorecard that is not of this model as it is now."""
    if not model.scorecard or not model.scorecard.is_file():
        return
    try:
        scored = json.loads(model.scorecard.read_text(encoding="utf-8")).get("name")
    except (ValueError, AttributeError):
        return  # said by score_faults
    names = {str(model.card.get("name", "")), *map(str, model.card.get("names", {}).values())}
    if scored and model.card.get("name") and scored not in names:
        yield f"is of {scored!r}, and the model says that it is {model.name!r}; {HOW_TO_SCORE}", False
    if _trained_at(model) > model.scorecard.stat().st_mtime:
        yield f"is older than the training of this model; {HOW_TO_SCORE}, or publish with --force", True


def _trained_at(model: Choice) -> float:
    """When the newest weights of its training were written, in seconds; 0 where they are not here.

    A merge and an export say the same as what was scored, whenever they are made: its adapter counts.
    """
    places = (model.run / "adapter", model.run / "model", model.path)
    weights = [list(place.glob("*.safetensors")) for place in places if place.is_dir()]
    return max((path.stat().st_mtime for path in next(filter(None, weights), [])), default=0.0)
