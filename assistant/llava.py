"""LLM + vision tower + projector → one folder that transformers loads as LlavaForConditionalGeneration.

Knows no checkpoint of XTuner: what was trained comes in as Parts.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from assistant.adapters import Adapter, Pair, beside_neurons
from assistant.building import describe_weights
from assistant.folders import copy_chat, read_json, weight_files, write_json
from assistant.llava_chat import (
    CLIP_MEAN,
    CLIP_SPREAD,
    add_image_token,
    picture_settings,
    write_processor,
    write_stop_ids,
    write_template,
)
from assistant.llava_shapes import PREFIX, check_pairs, check_shapes, is_sight, written_shapes
from assistant.loading import check_model_folder, is_adapter
from assistant.settings import check_replaceable, load_settings, save_settings
from assistant.tensors import checkpoint_files, tensors_in, write_shards
from assistant.vision_tower import KIND, MEAN, SPREAD, STRIDE, features_of, with_known

CLIP = "clip_vision_model"
KNOWN = "known."  # of our tower: the layers that know words
LAYERS = {"model.0": "linear_1", "model.2": "linear_2"}  # XTuner's projector → transformers'


@dataclass(frozen=True)
class Parts:
    """What was trained: the projector's tensors (`linear_1.weight` …), and LoRA pairs by the module names
    that the LLM's and the tower's own files have, CLIP's without `vision_model.`; of our tower what was
    learnt whole, and the layers that know words. Without a projector it begins at random. `neurons`: how many
    the LLM that was trained had more in its MLPs."""

    projector: dict[str, torch.Tensor] = field(default_factory=dict)
    llm: Adapter | None = None
    tower: Adapter | None = None
    sight: dict[str, torch.Tensor] = field(default_factory=dict)
    neurons: int = 0

    @property
    def known(self) -> list[int]:
        """Words of each kind that the tower has learnt."""
        layers = sorted(n for n in self.sight if n.startswith(KNOWN) and n.endswith(".weight"))
        return [len(self.sight[name]) for name in layers]


def make_llava(llm: Path, vision: Path, out: Path, parts: Parts, settings: dict[str, Any]) -> None:
    """Write the folder `out` whole; it keeps `settings`.

    Raises ValueError for folders that do not fit, naming the tensor and both shapes.
    """
    check_replaceable(out, "image_token" in load_settings(out))
    if any(out.resolve() in (path.resolve(), *path.resolve().parents) for path in (llm, vision)):
        raise ValueError(f"--out {out} holds what is read; give a folder of its own")
    check_model_folder(llm)
    if is_adapter(llm):
        raise ValueError(f"{llm} is an adapter; merge it first: python scripts/merge.py --adapter {llm}")
    text, sight = _text_config(llm), vision_config(vision)
    if parts.llm:
        parts = replace(parts, llm=beside_neurons(parts.llm, parts.neurons, text))
    if parts.sight:
        sight = with_known(sight, parts.known)
    beside = out.resolve().with_name(f".{out.resolve().name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    copy_chat(llm, beside)
    token = add_image_token(beside, text["vocab_size"])
    config = llava_config(text, sight, token)
    projector = parts.projector or random_projector(sight["hidden_size"], text["hidden_size"])
    check_shapes(config, llm, vision, projector, parts.sight)
    for adapter, prefix in ((parts.llm, "language_model."), (parts.tower, "vision_tower.")):
        check_pairs(adapter, prefix, written_shapes(config))
    write_shards(_tensors(llm, vision, projector, parts, config["dtype"]), beside)
    write_json(beside / "config.json", config)
    write_template(beside)
    write_stop_ids(beside, text)
    _write_processor(beside, vision, sight)
    for path in llm.glob("LICENSE*"):
        shutil.copy2(path, beside / path.name)
    weights = [describe_weights(path) for path in weight_files(beside)]
    save_settings(beside, {**settings, "image_token": token, "weights": weights})
    shutil.rmtree(out, ignore_errors=True)
    beside.replace(out)


def _text_config(llm: Path) -> dict[str, Any]:
    config = read_json(llm / "config.json")
    if "vision_config" in config or config.get("model_type") in ("internlm2", "internlm"):
        way = "give the LLM alone, for an InternLM2 the Llama that scripts/fetch_model.py makes of it"
        raise ValueError(f"{llm} is a {config.get('model_type')} model; {way}")
    return {key: value for key, value in config.items() if key != "transformers_version"}


def vision_config(vision: Path) -> dict[str, Any]:
    """The tower's config, of a CLIP (whole or its vision half) or of our EfficientNet.

    Raises ValueError for any other model.
    """
    config = read_json(vision / "config.json")
    if config.get("model_type") == "clip":
        from transformers import CLIPConfig

        whole: Any = CLIPConfig.from_dict(config)
        config = whole.vision_config.to_dict()
    if config.get("model_type") not in (CLIP, KIND):
        raise ValueError(f"{vision} is a {config.get('model_type')} model; a tower is a CLIP or {KIND}")
    return {key: value for key, value in config.items() if key != "transformers_version"}


def llava_config(text: dict[str, Any], sight: dict[str, Any], image_token: int) -> dict[str, Any]:
    """LlavaConfig's fields: of CLIP the last layer but one without its class token, as XTuner takes it;
    of our tower all that it gives."""
    is_clip = sight["model_type"] == CLIP
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "text_config": text,
        "vision_config": sight,
        "image_token_index": image_token,
        "image_seq_length": (sight["image_size"] // sight["patch_size"]) ** 2
        if is_clip
        else features_of(sight),
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "vision_feature_layer": -2 if is_clip else -1,
        "vision_feature_select_strategy": "default" if is_clip else "full",
        "tie_word_embeddings": bool(text.get("tie_word_embeddings", False)),
        "dtype": text.get("dtype") or text.get("torch_dtype") or "bfloat16",
    }


def random_projector(seeing: int, speaking: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Two layers [seeing → speaking → speaking] as torch begins them; the same for the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = {
            "linear_1": torch.nn.Linear(seeing, speaking),
            "linear_2": torch.nn.Linear(speaking, speaking),
        }
    return {
        f"{name}.{part}": tensor.detach()
        for name, layer in layers.items()
        for part, tensor in layer.named_parameters()
    }


def _write_processor(folder: Path, vision: Path, sight: dict[str, Any]) -> None:
    path = vision / "preprocessor_config.json"
    own = read_json(path) if path.is_file() else {}
    is_clip = sight["model_type"] == CLIP
    mean, spread = (CLIP_MEAN, CLIP_SPREAD) if is_clip else ([MEAN] * 3, [SPREAD] * 3)
    patch = sight["patch_size"] if is_clip else STRIDE
    before = 1 if is_clip else features_of(sight) - (sight["image_size"] // STRIDE) ** 2
    pictures = picture_settings(sight["image_size"], mean, spread, own)
    write_processor(folder, pictures, patch, before, kept=not is_clip)


def _tensors(
    llm: Path, vision: Path, projector: dict[str, torch.Tensor], parts: Parts, dtype: str
) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor by its written name, with LoRA merged in float32 and rounded once."""
    kind, is_clip = getattr(torch, dtype), vision_config(vision)["model_type"] == CLIP
    for name, tensor in tensors_in(checkpoint_files(llm)):
        yield f"language_model.{name}", merged(tensor, name, parts.llm).to(kind)
    for name, tensor in tensors_in(checkpoint_files(vision)):
        if is_sight(name):
            inner = name.removeprefix(PREFIX)
            before = PREFIX if is_clip else ""
            if inner not in parts.sight:
                yield f"vision_tower.{before}{inner}", merged(tensor, inner, parts.tower).to(kind)
    for name, tensor in parts.sight.items():
        yield f"vision_tower.{name}", tensor.to(kind)
    for name, tensor in projector.items():
        yield f"multi_modal_projector.{name}", tensor.to(kind)


def merged(weight: torch.Tensor, name: str, adapter: Adapter | None) -> torch.Tensor:
    """The weight [out, in] with the change that the adapter makes to it, in float32 if there is one."""
    pair = adapter.pairs.get(name.removesuffix(".weight")) if adapter else None
    if adapter is None or pair is None:
        return weight
    return weight.float() + change_of(pair, adapter)


def change_of(pair: Pair, adapter: Adapter) -> torch.Tensor:
    return pair.alpha / adapter.divisor(pair.rank) * (pair.b.float() @ pair.a.float())
