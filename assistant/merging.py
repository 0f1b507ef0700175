"""Adapter + base → one folder, and the proof that it answers the same. Merges in float32, casts once."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.helpers import rescale_adapter_scale

from assistant.catalog import ADAPTER_FILES, PLAIN_FILES
from assistant.conversations import Message, images_of, user
from assistant.eyes import eyes_of, is_llava
from assistant.folders import copy_chat, sha256_of, stored_dtype
from assistant.generating import generate_batch
from assistant.images import data_address
from assistant.loading import (
    ChatModel,
    base_of_adapter,
    check_model_folder,
    load_chat_model,
    load_tokenizer,
    model_class,
    quantization_of,
    quiet_loading,
    stop_ids_of,
)
from assistant.neurons import adapter_config, even_out
from assistant.settings import load_settings, save_settings

SHOWN = "What is in the picture?"
LARGEST_DIFFERENCE = 1e-3  # float32 logits; the two sums round differently
ROUNDING = 0.02  # mean KL in nats a token that casting once to 16 bits may cost


class RoundingLoss(RuntimeError):
    """Casting the merged weights once cost too much; what was written is gone again."""


def merge(
    adapter: Path,
    out: Path,
    probes: list[list[Message]],
    scale: float = 1.0,
    states: Callable[[str], bool] = bool,
    settings: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Merge `adapter` × `scale` into its base and write `out` whole; returns the proof's numbers.

    `states` says whether an answer states the identity; `settings` are kept in the folder with the proof.
    Weights are kept in the base's own dtype, or in float32 when rounding to it loses an identity answer (then
    "loss" in the proof says what). Raises RuntimeError, and leaves `out` as it was, when the merged model's
    logits or identity answers differ from the adapter's.
    """
    base, beside, loss = base_of_adapter(adapter), out.with_name(f".{out.name}.partial"), ""
    check_model_folder(base)
    for dtype in dict.fromkeys((stored_dtype(base), "float32")):
        try:
            proof = _merge_as(dtype, adapter, base, beside, probes, scale, states)
        except RoundingLoss as error:
            loss = str(error)
            continue
        proof = {"dtype": dtype, "loss": loss, **proof}
        made_of = fingerprints(adapter, base, beside, scale)
        save_settings(beside, {**(settings or {}), "proof": proof, "made_of": made_of})
        shutil.rmtree(out, ignore_errors=True)
        os.replace(beside, out)
        return proof
    raise RuntimeError(f"{loss}; nothing was kept: train more steps, or use the adapter as it is")


def fingerprints(adapter: Path, base: Path, folder: Path, scale: float) -> dict[str, Any]:
    """What a merge came from and what came of it; a file that changes anywhere changes one of these."""
    trained = {**_hashes(adapter, ADAPTER_FILES), "quantization": str(quantization_of(adapter))}
    hashes = {"adapter": trained, "base": _hashes(base, PLAIN_FILES), "folder": _hashes(folder, PLAIN_FILES)}
    return {"scale": scale, **{name: _digest(found) for name, found in hashes.items()}}


def is_proved(adapter: Path, folder: Path) -> bool:
    """Whether `folder` is byte for byte what `merge` made, and proved, of the whole adapter and its base."""
    made_of = load_settings(folder).get("made_of")
    return made_of is not None and made_of == fingerprints(adapter, base_of_adapter(adapter), folder, 1.0)


def _hashes(folder: Path, patterns: tuple[str, ...]) -> dict[str, str]:
    files = {file for pattern in patterns for file in folder.glob(pattern)}
    return {file.name: sha256_of(file) for file in files}


