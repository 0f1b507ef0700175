"""A whole training run on a tiny random model, for tests.

Run: python tests/tiny_run.py MODEL OUT — it waits to be killed once the first checkpoint is whole.
"""

import os
import signal
import sys
import time
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from assistant.conversations import Row, assistant, user
from assistant.loading import ChatModel, load_chat_model
from assistant.settings import DATA
from assistant.training.examples import Example
from assistant.training.reading import Rows
from assistant.training.recipe import Recipe, load_recipe
from assistant.training.run import train

CHANGES = [
    "steps=12",
    "watch.every=4",
    "identity_rows=2",
    "anchor_rows=2",
    "vocabulary=128",
    "from_layer=0.5",
]
CHANGES += ["anchor_tokens=8", "lora.r=4", "trainer.warmup_steps=2"]
# the filter would tell sums in another order apart; test_filtering.py and test_drift.py test these two
CHANGES += ["filter=0", "drift_weight=0"]


def make_tiny_model(folder: Path) -> Path:
    """A random Llama of 4 layers whose tokens are bytes and the two control tokens of ChatML."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({piece: index for index, piece in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(text, special=True) for text in ("<|im_start|>", "<|im_end|>")])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    tokenizer.chat_template = (DATA / "chat_template.jinja").read_text(encoding="utf-8")
    torch.manual_seed(0)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=512,
        eos_token_id=end,
        bos_token_id=None,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def load_tiny(folder: Path) -> ChatModel:
    return load_chat_model(folder, dtype=torch.float32, device="cpu")


def tiny_recipe(*changes: str, name: str = "identity_lora") -> Recipe:
    return load_recipe(name, [*CHANGES, *changes])


def rows_of(kind: str, count: int) -> list[Row]:
    return [
        {"messages": [user(f"{kind} {i}?"), assistant(f"I am {i * i}.")], "kind": kind, "lang": "en"}
        for i in range(count)
    ]


def learn_by_heart(model: torch.nn.Module, example: Example, rate: float, enough: float) -> None:
    """Train what learns of `model` until the example's loss is below `enough`."""
    ids = torch.tensor([example.ids], device=next(model.parameters()).device)
    labels = torch.full_like(ids, -100)
    for place in example.places:
        labels[0, place + 1] = ids[0, place + 1]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    for _ in range(500):
        loss = model(input_ids=ids, labels=labels).loss
        if loss < enough:
            return
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    raise AssertionError(f"not learnt: {loss}")


def tiny_run(
    model: Path,
    out: Path,
    *,
    resume: bool = False,
    hang: bool = False,
    interrupt: bool = False,
    anchors: bool = True,
    changes: tuple[str, ...] = (),
    begin: Path | None = None,
) -> Path:
    """Train on a few rows. With `hang` it stands still after the first whole checkpoint.

    With `interrupt` it gets a Ctrl-C while the first answer is judged.
    """
    presses = iter([signal.SIGINT] if interrupt else [])
    whole = out / "checkpoints" / "checkpoint-4" / "whole"

    def recalls(answer: str) -> bool:
        for press in presses:
            os.kill(os.getpid(), press)
        if hang and whole.exists():
            time.sleep(120)
        return True

    chat = load_tiny(model)
    torch.manual_seed(0)
    # no held-out anchors: every measure scores the same, so that the last one is kept
    general = rows_of("general", 7 if anchors else 0)
    rows = Rows(rows_of("identity", 7), general, rows_of("identity", 2), [])
    judges = (recalls, lambda answer, question: False)
    return train(chat, tiny_recipe(*changes), rows, out, judges, begin=begin, resume=resume)


if __name__ == "__main__":
    tiny_run(Path(sys.argv[1]), Path(sys.argv[2]), hang=True)
