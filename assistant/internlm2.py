"""InternLM2's weights and config in Llama's names, and back. Knows nothing of tokenizers or downloads.

Sources: InternLM's tools/convert2llama.py and its modeling_internlm2.py (layout of wqkv).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from assistant.folders import read_json, write_json
from assistant.tensors import checkpoint_files, shapes_in, tensors_in, write_shards

FROM_LAYER = {
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
FROM_MODEL = {"model.tok_embeddings": "model.embed_tokens", "model.norm": "model.norm", "output": "lm_head"}
FUSED, SPLIT = "attention.wqkv", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
BUFFER = "rotary_emb.inv_freq"  # some early files store it; it follows from the config
SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "max_position_embeddings", "rms_norm_eps",
)  # fmt: skip
KEPT = (*SIZES, "hidden_act", "initializer_range", "bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class Heads:
    """`query` and `key_value` heads of `size` rows each."""

    query: int
    key_value: int
    size: int

    @property
    def group(self) -> int:
        """Query heads that share one key and one value head."""
        return self.query // self.key_value


def heads_of(config: dict[str, Any]) -> Heads:
    """Of an InternLM2 or a Llama config."""
    query = config["num_attention_heads"]
    size = config.get("head_dim") or config["hidden_size"] // query
    return Heads(query, config.get("num_key_value_heads") or query, size)


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


def llama_module(name: str) -> str | None:
    """Llama's name of an InternLM2 module (`model.layers.0.feed_forward.w1`); None for wqkv and others."""
    if found := re.fullmatch(r"(model\.layers\.\d+)\.(.+)", name):
        return f"{found[1]}.{FROM_LAYER[found[2]]}" if found[2] in FROM_LAYER else None
    return FROM_MODEL.get(name)


def llama_config(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """LlamaConfig's fields for an InternLM2 config. Raises ValueError for a model that is no InternLM2."""
    _check_config(config)
    heads = heads_of(config)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **{key: config[key] for key in KEPT if key in config},
        "num_key_value_heads": heads.key_value,
        "head_dim": heads.size,
        "rope_parameters": _rope_parameters(config),
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
        "use_cache": True,
        "dtype": dtype,
    }


def _check_config(config: dict[str, Any]) -> None:
    if lacking := [key for key in SIZES if key not in config]:
        raise ValueError(f"config.json lacks {', '.join(lacking)}; fetch the model again")
    if config.get("bias"):
        raise ValueError(
            "config.json says bias: true, which no InternLM2 has (an InternLM 1?); give an InternLM2"
        )
    if "Reward" in "".join(config.get("architectures") or ()):
        raise ValueError("this is InternLM2's reward model, which cannot chat; take internlm2-chat-1_8b")
    if config["num_attention_heads"] % heads_of(config).key_value:
        raise ValueError("config.json: num_attention_heads must be a multiple of num_key_value_heads")
    _rope_parameters(config)


def _rope_parameters(config: dict[str, Any]) -> dict[str, Any]:
    scaling, theta = config.get("rope_scaling"), float(config.get("rope_theta", 10_000))
    if scaling is None:
        return {"rope_type": "default", "rope_theta": theta}
    kind = scaling.get("type") or scaling.get("rope_type")
    factor = scaling.get("factor")
    if kind not in ("dynamic", "linear") or not isinstance(factor, int | float) or factor < 1:
        raise ValueError(
            f"config.json: rope_scaling {scaling} must be null, dynamic or linear, with a factor"
        )
    return {"rope_type": kind, "factor": float(factor), "rope_theta": theta}


def internlm2_config(config: dict[str, Any]) -> dict[str, Any]:
    """The InternLM2 config of a Llama one that llama_config made; remote code is named by its repository."""
    rope = config.get("rope_parameters") or {}
    kind = rope.get("rope_type", "default")
    code = "internlm/internlm2-chat-1_8b--{}"
    return {
        "architectures": ["InternLM2ForCausalLM"],
        "auto_map": {
            "AutoConfig": code.format("configuration_internlm2.InternLM2Config"),
            "AutoModelForCausalLM": code.format("modeling_internlm2.InternLM2ForCausalLM"),
        },
        "model_type": "internlm2",
        "bias": False,
        **{key: config[key] for key in KEPT if key in config},
        "num_key_value_heads": heads_of(config).key_value,
        "rope_scaling": None if kind == "default" else {"type": kind, "factor": rope["factor"]},
        "rope_theta": rope.get("rope_theta", config.get("rope_theta")),
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
        "torch_dtype": config.get("dtype") or config.get("torch_dtype"),
    }


