"""Answers to many conversations at once, by a model in this process. Knows nothing of what they mean."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from transformers.generation.utils import GenerateDecoderOnlyOutput

from assistant.conversations import Message, images_of
from assistant.loading import ChatModel

GENERATED_TOKENS = 8192  # padded tokens of a batch, answers included: bounds the KV cache, not the quality
LEG = 8  # tokens after which rows that have ended leave the batch
# what generate calls its KV cache: the first name since transformers 5.24, which warns of the second
CACHE = min({"cache", "past_key_values"} & {field.name for field in fields(GenerateDecoderOnlyOutput)})
Prompt = tuple[list[int], list[str]]  # token ids, and the pictures that `<image>` among them stands for


def generate_batch(
    chat: ChatModel,
    conversations: list[list[Message]],
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    progress: Callable[[int], None] | None = None,
) -> list[str]:
    """Answer every conversation; greedy at temperature 0. Conversations of like length share a batch."""
    prompts = [(chat.encode(messages), images_of(messages)) for messages in conversations]
    answers = [""] * len(prompts)
    sizes = [len(ids) + max_new_tokens for ids, _ in prompts]
    for indices in batches_by_length(sizes, GENERATED_TOKENS, most=128):
        outputs = _generate_fitting(chat, [prompts[i] for i in indices], max_new_tokens, temperature, top_p)
        for index, ids in zip(indices, outputs, strict=True):
            answers[index] = _whole_text(chat.tokenizer, ids)
        if progress:
            progress(len(indices))
    return answers


def _whole_text(tokenizer: Any, ids: list[int]) -> str:
    """The text of an answer, without the half character that a cut can leave at its end."""
    return str(tokenizer.decode(ids, skip_special_tokens=True)).rstrip("\ufffd").strip()


def _generate_fitting(chat: ChatModel, prompts: list[Prompt], *how: Any) -> list[list[int]]:
    """As _generate_ids; when memory runs out, in halves."""
    try:
        return _generate_ids(chat, prompts, *how)
    except torch.OutOfMemoryError:
        if len(prompts) == 1:
            raise
    torch.cuda.empty_cache()
    half = len(prompts) // 2
    return [ids for part in (prompts[:half], prompts[half:]) for ids in _generate_fitting(chat, part, *how)]


def _generate_ids(
    chat: ChatModel, prompts: list[Prompt], max_new_tokens: int, temperature: float, top_p: float
) -> list[list[int]]:
    """In legs of a few tokens: a row that has ended leaves the batch, where generate would compute it on."""
    sampling: dict[str, Any] = (
        {"do_sample": True, "temperature": temperature, "top_p": top_p}
        if temperature
        else {"do_sample": False}
    )
    padded = chat.tokenizer.pad({"input_ids": [ids for ids, _ in prompts]}, return_tensors="pt")
    padded = padded.to(chat.model.device)
    state = {**padded, **chat.pixels([image for _, images in prompts for image in images])}
    answers: list[list[int]] = [[] for _ in prompts]
    going = list(range(len(prompts)))
    for start in range(0, max_new_tokens, LEG):
        with torch.inference_mode():
            output = chat.model.generate(
                **state,
                max_new_tokens=min(LEG, max_new_tokens - start),
                eos_token_id=chat.stop_ids,
                pad_token_id=chat.tokenizer.pad_token_id,
                return_dict_in_generate=True,
                **sampling,
            )
        new = output.sequences[:, state["input_ids"].shape[1] :].tolist()
        for row, ids in zip(going, new, strict=True):
            answers[row] += _until_stop(ids, chat.stop_ids)
        on = [place for place, ids in enumerate(new) if not set(ids) & set(chat.stop_ids)]
        if not on:
            break
        going, state = [going[place] for place in on], _rest_of(output, state["attention_mask"], on)
    return answers


def _rest_of(output: Any, mask: torch.Tensor, rows: list[int]) -> dict[str, Any]:
    """What generate goes on from with some rows of its batch alone."""
    sequences, cache = output.sequences[rows], output[CACHE]
    if len(rows) < len(mask):
        cache.batch_select_indices(torch.tensor(rows, device=mask.device))
    written = mask.new_ones(len(rows), sequences.shape[1] - mask.shape[1])
    seen = torch.cat([mask[rows], written], dim=1)
    return {"input_ids": sequences, "attention_mask": seen, CACHE: cache}


def _until_stop(ids: list[int], stop_ids: list[int]) -> list[int]:
    end = next((i for i, token in enumerate(ids) if token in stop_ids), len(ids))
    return ids[:end]


def batches_by_length(sizes: list[int], tokens: int, most: int | None = None) -> list[list[int]]:
    """Indices, longest first, cut into batches of at most `most` rows and of `tokens` padded tokens."""
    batches: list[list[int]] = []
    for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        rows = len(batches[-1]) if batches else 0
        if not rows or rows == most or (rows + 1) * sizes[batches[-1][0]] > tokens:
            batches.append([])
        batches[-1].append(index)
    return batches
