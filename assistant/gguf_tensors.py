"""The weights of a Llama in a GGUF file: each tensor's place, its ggml type, its bytes.

Source: llama.cpp's llama-quant.cpp (which tensor gets more bits). Knows no file, no config but its sizes.
"""

import re
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from assistant.internlm2_config import heads_of

GgufType = Literal["f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q5_0", "q4_1", "q4_0"]
HEAD = ("output.weight", "token_embd.weight")
MOST_F16 = 65504.0  # more becomes infinite
FALLBACK = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}  # for rows that are no multiple of 256


@dataclass(frozen=True)
class Tensor:
    """Where a tensor of the folder goes: its name, shape [rows, columns] and ggml type in the file."""

    name: str
    shape: tuple[int, ...]
    kind: Any
    heads: int = 0
    """Above 0 for q and k, whose rows llama.cpp wants pair by pair."""


def plan_tensors(
    shapes: dict[str, tuple[int, ...]], config: dict[str, Any], kind: GgufType
) -> dict[str, Tensor]:
    """What becomes of each tensor of the folder. Raises ValueError for one that no Llama has."""
    from gguf import MODEL_ARCH, get_tensor_name_map

    layers, tied = config["num_hidden_layers"], bool(config.get("tie_word_embeddings"))
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, layers)
    permuted = {"q_proj": heads_of(config).query, "k_proj": heads_of(config).key_value}
    plan = {}
    for name, shape in shapes.items():
        if name.endswith("rotary_emb.inv_freq") or (tied and name == "lm_head.weight"):
            continue
        if not (new := names.get_name(name, try_suffixes=(".weight",))):
            raise ValueError(f"the weights hold {name}, which no Llama has; fetch the model again")
        heads = permuted.get(name.split(".")[-2], 0)
        plan[name] = Tensor(new, shape, tensor_type(new, shape, kind, layers, tied), heads)
    return plan


def tensor_type(name: str, shape: tuple[int, ...], kind: GgufType, layers: int, tied: bool) -> Any:
    """The ggml type of one tensor: norms stay float32, the head and _M types' weak spots get more bits."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    wanted = kind.upper().removesuffix("_M")
    if len(shape) == 1:
        wanted = "F32"
    elif name == HEAD[tied] and wanted.endswith("_K"):
        wanted = "Q6_K"
    elif name == HEAD[tied] and wanted.startswith("Q"):
        wanted = "Q8_0"
    elif kind.endswith("_m") and re.search(r"attn_v|ffn_down", name):
        wanted = "Q6_K" if _gets_more_bits(int(name.split(".")[1]), layers) else wanted
    for candidate in (wanted, FALLBACK.get(wanted, "F16"), "F16"):
        block = GGML_QUANT_SIZES[GGMLQuantizationType[candidate]][0]
        if shape[-1] % block == 0:
            break
    return GGMLQuantizationType[candidate]


def _gets_more_bits(layer: int, layers: int) -> bool:
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def size_of(tensor: Tensor) -> int:
    from gguf import GGML_QUANT_SIZES

    block, block_bytes = GGML_QUANT_SIZES[tensor.kind]
    return prod(tensor.shape) // block * block_bytes


def stored_shape(tensor: Tensor) -> tuple[int, ...]:
    """As GGUFWriter wants it: the last dimension in bytes for types that numpy does not have."""
    if tensor.kind.name in ("F32", "F16"):
        return tensor.shape
    return (*tensor.shape[:-1], size_of(tensor) // prod(tensor.shape[:-1]))


def encoded(tensor: Tensor, weights: Any) -> Any:
    """A torch tensor as the bytes of its ggml type: gguf's own quantizers, llama.cpp's for the K types.

    Raises ValueError for numbers that the type cannot hold.
    """
    from gguf import quants

    rows = weights.float().numpy()
    if tensor.heads:
        rows = permute(rows, tensor.heads)
    if tensor.kind.name == "F16" and not (abs(rows) <= MOST_F16).all():
        raise ValueError(f"{tensor.name} holds numbers that 16 bits do not; take --type bf16 or f32")
    try:
        return quants.quantize(rows, tensor.kind)
    except NotImplementedError:
        from assistant.llama_cpp import quantize_rows

        return quantize_rows(rows, int(tensor.kind), stored_shape(tensor)[-1])


def permute(rows: Any, heads: int) -> Any:
    """Rows of q or k [heads * size, columns]: halves of a head side by side → llama.cpp's pairs."""
    return rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)