def tensor_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of an InternLM2 with its shape, from its config."""
    heads, hidden, inner = heads_of(config), config["hidden_size"], config["intermediate_size"]
    layer = {
        f"{FUSED}.weight": ((heads.query + 2 * heads.key_value) * heads.size, hidden),
        "attention.wo.weight": (hidden, heads.query * heads.size),
        "feed_forward.w1.weight": (inner, hidden),
        "feed_forward.w3.weight": (inner, hidden),
        "feed_forward.w2.weight": (hidden, inner),
        "attention_norm.weight": (hidden,),
        "ffn_norm.weight": (hidden,),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "model.tok_embeddings.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    if not config.get("tie_word_embeddings"):
        shapes["output.weight"] = (config["vocab_size"], hidden)
    for number in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{number}.{name}": shape for name, shape in layer.items()}
    return shapes


def check_tensors(found: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]) -> None:
    """Raises ValueError naming the first tensor that is missing, unknown or of another shape."""
    if missing := [name for name in wanted if name not in found]:
        more = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        first = f"{missing[0]} {list(wanted[missing[0]])}"
        raise ValueError(f"the weights lack {first}{more}; fetch the model again")
    for name, shape in found.items():
        if name not in wanted:
            raise ValueError(f"the weights hold {name} {list(shape)}, which no InternLM2 of this config has")
        if shape != wanted[name]:
            raise ValueError(
                f"{name} is {list(shape)} and config.json makes it {list(wanted[name])}; "
                "the weights and the config are of different models"
            )


def to_llama(files: Path, folder: Path) -> None:
    """Write the weights and config of the InternLM2 in `files` as a Llama into `folder`.

    One tensor after the other: memory stays below the largest file and two written shards. Raises ValueError
    for files that are no InternLM2, damaged, or not of their config.
    """
    config = read_json(files / "config.json")
    _check_config(config)
    heads, paths = heads_of(config), checkpoint_files(files)
    shapes = {name: shape for path in paths for name, shape in shapes_in(path).items() if BUFFER not in name}
    check_tensors(shapes, tensor_shapes(config))

    def renamed() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in tensors_in(paths):
            module, _, kind = name.rpartition(".")
            if module.endswith(FUSED):
                parent = module.removesuffix(FUSED)
                for part, rows in zip(SPLIT, split_wqkv(tensor, heads), strict=True):
                    yield f"{parent}{part}.{kind}", rows
            elif BUFFER not in name:
                yield f"{llama_module(module)}.{kind}", tensor

    dtype = write_shards(renamed(), folder)
    write_json(folder / "config.json", llama_config(config, dtype))


def to_internlm2(files: Path, folder: Path) -> None:
    """The inverse of to_llama: the same tensors as before, byte for byte.

    Raises ValueError when `files` is no Llama that could be an InternLM2.
    """
    config = read_json(files / "config.json")
    if config.get("model_type") != "llama" or config.get("attention_bias") or config.get("mlp_bias"):
        raise ValueError(f"{files} is no Llama without biases; only a converted InternLM2 can be turned back")
    heads, names = heads_of(config), {str(llama_module(name)): name for name in _modules(config)}

    def renamed() -> Iterator[tuple[str, torch.Tensor]]:
        waiting: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors_in(checkpoint_files(files)):
            module, _, kind = name.rpartition(".")
            parent, _, part = module.partition(".self_attn.")
            if f"self_attn.{part}" not in SPLIT:
                yield f"{names[module]}.{kind}", tensor
                continue
            parts = waiting.setdefault(parent, {})
            parts[f"self_attn.{part}"] = tensor
            if len(parts) == len(SPLIT):
                q, k, v = (parts[key] for key in SPLIT)
                del waiting[parent]
                yield f"{parent}.{FUSED}.{kind}", join_wqkv(q, k, v, heads)

    write_shards(renamed(), folder)
    write_json(folder / "config.json", internlm2_config(config))


def _modules(config: dict[str, Any]) -> list[str]:
    return [name.removesuffix(".weight") for name in tensor_shapes(config) if FUSED not in name]
