"""Adapter + base → one folder, and the proof that it answers the same. Merges in float32, casts once."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.helpers import rescale_adapter_scale
from transformers import AutoModelForCausalLM

from assistant.conversations import Message
from assistant.loading import (
    ChatModel,
    base_of_adapter,
    check_model_folder,
    encode_chat,
    generate_batch,
    load_chat_model,
    load_tokenizer,
    quiet_loading,
    stop_ids_of,
)

LARGEST_DIFFERENCE = 1e-3  # float32 logits; the two sums round differently
ROUNDING = 0.02  # mean KL in nats a token that casting once to 16 bits may cost
FILES_BESIDE = (
    "tokenizer*",
    "chat_template*",
    "generation_config.json",
    "special_tokens_map.json",
    "*.model",
)


def merge(
    adapter: Path,
    out: Path,
    probes: list[list[Message]],
    scale: float = 1.0,
    states: Callable[[str], bool] = bool,
) -> dict[str, Any]:
    """Merge `adapter` × `scale` into its base and write `out` whole; returns the proof's numbers.

    `states` says whether an answer states the identity. Raises RuntimeError, and leaves `out` as it was, when
    the merged model's logits differ from the adapter's or an answer lost the identity by the rounding.
    """
    base_folder = base_of_adapter(adapter)
    check_model_folder(base_folder)
    with quiet_loading():
        base = AutoModelForCausalLM.from_pretrained(
            str(base_folder), dtype=torch.float32, trust_remote_code=False
        )
    tokenizer = load_tokenizer(base_folder)
    model = PeftModel.from_pretrained(base, str(adapter)).eval()
    with rescale_adapter_scale(model, scale):
        tuned = ChatModel(model, tokenizer, stop_ids_of(base), adapter)
        before, answers = logits_of(tuned, probes), generate_batch(tuned, probes, 32)
        merged = model.merge_and_unload(safe_merge=True)
    after = logits_of(ChatModel(merged, tokenizer, tuned.stop_ids, adapter), probes)
    difference = max(float((a - b).abs().max()) for a, b in zip(before, after, strict=True))
    if not difference <= LARGEST_DIFFERENCE:
        raise RuntimeError(
            f"merged logits differ by {difference:.3g} (at most {LARGEST_DIFFERENCE}); nothing was written"
        )
    beside = out.with_name(f".{out.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    _write(merged, base_folder, beside)
    proof = {"logit_difference": difference, **_check_written(beside, before, probes, answers, states)}
    shutil.rmtree(out, ignore_errors=True)
    os.replace(beside, out)
    return proof


def logits_of(chat: ChatModel, probes: list[list[Message]]) -> list[torch.Tensor]:
    """Float32 logits [tokens, vocabulary] of each prompt alone: unpadded, two models compare exactly."""
    prompts = [
        torch.tensor([encode_chat(chat.tokenizer, messages)], device=chat.model.device) for messages in probes
    ]
    with torch.inference_mode():
        return [chat.model(prompt).logits[0].float().cpu() for prompt in prompts]


def _write(merged: Any, base_folder: Path, folder: Path) -> None:
    """Weights in the base's own dtype, and everything of its chat: template, tokenizer, stop ids."""
    dtype = json.loads((base_folder / "config.json").read_text(encoding="utf-8")).get("dtype") or "bfloat16"
    merged.to(getattr(torch, dtype)).save_pretrained(str(folder))
    for pattern in FILES_BESIDE:
        for path in base_folder.glob(pattern):
            shutil.copyfile(path, folder / path.name)


def _check_written(
    folder: Path,
    before: list[torch.Tensor],
    probes: list[list[Message]],
    answers: list[str],
    states: Callable[[str], bool],
) -> dict[str, Any]:
    """Read the folder back as it will be used. Raises RuntimeError when rounding moved it too far."""
    written = load_chat_model(folder, dtype=torch.float32, device="cpu")
    kl = max(_mean_kl(a, b) for a, b in zip(before, logits_of(written, probes), strict=True))
    again = generate_batch(written, probes, 32)
    same = sum(a == b for a, b in zip(answers, again, strict=True))
    if not kl <= ROUNDING:
        shutil.rmtree(folder)
        raise RuntimeError(
            f"rounding moved the merged model by {kl:.3g} nats a token (at most {ROUNDING}); not kept"
        )
    stated = [i for i, answer in enumerate(answers) if states(answer)]
    lost = [i for i in stated if not states(again[i])]
    if lost:
        shutil.rmtree(folder)
        raise RuntimeError(
            f"rounding to 16 bits lost the identity in {len(lost)} of {len(stated)} answers; nothing was "
            "kept: train more steps, or use the adapter as it is"
        )
    return {"rounding_kl": kl, "same_answers": same, "stated": len(stated), "answers": len(answers)}


def _mean_kl(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    ours, theirs = ours.log_softmax(-1), theirs.log_softmax(-1)
    return float((ours.exp() * (ours - theirs)).sum(-1).mean())
