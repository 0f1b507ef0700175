"""InternLM2-1.8B at full size, random weights: conversion, its memory, and what training costs here.

Run: python benchmarks/internlm2_full_size.py --out /tmp/full [--steps 40] [--runs [TITLE …]]
     … --runs --gguf f16 q8_0 q4_k_m    (no training: GGUF files and their speed on this processor)
"""

import json
import os
import random
import re
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


# What is trained: a title, the recipe, whether on texts of 1,024 tokens, and its flags.
FOUR_BITS = [f"--set=quantization.{line}" for line in ("load_in_4bit=true", "bnb_4bit_quant_type=nf4")]
FOUR_BITS += ["--set=quantization.bnb_4bit_use_double_quant=true"]
OWN_ROWS_ALONE = ["--set=anchor_rows=0", "--set=watch.anchors=4"]
RUNS: dict[str, tuple[str, bool, list[str]]] = {
    "identity_lora": ("identity_lora", False, []),
    "identity_lora-8": ("identity_lora", False, ["--gpu-memory-gib=8"]),
    "identity_qlora": ("identity_qlora", False, ["--gpu-memory-gib=4"]),
    "identity_full": ("identity_full", False, []),
    "identity_full-24": ("identity_full", False, ["--gpu-memory-gib=24"]),
    "pretrain_lora": ("pretrain_lora", True, []),
    "pretrain_lora-24": ("pretrain_lora", True, ["--gpu-memory-gib=24"]),
    "pretrain_lora-16": ("pretrain_lora", True, ["--gpu-memory-gib=16"]),
    "pretrain_lora-8": ("pretrain_lora", True, ["--gpu-memory-gib=7.5"]),
    "lora-8-alone": ("pretrain_lora", True, ["--gpu-memory-gib=7.5", *OWN_ROWS_ALONE]),
    "qlora-1x1024": (
        "pretrain_lora",
        True,
        ["--gpu-memory-gib=4", "--set=identity_rows=1", *OWN_ROWS_ALONE, *FOUR_BITS],
    ),
    "qlora-4": ("pretrain_lora", True, ["--gpu-memory-gib=4", *OWN_ROWS_ALONE, *FOUR_BITS]),
    "out-of-memory": ("pretrain_lora", True, ["--gpu-memory-gib=8", "--set=rows_at_once=4", *OWN_ROWS_ALONE]),
}


@dataclass(frozen=True)
class Settings:
    out: Path
    steps: int = 40
    runs: tuple[str, ...] = tuple(RUNS)
    """Trained one after the other; none measures the conversion alone."""
    merge: bool = False
    """Merge each adapter too."""
    inference: bool = False
    """Memory of one answer after a prompt of 2,048 tokens."""
    gguf: tuple[str, ...] = ()
    """GGUF types that the converted model is exported as, one after the other, each with its speed here."""


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


def write_texts(folder: Path, count: int = 400, tokens: int = 1024) -> None:
    """Random texts of exactly `tokens` tokens, `<s>` and `</s>` included: each of the words is one token."""
    source = random.Random(0)
    words = ["time", "people", "year", "way", "day", "man", "thing", "woman", "life", "child", "world"]
    folder.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"text": " ".join(source.choices(words, k=tokens - 2))}) for _ in range(count))
    (folder / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")


def measured_run(title: str, settings: Settings) -> None:
    """One run of train.py; prints its plan, pace and memory, and keeps its words in OUT/TITLE.log."""
    recipe, is_long, flags = RUNS[title]
    out, log = settings.out / title, settings.out / f"{title}.log"
    data = settings.out / ("texts" if is_long else "data")
    steps = ["--set", f"steps={settings.steps}", "--set", f"watch.every={settings.steps}"]
    command = ["scripts/train.py", "--recipe", recipe, "--model", settings.out / "model", "--data", data]
    start = time.monotonic()
    with log.open("w") as file:
        command = [sys.executable, *map(str, command), "--out", str(out), *steps, *flags]
        code = subprocess.run(command, cwd=REPOSITORY, stdout=file, stderr=file, check=False).returncode
    said = log.read_text().splitlines()
    shown = [line for line in said if re.search("GiB|tokens/s  .* left|out of memory|^error", line)]
    shown = [line for line in shown if "preparing" not in line]
    print(f"{title}: exit {code}, {time.monotonic() - start:.0f} s in all", *shown, sep="\n    ", flush=True)


def measure_inference(model: Path) -> None:
    """Peak GPU memory of 128 new tokens that fill a context of 2,048, greedy, in the card's fast format."""
    from assistant.loading import load_chat_model

    chat = load_chat_model(model)
    prompt = torch.randint(3, 92000, (1, 2048 - 128), device=chat.model.device)
    start = time.monotonic()
    with torch.inference_mode():
        chat.model.generate(prompt, max_new_tokens=128, min_new_tokens=128, do_sample=False)
    print(
        f"inference, 2,048 tokens: {torch.cuda.max_memory_allocated() / 1e9:.2f} GB in use, "
        f"{torch.cuda.max_memory_reserved() / 1e9:.2f} GB reserved, {time.monotonic() - start:.1f} s"
    )


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
    for kind in settings.gguf:
        file = settings.out / f"{kind}.gguf"
        timed(f"to {kind}", "scripts/export_gguf.py", "--model", model, "--out", file, "--type", kind)
        timed(f"speed of {kind}", "benchmarks/gguf_files.py", "--files", file, "--read", 128, "--written", 32)
        file.unlink()
    if not settings.runs:
        return
    data = settings.out / "data"
    timed("data", "scripts/gen_identity_data.py", "--name", "Ada", "--out", data, "--base", "InternLM2")
    write_texts(settings.out / "texts")
    for title in settings.runs:
        measured_run(title, settings)
        if settings.merge:
            merged = settings.out / f"{title}-merged"
            timed(f"{title}, merged", "scripts/merge.py", "--adapter", settings.out / title, "--out", merged)
    if settings.inference:
        measure_inference(model)


if __name__ == "__main__":
    run_command(main, Settings)
