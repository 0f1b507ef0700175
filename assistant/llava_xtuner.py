"""XTuner's LLaVA, a checkpoint or exported folders, as parts of ours. The way back: llava_to_xtuner.py.

Sources: XTuner's model/llava.py and tools/model_converters/pth_to_hf.py (0.1.17 to 0.1.23).
"""

from dataclasses import replace
from pathlib import Path

import torch

from assistant.adapters import (
    Adapter,
    adapter_from_halves,
    as_llama,
    read_adapter,
)
from assistant.folders import read_json
from assistant.internlm2_names import FUSED, llama_module
from assistant.llava import LAYERS, Parts
from assistant.llava_shapes import PREFIX
from assistant.loading import is_adapter
from assistant.tensors import checkpoint_files, tensors_in
from assistant.xtuner import known_alpha, read_pth

PROJECTOR = {"depth": 2, "hidden_act": "gelu", "bias": True}


def read_parts(
    path: Path, llm: Path, vision: Path, alpha: float | None = None, vision_alpha: float | None = None
) -> tuple[Parts, list[str]]:
    """What XTuner trained, for the LLM and the tower in these folders, and sentences on what was assumed.

    `path`: its .pth, DeepSpeed's folder, or the exported folder (with projector/ in it, or projector/ alone).
    A .pth does not hold its alphas: None takes XTuner's own. Raises ValueError for what is none of these.
    """
    if is_exported(path):
        if alpha is not None or vision_alpha is not None:
            raise ValueError("--alpha and --vision-alpha are for a .pth: an exported folder holds its own")
        halves, notes = _read_exported(path, vision)
    else:
        halves, notes = _read_checkpoint(path, alpha, vision_alpha)
    projector, speaking, seeing = halves
    if speaking and any(name.endswith(FUSED) or llama_module(name) for name in speaking.pairs):
        speaking = as_llama(speaking, read_json(llm / "config.json"), path)
    if seeing:
        pairs = {name.removeprefix(PREFIX): pair for name, pair in seeing.pairs.items()}
        seeing = replace(seeing, pairs=pairs)
    return Parts(projector, speaking, seeing), notes


def is_exported(path: Path) -> bool:
    """Whether `path` is what `xtuner convert pth_to_hf` writes for a LLaVA, or the projector in it."""
    return (path / "projector" / "config.json").is_file() or (path / "config.json").is_file()


def _read_exported(
    path: Path, vision: Path
) -> tuple[tuple[dict[str, torch.Tensor], Adapter | None, Adapter | None], list[str]]:
    folder, notes = path / "projector", []
    if not folder.is_dir():
        folder = path
    config = read_json(folder / "config.json")
    if config.get("model_type") != "projector":
        raise ValueError(f"{path} is no LLaVA of XTuner: it has no projector/ in it")
    for key, value in PROJECTOR.items():
        if config.get(key, value) != value:
            raise ValueError(f"{folder}: {key} is {config[key]!r}, and transformers' LLaVA has {value!r}")
    whole = path / "visual_encoder"
    if whole.is_dir() and whole.resolve() != vision.resolve():
        raise ValueError(f"{path} has a whole vision tower of its own; give it: --vision {whole}")
    if (path / "config.json").is_file() and folder != path:
        notes.append(f"{path} holds a whole LLM; --llm must be made of it by scripts/fetch_model.py")
    adapters = [
        read_adapter(path / name) if is_adapter(path / name) else None
        for name in ("llm_adapter", "visual_encoder_adapter")
    ]
    projector = _projector(dict(tensors_in(checkpoint_files(folder))), folder)
    return (projector, adapters[0], adapters[1]), notes


def _read_checkpoint(
    path: Path, alpha: float | None, vision_alpha: float | None
) -> tuple[tuple[dict[str, torch.Tensor], Adapter | None, Adapter | None], list[str]]:
    parts: dict[str, dict[str, torch.Tensor]] = {"projector": {}, "llm": {}, "visual_encoder": {}}
    for name, tensor in read_pth(path).items():
        part, _, inner = name.partition(".")
        if part not in parts:
            raise ValueError(f"{path} holds {name}, which no LLaVA of XTuner has")
        parts[part][inner] = tensor
    if not parts["projector"]:
        way = "scripts/import_xtuner.py is for an adapter of the LLM alone"
        raise ValueError(f"{path} holds no projector, so it is no LLaVA; {way}")
    notes: list[str] = []
    adapters = [
        _adapter_of(parts[part], given, flag, part, path, notes)
        for part, given, flag in (
            ("llm", alpha, "--alpha"),
            ("visual_encoder", vision_alpha, "--vision-alpha"),
        )
    ]
    return (_projector(parts["projector"], path), adapters[0], adapters[1]), notes


def _adapter_of(
    halves: dict[str, torch.Tensor], alpha: float | None, flag: str, part: str, path: Path, notes: list[str]
) -> Adapter | None:
    if not halves:
        return None
    if not all(".lora_" in name for name in halves):
        way = "`xtuner convert pth_to_hf` makes it a folder to give as --llm or --vision"
        raise ValueError(f"{path} holds the whole {part}, not an adapter of it; {way}")
    if alpha is None:
        rank, alpha = known_alpha(halves, path, flag)
        notes.append(
            f"{part}: rank {rank}, alpha {alpha} as in XTuner's recipe; if yours differs, give {flag}"
        )
    return adapter_from_halves(halves, {"lora_alpha": alpha}, path)


def _projector(tensors: dict[str, torch.Tensor], source: Path) -> dict[str, torch.Tensor]:
    """By transformers' names. Raises ValueError for a tensor that XTuner's projector does not have."""
    named = {}
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        if module not in LAYERS:
            raise ValueError(
                f"{source} holds {name} {list(tensor.shape)}; a projector of two layers has "
                f"{', '.join(f'{layer}.{part}' for layer in LAYERS for part in ('weight', 'bias'))}"
            )
        named[f"{LAYERS[module]}.{kind}"] = tensor
    if lacking := [layer for layer, ours in LAYERS.items() if f"{ours}.weight" not in named]:
        raise ValueError(f"{source} lacks {lacking[0]}.weight of the projector; copy the whole of it again")
    return named
