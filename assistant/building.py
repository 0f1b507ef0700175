"""Makes the files of a source a model folder of this house: safetensors, chat template, stop ids, settings.

Knows nothing of downloading. Runs no code of a checkpoint.
"""

import shutil
from pathlib import Path
from typing import Any

from assistant.catalog import PLAIN_FILES, Model, Source
from assistant.folders import (
    check_weights,
    has_chat_template,
    indexed_files,
    is_internlm2,
    make_chat_ours,
    read_json,
    refuse_pointer,
    sha256_of,
    weight_files,
    write_json,
)
from assistant.internlm2_tokenizer import make_tokenizer, write_original_config
from assistant.settings import link_or_copy, save_settings


def build(model: Model, source: Source, files: Path, revision: str, folder: Path) -> None:
    """Fill `folder` so that transformers loads it; settings.toml is written last.

    Raises ValueError when the files are no model, are damaged, or could only run with remote code.
    """
    converted = files.is_dir() and is_internlm2(read_json(files / "config.json"))
    if files.is_file():
        dequantize(files, folder)
    elif converted:
        convert(files, folder)
    else:
        gather(files, folder, source)
    config = read_json(folder / "config.json")
    _refuse_remote_code(folder, config)
    make_chat_ours(folder)
    settings = {
        "model": model.name, "title": model.title, "source": source.kind, "source_name": source.name,
        "revision": revision, "licence": model.licence,
        "dtype": config.get("dtype") or config.get("torch_dtype"),
        "dequantized_from": files.name if files.is_file() else None,
        "converted_from": "internlm2" if converted else None,
        "is_base": model.is_base or (converted and not has_chat_template(files)),
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
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    _split_digits(gguf, tokenizer)
    tokenizer.save_pretrained(folder)
    config = read_json(folder / "config.json")
    config.pop("_model_name_or_path", None)
    write_json(folder / "config.json", config)


def _split_digits(gguf: Path, tokenizer: Any) -> None:
    """SmolLM reads numbers digit by digit; transformers drops that when it reads a GGUF file."""
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers

    kind = GGUFReader(gguf).get_field("tokenizer.ggml.pre")
    if kind is not None and kind.contents() == "smollm":
        inner = tokenizer.backend_tokenizer
        digits = pre_tokenizers.Digits(individual_digits=True)
        inner.pre_tokenizer = pre_tokenizers.Sequence([digits, inner.pre_tokenizer])


def convert(files: Path, folder: Path) -> None:
    """An InternLM2 checkpoint → a Llama with a tokenizer.json: the same numbers, and no remote code.

    tokenizer.model stays beside it for the way back. Raises ValueError for files that are no whole InternLM2.
    """
    from assistant.internlm2 import to_llama

    model = files / "tokenizer.model"
    if not model.is_file():
        raise ValueError(f"{files} has no tokenizer.model; give the whole InternLM2 folder")
    refuse_pointer(model)
    make_tokenizer(model, folder)  # seconds, where the weights may be minutes
    to_llama(files, folder)
    for path in (model, *files.glob("LICENSE*")):
        shutil.copy2(path, folder / path.name)


def revert(folder: Path, out: Path) -> None:
    """A converted (or merged) folder → InternLM2's layout: weights byte for byte as before the conversion.

    Raises ValueError when `folder` was not converted from InternLM2.
    """
    from assistant.internlm2 import to_internlm2

    model = folder / "tokenizer.model"
    if not model.is_file():
        raise ValueError(f"{folder} has no tokenizer.model: it was not converted from InternLM2")
    to_internlm2(folder, out)
    write_original_config(out, (folder / "chat_template.jinja").read_text(encoding="utf-8"))
    shutil.copy2(model, out / model.name)
    shutil.copy2(folder / "generation_config.json", out)


def gather(files: Path, folder: Path, source: Source) -> None:
    """Bring the model's plain files into `folder`: hard links to a download, copies of a person's own."""
    read_json(files / "config.json")
    place = shutil.copy2 if source.kind == "local" else link_or_copy
    for path in sorted(files.iterdir()):
        if path.is_file() and any(path.match(pattern) for pattern in PLAIN_FILES):
            place(path, folder / path.name)
    pickled = sorted(files.glob("pytorch_model*.bin"))
    if pickled and not any(folder.glob("*.safetensors")):
        for path in pickled:
            _to_safetensors(path, folder)
        _translate_index(files / "pytorch_model.bin.index.json", folder)


def _safetensors_name(name: str) -> str:
    return name.replace("pytorch_model", "model").replace(".bin", ".safetensors")


def _to_safetensors(path: Path, folder: Path) -> None:
    """Pickled tensors, read without running anything in them. Raises ValueError for any other content."""
    from safetensors.torch import save_file

    from assistant.tensors import pickled_tensors

    tensors = pickled_tensors(path)
    copies = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    save_file(copies, folder / _safetensors_name(path.name), metadata={"format": "pt"})


def _translate_index(index: Path, folder: Path) -> None:
    (folder / index.name).unlink(missing_ok=True)
    if index.is_file():
        indexed_files(index)
        content = read_json(index)
        places = content["weight_map"].items()
        content["weight_map"] = {name: _safetensors_name(file) for name, file in places}
        write_json(folder / "model.safetensors.index.json", content)


def _refuse_remote_code(folder: Path, config: dict[str, Any]) -> None:
    """Raises ValueError for an architecture that transformers lacks; drops pointers to code for others."""
    kind = config.get("model_type")
    if not _is_known(kind):
        remote = "needs remote code, which is never run here" if "auto_map" in config else "is unknown"
        raise ValueError(f"model type {kind!r} {remote}; choose a model that transformers knows")
    for path in (folder / "config.json", folder / "tokenizer_config.json"):
        if path.is_file() and "auto_map" in (content := read_json(path)):
            write_json(path, {key: value for key, value in content.items() if key != "auto_map"})


def _is_known(kind: str | None) -> bool:
    """Whether transformers has this architecture. Nearly all are in a table that is read without torch."""
    from transformers.models.auto.auto_mappings import CONFIG_MAPPING_NAMES

    if kind in CONFIG_MAPPING_NAMES:
        return True
    from transformers import CONFIG_MAPPING

    return kind in CONFIG_MAPPING
