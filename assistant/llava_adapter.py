"""The adapter that training a LLaVA gives, projector and all: read as parts, and made small to be shipped."""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from assistant.adapters import adapter_from_halves, fitted_half
from assistant.folders import read_json, write_json
from assistant.llava import Parts
from assistant.loading import is_adapter
from assistant.tensors import checkpoint_files, tensors_in

# of a run's settings: whose it was and where it lay, which nothing that is shipped says
SOMEBODYS = ("card", "model", "data", "out", "images", "resume", "start")
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
NEURONS = "added_neurons"  # in a config that is shipped: how many the LLM had more in its MLPs


def read_trained(folder: Path) -> Parts:
    """What an adapter of train.py holds of a LLaVA. Raises ValueError for the adapter of an LLM alone."""
    if not is_adapter(folder):
        raise ValueError(f"{folder} is no adapter: it has no adapter_config.json; give what train.py wrote")
    config = read_json(folder / CONFIG)
    projector: dict[str, torch.Tensor] = {}
    sight: dict[str, torch.Tensor] = {}
    halves: dict[str, dict[str, torch.Tensor]] = {"model.": {}, "": {}}
    for name, tensor in tensors_in([folder / WEIGHTS]):
        inner = name.removeprefix("base_model.model.").removeprefix("model.")
        part, _, rest = inner.partition(".")
        if part == "multi_modal_projector":
            projector[rest] = tensor
        elif part == "vision_tower":
            (halves[""] if ".lora_" in rest else sight)[rest] = tensor
        else:
            halves["model."]["model." + rest if part == "language_model" else inner] = tensor
    if not projector:
        raise ValueError(f"{folder} holds no projector: it is no adapter of a LLaVA")
    plain = {key: config[key] for key in ("lora_alpha", "r", "use_rslora", "lora_dropout")}
    patterns = {key: config.get(key) or {} for key in ("rank_pattern", "alpha_pattern")}
    speaking, seeing = (
        adapter_from_halves(part, plain | _by_module(part, patterns, prefix), folder) if part else None
        for part, prefix in ((halves["model."], "model.language_model."), (halves[""], "model.vision_tower."))
    )
    return Parts(projector, speaking, seeing, sight, int(config.get(NEURONS, 0)))


def _by_module(
    halves: dict[str, torch.Tensor], patterns: dict[str, dict[str, Any]], prefix: str
) -> dict[str, dict[str, Any]]:
    """rank_pattern and alpha_pattern for one part's own module names."""
    modules = {re.sub(r"\.lora_[AB]\..*", "", name) for name in halves}
    found: dict[str, dict[str, Any]] = {}
    for kind, pattern in patterns.items():
        found[kind] = {
            re.escape(module): value
            for module in sorted(modules)
            for key, value in pattern.items()
            if re.fullmatch(rf"(.*\.)?({key})", prefix + module.removeprefix("model."))
        }
    return found


def sight_of(llava: Path) -> dict[str, torch.Tensor]:
    """A LLaVA's tower that has learnt words, under names that read_trained knows; else nothing."""
    if not read_json(llava / "config.json")["vision_config"].get("known"):
        return {}
    return {
        f"base_model.model.model.{name}": tensor
        for name, tensor in tensors_in(checkpoint_files(llava))
        if name.startswith("vision_tower.")
    }


def write_small(
    folder: Path, out: Path, more: dict[str, torch.Tensor] | None = None, base: str = "", neurons: int = 0
) -> None:
    """The adapter and `more` with 16 bits a number; of where its base lay only the name `base`.

    `neurons`: how many its LLM has more in its MLPs than the model that it was made of.
    """
    trained = {**dict(tensors_in([folder / WEIGHTS])), **(more or {})}
    tensors = {name: tensor.bfloat16() for name, tensor in trained.items()}
    kept = {**read_json(folder / CONFIG), "base_model_name_or_path": base}
    _write(tensors, {**kept, **({NEURONS: neurons} if neurons else {})}, out)


def write_without_tower(folder: Path, out: Path, llm: dict[str, Any]) -> None:
    """The adapter but for the tower: what `train.py --start` takes for a LLaVA that has that tower.

    `llm`: the config of that LLaVA's LLM, which may have other neurons added than the adapter's had.
    """
    tensors, config = dict(tensors_in([folder / WEIGHTS])), read_json(folder / CONFIG)
    own = int(config.pop(NEURONS, 0))
    speaking = {name: tensor for name, tensor in tensors.items() if "vision_tower." not in name}
    _write({name: fitted_half(name, half, own, llm) for name, half in speaking.items()}, config, out)


def _write(tensors: dict[str, torch.Tensor], config: dict[str, Any], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / f".{WEIGHTS}.partial", metadata={"format": "pt"})
    (out / f".{WEIGHTS}.partial").replace(out / WEIGHTS)
    write_json(out / CONFIG, config)
