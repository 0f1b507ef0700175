"""A LLaVA folder on a CPU: torch sees its pictures, llama.cpp speaks, in half the time of torch alone."""

import importlib.util
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

from assistant.backends.llama_cpp_backend import LlamaCppBackend
from assistant.devices import device_of_machine
from assistant.export import SPARE_BYTES, SPOKEN, check_folder, export_gguf
from assistant.folders import read_json
from assistant.gguf_tokens import pre_tokenizer_of
from assistant.glimpses import Seer
from assistant.tensors import checkpoint_files, shapes_in


def can_open_llava(folder: Path) -> bool:
    """Whether a model folder is a LLaVA that open_llava can speak for, on a machine where that is quicker."""
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    is_there = all(importlib.util.find_spec(name) for name in ("gguf", "xllamacpp"))
    if config.get("model_type") != "llava" or not is_there or device_of_machine() != "cpu":
        return False
    if reason := _why_torch(folder, config["text_config"]):
        print(f"torch speaks for {folder}, which llama.cpp would do faster: {reason}", file=sys.stderr)
    return not reason


def _why_torch(folder: Path, llm: dict[str, Any]) -> str:
    """What is in llama.cpp's way; empty when nothing is."""
    files = checkpoint_files(folder)
    if not any(name.startswith(SPOKEN) for file in files for name in shapes_in(file)):
        return f"none of its tensors is called {SPOKEN}…"
    needed = sum(file.stat().st_size for file in files) + SPARE_BYTES
    if shutil.disk_usage(gettempdir()).free < needed:
        return f"{gettempdir()} has no room for {needed // 10**6} MB"
    try:
        check_folder(folder, llm)
        pre_tokenizer_of(read_json(folder / "tokenizer.json"))
    except ValueError as error:
        return str(error)
    return ""


def open_llava(folder: Path) -> LlamaCppBackend:
    """Raises ValueError for a folder that is no whole LLaVA, RuntimeError for lack of memory."""
    seer = Seer(folder)
    with TemporaryDirectory(prefix="assistant-", ignore_cleanup_errors=True) as work:
        file = Path(work) / "llm.gguf"  # mapped once it is open: nobody needs its name any more
        export_gguf(folder, file, "f16", of_llava=True)
        return LlamaCppBackend(file, label=str(folder), chat=seer, eyes=seer.eyes)
