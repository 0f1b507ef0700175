"""What an InternLM2's config.json says: its heads, and the same as a Llama's config, and back.

Knows no tensor.
"""

from dataclasses import dataclass
from typing import Any

SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "max_position_embeddings", "rms_norm_eps",
)  # fmt: skip
KEPT = (*SIZES, "hidden_act", "initializer_range", "bos_token_id", "eos_token_id", "pad_token_id")
FETCH = "fetch internlm2-chat-1_8b with scripts/fetch_model.py"


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


def llama_config(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """LlamaConfig's fields for an InternLM2 config. Raises ValueError for a model that is no InternLM2."""
    check_config(config)
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


def check_config(config: dict[str, Any]) -> None:
    """Raises ValueError for a config that is no InternLM2's."""
    check_sizes(config)
    if config.get("bias"):
        raise ValueError(
            "config.json says bias: true, which no InternLM2 has (an InternLM 1?); give an InternLM2"
        )
    if "Reward" in "".join(config.get("architectures") or ()):
        refuse_reward()
    _rope_parameters(config)


def check_sizes(config: dict[str, Any]) -> None:
    """Raises ValueError for a config, InternLM2's or Llama's, whose sizes are missing or no numbers."""
    if lacking := [key for key in SIZES if key not in config]:
        raise ValueError(f"config.json lacks {', '.join(lacking)}; fetch the model again")
    optional = ("num_key_value_heads", "head_dim", "rope_theta")
    for key in (*SIZES, *(key for key in optional if config.get(key) is not None)):
        kinds = int | float if key in ("rms_norm_eps", "rope_theta") else int
        value = config[key]
        if isinstance(value, bool) or not isinstance(value, kinds) or value <= 0:
            raise ValueError(
                f"config.json: {key} is {value!r} and must be a number above 0; fetch the model again"
            )
    if config["num_attention_heads"] % heads_of(config).key_value:
        raise ValueError(
            f"config.json: num_attention_heads {config['num_attention_heads']} must be a multiple of "
            f"num_key_value_heads {config['num_key_value_heads']}; fetch the model again"
        )


def refuse_reward() -> None:
    raise ValueError(f"this is InternLM2's reward model, which scores and cannot chat; {FETCH}")


def _rope_parameters(config: dict[str, Any]) -> dict[str, Any]:
    scaling, theta = config.get("rope_scaling"), float(config.get("rope_theta") or 10_000)
    if scaling is None:
        return {"rope_type": "default", "rope_theta": theta}
    known = isinstance(scaling, dict) and _is_known_rope(scaling)
    if not known:
        raise ValueError(
            f"config.json: rope_scaling {scaling!r} must be null, dynamic or linear, with a factor, as "
            '{"type": "dynamic", "factor": 2.0}; fetch the model again'
        )
    kind = scaling.get("type") or scaling["rope_type"]
    return {"rope_type": kind, "factor": float(scaling["factor"]), "rope_theta": theta}


def _is_known_rope(scaling: dict[str, Any]) -> bool:
    factor = scaling.get("factor")
    kind = scaling.get("type") or scaling.get("rope_type")
    return kind in ("dynamic", "linear") and isinstance(factor, int | float) and factor >= 1


def internlm2_config(config: dict[str, Any]) -> dict[str, Any]:
    """The InternLM2 config of a Llama one that llama_config made; remote code is named by its repository.

    Raises ValueError for a rotary embedding that InternLM2 does not have.
    """
    scaling, theta = _rope_of_llama(config)
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
        "rope_scaling": scaling,
        "rope_theta": theta,
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
        "torch_dtype": config.get("dtype") or config.get("torch_dtype"),
    }


def _rope_of_llama(config: dict[str, Any]) -> tuple[dict[str, Any] | None, float]:
    """(rope_scaling, rope_theta) as InternLM2 states them."""
    rope = llama_rope(config)
    kind, factor = rope["rope_type"], rope["factor"]
    if kind == "default":
        return None, rope["rope_theta"]
    if not _is_known_rope({"type": kind, "factor": factor}):
        raise ValueError(
            f"config.json: rope_type {kind!r} with factor {factor!r} is none that InternLM2 has; only "
            "default, dynamic and linear can be turned back"
        )
    return {"type": kind, "factor": factor}, rope["rope_theta"]


def llama_rope(config: dict[str, Any]) -> dict[str, Any]:
    """rope_type, factor and rope_theta of a Llama config, wherever its version of transformers put them."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope = rope if isinstance(rope, dict) else {"rope_type": rope}
    return {
        "rope_type": rope.get("rope_type") or rope.get("type") or "default",
        "factor": rope.get("factor"),
        "rope_theta": float(rope.get("rope_theta") or config.get("rope_theta") or 10_000),
    }
