"""What training a LLaVA adds: rows with pictures as token ids, its learning parts, pictures into the states.

Source: XTuner's model/llava.py; the projector learns whole and in float32, all else by LoRA.
"""

import random
import re
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch.nn import functional

from assistant.conversations import Message, Row, images_of, is_learnt
from assistant.llava_data import check_pictures, load_picture_rows
from assistant.loading import ChatModel, encode_text
from assistant.training.examples import Example
from assistant.training.recipe import Recipe, Vision
from assistant.training.sights import projected

PROJECTOR = "multi_modal_projector"
SPEAKING = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SEEING = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")  # of CLIP
ASKED_OFTEN = 4096  # different prompts whose length is remembered
HELD_OUT, MOST_HELD_OUT = 0.02, 200  # share and number of the rows, when there is no dev file


def read_pictures(data: Path, recipe: Recipe, images: Path | None = None) -> tuple[list[Row], list[Row]]:
    """(rows to learn, held-out rows) of a LLaVA file, or of a folder's train.json(l), in stage 1 align.json.

    Held out is the folder's seen.jsonl or dev.jsonl, else a share of the rows. Only as many rows as the steps
    take, in an order of the seed. Raises ValueError for bad rows and pictures.
    """
    stage = recipe.vision.stage
    source = data if data.is_file() else _file_in(data, *("align", "train")[stage - 1 :])
    if source is None:
        raise ValueError(f"{data} has no train.jsonl or train.json; give the file of the rows itself")
    rows, order = _teaching(source, images), random.Random(recipe.trainer.get("seed", 0))
    if stage == 1:
        rows = [row for row in rows if images_of(row["messages"])]  # a text teaches a projector nothing
    order.shuffle(rows)
    beside = _file_in(data, "seen", "dev") if source.parent == data and source.stem == "train" else None
    held_out = _teaching(beside, images) if beside else rows[: max(round(HELD_OUT * len(rows)), 1)]
    held_out = held_out[:MOST_HELD_OUT]
    rows = rows if beside else rows[len(held_out) :]
    if not rows:
        raise ValueError(f"{source} holds too few rows with pictures to learn from")
    rows = rows[: recipe.objective.steps * recipe.objective.identity_rows]
    check_pictures(rows + held_out, source)
    return rows, held_out


def _teaching(source: Path, images: Path | None) -> list[Row]:
    """A file's rows with an answer to learn."""
    return [row for row in load_picture_rows(source, images) if any(map(is_learnt, row["messages"]))]


def _file_in(folder: Path, *names: str) -> Path | None:
    files = (folder / f"{name}{end}" for name in names for end in (".jsonl", ".json"))
    return next((file for file in files if file.is_file()), None)


def picture_examples(chat: ChatModel, rows: list[Row], max_length: int) -> list[Example]:
    """Rows whose every answer is learnt but those with `loss` False; too long ones lose their last turns."""
    length = _prompt_length(chat)
    return [_example(chat, row, max_length, length) for row in rows]


def _prompt_length(chat: ChatModel) -> Callable[[list[Message]], int]:
    """Tokens of a prompt, before its answer; what many rows ask is encoded once."""

    @lru_cache(ASKED_OFTEN)
    def length(*turns: tuple[str, str, int]) -> int:
        messages = [{"role": role, "content": text, "images": [""] * count} for role, text, count in turns]
        return len(chat.encode(messages))  # type: ignore[arg-type]

    return lambda messages: length(*((m["role"], m["content"], len(images_of([m]))) for m in messages))


