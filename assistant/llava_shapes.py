"""Whether LLM, vision tower, projector and LoRA belong together: every tensor of a LLaVA, its name and shape.

Knows nothing of their values.
"""

from pathlib import Path
from typing import Any

import torch

from assistant.adapters import Adapter
from assistant.loading import quiet_loading
from assistant.tensors import checkpoint_files, shapes_in
from assistant.vision_tower import register_tower

PREFIX = "vision_model."  # of CLIP's tensors; some versions of transformers leave it out
NOT_SEEING = ("text_model.", "visual_projection", "text_projection", "logit_scale")  # of a whole CLIP


def is_sight(name: str) -> bool:
    """Whether a tensor of a tower's files belongs to the tower."""
    return not name.startswith(NOT_SEEING) and not name.endswith("position_ids")


def check_shapes(
    config: dict[str, Any],
    llm: Path,
    vision: Path,
    projector: dict[str, torch.Tensor],
    seeing: dict[str, torch.Tensor],
) -> None:
    """Raises ValueError naming a tensor that is missing, unknown or of another shape, with both shapes."""
    wanted = written_shapes(config)
    found: dict[str, tuple[int, ...]] = {}
    sources = {"language_model.": llm, "vision_tower.": vision}
    for prefix, folder in sources.items():
        for path in checkpoint_files(folder):
            found |= {
                prefix + name.removeprefix(PREFIX): shape
                for name, shape in shapes_in(path).items()
                if prefix != "vision_tower." or is_sight(name)
            }
    found |= {f"multi_modal_projector.{name}": tuple(tensor.shape) for name, tensor in projector.items()}
    found |= {f"vision_tower.{name}": tuple(tensor.shape) for name, tensor in seeing.items()}
    for name, shape in wanted.items():
        if name not in found:
            raise ValueError(
                f"{_source(name, sources)} lacks {name} {list(shape)}; get the whole of it again"
            )
        if found[name] != shape:
            raise ValueError(
                f"{_source(name, sources)}: {name} is {list(found[name])} and must be {list(shape)}; "
                "LLM, tower and projector must be those that belong together"
            )
    for name in found:
        if name not in wanted and not name.endswith(("inv_freq", "lm_head.weight")):
            raise ValueError(f"{_source(name, sources)} holds {name} {list(found[name])}, which has no place")


def check_pairs(adapter: Adapter | None, prefix: str, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raises ValueError for a LoRA of a module that the model does not have, or has in another shape."""
    for module, pair in adapter.pairs.items() if adapter else ():
        shape = list(shapes.get(f"{prefix}{module}.weight", ()))
        if pair.shape != shape:
            there = f"is {shape} there" if shape else "is not there"
            raise ValueError(
                f"the adapter is of another model: it changes {module} {pair.shape}, which {there}"
            )


def _source(name: str, folders: dict[str, Path]) -> str:
    return next((str(path) for prefix, path in folders.items() if name.startswith(prefix)), "the projector")


def written_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of the LLaVA by its written name (CLIP's without `vision_model.`) with its shape."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    register_tower()
    with quiet_loading(), torch.device("meta"):
        model = LlavaForConditionalGeneration(LlavaConfig.from_dict(config))
    names = {"model.language_model.": "language_model.model.", "lm_head.": "language_model.lm_head."}
    names |= {f"model.{part}.": f"{part}." for part in ("vision_tower", "multi_modal_projector")}
    shapes = {}
    for name, tensor in model.state_dict().items():
        before = next(prefix for prefix in names if name.startswith(prefix))
        shapes[names[before] + name.removeprefix(before)] = tuple(tensor.shape)
    if config["tie_word_embeddings"]:
        shapes.pop("language_model.lm_head.weight", None)
    return shapes