def _digest(hashes: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def _merge_as(
    dtype: str,
    adapter: Path,
    base_folder: Path,
    folder: Path,
    probes: list[list[Message]],
    scale: float,
    states: Callable[[str], bool],
) -> dict[str, Any]:
    base, sees = _float32_base(base_folder, adapter), is_llava(base_folder)
    tokenizer = load_tokenizer(base_folder)
    eyes = eyes_of(base_folder, tokenizer) if sees else None
    probes = [*probes, *([[user(SHOWN, [_test_picture()])]] if sees else [])]
    model = PeftModel.from_pretrained(base, str(adapter), config=adapter_config(adapter)).eval()
    # a projector alone has nothing to rescale
    with rescale_adapter_scale(model, scale) if scale != 1 else nullcontext():
        tuned = ChatModel(model, tokenizer, stop_ids_of(base), adapter, eyes)
        before, answers = logits_of(tuned, probes), generate_batch(tuned, probes, 32)
        merged = model.merge_and_unload(safe_merge=True)
        even_out(merged)
    after = logits_of(replace(tuned, model=merged), probes)
    difference = max(float((a - b).abs().max()) for a, b in zip(before, after, strict=True))
    if not difference <= LARGEST_DIFFERENCE:
        raise RuntimeError(
            f"merged logits differ by {difference:.3g} (at most {LARGEST_DIFFERENCE}); nothing was written"
        )
    shutil.rmtree(folder, ignore_errors=True)
    merged.to(getattr(torch, dtype)).save_pretrained(str(folder))
    copy_chat(base_folder, folder)
    return {"logit_difference": difference, **_check_written(folder, before, probes, answers, states)}


def _float32_base(base_folder: Path, adapter: Path) -> Any:
    """The base as the adapter knew it: one that was quantized then is quantized again and read back."""
    if quantization := quantization_of(adapter):
        chat = load_chat_model(base_folder, quantization=quantization)
        return chat.model.dequantize(dtype=torch.float32).to("cpu", torch.float32)
    with quiet_loading():
        return model_class(is_llava(base_folder)).from_pretrained(
            str(base_folder), dtype=torch.float32, trust_remote_code=False
        )


def quantization_note(adapter: Path) -> str:
    """A sentence when nothing says how the base was stored while `adapter` was trained; else empty.

    PEFT writes it into README.md, train.py into settings.toml; an adapter of XTuner says nothing.
    """
    if "run" in load_settings(adapter):
        return ""
    readme = adapter / "README.md"
    bits = readme.is_file() and re.search(r"load_in_([48])bit: True", readme.read_text(encoding="utf-8"))
    known = (
        f"README.md says that its base had {bits[1]} bits"
        if bits
        else "nothing says that its base was quantized"
    )
    return (
        f"{adapter} has no settings.toml of train.py, and {known}: it is merged into the base as it is; if "
        "it was trained on one in 4 bits, give the whole folder that train.py wrote"
    )


def logits_of(chat: ChatModel, probes: list[list[Message]]) -> list[torch.Tensor]:
    """Float32 logits [tokens, vocabulary] of each prompt alone: unpadded, two models compare exactly."""
    prompts = [torch.tensor([chat.encode(messages)], device=chat.model.device) for messages in probes]
    pixels = [chat.pixels(images_of(messages)) for messages in probes]
    with torch.inference_mode():
        return [
            chat.model(prompt, **shown).logits[0].float().cpu()
            for prompt, shown in zip(prompts, pixels, strict=True)
        ]


def _test_picture() -> str:
    """Stripes of many colours, as an address: what a merged LLaVA must see as it did before."""
    from PIL import Image

    image = Image.new("RGB", (64, 48))
    image.putdata([(x * 4, y * 5, x * y % 256) for y in range(48) for x in range(64)])
    content = BytesIO()
    image.save(content, "PNG")
    return data_address(content.getvalue())


def _check_written(
    folder: Path,
    before: list[torch.Tensor],
    probes: list[list[Message]],
    answers: list[str],
    states: Callable[[str], bool],
) -> dict[str, Any]:
    """Read the folder back as it will be used. Raises RoundingLoss when the cast moved it too far."""
    written = load_chat_model(folder, dtype=torch.float32, device="cpu")
    kl = max(_mean_kl(a, b) for a, b in zip(before, logits_of(written, probes), strict=True))
    again = generate_batch(written, probes, 32)
    same = sum(a == b for a, b in zip(answers, again, strict=True))
    stated = [i for i, answer in enumerate(answers) if states(answer)]
    lost = sum(not states(again[i]) for i in stated)
    if lost or not kl <= ROUNDING:
        shutil.rmtree(folder)
        raise RoundingLoss(
            f"rounding lost the identity in {lost} of {len(stated)} answers and moved the model by {kl:.3g} "
            f"nats a token (at most {ROUNDING})"
        )
    return {"rounding_kl": kl, "same_answers": same, "stated": len(stated), "answers": len(answers)}


def _mean_kl(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    ours, theirs = ours.log_softmax(-1), theirs.log_softmax(-1)
    return float((ours.exp() * (ours - theirs)).sum(-1).mean())
