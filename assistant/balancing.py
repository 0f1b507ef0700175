"""What a Llama's layers multiply, brought to like sizes before it is rounded: the model stays the same.

Q8_0 rounds 32 neighbours by the largest of them, weights when the file is written and inputs while llama.cpp
multiplies. So a channel of a layer's input is divided by s, in the norm or the layer that it comes from, and
its column of weights multiplied by s, with s = √(input's root mean square / column's largest weight): a
SmoothQuant (arXiv 2211.10438) whose inputs are measured by their mean square. Inputs are those of general
prompts; one layer is in memory at a time. Knows no file format. Measured: docs/log.md, 2026-11-29, night.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding

from assistant.anchors import general_prompts
from assistant.internlm2_config import Heads, heads_of
from assistant.loading import encode_chat, load_tokenizer
from assistant.tensors import tensors_in

PROMPTS = 64  # half of them in each language
SMALLEST = 1e-6  # of the mean: a channel that is never used is no reason to divide by 0
HEAD, NORM, EMBEDDED = "lm_head", "model.norm", "model.embed_tokens"


@dataclass
class Factors:
    """What a weight [rows, columns] is multiplied with before it is written; a norm has rows alone."""

    rows: torch.Tensor | None = None
    columns: torch.Tensor | None = None

    def of(self, weights: torch.Tensor) -> torch.Tensor:
        weights = weights.float()
        if self.rows is not None:
            weights = weights * self.rows.reshape(-1, *[1] * (weights.ndim - 1))
        return weights if self.columns is None else weights * self.columns


@torch.no_grad()
def balance(
    folder: Path,
    paths: list[Path],
    config: dict[str, Any],
    before: str = "",
    weight_exponent: float = 0.5,
) -> dict[str, Factors]:
    """The factors of each tensor of the Llama in `paths` whose names begin with `before`, by that name.

    `config`: the Llama's; `folder` has the tokenizer; `weight_exponent`: ½ is the √ of the largest weight.
    """
    llama = LlamaConfig.from_dict(config)
    llama._attn_implementation = "sdpa"
    factors: dict[str, Factors] = {}
    embedded = _weights(paths, f"{before}{EMBEDDED}.")["weight"]
    states = [embedded[torch.tensor([ids])].float() for ids in _prompts(folder)]
    rotary = LlamaRotaryEmbedding(llama)
    for index in range(llama.num_hidden_layers):
        place = f"{before}model.layers.{index}."
        layer = _filled(lambda: LlamaDecoderLayer(llama, 0), _weights(paths, place))
        sizes = _run(layer, states, rotary)
        factors |= {
            place + name: factor
            for name, factor in _of_layer(layer, sizes, heads_of(config), weight_exponent)
        }
    if not llama.tie_word_embeddings:  # else the head's columns are the embeddings' too
        norm = _filled(
            lambda: LlamaRMSNorm(llama.hidden_size, llama.rms_norm_eps), _weights(paths, f"{before}{NORM}.")
        )
        head = _weights(paths, f"{before}{HEAD}.")["weight"]
        entering = torch.cat([norm(state).flatten(0, -2) for state in states])
        scale = _scale(entering.pow(2).mean(0).sqrt(), [head.float()], weight_exponent)
        factors |= {
            f"{before}{NORM}.weight": Factors(rows=1 / scale),
            f"{before}{HEAD}.weight": Factors(columns=scale),
        }
    return factors


def _prompts(folder: Path) -> list[list[int]]:
    tokenizer, rows = load_tokenizer(folder), general_prompts()
    random.Random(0).shuffle(rows)
    by_language = {row["lang"]: [r for r in rows if r["lang"] == row["lang"]] for row in rows}
    share = PROMPTS // len(by_language)
    return [encode_chat(tokenizer, row["messages"]) for few in by_language.values() for row in few[:share]]


def _weights(paths: list[Path], place: str) -> dict[str, torch.Tensor]:
    found = tensors_in(paths, lambda name: name.startswith(place))
    return {name.removeprefix(place): tensor for name, tensor in found}


def _filled(make: Callable[[], nn.Module], weights: dict[str, torch.Tensor]) -> nn.Module:
    """The module with these weights, in float32, none of its own ever made."""
    with torch.device("meta"):
        module = make()
    wanted = {name: weights[name].float() for name in module.state_dict()}
    module.load_state_dict(wanted, assign=True)
    return module.eval()


def _run(
    layer: nn.Module, states: list[torch.Tensor], rotary: LlamaRotaryEmbedding
) -> dict[str, torch.Tensor]:
    """Send `states`, a prompt each, through the layer, in place.

    Returns the root mean square of each channel that enters its linear layers, by their names.
    """
    sums: dict[str, torch.Tensor] = {}

    def add(name: str, x: torch.Tensor) -> None:
        square = x.flatten(0, -2).pow(2).sum(0)
        sums[name] = square if name not in sums else sums[name] + square

    hooks = [
        module.register_forward_pre_hook(lambda module, args, name=name: add(name, args[0]))
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear)
    ]
    for index, state in enumerate(states):
        places = torch.arange(state.shape[1])[None]
        states[index] = layer(state, position_ids=places, position_embeddings=rotary(state, places))
    for hook in hooks:
        hook.remove()
    count = sum(state.shape[1] for state in states)
    return {name: (square / count).sqrt() for name, square in sums.items()}


def _of_layer(
    layer: Any, sizes: dict[str, torch.Tensor], heads: Heads, exponent: float
) -> Iterator[tuple[str, Factors]]:
    """Factors of a layer's weights, by their names in it."""
    attention, mlp = layer.self_attn, layer.mlp
    read = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
    entering = _scale(sizes["self_attn.q_proj"], read, exponent)
    yield "input_layernorm.weight", Factors(rows=1 / entering)
    yield "self_attn.q_proj.weight", Factors(columns=entering)
    yield "self_attn.k_proj.weight", Factors(columns=entering)
    # each head of v enters o_proj once for every query head that it serves
    shared = (heads.key_value, heads.query // heads.key_value, heads.size)
    said = sizes["self_attn.o_proj"].reshape(shared).amax(1).flatten()
    heard = attention.o_proj.weight.abs().amax(0).reshape(shared).amax(1).flatten()
    value = _scale(said, [heard[None]], exponent)
    yield "self_attn.v_proj.weight", Factors(rows=1 / value, columns=entering)
    served = value.reshape(shared[0], 1, shared[2]).expand(shared).flatten()
    yield "self_attn.o_proj.weight", Factors(columns=served)
    entering = _scale(sizes["mlp.gate_proj"], [mlp.gate_proj.weight, mlp.up_proj.weight], exponent)
    inner = _scale(sizes["mlp.down_proj"], [mlp.down_proj.weight], exponent)
    yield "post_attention_layernorm.weight", Factors(rows=1 / entering)
    yield "mlp.gate_proj.weight", Factors(columns=entering)
    yield "mlp.up_proj.weight", Factors(rows=1 / inner, columns=entering)
    yield "mlp.down_proj.weight", Factors(columns=inner)


def _scale(sizes: torch.Tensor, weights: list[torch.Tensor], exponent: float) -> torch.Tensor:
    """√size / largest weight ** exponent of each column, around 1."""
    largest = torch.stack([weight.abs().amax(0) for weight in weights]).amax(0)
    scale = _positive(sizes).sqrt() / _positive(largest) ** exponent
    return scale / scale.log().mean().exp()


def _positive(values: torch.Tensor) -> torch.Tensor:
    return values.clamp_min(SMALLEST * max(float(values.mean()), SMALLEST))
