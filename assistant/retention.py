"""What a tuned model kept of its base: KL, top-1 agreement and equal answers on the base's own answers."""

from collections.abc import Iterator

import torch

from assistant.conversations import Message
from assistant.loading import ChatModel, core_of, encode_chat, encode_text, keep_freed_memory
from assistant.training.examples import padded

ANSWER_TOKENS = 48
BATCH_TOKENS = 1024


def retention(
    chat: ChatModel, base: ChatModel, prompts: list[list[Message]], base_answers: list[str]
) -> dict[str, float]:
    """{"kl": mean KL(base ‖ model) in nats a token, "top1": share of tokens with the same most likely token}.

    Teacher-forced on the base's own answers, cut to 48 tokens; both models see the same padded batches.
    """
    keep_freed_memory()
    rows = [_row(base, prompt, answer) for prompt, answer in zip(prompts, base_answers, strict=True)]
    total, same, tokens = 0.0, 0, 0
    for batch in _batches(rows):
        before, after = _logprobs(base, batch), _logprobs(chat, batch)
        total += float((before.exp() * (before - after)).sum())
        same += int((before.argmax(-1) == after.argmax(-1)).sum())
        tokens += len(before)
    return {"kl": total / max(tokens, 1), "top1": same / max(tokens, 1)}


def _row(base: ChatModel, prompt: list[Message], answer: str) -> tuple[list[int], int]:
    ids = encode_chat(base.tokenizer, prompt)
    answer_ids = [*encode_text(base.tokenizer, answer), base.stop_ids[0]][:ANSWER_TOKENS]
    return ids + answer_ids, len(ids)


def _batches(rows: list[tuple[list[int], int]]) -> Iterator[list[tuple[list[int], int]]]:
    batch: list[tuple[list[int], int]] = []
    for row in sorted(rows, key=lambda row: -len(row[0])):
        if batch and (len(batch) + 1) * len(batch[0][0]) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _logprobs(chat: ChatModel, batch: list[tuple[list[int], int]]) -> torch.Tensor:
    """[answer tokens of the batch, vocabulary], float32."""
    ids = torch.tensor(padded([row for row, _ in batch], 0), device=chat.model.device)
    mask = torch.tensor(padded([[1] * len(row) for row, _ in batch], 0), device=chat.model.device)
    core = core_of(chat.model)
    with torch.inference_mode():
        last = core.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        kept = torch.cat([last[i, start - 1 : len(row) - 1] for i, (row, start) in enumerate(batch)])
        return core.lm_head(kept).float().log_softmax(-1)
