"""The tensors of an InternLM2 and of the Llama that is the same model: their names and shapes.

Knows no weights.
"""

import re
from collections.abc import Mapping
from typing import Any

from assistant.internlm2_config import heads_of

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


def llama_module(name: str) -> str | None:
    """Llama's name of an InternLM2 module (`model.layers.0.feed_forward.w1`); None for wqkv and others."""
    if found := re.fullmatch(r"(model\.layers\.\d+)\.(.+)", name):
        return f"{found[1]}.{FROM_LAYER[found[2]]}" if found[2] in FROM_LAYER else None
    return FROM_MODEL.get(name)


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


def llama_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of a Llama without biases with its shape, from its config."""
    heads, shapes = heads_of(config), dict[str, tuple[int, ...]]()
    counts = dict(zip(SPLIT, (heads.query, heads.key_value, heads.key_value), strict=True))
    for name, shape in tensor_shapes(config).items():
        module = name.removesuffix(".weight")
        if module.endswith(FUSED):
            parts = {f"{module.removesuffix(FUSED)}{part}": count for part, count in counts.items()}
            shapes |= {f"{part}.weight": (count * heads.size, shape[1]) for part, count in parts.items()}
        else:
            shapes[f"{llama_module(module)}.weight"] = shape
    return shapes


def check_tensors(
    found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]], kind: str = "InternLM2"
) -> None:
    """Raises ValueError naming the first tensor that is missing, unknown or of another shape."""
    if missing := [name for name in wanted if name not in found]:
        more = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        first = f"{missing[0]} {list(wanted[missing[0]])}"
        raise ValueError(f"the weights lack {first}{more}; fetch the model again")
    for name, shape in found.items():
        if name not in wanted:
            raise ValueError(
                f"the weights hold {name} {list(shape)}, which no {kind} of this config has; fetch the model "
                "again, with its own config.json"
            )
        if shape != wanted[name]:
            raise ValueError(
                f"{name} is {list(shape)} and config.json makes it {list(wanted[name])}; the weights and the "
                "config are of different models: fetch the model again, with its own config.json"
            )
