"""One training run: from rows and a recipe to a folder with the best weights, their log and their curve."""

import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, set_seed

from assistant.devices import keep_freed_memory, memory_of, name_of
from assistant.loading import ChatModel, core_of, load_chat_model
from assistant.settings import link_or_copy, save_settings
from assistant.training import preflight, watching
from assistant.training.collating import Collator
from assistant.training.curve import draw_curve
from assistant.training.drift import Drift
from assistant.training.examples import Example
from assistant.training.filtering import FilterInputs
from assistant.training.loss import Head, head_over
from assistant.training.memory import GIB
from assistant.training.moments import anchor_moments
from assistant.training.parts import (
    arguments,
    computing,
    first_trained_layer,
    layers_of,
    memory_plan,
    pictures_for,
    trained_model,
)
from assistant.training.planning import held_out_examples, plan_steps
from assistant.training.progress import Progress
from assistant.training.reading import Rows
from assistant.training.recipe import Objective, Recipe
from assistant.training.starting import begin_with, start_for
from assistant.training.states import Prepared, likely_tokens, prepare
from assistant.training.trainer import AnchoredTrainer

CHECKPOINTS = "checkpoints"
HISTORY = "history.jsonl"


def say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def load_base(path: Path, recipe: Recipe) -> ChatModel:
    """The base as the recipe trains it: all weights learn in float32, for small updates vanish in 16 bits."""
    if recipe.objective.start:
        start_for(path)  # what it lacks is said before anything is prepared
    dtype = None if recipe.lora or recipe.vision.stage else torch.float32
    chat = load_chat_model(path, dtype=dtype, quantization=recipe.quantization)
    if bool(recipe.vision.stage) != bool(chat.eyes):
        way = (
            "give --model a LLaVA folder" if recipe.vision.stage else "it needs a recipe like llava_instruct"
        )
        raise ValueError(f"{path} {'is no' if recipe.vision.stage else 'is a'} LLaVA: {way} (make_llava.py)")
    return chat


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run, whole or not."""
    return (folder / CHECKPOINTS).is_dir() or (folder / "watch.jsonl").is_file()


def train(
    chat: ChatModel,
    recipe: Recipe,
    rows: Rows,
    out: Path,
    judges: tuple[Callable[[str], bool], Callable[[str, str], bool]],
    *,
    begin: Path | None = None,
    resume: bool = False,
    settings: dict[str, Any] | None = None,
) -> Path:
    """Train an adapter, or with no [lora] a whole model, into `out`; returns `out`.

    `begin`: an adapter whose weights the new one begins with, instead of what the recipe says.
    With `resume` it goes on from the last whole checkpoint. Raises KeyboardInterrupt after Ctrl-C, once the
    checkpoint is saved, and RuntimeError when a single row does not fit into memory.
    """
    keep_freed_memory()
    set_seed(recipe.trainer.get("seed", 0))  # the adapter's random start belongs to the seed
    objective, from_layer = recipe.objective, first_trained_layer(chat, recipe)
    examples, order = plan_steps(chat, recipe, rows, say)
    held_out = held_out_examples(chat, rows, objective)
    _say_preflight(chat, recipe, examples, order)
    with computing(chat, recipe):
        prepared = _prepare(chat, examples + held_out, order, from_layer)
    pictures = pictures_for(chat, recipe, [image for e in examples + held_out for image in e.images], say)
    kept = Collator(held_out, prepared[len(examples) :], pictures) if held_out else None
    watcher = watching.Watcher(chat, rows.watched, kept, from_layer, *judges)
    head = _head(chat, examples, prepared, objective.vocabulary)
    model = trained_model(chat, recipe, from_layer)
    collate = Collator(examples, prepared[: len(examples)], pictures)
    drift, filters = _held_back(model, collate, objective, from_layer)
    _begin(model, chat, recipe, begin)
    taken = (pictures.bytes_on_gpu if pictures else 0) + (drift.bytes if drift else 0)
    plan = memory_plan(model, chat, recipe, examples, order, taken)
    say(f"{name_of(chat.model.device)}, {memory_of(chat.model.device) / GIB:.1f} GiB to use: {plan}")
    start = _start(out, resume)
    survive = watching.Survive()
    trainer = AnchoredTrainer(
        model=model,
        args=arguments(recipe, out / CHECKPOINTS, chat, plan),
        train_dataset=Dataset.from_dict({"batches": order}),
        collate=collate,
        processing_class=chat.tokenizer,
        callbacks=[
            *filters,
            watching.KeepBest(watcher, recipe.watch.every, out, say),
            survive,
            Progress(say, out / HISTORY),
        ],
        from_layer=from_layer,
        kl_weight=objective.kl_weight,
        drift=drift,
        head=head,
        rows_at_once=plan.rows,
        say=say,
    )
    _go(trainer, start, survive)
    _finish(out, trainer.state.log_history, settings or {})
    return out


def _held_back(
    model: Any, collate: Collator, objective: Objective, from_layer: int
) -> tuple[Drift | None, list[TrainerCallback]]:
    """What holds the adapter back by its inputs on anchors: the drift and the filter."""
    if not (objective.drift_weight or objective.filter):
        return None, []
    moments = anchor_moments(model, collate, from_layer)  # of the base: the adapter changes nothing yet
    drift = Drift(model, moments, objective.drift_weight) if objective.drift_weight and moments else None
    filters = [FilterInputs(collate, from_layer, moments, objective.filter, say)] if objective.filter else []
    return drift, [*filters]


def _begin(model: Any, chat: ChatModel, recipe: Recipe, asked: Path | None) -> None:
    """Give the new adapter the weights that it begins with: those asked for, else those of the recipe."""
    if recipe.lora and asked:
        begin_with(model, asked, say, is_asked=True)
    elif recipe.lora and recipe.objective.start:
        begin_with(model, start_for(chat.path), say)


def _go(trainer: AnchoredTrainer, start: Path | None, survive: watching.Survive) -> None:
    """All steps from the checkpoint `start`. Raises KeyboardInterrupt after Ctrl-C, once that is saved."""
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.train(resume_from_checkpoint=str(start) if start else None)
    if survive.interrupted:
        say(f"saved at step {trainer.state.global_step}; go on with the same command and --resume")
        raise KeyboardInterrupt
    if trainer.args.device.type == "cuda":
        say(f"at most {torch.cuda.max_memory_reserved() / GIB:.1f} GiB of GPU memory")


def _start(out: Path, resume: bool) -> Path | None:
    """The checkpoint to go on from; without one `out` begins empty."""
    start = watching.last_whole_checkpoint(out / CHECKPOINTS) if resume else None
    if start:
        say(f"going on from step {start.name.rpartition('-')[2]}")
    else:
        shutil.rmtree(out, ignore_errors=True)
    return start


def _say_preflight(
    chat: ChatModel, recipe: Recipe, examples: list[Example], order: list[list[list[int]]]
) -> None:
    tokens = sum(len(examples[row].ids) for step in order for batch in step for row in batch)
    say(f"rows: {preflight.counts_of(examples)}")
    say(
        f"{recipe.objective.steps} optimizer updates over {tokens} tokens in "
        f"{str(chat.model.dtype).removeprefix('torch.')}"
    )
    for warning in [] if recipe.vision.stage else preflight.warnings_for(examples, recipe.objective):
        say(f"warning: {warning}")


def _prepare(
    chat: ChatModel, examples: list[Example], order: list[list[list[int]]], from_layer: int
) -> list[Prepared]:
    """Frozen states and base states of the examples; its pace tells how long the training will take."""
    total, done, start, shown = sum(len(example.ids) for example in examples), 0, time.monotonic(), 0.0

    def progress(tokens: int) -> None:
        nonlocal done, shown
        done += tokens
        if time.monotonic() - shown > 10 or done == total:
            shown = time.monotonic()
            rate = done / (shown - start)
            say(f"preparing {done}/{total} tokens  {rate:.0f} tokens/s  {(total - done) / rate:.0f} s left")

    prepared = prepare(core_of(chat.model), examples, from_layer, progress)
    seconds = time.monotonic() - start
    batches = [batch for step in order for batch in step]
    share = preflight.training_share(examples, batches, layers_of(chat), from_layer)
    say(f"about {seconds * share:.0f} s of training to come" if share else "the first steps tell the time")
    return prepared


def _head(chat: ChatModel, examples: list[Example], prepared: list[Prepared], size: int) -> Head:
    if not size or size >= len(chat.model.lm_head.weight):
        return head_over(chat.model)
    tokens = likely_tokens(chat.model, examples, prepared, size)
    say(f"losses over the {len(tokens)} likely tokens of {len(chat.model.lm_head.weight)}")
    return head_over(chat.model, tokens)


def _finish(out: Path, history: list[dict[str, Any]], settings: dict[str, Any]) -> None:
    """Put the best weights into `out` itself; settings.toml comes last and says that the folder is whole."""
    draw_curve(history, watching.read_log(out / "watch.jsonl"), out / "curve.png")
    for path in (out / "best").iterdir():
        (out / f".{path.name}.partial").unlink(missing_ok=True)
        link_or_copy(path, out / f".{path.name}.partial")
        (out / f".{path.name}.partial").replace(out / path.name)
    best = watching.kept_entry(watching.read_log(out / "watch.jsonl"))
    assert best is not None, "the last step is always measured"
    save_settings(out, {**settings, "kept_step": best["step"], "torch": torch.__version__})
    shutil.rmtree(out / "best")
    shutil.rmtree(out / CHECKPOINTS)
