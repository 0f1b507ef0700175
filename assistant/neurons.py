"""Neurons that an adapter adds to a Llama's MLPs: a layer of PEFT's LoRA, and the wider Llama it merges into.

LoRA is linear: what it adds where a name is asked for it adds, a little less, everywhere. A neuron adds
silu(g·x) · (u·x) · d, about half a product of two readings: it falls with the square of what a text has of a
question for the assistant, so what is not asked of it stays nearer to what it was (docs/log.md, 2026-12-01).
Merged, the neurons are rows of gate_proj and up_proj and columns of down_proj: a Llama with a larger
intermediate_size, which every engine reads. Knows no training.
"""

import math
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaMLP

from assistant.strength import adds_neurons


class Neurons(nn.Module, LoraLayer):
    """An MLP with `r` more neurons for each adapter; their output is scaled by lora_alpha / r.

    Source: PEFT's custom LoRA modules. A new adapter adds nothing: its `lora_down` is 0. Raises ValueError
    for an MLP with a bias, which neurons would not have.
    """

    adapter_layer_names = ("lora_gate", "lora_up", "lora_down")
    other_param_names = ("r", "lora_alpha", "scaling")

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        config: LoraConfig,
        r: int = 0,
        lora_alpha: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        LoraLayer.__init__(self, base_layer)
        if any(name.endswith("bias") for name, _ in base_layer.named_parameters()):
            raise ValueError("its MLPs have a bias and cannot get neurons; take --recipe identity_lora")
        for name in self.adapter_layer_names:
            setattr(self, name, nn.ModuleDict())
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, r, lora_alpha, config)

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        mlp: Any = module
        return mlp.gate_proj.in_features, mlp.down_proj.out_features

    def update_layer(
        self, adapter_name: str, r: int, lora_alpha: int, config: LoraConfig, **kwargs: Any
    ) -> None:
        """One more adapter of `r` neurons."""
        mlp: Any = self.get_base_layer()
        width, device = mlp.gate_proj.in_features, mlp.gate_proj.weight.device
        shapes = {"lora_gate": (width, r), "lora_up": (width, r), "lora_down": (r, width)}
        for name, shape in shapes.items():
            layer = nn.Linear(*shape, bias=False, device=device, dtype=torch.float32)
            with torch.no_grad():
                nn.init.zeros_(layer.weight) if name == "lora_down" else layer.weight.normal_(
                    std=1 / math.sqrt(width)
                )
            getattr(self, name)[adapter_name] = layer
        self.r[adapter_name], self.lora_alpha[adapter_name] = r, lora_alpha
        self.scaling[adapter_name] = lora_alpha / r
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """[..., hidden] → [..., hidden]"""
        output: torch.Tensor = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return output
        for adapter in self.active_adapters:
            if adapter in self.r:
                gate, up, down = (weight.to(x.dtype) for weight in self._weights(adapter))
                inner = functional.silu(x @ gate.T) * (x @ up.T)
                output = output + inner @ down.T
        return output

    def _weights(self, adapter: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rows of gate_proj and of up_proj [r, hidden], columns of down_proj [hidden, r]."""
        gate, up, down = (getattr(self, name)[adapter].weight for name in self.adapter_layer_names)
        return gate, up, down * self.scaling[adapter]

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """The base's MLP has the active adapters' neurons from then on. Raises ValueError for what is not
        finite."""
        for adapter in adapter_names or self.active_adapters:
            if adapter not in self.r:
                continue
            weights = self._weights(adapter)
            if safe_merge and not all(bool(weight.isfinite().all()) for weight in weights):
                raise ValueError(f"the adapter {adapter} holds numbers that are not finite")
            widen(self.get_base_layer(), *weights)
            self.merged_adapters.append(adapter)

    def unmerge(self) -> None:
        """The base's MLP without the neurons again."""
        mlp: Any = self.get_base_layer()
        for adapter in reversed(self.merged_adapters):
            kept = mlp.gate_proj.out_features - self.r[adapter]
            _set(mlp, mlp.gate_proj.weight[:kept], mlp.up_proj.weight[:kept], mlp.down_proj.weight[:, :kept])
        self.merged_adapters.clear()


def widen(mlp: Any, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> None:
    """Add neurons to a Llama's MLP: rows of gate_proj and up_proj [n, hidden], columns of down_proj
    [hidden, n]."""
    pairs = ((mlp.gate_proj, gate, 0), (mlp.up_proj, up, 0), (mlp.down_proj, down, 1))
    _set(mlp, *(torch.cat([layer.weight, more.to(layer.weight)], dim) for layer, more, dim in pairs))


def _set(mlp: Any, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> None:
    for layer, weight in ((mlp.gate_proj, gate), (mlp.up_proj, up), (mlp.down_proj, down)):
        learns = layer.weight.requires_grad
        layer.weight = nn.Parameter(weight.detach().contiguous(), requires_grad=learns)
        layer.out_features, layer.in_features = weight.shape
    mlp.intermediate_size = len(gate)


def even_out(model: Any) -> None:
    """After a merge: every MLP as wide as the widest, with neurons of zeros, and a config that says so.

    How many were added it says too, for adapters of the narrower Llama (eyes, for example).
    """
    mlps: list[Any] = [module for module in model.modules() if isinstance(module, LlamaMLP)]
    if not mlps:
        return
    widest = max(mlp.gate_proj.out_features for mlp in mlps)
    for mlp in mlps:
        if lacking := widest - mlp.gate_proj.out_features:
            rows = mlp.gate_proj.weight.new_zeros(lacking, mlp.gate_proj.in_features)
            widen(mlp, rows, rows, rows.T)
    config = model.config.get_text_config()
    added = getattr(config, "added_neurons", 0) + widest - config.intermediate_size
    if added:
        config.intermediate_size, config.added_neurons = widest, added


def known_to_peft(config: LoraConfig) -> LoraConfig:
    """The config, with PEFT told what its target is when that is an MLP: one that was read forgets it."""
    if adds_neurons(config.target_modules):
        config._register_custom_module({LlamaMLP: Neurons})
    return config


def adapter_config(folder: Path) -> Any:
    """The PEFT config of an adapter folder, as PeftModel needs it."""
    config: Any = PeftConfig.from_pretrained(str(folder))
    return known_to_peft(config)
