"""A LLaVA folder on a CPU: torch sees its pictures, llama.cpp speaks, in half the time of torch alone."""

import importlib.util
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from assistant.backends.llama_cpp_backend import LlamaCppBackend
from assistant.devices import device_of_machine
from assistant.export import check_folder, export_gguf
from assistant.folders import read_json
from assistant.gguf_tokens import pre_tokenizer_of
from assistant.glimpses import Seer


def can_open_llava(folder: Path) -> bool:
    """Whether a model folder is a LLaVA that open_llava can speak for, on a machine where that is quicker."""
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    is_there = all(importlib.util.find_spec(name) for name in ("gguf", "xllamacpp"))
    if config.get("model_type") != "llava" or not is_there or device_of_machine() != "cpu":
        return False
    try:
        check_folder(folder, config["text_config"])
        pre_tokenizer_of(read_json(folder / "tokenizer.json"))
    except ValueError as error:
        print(f"torch speaks for {folder}, which llama.cpp would do faster: {error}", file=sys.stderr)
        return False
    return True


def open_llava(folder: Path) -> LlamaCppBackend:
    """Raises ValueError for a folder that is no whole LLaVA, RuntimeError for lack of disk."""
    seer = Seer(folder)
    with TemporaryDirectory(prefix="assistant-", ignore_cleanup_errors=True) as work:
        file = Path(work) / "llm.gguf"  # mapped once it is open: nobody needs its name any more
        export_gguf(folder, file, "f16", of_llava=True)
        return LlamaCppBackend(file, seer=seer)
