"""Our LLaVA, a folder or the adapter of a training on one, in the layout of XTuner's own export.

Source: XTuner's tools/model_converters/pth_to_hf.py (0.1.17 to 0.1.23). The way in is llava_xtuner.py.
"""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from assistant.adapters import as_internlm2, write_peft
from assistant.building import revert
from assistant.folders import copy_chat, read_json, write_json
from assistant.llava import CLIP, LAYERS, Parts
from assistant.llava_adapter import read_trained
from assistant.llava_chat import SPOKEN
from assistant.llava_shapes import PREFIX
from assistant.llava_xtuner import PROJECTOR
from assistant.loading import base_of_adapter, is_adapter
from assistant.settings import check_replaceable, load_settings, save_settings, write_text
from assistant.tensors import checkpoint_files, shapes_in, tensors_in, write_shards

WRITTEN = ("language_model.", "vision_tower.", "multi_modal_projector.")


def to_xtuner(source: Path, out: Path, settings: dict[str, Any]) -> None:
    """Write a LLaVA folder, or the adapter of a training on one, in the layout of XTuner's own export.

    An adapter becomes projector/, llm_adapter/ and visual_encoder_adapter/; a folder becomes projector/,
    visual_encoder/ and, in InternLM2's own layout, llm/. Raises ValueError for what was no InternLM2.
    """
    check_replaceable(out, "exported_from" in load_settings(out))
    if out.resolve() in (source.resolve(), *source.resolve().parents):
        raise ValueError(f"--out {out} holds what is read; give a folder of its own")
    beside = out.resolve().with_name(f".{out.resolve().name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    if is_adapter(source):
        config = read_json(base_of_adapter(source) / "config.json")
        _write_parts(read_trained(source), config, source, beside)
    else:
        _write_wholes(source, beside)
    save_settings(beside, {**settings, "exported_from": str(source)})
    shutil.rmtree(out, ignore_errors=True)
    beside.replace(out)


def _write_parts(
    parts: Parts,
    config: dict[str, Any],
    source: Path,
    folder: Path,
) -> None:
    text, sight = config["text_config"], config["vision_config"]
    _write_projector(parts.projector, folder / "projector", config)
    if parts.llm:
        fused = as_internlm2(parts.llm, text, source)
        write_peft(fused, folder / "llm_adapter", text["num_hidden_layers"], "")
    if parts.tower:
        if sight["model_type"] != CLIP:
            raise ValueError(f"{source} has a LoRA of a {sight['model_type']}; XTuner knows CLIP alone")
        pairs = {PREFIX + name: pair for name, pair in parts.tower.pairs.items()}
        layers = sight["num_hidden_layers"]
        write_peft(replace(parts.tower, pairs=pairs), folder / "visual_encoder_adapter", layers, "")


def _write_projector(projector: dict[str, torch.Tensor], folder: Path, config: dict[str, Any]) -> None:
    """As XTuner's ProjectorModel; the code that it names is XTuner's own."""
    folder.mkdir(parents=True)
    theirs = {ours: layer for layer, ours in LAYERS.items()}
    tensors = {}
    for name, tensor in projector.items():
        layer, _, kind = name.partition(".")
        tensors[f"{theirs[layer]}.{kind}"] = tensor.contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    sizes = {"visual_hidden_size": config["vision_config"]["hidden_size"]}
    sizes["llm_hidden_size"] = config["text_config"]["hidden_size"]
    dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    names = {"architectures": ["ProjectorModel"], "model_type": "projector", "torch_dtype": dtype}
    write_json(folder / "config.json", names | sizes | PROJECTOR)


def _write_wholes(source: Path, folder: Path) -> None:
    config = read_json(source / "config.json")
    if config.get("model_type") != "llava":
        raise ValueError(f"{source} is no LLaVA folder and no adapter of one")
    if config["vision_config"]["model_type"] != CLIP:
        raise ValueError(
            f"{source} sees with a {config['vision_config']['model_type']}; XTuner knows CLIP alone"
        )
    for path in checkpoint_files(source):
        for name, shape in shapes_in(path).items():
            if not name.startswith(WRITTEN):
                raise ValueError(f"{source} holds {name} {list(shape)}, which no LLaVA folder of ours has")
    _write_projector(dict(_part(source, "multi_modal_projector.")), folder / "projector", config)
    sight = folder / "visual_encoder"
    sight.mkdir()
    write_shards(_part(source, "vision_tower."), sight)
    write_json(sight / "config.json", {"architectures": ["CLIPVisionModel"]} | config["vision_config"])
    pictures = read_json(source / "preprocessor_config.json")
    del pictures["do_pad"]  # XTuner makes the square itself
    clip = {"image_processor_type": "CLIPImageProcessor"}
    write_json(sight / "preprocessor_config.json", pictures | clip)
    llama = folder / ".llama"
    llama.mkdir()
    write_shards(_part(source, "language_model."), llama)
    write_json(llama / "config.json", config["text_config"])
    copy_chat(source, llama)
    template = (source / "chat_template.jinja").read_text(encoding="utf-8").removeprefix(SPOKEN)
    write_text(
        llama / "chat_template.jinja", template.replace("spoken(message['content'])", "message['content']")
    )
    (folder / "llm").mkdir()
    revert(llama, folder / "llm")
    shutil.rmtree(llama)


def _part(source: Path, part: str) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a LLaVA folder that belong to one part, by the part's own names."""
    for name, tensor in tensors_in(checkpoint_files(source)):
        if name.startswith(part):
            inner = name.removeprefix(part)
            # a folder that transformers saved may be without CLIP's prefix
            is_clip = part == "vision_tower."
            yield PREFIX + inner.removeprefix(PREFIX) if is_clip else inner, tensor
