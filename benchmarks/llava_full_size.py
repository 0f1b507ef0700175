"""InternLM2-1.8B with CLIP ViT-L/14-336's eyes at full size, random weights: what both stages cost on a GPU.

Run: python benchmarks/llava_full_size.py --out /tmp/eyes [--steps 6] [--runs align-24 instruct-12]
"""

import json
import random
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from internlm2_full_size import make_checkpoint, timed

from assistant.settings import REPOSITORY, run_command

# A title, its recipe and its flags; the last number is the memory in GiB that the run may use.
RUNS: dict[str, tuple[str, list[str]]] = {
    "align": ("llava_internlm2_align", []),
    "align-24": ("llava_internlm2_align", ["--gpu-memory-gib=24"]),
    "align-12": ("llava_internlm2_align", ["--gpu-memory-gib=12"]),
    "instruct": ("llava_internlm2_instruct", []),
    "instruct-24": ("llava_internlm2_instruct", ["--gpu-memory-gib=24"]),
    "instruct-12": ("llava_internlm2_instruct_qlora", ["--gpu-memory-gib=12"]),
}


@dataclass(frozen=True)
class Settings:
    out: Path
    steps: int = 6
    rows: int = 32
    """Rows in each update; XTuner's 256 and 128 take as much memory, for they are computed part by part."""
    runs: tuple[str, ...] = tuple(RUNS)


def make_clip(folder: Path) -> None:
    """Random weights of the exact shapes of openai/clip-vit-large-patch14-336's vision half."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
        image_size=336, patch_size=14, projection_dim=768,
    )  # fmt: skip
    CLIPVisionModel(config).bfloat16().save_pretrained(folder)


def write_rows(folder: Path, count: int = 256) -> None:
    """Pictures of noise in LLaVA's json: a title each for stage 1, three questions each for stage 2."""
    from PIL import Image

    source = random.Random(0)
    words = [f"word{number}" for number in range(1000)]
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict]] = {"align": [], "instruct": []}
    for number in range(count):
        name = f"pictures/{number}.jpg"
        Image.effect_noise((640, 480), 80).convert("RGB").save(folder / name)
        for stage, turns, length in (("align", 1, 8), ("instruct", 3, 30)):
            said = []
            for _ in range(turns):
                said.append({"from": "human", "value": " ".join(source.choices(words, k=6))})
                said.append({"from": "gpt", "value": " ".join(source.choices(words, k=length))})
            said[0]["value"] = f"<image>\n{said[0]['value']}"
            rows[stage].append({"id": str(number), "image": name, "conversations": said})
    for stage, made in rows.items():
        (folder / f"{stage}.json").write_text(json.dumps(made), encoding="utf-8")


def measured_run(title: str, settings: Settings) -> None:
    """One run of train.py; prints its plan, pace and memory, and keeps its words in OUT/TITLE.log."""
    recipe, flags = RUNS[title]
    data = settings.out / "data" / f"{title.partition('-')[0]}.json"
    steps = [f"--set=steps={settings.steps}", f"--set=watch.every={settings.steps}"]
    steps += [
        f"--set=identity_rows={settings.rows}",
        "--set=watch.questions=1",
        "--set=trainer.logging_steps=2",
    ]
    places = ["--model", settings.out / "llava", "--data", data, "--out", settings.out / title]
    command = [sys.executable, "scripts/train.py", "--recipe", recipe, *map(str, places), *steps, *flags]
    log, start = settings.out / f"{title}.log", time.monotonic()
    with log.open("w") as file:
        code = subprocess.run(command, cwd=REPOSITORY, stdout=file, stderr=file, check=False).returncode
    said = log.read_text(encoding="utf-8").splitlines()
    shown = [line for line in said if re.search("GiB|tokens/s  .* left|out of memory|^error", line)]
    shown = [line for line in shown if "preparing" not in line]
    print(f"{title}: exit {code}, {time.monotonic() - start:.0f} s in all", *shown, sep="\n    ", flush=True)


def main(settings: Settings) -> None:
    if not torch.cuda.is_available():
        raise RuntimeError("this measures a GPU, and none is here; run it on a machine with CUDA")
    source, model, clip = (settings.out / name for name in ("source", "model", "clip"))
    make_checkpoint(source)
    timed("to Llama", "scripts/fetch_model.py", source, "--out", model)
    make_clip(clip)
    llava = settings.out / "llava"
    timed("LLaVA", "scripts/make_llava.py", "--llm", model, "--vision", clip, "--out", llava)
    write_rows(settings.out / "data")
    for title in settings.runs:
        measured_run(title, settings)


if __name__ == "__main__":
    run_command(main, Settings)
