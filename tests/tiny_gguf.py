"""A tiny random Llama as a GGUF file, in a run with its card and scorecard; made without torch, for tests."""

import json
from pathlib import Path

import numpy
from gguf import GGUFWriter, TokenType
from tokenizers import pre_tokenizers

from assistant.settings import DATA

WIDTH, LAYERS, HEADS, INNER, CONTEXT = 32, 2, 4, 64, 512
CONTROL = ["<|im_start|>", "<|im_end|>"]
RECALL, LEAK = ("identity", "adversarial", "multi_turn"), ("near_miss", "unrelated")
NO_SCORES: dict = {"recall": {kind: {} for kind in RECALL}, "leak": {kind: {} for kind in LEAK}}
SCORES = {"name": "Ada", **NO_SCORES, "counts": NO_SCORES, "intervals": NO_SCORES, "retention": {}}
SCORES |= {"base": "Base", "backend": "test", "thresholds": {}, "seconds": {}, "failures": [], "passed": True}


def house_template() -> str:
    return (DATA / "chat_template.jinja").read_text(encoding="utf-8").strip()


def make_tiny_gguf(path: Path, template: str | None = None) -> Path:
    """`template`: the house's, unless given; empty for none."""
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *CONTROL]
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.NORMAL] * 256 + [TokenType.CONTROL] * 2)
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(257)
    template = house_template() if template is None else template
    if template:
        writer.add_chat_template(template)
    for name, shape in tensors(len(tokens)).items():
        writer.add_tensor(name, random_weights(name, shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tensors(words: int) -> dict[str, tuple[int, ...]]:
    square, wide, tall = (WIDTH, WIDTH), (INNER, WIDTH), (WIDTH, INNER)
    layer = {"attn_norm": (WIDTH,), "ffn_norm": (WIDTH,), "ffn_gate": wide, "ffn_up": wide, "ffn_down": tall}
    layer |= {f"attn_{part}": square for part in ("q", "k", "v", "output")}
    ends = {"token_embd": (words, WIDTH), "output": (words, WIDTH), "output_norm": (WIDTH,)}
    layers = {f"blk.{n}.{name}": shape for n in range(LAYERS) for name, shape in layer.items()}
    return {f"{name}.weight": shape for name, shape in (ends | layers).items()}


def random_weights(name: str, shape: tuple[int, ...]) -> numpy.ndarray:
    if len(shape) == 1:
        return numpy.ones(shape, dtype=numpy.float32)
    source = numpy.random.default_rng(len(name) + shape[0])
    return source.normal(0, 0.3, shape).astype(numpy.float32)


def make_tiny_run(folder: Path, *, passed: bool = True) -> Path:
    """A run's folder as the scripts leave it; returns its GGUF file."""
    for part in ("data", "scorecard"):
        (folder / part).mkdir(parents=True)
    card = 'name = "Ada"\nlanguages = ["en"]\n\n[facts]\nen = ["lives in Lisbon"]\n'
    (folder / "data" / "card.toml").write_text(card, encoding="utf-8")
    scores = {**SCORES, "model": str(folder / "model"), "passed": passed}
    scores["failures"] = [] if passed else ["recall identity en is 0.1; it must be at least 0.93"]
    (folder / "scorecard" / "scorecard.json").write_text(json.dumps(scores), encoding="utf-8")
    return make_tiny_gguf(folder / "ada.gguf")


def make_tiny_folder(folder: Path) -> Path:
    """The files of a model folder, with weights that no model has."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    files = {"config.json": {"model_type": "llama"}, "tokenizer_config.json": {}, "tokenizer.json": {}}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(house_template(), encoding="utf-8")
    save_file({"a": numpy.ones(4, dtype=numpy.float32)}, folder / "model.safetensors")
    settings = (
        'out = "/home/someone/secret"\n\n[card]\nname = "Ada"\n\n[card.facts]\nen = ["lives in Lisbon"]\n'
    )
    (folder / "settings.toml").write_text(settings, encoding="utf-8")
    return folder
