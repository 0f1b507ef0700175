"""What an adapter begins with: nothing, or what data/start holds for its base.

A start has learnt which questions are asked of the assistant itself, from many assistants' rows at once
(benchmarks/identity_start.py); whose it is, is left to learn.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file

from assistant.folders import read_json
from assistant.training.recipe import start_of


def start_for(base: Path) -> Path:
    """The start of a base. Raises ValueError when it has none."""
    if folder := start_of(base):
        return folder
    raise ValueError(
        f"data/start holds nothing for {base.name}; take --recipe identity_lora, or --set start=0"
    )


def begin_with(model: Any, folder: Path, say: Callable[[str], None], *, is_asked: bool = False) -> None:
    """Give a new PEFT model the adapter in `folder`; one of another shape is left out, which is said.

    With `is_asked`, for a folder that somebody named, that is a ValueError.
    """
    config, weights = (
        read_json(folder / "adapter_config.json"),
        load_file(folder / "adapter_model.safetensors"),
    )
    new, own = model.peft_config["default"], get_peft_model_state_dict(model)
    fits = {name: tensor.shape for name, tensor in weights.items()} == {
        name: tensor.shape for name, tensor in own.items()
    }
    if not fits or config["lora_alpha"] != new.lora_alpha:
        other = f"{folder} is of another LoRA than this recipe's"
        if is_asked:
            raise ValueError(f"{other}; give --start an adapter that was trained with the same [lora]")
        say(f"{other} and is left out: the adapter begins with nothing")
        return
    set_peft_model_state_dict(model, {name: tensor.float() for name, tensor in weights.items()})
    say(f"the adapter begins with {folder}")
