"""LoRA adapters of InternLM2, whose wqkv is one weight, as adapters of its Llama, and back. Trains nothing.

Reads and writes PEFT's files; of whole folders adapter_folders.py knows, of XTuner's checkpoints xtuner.py.
"""

import math
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.nn import functional

from assistant.folders import read_json, write_json
from assistant.internlm2 import join_wqkv, split_wqkv
from assistant.internlm2_config import heads_of
from assistant.internlm2_names import FUSED, SPLIT, llama_module, tensor_shapes
from assistant.loading import is_adapter
from assistant.strength import beyond_lora
from assistant.tensors import tensors_in

FILES = ("adapter_model.safetensors", "adapter_model.bin")
HALF = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")


@dataclass(frozen=True)
class Pair:
    """LoRA's change of a weight [out, in]: alpha / rank · B [out, rank] · A [rank, in]."""

    a: torch.Tensor
    b: torch.Tensor
    alpha: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def shape(self) -> list[int]:
        return [self.b.shape[0], self.a.shape[1]]


@dataclass(frozen=True)
class Adapter:
    """Pairs by module name. `rslora` divides alpha by the root of the rank (arXiv:2312.03732)."""

    pairs: dict[str, Pair]
    rslora: bool = False
    dropout: float = 0.0

    def divisor(self, rank: int) -> float:
        return math.sqrt(rank) if self.rslora else rank


def as_llama(adapter: Adapter, config: dict[str, Any], source: Path) -> Adapter:
    """An InternLM2 adapter by the modules of the Llama with `config`.

    Raises ValueError for another model's.
    """
    _check_shapes(adapter, config, source)
    heads, pairs = heads_of(config), {}
    for name, pair in adapter.pairs.items():
        if name.endswith(FUSED):
            for part, rows in zip(SPLIT, split_wqkv(pair.b, heads), strict=True):
                pairs[f"{name.removesuffix(FUSED)}{part}"] = replace(pair, a=pair.a.clone(), b=rows)
        else:
            pairs[str(llama_module(name))] = pair
    return replace(adapter, pairs=pairs)


def as_internlm2(adapter: Adapter, config: dict[str, Any], source: Path) -> Adapter:
    """The inverse of as_llama. `config`: the Llama's."""
    modules = [name.removesuffix(".weight") for name in tensor_shapes(config)]
    names = {llama_module(module): module for module in modules}
    pairs: dict[str, Pair] = {}
    split: dict[str, dict[str, Pair]] = {}
    for module, pair in adapter.pairs.items():
        if part := next((part for part in SPLIT if module.endswith(f".{part}")), None):
            split.setdefault(module.removesuffix(part), {})[part] = pair
        else:
            pairs[names.get(module, module)] = pair
    for parent, parts in split.items():
        pairs[f"{parent}{FUSED}"] = _fuse(adapter, parts, config, source)
    fused = replace(adapter, pairs=pairs)
    _check_shapes(fused, config, source)
    return fused


def _fuse(adapter: Adapter, parts: dict[str, Pair], config: dict[str, Any], source: Path) -> Pair:
    """One pair for wqkv. The rows of a part that is not there are zero."""
    heads, first = heads_of(config), next(iter(parts.values()))
    counts = dict(zip(SPLIT, (heads.query, heads.key_value, heads.key_value), strict=True))
    for part, pair in parts.items():
        if pair.shape != [counts[part] * heads.size, first.shape[1]]:
            raise ValueError(f"{source} is of another model: its {part} is {pair.shape}; is --base its base?")
    shared = all(torch.equal(pair.a, first.a) for pair in parts.values())
    a = first.a if shared else torch.cat([pair.a for pair in parts.values()])
    rank, start = a.shape[0], 0
    alpha = first.alpha if shared else first.alpha * adapter.divisor(rank) / adapter.divisor(first.rank)
    blocks = {part: first.b.new_zeros(count * heads.size, rank) for part, count in counts.items()}
    for part, pair in parts.items():
        factor = pair.alpha / first.alpha * adapter.divisor(first.rank) / adapter.divisor(pair.rank)
        blocks[part][:, start : start + pair.rank] = pair.b if factor == 1 else pair.b * factor
        start += 0 if shared else pair.rank
    q, k, v = blocks.values()
    return Pair(a, join_wqkv(q, k, v, heads), alpha)


def read_adapter(folder: Path) -> Adapter:
    """A PEFT adapter folder. Raises ValueError for one that is more than plain LoRA, or damaged."""
    if not is_adapter(folder):
        known = "adapter folder (adapter_config.json), .pth file or DeepSpeed folder"
        raise ValueError(f"{folder} is no {known}")
    config = read_json(folder / "adapter_config.json")
    if more := beyond_lora(config):
        way = "only plain LoRA can be converted exactly, so merge it where it was made"
        raise ValueError(f"{folder}: adapter_config.json has {more[0]}: {config.get(more[0])!r}; {way}")
    files = [folder / name for name in FILES if (folder / name).is_file()]
    if not files or "lora_alpha" not in config:
        lacking = "lora_alpha" if files else FILES[0]
        raise ValueError(f"{folder} lacks {lacking}; copy the whole adapter folder")
    return adapter_from_halves(dict(tensors_in(files[:1])), config, folder)


