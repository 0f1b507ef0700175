"""Builds the finished model folder from raw files: safetensors, the house chat template, stop ids, settings.toml.

Knows nothing of where the files came from. torch and transformers are imported where weights are converted.
"""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from assistant.catalog import PLAIN_FILES, Model, Source, check_weights, old_identity_left, read_json, weight_files
from assistant.downloads import sha256_of, wanted
from assistant.settings import DATA, save_settings, write_text

INTERNLM2 = ("internlm2", "internlm")
CHATML = ("<|im_start|>", "<|im_end|>")
QWEN_DEFAULT = re.compile(r"'(?:<\|im_start\|>system\\n)?You are Qwen[^']*'")


def build(model: Model, source: Source, files: Path, revision: str, folder: Path) -> None:
    """Fill `folder` so that transformers loads it; settings.toml is written last.

    Raises ValueError when the files are no model, are damaged, or could only run with remote code.
    """
    if files.suffix == ".gguf" and files.is_file():
        dequantize(files, folder)
    else:
        gather(files, folder, source)
    raw = is_internlm2(folder)
    if not raw:
        tidy_chat(folder, model.stop_tokens)
    weights = [describe(path) for path in weight_files(folder)]
    save_settings(
        folder,
        {
            "model": model.name, "title": model.title, "source": source.kind, "source_name": source.name,
            "revision": revision, "licence": model.licence, "dtype": str(read_json(folder / "config.json").get("dtype", "")),
            "raw": raw, "weights": weights,
        },
    )  # fmt: skip
