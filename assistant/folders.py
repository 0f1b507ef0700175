"""What a whole model folder looks like, how it is checked, and how its chat is made the house's.

Knows nothing of where it came from and imports no heavy library.
"""

import hashlib
import json
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from assistant.catalog import catalog_file
from assistant.settings import DATA, load_settings, write_text

POINTER = b"version https://git-lfs"
CHATML = ("<|im_start|>", "<|im_end|>")
STOP_TOKENS = ("<|im_end|>", "<|endoftext|>")
QWEN_DEFAULT = re.compile(r"'(?:<\|im_start\|>system\\n)?You are Qwen[^']*'")
SPOKEN_FILES = (
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer_config.json",
    "generation_config.json",
    "additional_chat_templates/*.jinja",
    "Modelfile",
)
MODEL_CARD = "README.md"
CHAT_FILES = (
    "tokenizer*",
    "chat_template*",
    "generation_config.json",
    "special_tokens_map.json",
    "preprocessor_config.json",
    "processor_config.json",
    "*.model",
)


def copy_chat(source: Path, folder: Path) -> None:
    """Everything of a model's chat but its weights: template, tokenizer, stop ids."""
    for pattern in CHAT_FILES:
        for path in source.glob(pattern):
            shutil.copyfile(path, folder / path.name)


def stored_dtype(folder: Path) -> str:
    """The number format of a model folder's weights, by its config: `bfloat16` when it says nothing."""
    config = read_json(folder / "config.json")
    return str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_hash(path: Path, expected: str, name: str = "") -> None:
    """Raises ValueError, after removing the file, when its sha256 is not `expected`; `name` is for people."""
    found = sha256_of(path)
    if found != expected:
        path.unlink()
        wrong = f"{name or path.name} has sha256 {found[:12]}…, not {expected[:12]}…"
        raise ValueError(f"{wrong}; it was removed, so try again")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a model folder. Raises ValueError naming a missing or malformed file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path.parent} has no {path.name}: not a model folder") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); fetch the model again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object; fetch the model again")
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, ensure_ascii=False, indent=2) + "\n")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up the model: those the index names, else model*, else all there are.

    Raises ValueError when there is none, or when the index names a missing one.
    """
    index = folder / "model.safetensors.index.json"
    names = indexed_files(index) if index.is_file() else ()
    patterns = ("model*.safetensors", "*.safetensors")
    found = (sorted(folder.glob(pattern)) for pattern in patterns)
    files = [folder / name for name in sorted(names)] or next(filter(None, found), [])
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ValueError(f"{folder} lacks {', '.join(missing)}, which its index names; fetch the model again")
    if not files:
        raise ValueError(f"{folder} holds no weights (*.safetensors); give the folder that has them")
    return files


def indexed_files(index: Path) -> set[str]:
    """The weight files that an index names. Raises ValueError when it is no index, or names other folders."""
    places = read_json(index).get("weight_map")
    files = list(places.values()) if isinstance(places, dict) else []
    if not files or not all(isinstance(file, str) and Path(file).name == file for file in files):
        raise ValueError(f"{index} has no weight_map of tensors to files beside it; fetch the model again")
    return set(files)


def check_weights(path: Path) -> None:
    """Raises ValueError when `path` is a git-lfs pointer or a safetensors file that is cut off or damaged."""
    refuse_pointer(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        promised = _promised_size(file.read(8), file.read, size)
    if promised == 0:
        raise ValueError(f"{path} has no readable safetensors header; fetch the model again")
    if promised != size:
        raise ValueError(f"{path} is cut off: {size} bytes instead of {promised}; fetch the model again")


def refuse_pointer(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise ValueError(f"{path} is a git-lfs pointer, not weights; run `git lfs pull` in its folder")


def _promised_size(prefix: bytes, read: Callable[[int], bytes], size: int) -> int:
    """The size in bytes that a safetensors header promises; 0 for a header that is none."""
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
    if not 2 <= length <= size - 8:
        return 0
    try:
        header = json.loads(read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        return 8 + length + int(max(ends, default=0))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return 0


def is_complete(folder: Path) -> bool:
    """Whether `folder` is a finished model: fetched here, its weights whole and as long as they were then."""
    try:
        recorded = {entry["file"]: entry["bytes"] for entry in load_settings(folder).get("weights", [])}
        if is_internlm2(read_json(folder / "config.json")):
            return False  # as earlier versions kept it: not yet converted
        files = weight_files(folder)
        for path in files:
            check_weights(path)
        return {path.name: path.stat().st_size for path in files} == recorded
    except (ValueError, KeyError, TypeError, OSError):
        return False


def is_internlm2(config: dict[str, Any]) -> bool:
    """Early revisions of InternLM2 call themselves `internlm`."""
    return config.get("model_type") in ("internlm2", "internlm")


def old_identity_left(folder: Path) -> list[str]:
    """Sentences of the base model's old identity in all that speaks in `folder`, as `file: sentence`."""
    left = []
    for path in [path for pattern in (*SPOKEN_FILES, MODEL_CARD) for path in sorted(folder.glob(pattern))]:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":  # makes \uXXXX readable
            text = json.dumps(read_json(path), ensure_ascii=False)
        found = old_identity_in(text, in_card=path.name == MODEL_CARD)
        left += [f"{path.relative_to(folder)}: {sentence}" for sentence in found]
    return left


