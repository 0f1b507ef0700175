"""What a tuned model kept of its base: KL, top-1 agreement and same answers, on the base's own answers.

All are computed in float32. In bfloat16 the sums of two models round apart: the default base then has KL
0.001 to itself in float32, and 2 of 100 first choices differ, a quarter of what an identity changed
(docs/log.md, 2026-12-01, night).
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import takewhile
from typing import Any

import torch

from assistant.conversations import Message
from assistant.devices import keep_freed_memory, memory_of
from assistant.generating import batches_by_length
from assistant.loading import (
    ChatModel,
    core_of,
    encode_chat,
    encode_text,
)
from assistant.training.examples import padded
from assistant.training.states import lower_states, upper_states

ANSWER_TOKENS = 64
BATCH_TOKENS = 1024
BESIDE = 2 * 2**30  # bytes for logits and states of a batch


def retention(
    chat: ChatModel, base: ChatModel, prompts: list[list[Message]], base_answers: list[str]
) -> dict[str, float]:
    """{"kl": mean KL(base ‖ model) in nats a token, "top1": share of tokens with the same most likely token,
    "same_answer": share of answers of which all tokens have that, so that greedy decoding gives the same}.

    Teacher-forced on the base's own answers, cut to 64 tokens; both models see the same padded batches, in
    float32 where both fit into memory so. In place: the models must not be used meanwhile.
    """
    keep_freed_memory()
    with ExitStack() as stack:
        if fits_in_float32(chat.model, base.model):
            for model in {id(model): model for model in (chat.model, base.model)}.values():
                stack.enter_context(in_float32(model))
        return _compare(chat, base, prompts, base_answers)


def fits_in_float32(*models: Any) -> bool:
    """Whether all weights of these models fit into their device's memory in float32, beside a batch."""
    needed = sum(4 * weight.numel() for model in models for weight in model.parameters())
    return needed + BESIDE <= memory_of(models[0].device)


@contextmanager
def in_float32(model: Any) -> Iterator[None]:
    """The model's weights in float32 for a while, then as they were, bit by bit; quantized ones stay."""
    kept = [(weight, weight.dtype) for weight in model.parameters() if weight.is_floating_point()]
    try:
        for weight, _ in kept:
            weight.data = weight.data.float()
        yield
    finally:
        for weight, dtype in kept:
            weight.data = weight.data.to(dtype)


def _compare(
    chat: ChatModel, base: ChatModel, prompts: list[list[Message]], base_answers: list[str]
) -> dict[str, float]:
    rows = [_row(base, prompt, answer) for prompt, answer in zip(prompts, base_answers, strict=True)]
    cores = core_of(base.model), core_of(chat.model)
    shared = shared_layers(*cores)
    agreement = Agreement()
    for indices in batches_by_length([len(row) for row, _ in rows], BATCH_TOKENS):
        batch = [rows[i] for i in indices]
        before, after = _logprobs(cores, batch, shared)
        lengths = [len(row) - start for row, start in batch]
        for pair in zip(before.split(lengths), after.split(lengths), strict=True):
            agreement.add(*pair)
    return agreement.shares()


class Agreement:
    """How far two models agree on some answers."""

    def __init__(self) -> None:
        self.kl, self.tokens, self.same_tokens, self.answers, self.same_answers = 0.0, 0, 0, 0, 0

    def add(self, before: torch.Tensor, after: torch.Tensor) -> None:
        """One answer more: log-probabilities of the base and of the tuned model, [tokens, vocabulary]."""
        same = int((before.argmax(-1) == after.argmax(-1)).sum())
        self.kl += float((before.exp() * (before - after)).sum())
        self.tokens, self.same_tokens = self.tokens + len(before), self.same_tokens + same
        self.answers, self.same_answers = self.answers + 1, self.same_answers + (same == len(before))

    def shares(self) -> dict[str, float]:
        """As `retention` returns them."""
        tokens, answers = max(self.tokens, 1), max(self.answers, 1)
        return {
            "kl": self.kl / tokens,
            "top1": self.same_tokens / tokens,
            "same_answer": self.same_answers / answers,
        }


def _row(base: ChatModel, prompt: list[Message], answer: str) -> tuple[list[int], int]:
    ids = encode_chat(base.tokenizer, prompt)
    answer_ids = [*encode_text(base.tokenizer, answer), base.end_of_turn][:ANSWER_TOKENS]
    return ids + answer_ids, len(ids)


def shared_layers(base: Any, tuned: Any) -> int:
    """How many of the lowest layers, embeddings included, are the same numbers in both: computed once."""
    same = _equal(base.get_input_embeddings(), tuned.get_input_embeddings())
    pairs = zip(base.model.layers, tuned.model.layers, strict=False)
    return sum(1 for _ in takewhile(lambda pair: _equal(*pair), pairs)) if same else 0


def _equal(one: Any, other: Any) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def _logprobs(cores: tuple[Any, Any], batch: list[tuple[list[int], int]], shared: int) -> list[torch.Tensor]:
    """Of the base and the tuned model, [answer tokens of the batch, vocabulary], float32."""
    device = cores[0].device
    ids = torch.tensor(padded([row for row, _ in batch], 0), device=device)
    mask = torch.tensor(padded([[1] * len(row) for row, _ in batch], 0), device=device)
    found = []
    with torch.inference_mode():
        hidden = lower_states(cores[0], ids, mask, shared)
        for core in cores:
            entering = hidden if shared else lower_states(core, ids, mask, 0)
            last = upper_states(core, entering, mask, shared)
            kept = torch.cat([last[i, start - 1 : len(row) - 1] for i, (row, start) in enumerate(batch)])
            found.append(core.lm_head(kept).float().log_softmax(-1))
    return found