def _example(
    chat: ChatModel, row: Row, max_length: int, prompt_length: Callable[[list[Message]], int]
) -> Example:
    messages = row["messages"]
    while len(messages) > 2 and len(chat.encode(messages, add_generation_prompt=False)) > max_length:
        messages = messages[:-2]
    ids = chat.encode(messages, add_generation_prompt=False)
    places: list[int] = []
    for index, message in enumerate(messages):
        if is_learnt(message):
            start = prompt_length(messages[:index])
            answer = len(encode_text(chat.tokenizer, message["content"])) + 1  # its end of turn
            places += range(start - 1, start + answer - 1)
    last = max(places, default=len(ids) - 2) + 2  # what follows the last answer has no loss
    cut = min(last, max_length)
    kept = tuple(place for place in places if place < cut - 1)
    images = images_of(messages)
    if not kept or _picture_tokens(chat, ids[:cut]) < _picture_tokens(chat, ids):
        raise ValueError(
            f"a row has {last} tokens before an answer to learn ends, {len(images)} pictures among them; "
            f"give more room: --set objective.max_length={last}"
        )
    weights = (1.0,) * len(kept)
    kind = row.get("kind", "text")
    return Example(tuple(ids[:cut]), kept, weights, False, kind, row.get("lang", ""), tuple(images))


def _picture_tokens(chat: ChatModel, ids: list[int]) -> int:
    return ids.count(chat.eyes.token) if chat.eyes else 0


def says_the_same(answer: str, wanted: str) -> bool:
    """Whether an answer is the wanted one, but for case and punctuation."""
    return _words(answer) == _words(wanted)


def _words(text: str) -> str:
    return re.sub(r"\W+", " ", text.casefold()).strip()


def learning_llava(chat: ChatModel, recipe: Recipe) -> Any:
    """The LLaVA with what learns in it: the projector, from stage 2 on LoRA in its LLM, and in its tower
    when the recipe gives that a rank."""
    common = {"modules_to_save": [PROJECTOR], "task_type": "CAUSAL_LM"}
    if recipe.vision.stage == 1:
        config = LoraConfig(target_modules=DUMMY_TARGET_MODULES, **common)  # type: ignore[arg-type]
    else:
        config = LoraConfig(**{**recipe.lora, **_targets(recipe.lora, recipe.vision), **common})
    model = get_peft_model(chat.model, config)
    projector = core_projector(model)
    projector.float()
    projector.register_forward_pre_hook(_in_own_numbers)
    projector.register_forward_pre_hook(partial(_without_some_channels, recipe.vision.dropout))
    return model


def core_projector(model: Any) -> Any:
    """The projector that learns, inside a PEFT model."""
    return model.get_base_model().model.multi_modal_projector.modules_to_save["default"]


def _in_own_numbers(projector: Any, given: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    """The tower computes in 16 bits, the learning projector in 32."""
    return (given[0].to(projector.linear_1.weight.dtype),)


def _without_some_channels(share: float, projector: Any, given: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    """While learning, each picture without some channels of the tower, the same at all its places."""
    if not (share and projector.training):
        return given
    states = given[0]  # [pictures, tokens, channels]
    kept = functional.dropout(states.new_ones(len(states), 1, states.shape[-1]), share)
    return (states * kept,)


def _targets(lora: dict[str, Any], vision: Vision) -> dict[str, Any]:
    """LoraConfig's fields that say which layers of which half learn, and how much."""
    names = lora.get("target_modules", "all-linear")
    names = SPEAKING if names == "all-linear" else names
    pattern = rf".*language_model\.layers\..*\.({'|'.join(names)})"
    fields: dict[str, Any] = {"target_modules": pattern}
    if vision.tower_r:
        tower = rf".*vision_tower\..*\.({'|'.join(SEEING)})"
        fields["target_modules"] = f"{pattern}|{tower}"
        fields["rank_pattern"] = {tower: vision.tower_r}
        fields["alpha_pattern"] = {tower: vision.tower_alpha}
    return fields


def with_pictures(core: Any, hidden: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """[rows, tokens, hidden] with the projector's states in the places of `<image>`, where there are any.

    `core`: a LLaVA's speaking part; `batch`: its pictures in the order of the rows.
    """
    if not {"pixel_values", "tower_states"} & batch.keys():
        return hidden
    states = projected(core.llava, batch)
    places = batch["input_ids"] == core.llava.config.image_token_id
    assert int(places.sum()) == len(states), f"{int(places.sum())} places and {len(states)} states"
    return hidden.masked_scatter(places.unsqueeze(-1), states.to(hidden.dtype))