def old_identity_in(text: str, in_card: bool = False) -> list[str]:
    """Sentences of any base model's old identity in a text, however it is spaced and capitalized.

    A model card may name the base's maker, in its licence for example; it may not speak as one.
    """
    known, said = catalog_file(), _plain(text)
    sentences = [*known["old_identities"], *([] if in_card else known["old_makers"])]
    return [sentence for sentence in sentences if _plain(sentence) in said]


def _plain(text: str) -> str:
    return "".join(text.replace("\\n", " ").split()).casefold()


def make_chat_ours(folder: Path) -> None:
    """Write the house's chat template and every stop id into a ChatML model's folder.

    Other models keep their template. Raises ValueError when a sentence of the old identity is left.
    """
    tokens = added_tokens(folder)
    if set(CHATML) <= set(tokens):
        _write_template(folder, chat_template_for(folder))
    _write_stop_ids(folder, tokens)
    if left := old_identity_left(folder):
        raise ValueError(f"{folder.name} would still speak as its maker's: {'; '.join(left)}")


def added_tokens(folder: Path) -> dict[str, int]:
    """Control tokens of the tokenizer by text, with their ids."""
    path = folder / "tokenizer.json"
    entries = read_json(path).get("added_tokens", []) if path.is_file() else []
    return {entry["content"]: entry["id"] for entry in entries}


def chat_template_for(folder: Path) -> str:
    """The house template, after a BOS where one is wanted; Qwen's own without its default system text."""
    own = own_template(folder)
    if read_json(folder / "config.json").get("model_type", "").startswith("qwen") and own:
        return QWEN_DEFAULT.sub("''", own)
    house = (DATA / "chat_template.jinja").read_text(encoding="utf-8").strip()
    config = read_json(folder / "tokenizer_config.json")
    bos = config.get("bos_token")
    bos = bos.get("content") if isinstance(bos, dict) else bos
    wants_bos = bos not in (None, "", CHATML[0]) and (config.get("add_bos_token") or "bos_token" in own)
    return ("{{ bos_token }}" if wants_bos else "") + house


def has_chat_template(folder: Path) -> bool:
    return (folder / "tokenizer_config.json").is_file() and bool(own_template(folder))


def own_template(folder: Path) -> str:
    """The chat template in `folder`, empty when it has none."""
    path = folder / "chat_template.jinja"
    own = read_json(folder / "tokenizer_config.json").get("chat_template")
    return path.read_text(encoding="utf-8") if path.is_file() else own if isinstance(own, str) else ""


def _write_template(folder: Path, template: str) -> None:
    """Into chat_template.jinja alone: a second template elsewhere could disagree."""
    config = read_json(folder / "tokenizer_config.json")
    write_json(folder / "tokenizer_config.json", {k: v for k, v in config.items() if k != "chat_template"})
    (folder / "chat_template.json").unlink(missing_ok=True)
    write_text(folder / "chat_template.jinja", template)


def _write_stop_ids(folder: Path, tokens: dict[str, int]) -> None:
    path = folder / "generation_config.json"
    generation = read_json(path) if path.is_file() else {}
    known = [generation.get("eos_token_id"), read_json(folder / "config.json").get("eos_token_id")]
    ids = [i for entry in known if entry is not None for i in (entry if isinstance(entry, list) else [entry])]
    if set(CHATML) <= set(tokens):
        ids += [tokens[token] for token in STOP_TOKENS if token in tokens]
    if ids:
        write_json(path, {**generation, "eos_token_id": list(dict.fromkeys(ids))})