def adapter_from_halves(tensors: dict[str, torch.Tensor], config: dict[str, Any], source: Path) -> Adapter:
    """From lora_A and lora_B by PEFT's names, and PEFT's config, of which lora_alpha alone must be there.

    `source` is for people. Raises ValueError for what is no LoRA of linear layers, or does not fit together.
    """
    halves: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        # PEFT puts a frozen copy of the base's lm_head beside the LoRA of it
        if name.endswith(".base_layer.weight"):
            continue
        found = HALF.fullmatch(name)
        if not found or tensor.ndim != 2:
            raise ValueError(
                f"{source} holds {name}, which is no LoRA of a linear layer and cannot be converted"
            )
        halves.setdefault(found[1], {})[found[2]] = tensor.contiguous()
    pairs: dict[str, Pair] = {}
    for module, half in halves.items():
        rank = _of_pattern(config.get("rank_pattern") or {}, module, config.get("r"))
        alpha = _of_pattern(config.get("alpha_pattern") or {}, module, config["lora_alpha"])
        if len(half) != 2 or not half["A"].shape[0] == half["B"].shape[1] == (rank or half["B"].shape[1]):
            raise ValueError(
                f"{source}: A, B and the rank of {module} do not fit together; copy the adapter again"
            )
        if not isinstance(alpha, int | float) or not 0 < alpha < math.inf:
            raise ValueError(
                f"{source}: lora_alpha {alpha!r} of {module} is no positive number; take XTuner's config"
            )
        pairs[module] = Pair(half["A"], half["B"], alpha)
    if not pairs:
        raise ValueError(f"{source} holds no LoRA weights; copy the adapter again")
    return Adapter(pairs, bool(config.get("use_rslora")), config.get("lora_dropout") or 0.0)


def _of_pattern(pattern: dict[str, Any], module: str, default: Any) -> Any:
    """The value of the first key that ends the module's name, as PEFT's get_pattern_key chooses."""
    return next((pattern[key] for key in pattern if re.fullmatch(rf"(.*\.)?({key})", module)), default)


def _check_shapes(adapter: Adapter, config: dict[str, Any], source: Path) -> None:
    shapes = tensor_shapes(config)
    for module, pair in adapter.pairs.items():
        shape = list(shapes.get(f"{module}.weight", ()))
        if pair.shape != shape:
            has = f"there it is {shape}" if shape else "which it does not have"
            raise ValueError(f"{source} is not of this base: it changes {module} {pair.shape}, {has}")


def beside_neurons(adapter: Adapter, own: int, config: dict[str, Any]) -> Adapter:
    """The adapter of a Llama whose MLPs had `own` neurons added, for that Llama with those `config` names.

    What is new to it stays as it is; what it did to neurons that are gone is left out.
    """
    pairs = {
        module: replace(
            pair,
            a=fitted_half(f"{module}.lora_A", pair.a, own, config),
            b=fitted_half(f"{module}.lora_B", pair.b, own, config),
        )
        for module, pair in adapter.pairs.items()
    }
    return replace(adapter, pairs=pairs)


def fitted_half(name: str, half: torch.Tensor, own: int, config: dict[str, Any]) -> torch.Tensor:
    """The same of one lora_A or lora_B by its name; one of another Llama stays as it is, to be refused."""
    width = config["intermediate_size"]
    more = int(config.get("added_neurons", 0)) - own
    if ".lora_B" in name and ("gate_proj" in name or "up_proj" in name) and len(half) + more == width:
        return functional.pad(half, (0, 0, 0, more))
    if ".lora_A" in name and "down_proj" in name and half.shape[1] + more == width:
        return functional.pad(half, (0, more))
    return half


def write_peft(adapter: Adapter, folder: Path, layers: int, base: str) -> None:
    """An adapter folder as PEFT reads it, of a model with `layers` layers."""
    folder.mkdir(parents=True)
    halves = {f"base_model.model.{module}.lora_A.weight": pair.a for module, pair in adapter.pairs.items()}
    halves |= {f"base_model.model.{module}.lora_B.weight": pair.b for module, pair in adapter.pairs.items()}
    save_file(halves, folder / FILES[0], metadata={"format": "pt"})
    write_json(folder / "adapter_config.json", _peft_config(adapter, layers, base))


def _peft_config(adapter: Adapter, layers: int, base: str) -> dict[str, Any]:
    """Only fields that PEFT 0.11, XTuner's, has too. A pattern holds what differs from most modules."""
    sizes = {module: (pair.rank, pair.alpha) for module, pair in adapter.pairs.items()}
    (rank, alpha), _ = Counter(sizes.values()).most_common(1)[0]
    short = {module: (module.rpartition(".")[2], size) for module, size in sizes.items()}
    counts = Counter(short.values())
    # `q_proj` where every layer has it at one size; else the whole name, which means that module alone
    keys = {module: key[0] if counts[key] == layers else module for module, key in short.items()}
    others = {keys[module]: size for module, size in sizes.items() if size != (rank, alpha)}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": adapter.dropout,
        "use_rslora": adapter.rslora,
        "target_modules": sorted(set(keys.values())),
        "rank_pattern": {key: size[0] for key, size in others.items()},
        "alpha_pattern": {key: size[1] for key, size in others.items()},
        "bias": "none",
    }
