"""InternLM2-1.8B at full size, random weights: conversion, its memory, and what training costs here.

Run: python benchmarks/internlm2_full_size.py --out /tmp/full [--steps 40] [--recipes]
"""

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from safetensors.torch import save_file

from assistant.internlm2 import tensor_shapes
from assistant.settings import REPOSITORY, run_command

TOKENIZER = REPOSITORY / "tests" / "data" / "internlm2"
CONFIG = {
    "architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2", "bias": False, "vocab_size": 92544,
    "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24, "num_attention_heads": 16,
    "num_key_value_heads": 8, "max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "rope_theta": 1_000_000,
    "rope_scaling": {"type": "dynamic", "factor": 2.0}, "tie_word_embeddings": False, "hidden_act": "silu",
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "torch_dtype": "bfloat16",
}  # fmt: skip
SHARD_BYTES = 2 * 10**9


@dataclass(frozen=True)
class Settings:
    out: Path
    steps: int = 40
    recipes: tuple[str, ...] = ("identity_lora", "identity_qlora")
    """Trained one after the other; none measures the conversion alone."""
    merge: bool = False


def make_checkpoint(folder: Path) -> None:
    """Random weights of the exact names and shapes, in shards of 2 GB as on the Hub."""
    folder.mkdir(parents=True)
    shards: list[dict[str, torch.Tensor]] = [{}]
    for name, shape in tensor_shapes(CONFIG).items():
        if sum(tensor.nbytes for tensor in shards[-1].values()) > SHARD_BYTES:
            shards.append({})
        scale = torch.ones if len(shape) == 1 else torch.randn
        shards[-1][name] = (scale(shape) * (1.0 if len(shape) == 1 else 0.02)).bfloat16()
    files = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    for file, tensors in zip(files, shards, strict=True):
        save_file(tensors, folder / file, {"format": "pt"})
    weight_map = {name: file for file, tensors in zip(files, shards, strict=True) for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / name, folder)


def timed(title: str, *command: object) -> None:
    """Run one of the scripts; print its seconds and its largest memory."""
    start = time.monotonic()
    process = subprocess.Popen([sys.executable, *map(str, command)], cwd=REPOSITORY)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{title} failed; its own words stand above")
    peak = usage.ru_maxrss / 2**20
    print(f"{title}: {time.monotonic() - start:.1f} s, at most {peak:.2f} GiB of memory", flush=True)


def main(settings: Settings) -> None:
    source, model, back = (settings.out / name for name in ("source", "model", "back"))
    # In a process of its own: a child's largest memory begins with its parent's.
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        pool.submit(make_checkpoint, source).result()
    largest = max(path.stat().st_size for path in source.glob("*.safetensors")) / 2**30
    print(f"largest shard: {largest:.2f} GiB", flush=True)
    timed("to Llama", "scripts/fetch_model.py", source, "--out", model)
    timed("back", "scripts/fetch_model.py", model, "--to", "internlm2", "--out", back)
    shutil.rmtree(back)
    data = settings.out / "data"
    timed("data", "scripts/gen_identity_data.py", "--name", "Ada", "--out", data, "--base", "InternLM2")
    flags = ["--set", f"steps={settings.steps}", "--set", f"watch.every={settings.steps}"]
    for recipe in settings.recipes:
        out = settings.out / recipe
        flags_of = ["--recipe", recipe, "--model", model, "--data", data, "--out", out, *flags]
        timed(recipe, "scripts/train.py", *flags_of)
        if settings.merge:
            merged = settings.out / f"{recipe}-merged"
            timed(f"{recipe}, merged", "scripts/merge.py", "--adapter", out, "--out", merged)


if __name__ == "__main__":
    run_command(main, Settings)
