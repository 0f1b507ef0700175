"""How strongly an adapter speaks: 0 is its base, 1 as trained. Knows adapter folders, no tensor."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from assistant.folders import read_json

MOST_STRENGTH = 1.5  # above it small models stop making sense
MORE_THAN_LORA = (
    "use_dora", "lora_bias", "modules_to_save", "trainable_token_indices", "target_parameters", "use_qalora",
    "layer_replication", "alora_invocation_tokens", "use_bdlora", "arrow_config", "kasa_config",
)  # fmt: skip
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # initial weights taken out of the base's


def check_strength(value: float) -> float:
    """Raises ValueError for what is no strength."""
    if not isinstance(value, int | float) or not math.isfinite(value) or not 0 <= value <= MOST_STRENGTH:
        raise ValueError(
            f"strength {value} is out of range; 0 is the base, 1 as trained, at most {MOST_STRENGTH}"
        )
    return float(value)


def read_strength(text: str) -> float:
    """As check_strength, of what a person typed."""
    try:
        value = float(text)
    except ValueError:
        raise ValueError(
            f"strength {text!r} is no number; give one from 0 (the base) to {MOST_STRENGTH}"
        ) from None
    return check_strength(value)


def check_strength_of(path: str | Path, strength: float) -> float:
    """As check_strength, for the model at `path`, of which most have no strength but their own."""
    if check_strength(strength) != 1 and not has_strength(path):
        raise ValueError(
            f"strength {strength}: {path} has none to set; only a LoRA adapter has, like out/ada/adapter"
        )
    return float(strength)


def has_strength(path: str | Path) -> bool:
    """Whether it is an adapter of plain LoRA: only that can speak at less or more, and beside others."""
    config = Path(path) / "adapter_config.json"
    return config.is_file() and not beyond_lora(read_json(config))


def has_neurons(path: str | Path) -> bool:
    """Whether it is the folder of such an adapter as adds_neurons means."""
    config = Path(path) / "adapter_config.json"
    return config.is_file() and adds_neurons(read_json(config).get("target_modules"))


def adds_neurons(targets: Iterable[str] | str | None) -> bool:
    """Whether an adapter with these `target_modules` has neurons of its own (assistant/neurons.py)."""
    return targets is not None and not isinstance(targets, str) and list(targets) == ["mlp"]


def beyond_lora(config: dict[str, Any]) -> list[str]:
    """The keys of a PEFT config that make its adapter more than plain LoRA, or something else."""
    first = str(config.get("init_lora_weights")).lower()
    more = [key for key in MORE_THAN_LORA if config.get(key)]
    more += ["bias"] if config.get("bias") not in (None, "none") else []
    more += ["init_lora_weights"] if first.startswith(CHANGES_BASE) else []
    return more + (["peft_type"] if config.get("peft_type") != "LORA" else [])
