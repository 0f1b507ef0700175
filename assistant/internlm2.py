"""InternLM2's weights as a Llama's, and back. Knows nothing of tokenizers or downloads.

Sources: InternLM's tools/convert2llama.py and its modeling_internlm2.py (layout of wqkv).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from assistant.folders import read_json, write_json
from assistant.internlm2_config import (
    Heads,
    check_config,
    check_sizes,
    heads_of,
    internlm2_config,
    llama_config,
    refuse_reward,
)
from assistant.internlm2_names import (
    BUFFER,
    FUSED,
    SPLIT,
    check_tensors,
    llama_module,
    llama_shapes,
    tensor_shapes,
)
from assistant.tensors import checkpoint_files, shapes_in, tensors_in, write_shards


def split_wqkv(fused: torch.Tensor, heads: Heads) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[rows, columns] of wqkv (or of its lora_B) → those of q, k and v.

    The rows stand group by group: the query heads of a group, then its key, then its value head.
    """
    groups = fused.view(heads.key_value, heads.group + 2, heads.size, -1)
    columns = fused.shape[1]
    q, k, v = groups[:, : heads.group], groups[:, heads.group], groups[:, heads.group + 1]
    return q.reshape(-1, columns), k.reshape(-1, columns), v.reshape(-1, columns)


def join_wqkv(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: Heads) -> torch.Tensor:
    """The inverse of split_wqkv."""
    parts = [part.view(heads.key_value, -1, heads.size, part.shape[1]) for part in (q, k, v)]
    return torch.cat(parts, dim=1).reshape(-1, q.shape[1])


def to_llama(files: Path, folder: Path) -> None:
    """Write the weights and config of the InternLM2 in `files` as a Llama into `folder`.

    One tensor after the other: memory stays below the largest file and two written shards. Raises ValueError
    for files that are no InternLM2, damaged, or not of their config.
    """
    config, paths = read_json(files / "config.json"), checkpoint_files(files)
    check_config(config)
    shapes = _shapes_of(paths)
    if any(name.startswith("v_head.") for name in shapes):
        refuse_reward()
    check_tensors(shapes, tensor_shapes(config))
    dtype = write_shards(_as_llama(tensors_in(paths), config), folder)
    write_json(folder / "config.json", llama_config(config, dtype))


def _shapes_of(paths: list[Path]) -> dict[str, tuple[int, ...]]:
    return {name: shape for path in paths for name, shape in shapes_in(path).items() if BUFFER not in name}


def _as_llama(
    tensors: Iterator[tuple[str, torch.Tensor]], config: dict[str, Any]
) -> Iterator[tuple[str, torch.Tensor]]:
    heads = heads_of(config)
    for name, tensor in tensors:
        module, _, kind = name.rpartition(".")
        if module.endswith(FUSED):
            parent = module.removesuffix(FUSED)
            for part, rows in zip(SPLIT, split_wqkv(tensor, heads), strict=True):
                yield f"{parent}{part}.{kind}", rows
        elif BUFFER not in name:
            yield f"{llama_module(module)}.{kind}", tensor


def to_internlm2(files: Path, folder: Path) -> None:
    """The inverse of to_llama: the same tensors as before, byte for byte.

    Raises ValueError when `files` is no whole Llama that could be an InternLM2.
    """
    config, paths = read_json(files / "config.json"), checkpoint_files(files)
    if config.get("model_type") != "llama" or config.get("attention_bias") or config.get("mlp_bias"):
        raise ValueError(f"{files} is no Llama without biases; only a converted InternLM2 can be turned back")
    check_sizes(config)
    made = internlm2_config(config)
    check_tensors(_shapes_of(paths), llama_shapes(config), "Llama")
    write_shards(_as_internlm2(tensors_in(paths), config), folder)
    write_json(folder / "config.json", made)


def _as_internlm2(
    tensors: Iterator[tuple[str, torch.Tensor]], config: dict[str, Any]
) -> Iterator[tuple[str, torch.Tensor]]:
    heads, waiting = heads_of(config), dict[str, dict[str, torch.Tensor]]()
    modules = [name.removesuffix(".weight") for name in tensor_shapes(config)]
    names = {llama_module(module): module for module in modules if FUSED not in module}
    for name, tensor in tensors:
        module, _, kind = name.rpartition(".")
        parent, _, part = module.partition(".self_attn.")
        if f"self_attn.{part}" in SPLIT:
            parts = waiting.setdefault(parent, {})
            parts[f"self_attn.{part}"] = tensor
            if len(parts) == len(SPLIT):
                q, k, v = (parts[key] for key in SPLIT)
                del waiting[parent]
                yield f"{parent}.{FUSED}.{kind}", join_wqkv(q, k, v, heads)
        elif BUFFER not in name:
            yield f"{names[module]}.{kind}", tensor
