"""XTuner's checkpoints, a .pth or the folder DeepSpeed makes in its place: their weights, their LLM's LoRA.

What an adapter becomes, assistant/adapters.py knows; nothing here knows a projector or a vision adapter.
"""

from pathlib import Path
from typing import Any

import torch

from assistant.adapter_folders import write_llama_adapter
from assistant.adapters import adapter_from_halves
from assistant.tensors import read_pickled

XTUNER_ALPHAS = {64: 16, 512: 256}  # rank → alpha: XTuner's QLoRA recipes for text, and for LLaVA
LOG_OBJECTS = (
    "mmengine.logging.history_buffer.HistoryBuffer", "builtins.getattr", "numpy.ndarray", "numpy.dtype",
    "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar",
)  # fmt: skip


class _Unread:
    """Stands in for the objects of a training log: keeps nothing, does nothing."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


def import_pth(
    path: Path, out: Path, base: Path, alpha: float | None = None, settings: dict[str, Any] | None = None
) -> list[str]:
    """Write the LLM's LoRA of an XTuner checkpoint (see read_pth) as an adapter for the Llama in `base`.

    A checkpoint does not say its alpha: None takes that of XTuner's recipe of the same rank. Returns
    sentences on what was assumed and left out. Raises ValueError for no such LoRA or no known alpha.
    """
    tensors, notes = read_pth(path), []
    halves = {
        name.removeprefix("llm."): tensor for name, tensor in tensors.items() if name.startswith("llm.")
    }
    if not halves:
        kinds = ", ".join(sorted({name.partition(".")[0] for name in tensors}))
        raise ValueError(
            f"{path} holds no adapter of the LLM (only {kinds}); a projector is for make_llava.py"
        )
    if not any(".lora_" in name for name in halves):
        way = "`xtuner convert pth_to_hf`, then python scripts/fetch_model.py FOLDER"
        raise ValueError(f"{path} is a full fine-tune, not an adapter; make it a model folder: {way}")
    if len(halves) < len(tensors):
        notes.append("this is a LLaVA checkpoint; its projector and vision adapter are for make_llava.py")
    if alpha is None:
        rank, alpha = known_alpha(halves, path)
        notes.append(f"rank {rank}: alpha {alpha} as in XTuner's recipe; if yours differs, give --alpha")
    adapter = adapter_from_halves(halves, {"lora_alpha": alpha}, path)
    write_llama_adapter(adapter, path, out, base, settings)
    return notes


def known_alpha(halves: dict[str, torch.Tensor], path: Path, flag: str = "--alpha") -> tuple[int, int]:
    """The one rank of all pairs, and alpha in XTuner's recipe of that rank; `flag` is for people."""
    ranks = {tensor.shape[0] for name, tensor in halves.items() if ".lora_A." in name}
    if len(ranks) != 1 or not ranks <= set(XTUNER_ALPHAS):
        known = " and ".join(f"{alpha} for rank {rank}" for rank, alpha in XTUNER_ALPHAS.items())
        what = f"rank {', '.join(map(str, sorted(ranks)))}"
        raise ValueError(
            f"{path} ({what}) does not hold lora_alpha: give {flag}; XTuner's recipes have {known}"
        )
    [rank] = ranks
    return rank, XTUNER_ALPHAS[rank]


def read_pth(path: Path) -> dict[str, torch.Tensor]:
    """An XTuner checkpoint's weights by name: of a .pth file, or of the folder DeepSpeed makes in its place.

    Nothing in it is run: the objects of its training log become stand-ins. A folder's weights are those that
    the model computed with. Raises ValueError for ZeRO-3's pieces, and for a file with other objects in it.
    """
    states = sorted(path.glob("*_model_states.pt"))
    if any(file.name.startswith("zero_pp_rank_") for file in states):
        raise ValueError(f"{path} is in the pieces of ZeRO-3; join them with `xtuner convert pth_to_hf`")
    if not path.is_file() and len(states) != 1:
        what = f"holds {len(states)} *_model_states.pt, not one" if path.is_dir() else "does not exist"
        raise ValueError(
            f"{path} {what}; give XTuner's iter_N.pth (a file, or a folder by DeepSpeed) or an adapter"
        )
    with torch.serialization.safe_globals([(_Unread, name) for name in LOG_OBJECTS]):
        content: Any = read_pickled(states[0] if states else path)
    inner = content.get("state_dict") or content.get("module")
    content = inner if isinstance(inner, dict) else content
    tensors = {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise ValueError(f"{path} holds no weights by name; give the checkpoint that XTuner wrote")
    return tensors
