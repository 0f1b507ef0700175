"""Makes the files of a source a model folder of this house: safetensors, chat template, stop ids, settings.

Knows nothing of downloading. Runs no code of a checkpoint.
"""

import os
import shutil
from pathlib import Path
from typing import Any

from assistant.catalog import PLAIN_FILES, Model, Source
from assistant.folders import (
    check_weights,
    is_internlm2,
    make_chat_ours,
    read_json,
    refuse_pointer,
    sha256_of,
    weight_files,
    write_json,
)
from assistant.settings import one_line, save_settings


def build(model: Model, source: Source, files: Path, revision: str, folder: Path) -> None:
    """Fill `folder` so that transformers loads it; settings.toml is written last.

    Raises ValueError when the files are no model, are damaged, or could only run with remote code.
    """
    if files.is_file():
        dequantize(files, folder)
    else:
        gather(files, folder, source)
    config = read_json(folder / "config.json")
    if not is_internlm2(config):
        _refuse_remote_code(folder, config)
        make_chat_ours(folder)
    settings = {
        "model": model.name, "title": model.title, "source": source.kind, "source_name": source.name,
        "revision": revision, "licence": model.licence,
        "dtype": config.get("dtype") or config.get("torch_dtype"),
        "dequantized_from": files.name if files.is_file() else None, "raw": is_internlm2(config),
        "weights": [describe_weights(path) for path in weight_files(folder)],
    }  # fmt: skip
    save_settings(folder, settings)


def describe_weights(path: Path) -> dict[str, Any]:
    check_weights(path)
    path.chmod(0o644)  # safetensors saves for its owner alone; a server may run as another user
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)}


def dequantize(gguf: Path, folder: Path) -> None:
    """A GGUF file → bfloat16 safetensors, tokenizer and configs.

    Stored as bfloat16: half the disk and load time; its rounding is far below that of the 4-bit original.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # Without dequantize=True, transformers 5 flags the model as quantized and refuses to save it.
    model = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent),
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name).save_pretrained(folder)
    config = read_json(folder / "config.json")
    config.pop("_model_name_or_path", None)
    write_json(folder / "config.json", config)


def gather(files: Path, folder: Path, source: Source) -> None:
    """Bring the model's plain files into `folder`: hard links to a download, copies of a person's own."""
    read_json(files / "config.json")
    place = shutil.copy2 if source.kind == "local" else _link
    for path in sorted(files.iterdir()):
        if path.is_file() and any(path.match(pattern) for pattern in PLAIN_FILES):
            place(path, folder / path.name)
    pickled = sorted(files.glob("pytorch_model*.bin"))
    if pickled and not any(folder.glob("*.safetensors")):
        for path in pickled:
            _to_safetensors(path, folder)
        _translate_index(files / "pytorch_model.bin.index.json", folder)


def _link(path: Path, target: Path) -> None:
    try:
        os.link(path, target)
    except OSError:
        shutil.copy2(path, target)


def _safetensors_name(name: str) -> str:
    return name.replace("pytorch_model", "model").replace(".bin", ".safetensors")


def _to_safetensors(path: Path, folder: Path) -> None:
    """Pickled tensors, read without running anything in them. Raises ValueError for any other content."""
    import pickle

    import torch
    from safetensors.torch import save_file

    refuse_pointer(path)
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged or holds more than tensors: {one_line(error)[:120]}") from None
    copies = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    save_file(copies, folder / _safetensors_name(path.name), metadata={"format": "pt"})


def _translate_index(index: Path, folder: Path) -> None:
    (folder / index.name).unlink(missing_ok=True)
    if index.is_file():
        content = read_json(index)
        places = content["weight_map"].items()
        content["weight_map"] = {name: _safetensors_name(file) for name, file in places}
        write_json(folder / "model.safetensors.index.json", content)


def _refuse_remote_code(folder: Path, config: dict[str, Any]) -> None:
    """Raises ValueError for an architecture that transformers lacks; drops pointers to code for others."""
    from transformers import CONFIG_MAPPING

    kind = config.get("model_type")
    if kind not in CONFIG_MAPPING:
        remote = "needs remote code, which is never run here" if "auto_map" in config else "is unknown"
        raise ValueError(f"model type {kind!r} {remote}; choose a model that transformers knows")
    for path in (folder / "config.json", folder / "tokenizer_config.json"):
        if path.is_file() and "auto_map" in (content := read_json(path)):
            write_json(path, {key: value for key, value in content.items() if key != "auto_map"})
