"""What the trainer is given: a model with the parts that learn, its memory plan, trl's arguments.

Knows nothing of rows' texts, of steps, or of what is kept.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from trl import SFTConfig

from assistant.devices import memory_of
from assistant.loading import ChatModel, core_of
from assistant.neurons import known_to_peft
from assistant.training import memory
from assistant.training.examples import Example
from assistant.training.fusing import fuse
from assistant.training.recipe import Recipe
from assistant.training.seeing import learning_llava
from assistant.training.sights import Pictures, Pixels, Sights


def first_trained_layer(chat: ChatModel, recipe: Recipe) -> int:
    if recipe.vision.stage:
        return 0  # what learns to see stands before the first layer
    return int(recipe.objective.from_layer * layers_of(chat))


def layers_of(chat: ChatModel) -> int:
    return len(core_of(chat.model).model.layers)


def trained_model(chat: ChatModel, recipe: Recipe, from_layer: int) -> Any:
    """The base with an adapter, or without [lora] the base itself, whose layers from `from_layer` on learn.

    The embeddings and the output layer stay: the base's own logits are made with it, and no word is new.
    """
    if not recipe.vision.stage and not recipe.lora:
        learning = nn.ModuleList([*chat.model.model.layers[from_layer:], chat.model.model.norm])
        chat.model.requires_grad_(False)
        learning.requires_grad_(True)
        return chat.model
    if recipe.vision.stage:
        model = learning_llava(chat, recipe)
    else:
        model = get_peft_model(chat.model, _lora_config(chat, recipe, from_layer))
    fuse(model)
    return model


def _lora_config(chat: ChatModel, recipe: Recipe, from_layer: int) -> LoraConfig:
    """On the trained layers alone; "all-linear" is spelt out, for peft takes no layers beside it."""
    values = dict(recipe.lora)
    if values.get("target_modules") == "all-linear":
        last = chat.model.model.layers[-1]
        linear = (name for name, module in last.named_modules() if isinstance(module, torch.nn.Linear))
        values["target_modules"] = sorted(name.rpartition(".")[2] for name in linear)
    layers = list(range(from_layer, len(chat.model.model.layers)))
    return known_to_peft(LoraConfig(task_type="CAUSAL_LM", layers_to_transform=layers, **values))


def computing(chat: ChatModel, recipe: Recipe) -> torch.autocast:
    """The number format that layers compute in: mixed precision where the recipe asks for it, on a GPU."""
    return torch.autocast("cuda", torch.bfloat16, enabled=is_mixed(chat, recipe))


def is_mixed(chat: ChatModel, recipe: Recipe) -> bool:
    return chat.model.device.type == "cuda" and bool(recipe.trainer.get("bf16", False))


def pictures_for(
    chat: ChatModel, recipe: Recipe, images: list[str], say: Callable[[str], None]
) -> Pictures | None:
    """What a LLaVA's rows take their pictures from; None for a model without eyes."""
    if not chat.eyes:
        return None
    if recipe.vision.tower_r:
        return Pixels(chat.eyes, bool(recipe.vision.pad))
    sights = Sights(chat, bool(recipe.vision.pad), computing(chat, recipe))
    sights.prepare(images, say)
    return sights


def arguments(recipe: Recipe, checkpoints: Path, chat: ChatModel, plan: memory.Plan) -> SFTConfig:
    """A row of the dataset is a whole step."""
    values = {
        "per_device_train_batch_size": 1,
        "max_steps": recipe.objective.steps,
        "save_steps": recipe.watch.every,
        "save_total_limit": 2,
        "logging_steps": 10,
        "seed": 0,
        **recipe.trainer,
        "gradient_checkpointing": plan.checkpointing,
        **({"gradient_checkpointing_kwargs": {"use_reentrant": False}} if plan.checkpointing else {}),
        "bf16": is_mixed(chat, recipe),
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


def memory_plan(
    model: Any,
    chat: ChatModel,
    recipe: Recipe,
    examples: list[Example],
    order: list[list[list[int]]],
    taken: int = 0,
) -> memory.Plan:
    """The recipe's own rows_at_once and checkpointing where it has them, else what the memory allows.

    `taken`: bytes of the device that hold something else. A whole step is one pass where that fits.
    """
    rows = max(sum(map(len, step)) for step in order)
    layers = layers_of(chat) - first_trained_layer(chat, recipe)
    sizes = memory.sizes_of(model, layers, recipe.objective.vocabulary, str(recipe.trainer.get("optim", "")))
    must_checkpoint = bool(recipe.trainer.get("gradient_checkpointing", False))
    if fixed := recipe.objective.rows_at_once:
        needed = memory.bytes_of(sizes, examples, fixed, must_checkpoint)
        return memory.Plan(min(fixed, rows), must_checkpoint, needed)
    return memory.choose_plan(sizes, examples, rows, memory_of(chat.model.device) - taken, must_checkpoint)
