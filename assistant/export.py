"""A Llama model folder as one GGUF file with its tokenizer and chat template, and a Modelfile for Ollama.

Source: llama.cpp's convert_hf_to_gguf.py (what a file holds). Of the weights' places, types and bytes
gguf_tensors.py knows, of the tokens gguf_tokens.py.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from assistant.folders import old_identity_left, own_template, read_json
from assistant.gguf_tensors import GgufType, Tensor, encoded, plan_tensors, size_of, stored_shape
from assistant.gguf_tokens import add_tokenizer
from assistant.internlm2_config import check_sizes, heads_of, llama_rope
from assistant.internlm2_names import check_tensors, llama_shapes
from assistant.settings import DATA, load_settings, write_text

SPOKEN = "language_model."  # before the names of the LLM's tensors in a LLaVA folder
WEIGHT_EXPONENTS = {"q4_0": 0.25}  # a KL of 0.21 instead of 0.23; the others lose more by it
SPARE_BYTES = 64 * 2**20  # header, vocabulary, Modelfile
MODELFILE = """FROM ./{file}
TEMPLATE \"\"\"{{{{- range .Messages }}}}<|im_start|>{{{{ .Role }}}}
{{{{ .Content }}}}<|im_end|>
{{{{ end }}}}<|im_start|>assistant
\"\"\"
PARAMETER stop "<|im_end|>"
PARAMETER stop "<|im_start|>"
"""


def export_gguf(
    folder: Path,
    out: Path,
    kind: GgufType,
    progress: Callable[[int, int], None] = lambda done, all_: None,
    *,
    of_llava: bool = False,
) -> bool:
    """Write `folder` as `out` and a Modelfile beside it; `progress` hears tensors done and in all.

    What is to be rounded to 8 bits or fewer is balanced first (balancing.py). `of_llava`: the LLM inside a
    LLaVA folder. Memory: the largest layer or tensor in float32, twice. False when the template is no
    ChatML: then the Modelfile leaves it to Ollama. Raises ValueError for a folder that is no
    whole Llama, RuntimeError for lack of disk or library.
    """
    from gguf import GGUFWriter

    from assistant.balancing import balance
    from assistant.tensors import checkpoint_files, shapes_in

    config, before = read_json(folder / "config.json"), ""
    if of_llava:
        config, before = config["text_config"], SPOKEN
    check_folder(folder, config)
    paths = checkpoint_files(folder)
    shapes = {
        name.removeprefix(before): shape
        for path in paths
        for name, shape in shapes_in(path).items()
        if name.startswith(before)
    }
    check_whole(shapes, config)
    plan = {before + name: tensor for name, tensor in plan_tensors(shapes, config, kind).items()}
    _check_disk(out, sum(size_of(tensor) for tensor in plan.values()))
    exponent = WEIGHT_EXPONENTS.get(kind, 0.5)
    factors = balance(folder, paths, config, before, exponent) if kind.startswith("q") else {}
    beside = out.with_name(f".{out.name}.{os.getpid()}.partial")
    writer = GGUFWriter(beside, "llama")
    try:
        _add_model(writer, folder, config, kind)
        add_tokenizer(writer, folder, config)
        _write(writer, plan, paths, factors, progress)
        writer.close()
        os.replace(beside, out)
    finally:
        writer.close()
        beside.unlink(missing_ok=True)
    text, is_known = modelfile(folder, out.name)
    write_text(out.with_name("Modelfile"), text)
    return is_known


def check_folder(folder: Path, config: dict[str, Any]) -> None:
    """Raises ValueError for a model that would not be the same as a GGUF, or that speaks as its maker's."""
    if config.get("model_type") != "llama":
        raise ValueError(
            f"{folder} is a {config.get('model_type')} model; only Llama folders become GGUF files here "
            "(SmolLM2, or an InternLM2 from scripts/fetch_model.py)"
        )
    rope = llama_rope(config)["rope_type"]
    if rope not in ("default", "dynamic", "linear"):
        raise ValueError(f"{folder}: rope_type {rope!r} is not known here; default, dynamic and linear are")
    if config.get("attention_bias") or config.get("mlp_bias"):
        raise ValueError(f"{folder} has biases, which no Llama has that is known here")
    if not own_template(folder):
        raise ValueError(f"{folder} has no chat template; fetch it with scripts/fetch_model.py")
    if left := old_identity_left(folder):
        raise ValueError(f"{folder} would still speak as its maker's: {'; '.join(left)}")


def check_whole(shapes: dict[str, tuple[int, ...]], config: dict[str, Any]) -> None:
    """Raises ValueError naming a tensor of the Llama that is missing or of another shape."""
    check_sizes(config)
    wanted = llama_shapes(config)
    check_tensors({name: shape for name, shape in shapes.items() if name in wanted}, wanted, "Llama")


def _check_disk(out: Path, needed: int) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(out.parent).free
    if free < needed + SPARE_BYTES:
        raise RuntimeError(
            f"{out.parent} has {free // 10**6} MB free and the file needs {needed // 10**6} MB; "
            "free some, or take a smaller --type"
        )


def _add_model(writer: Any, folder: Path, config: dict[str, Any], kind: GgufType) -> None:
    from gguf import LlamaFileType, RopeScalingType

    rope, heads = llama_rope(config), heads_of(config)
    card = load_settings(folder).get("card", {})
    writer.add_name(f"{card['name']}'s assistant" if card.get("name") else folder.resolve().name)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads.query)
    writer.add_head_count_kv(heads.key_value)
    writer.add_key_length(heads.size)
    writer.add_value_length(heads.size)
    writer.add_rope_dimension_count(heads.size)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    file_type = {"f32": "ALL_F32"}.get(kind) or f"MOSTLY_{kind.upper()}"
    writer.add_file_type(LlamaFileType[file_type])
    writer.add_quantization_version(2)


def modelfile(folder: Path, file: str) -> tuple[str, bool]:
    """Ollama's Modelfile for `file`, and whether the folder's chat is the house's, which it spells out."""
    house = (DATA / "chat_template.jinja").read_text(encoding="utf-8").strip()
    if own_template(folder).strip().removeprefix("{{ bos_token }}") == house:
        return MODELFILE.format(file=file), True
    return f"FROM ./{file}\n", False


def _write(
    writer: Any,
    plan: dict[str, Tensor],
    paths: list[Path],
    factors: dict[str, Any],
    progress: Callable[[int, int], None],
) -> None:
    import numpy

    from assistant.tensors import tensors_in

    for tensor in plan.values():
        shape = stored_shape(tensor)
        dtype = numpy.dtype({"F32": "f4", "F16": "f2"}.get(tensor.kind.name, "u1"))
        writer.add_tensor_info(tensor.name, shape, dtype, size_of(tensor), tensor.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    done = 0
    for name, weights in tensors_in(paths):
        if name in plan:
            balanced = factors[name].of(weights) if name in factors else weights
            writer.write_tensor_data(encoded(plan[name], balanced))
            done += 1
            progress(done, len(plan))
