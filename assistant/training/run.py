"""One training run: from rows and a recipe to a folder with the best adapter, its log and its curve."""

import dataclasses
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import PrinterCallback, ProgressCallback, set_seed
from trl import SFTConfig

from assistant.conversations import Row
from assistant.devices import keep_freed_memory
from assistant.loading import ChatModel
from assistant.settings import save_settings
from assistant.training import preflight, watching
from assistant.training.curve import draw_curve
from assistant.training.examples import Example, anchor_examples, identity_examples, schedule
from assistant.training.loss import Head, head_over
from assistant.training.recipe import Recipe
from assistant.training.states import Prepared, likely_tokens, prepare
from assistant.training.trainer import AnchoredTrainer, Collator

CHECKPOINTS = "checkpoints"


@dataclasses.dataclass
class Rows:
    """What a run learns from: identity rows, answered anchor rows, watched rows and held-out anchors."""

    identity: list[Row]
    anchors: list[Row]
    watched: list[Row]
    held_out: list[Row]


def say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def first_trained_layer(chat: ChatModel, recipe: Recipe) -> int:
    return int(recipe.objective.from_layer * len(chat.model.model.layers))


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
    resume: bool = False,
    settings: dict[str, Any] | None = None,
) -> Path:
    """Train an adapter into `out`; returns `out`. With `resume` it goes on from the last whole checkpoint.

    Raises KeyboardInterrupt after Ctrl-C, once the checkpoint is saved.
    """
    keep_freed_memory()
    set_seed(recipe.trainer.get("seed", 0))  # the adapter's random start belongs to the seed
    objective, from_layer = recipe.objective, first_trained_layer(chat, recipe)
    examples, order = _plan(chat, recipe, rows)
    held_out = anchor_examples(chat, rows.held_out, objective.anchor_tokens, 0, objective.max_length)
    _say_preflight(chat, recipe, examples, order)
    prepared = _prepare(chat, examples + held_out, order, from_layer)
    kept = Collator(held_out, prepared[len(examples) :]) if held_out else None
    watcher = watching.Watcher(chat, rows.watched, kept, from_layer, *judges)
    start = _start(out, resume)
    survive = watching.Survive()
    trainer = AnchoredTrainer(
        model=get_peft_model(chat.model, _lora_config(chat, recipe, from_layer)),
        args=_arguments(recipe, out / CHECKPOINTS, len(order) // objective.steps, chat),
        train_dataset=Dataset.from_dict({"rows": order}),
        data_collator=Collator(examples, prepared[: len(examples)]),
        processing_class=chat.tokenizer,
        callbacks=[watching.KeepBest(watcher, recipe.watch.every, out, say), survive, watching.Progress(say)],
        from_layer=from_layer,
        kl_weight=objective.kl_weight,
        head=_head(chat, examples, prepared, objective.vocabulary),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.train(resume_from_checkpoint=str(start) if start else None)
    if survive.interrupted:
        say(f"saved at step {trainer.state.global_step}; go on with the same command and --resume")
        raise KeyboardInterrupt
    if chat.model.device.type == "cuda":
        say(f"at most {torch.cuda.max_memory_reserved() / 2**30:.1f} GiB of GPU memory")
    _finish(out, trainer.state.log_history, settings or {})
    return out


def _start(out: Path, resume: bool) -> Path | None:
    """The checkpoint to go on from; without one `out` begins empty."""
    start = watching.last_whole_checkpoint(out / CHECKPOINTS) if resume else None
    if start:
        say(f"going on from step {start.name.rpartition('-')[2]}")
    else:
        shutil.rmtree(out, ignore_errors=True)
    return start


def _plan(chat: ChatModel, recipe: Recipe, rows: Rows) -> tuple[list[Example], list[list[int]]]:
    """The examples that some step uses, and the batches of all steps as indices of them."""
    objective = recipe.objective
    examples = identity_examples(chat, rows.identity, objective.max_length, objective.first_weight)
    examples += anchor_examples(
        chat,
        rows.anchors,
        objective.anchor_tokens,
        objective.prompt_every,
        objective.max_length,
        objective.anchor_first_weight,
        objective.anchor_clause_weight,
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
    used = {row: place for place, row in enumerate(dict.fromkeys(row for batch in order for row in batch))}
    return [examples[row] for row in used], [[used[row] for row in batch] for batch in order]


def _say_preflight(chat: ChatModel, recipe: Recipe, examples: list[Example], order: list[list[int]]) -> None:
    config = chat.model.config
    weights = chat.model.get_memory_footprint()
    trained = config.num_hidden_layers - first_trained_layer(chat, recipe)
    size = chat.model.dtype.itemsize
    cost = preflight.estimate(examples, order, weights, config.hidden_size, trained, size)
    say(f"rows: {preflight.counts_of(examples)}")
    say(
        f"{recipe.objective.steps} optimizer updates over {cost['tokens']:.0f} tokens; "
        f"about {cost['gib']:.1f} GiB of memory in {str(chat.model.dtype).removeprefix('torch.')}"
    )
    for warning in preflight.warnings_for(examples, recipe.objective):
        say(f"warning: {warning}")


def _prepare(
    chat: ChatModel, examples: list[Example], order: list[list[int]], from_layer: int
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

    prepared = prepare(chat.model, examples, from_layer, progress)
    seconds = time.monotonic() - start
    share = preflight.training_share(examples, order, len(chat.model.model.layers), from_layer)
    say(f"about {seconds * share:.0f} s of training to come" if share else "the first steps tell the time")
    return prepared


def _head(chat: ChatModel, examples: list[Example], prepared: list[Prepared], size: int) -> Head:
    if not size or size >= len(chat.model.lm_head.weight):
        return head_over(chat.model)
    tokens = likely_tokens(chat.model, examples, prepared, size)
    say(f"losses over the {len(tokens)} likely tokens of {len(chat.model.lm_head.weight)}")
    return head_over(chat.model, tokens)


def _lora_config(chat: ChatModel, recipe: Recipe, from_layer: int) -> LoraConfig:
    """LoRA on the trained layers alone; "all-linear" is spelt out, for peft takes no layers beside it."""
    values = dict(recipe.lora)
    if values.get("target_modules") == "all-linear":
        last = chat.model.model.layers[-1]
        linear = (name for name, module in last.named_modules() if isinstance(module, torch.nn.Linear))
        values["target_modules"] = sorted(name.rpartition(".")[2] for name in linear)
    layers = list(range(from_layer, len(chat.model.model.layers)))
    return LoraConfig(task_type="CAUSAL_LM", layers_to_transform=layers, **values)


def _arguments(recipe: Recipe, checkpoints: Path, batches: int, chat: ChatModel) -> SFTConfig:
    """`batches`: of each step; a row of the dataset is a whole batch."""
    values = {
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": batches,
        "max_steps": recipe.objective.steps,
        "save_steps": recipe.watch.every,
        "save_total_limit": 2,
        "logging_steps": 10,
        "seed": 0,
        "gradient_checkpointing": False,
        "bf16": False,
        **recipe.trainer,
    }
    return SFTConfig(
        output_dir=str(checkpoints),
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        report_to="none",
        use_cpu=chat.model.device.type == "cpu",
        **values,
    )


def _finish(out: Path, history: list[dict[str, Any]], settings: dict[str, Any]) -> None:
    """Put the best adapter into `out` itself; settings.toml comes last and says that the folder is whole."""
    draw_curve(history, watching.read_log(out / "watch.jsonl"), out / "curve.png")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        shutil.copyfile(out / "best" / name, out / f".{name}.partial")
        (out / f".{name}.partial").replace(out / name)
    best = watching.kept_entry(watching.read_log(out / "watch.jsonl"))
    assert best is not None, "the last step is always measured"
    save_settings(out, {**settings, "kept_step": best["step"], "torch": torch.__version__})
    shutil.rmtree(out / "best")
    shutil.rmtree(out / CHECKPOINTS)
