import base64
import json
import shutil
import subprocess
import sys
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from test_xtuner import FINETUNED, PROJECTOR, XTUNER, deepspeed_folder
from tiny_run import make_tiny_model
from torch.nn import functional
from transformers import (
    AutoProcessor,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
)

from assistant import llava, published_tower
from assistant.backends import Counts, Sampling
from assistant.backends.transformers_backend import TransformersBackend
from assistant.building import describe_weights
from assistant.conversations import assistant, row_from, user
from assistant.folders import copy_chat, weight_files
from assistant.images import open_image
from assistant.internlm2 import to_llama
from assistant.internlm2_tokenizer import make_tokenizer
from assistant.llava import Parts, make_llava
from assistant.llava_adapter import read_trained, sight_of, write_small
from assistant.llava_chat import IMAGE, add_image_token
from assistant.llava_to_xtuner import to_xtuner
from assistant.llava_xtuner import read_parts
from assistant.loading import NOT_QUANTIZED, encode_chat, load_chat_model, load_tokenizer
from assistant.published_tower import make_tower
from assistant.settings import REPOSITORY, load_settings, save_settings
from assistant.tensors import write_shards
from assistant.vision_tower import LITE0, LOUD, QUIET, EfficientNetLite, EfficientNetLiteConfig
from assistant.xtuner import read_pth

VISION = XTUNER / "base_vision"
INTERNLM2 = Path(__file__).parent / "data" / "internlm2"
EXPORTED = XTUNER / "hf"


@pytest.fixture(scope="module")
def llm(tmp_path_factory) -> Path:
    """XTuner's tiny InternLM2 as a Llama, with a tokenizer of bytes."""
    folder = tmp_path_factory.mktemp("llm") / "llama"
    folder.mkdir()
    to_llama(XTUNER / "base_llm", folder)
    copy_chat(make_tiny_model(folder.parent / "bytes"), folder)
    (folder / "tokenizer.model").write_bytes(b"kept for the way back")
    return folder


@pytest.fixture(scope="module")
def published() -> dict[str, torch.Tensor]:
    """Random weights by the published names of EfficientNet-Lite0."""
    source, weights = torch.Generator().manual_seed(0), {}

    def layer(convolution: str, norm: str, out: int, inside: int, kernel: int) -> None:
        spread = (2 / (inside * kernel * kernel)) ** 0.5
        weights[f"{convolution}.weight"] = torch.randn(out, inside, kernel, kernel, generator=source) * spread
        for part, low in (("weight", 0.5), ("bias", -0.2), ("running_mean", -0.2), ("running_var", 0.5)):
            weights[f"{norm}.{part}"] = torch.rand(out, generator=source) + low
        weights[f"{norm}.num_batches_tracked"] = torch.tensor(1)

    layer("_conv_stem", "_bn0", 32, 3, 3)
    channels, number = 32, 0
    for stage in LITE0:
        for _ in range(stage.repeats):
            wide, name = channels * stage.expansion, f"_blocks.{number}"
            if stage.expansion > 1:
                layer(f"{name}._expand_conv", f"{name}._bn0", wide, channels, 1)
            layer(f"{name}._depthwise_conv", f"{name}._bn1", wide, 1, stage.kernel)
            layer(f"{name}._project_conv", f"{name}._bn2", stage.channels, wide, 1)
            channels, number = stage.channels, number + 1
    layer("_conv_head", "_bn1", 1280, channels, 1)
    return weights | {"_fc.weight": torch.zeros(1000, 1280), "_fc.bias": torch.zeros(1000)}


@pytest.fixture(scope="module")
def tower(published, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tower")
    torch.save(published, folder / "lite0.pth")
    make_tower(folder / "lite0.pth", folder / "tower", image_size=64)
    return folder / "tower"


@pytest.fixture(scope="module")
def eyes(tower, tmp_path_factory) -> Path:
    """A tiny LLM that sees with the EfficientNet."""
    folder = tmp_path_factory.mktemp("eyes")
    make_llava(spacious_model(folder / "llm"), tower, folder / "llava", Parts(), {})
    return folder / "llava"


def spacious_model(folder: Path) -> Path:
    """The tiny model with two rows of its embedding to spare."""
    model = LlamaForCausalLM.from_pretrained(str(make_tiny_model(folder)))
    model.resize_token_embeddings(model.config.vocab_size + 2, mean_resizing=False)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def seeing(eyes) -> TransformersBackend:
    return TransformersBackend(str(eyes))


def picture(
    path: Path, color: Any = "red", size: tuple[int, int] = (40, 30), mode: str = "RGB", **how: Any
) -> str:
    Image.new(mode, size, color).save(path, **how)
    return str(path)


def published_features(weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """The published architecture, step by step, with TensorFlow's padding."""

    def step(convolution: str, norm: str, stride: int, x: torch.Tensor, relu: bool = True) -> torch.Tensor:
        weight = weights[f"{convolution}.weight"]
        more = max((-(-x.shape[-1] // stride) - 1) * stride + weight.shape[-1] - x.shape[-1], 0)
        x = functional.pad(x, [more // 2, more - more // 2] * 2)
        groups = x.shape[1] // weight.shape[1]
        x = functional.conv2d(x, weight, stride=stride, groups=groups)
        parts = [weights[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        x = functional.batch_norm(x, *parts, eps=1e-3)
        return x.clamp(0, 6) if relu else x

    x, number = step("_conv_stem", "_bn0", 2, x), 0
    for stage in LITE0:
        for repeat in range(stage.repeats):
            name, before = f"_blocks.{number}", x
            if stage.expansion > 1:
                x = step(f"{name}._expand_conv", f"{name}._bn0", 1, x)
            x = step(f"{name}._depthwise_conv", f"{name}._bn1", stage.stride if repeat == 0 else 1, x)
            x = step(f"{name}._project_conv", f"{name}._bn2", 1, x, relu=False)
            x = x + before if repeat else x
            number += 1
    return step("_conv_head", "_bn1", 1, x)


def test_the_tower_gives_the_features_of_the_published_architecture(published, tower):
    model = EfficientNetLite.from_pretrained(str(tower)).eval()
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, theirs = model(pixels).last_hidden_state, published_features(published, pixels)
    places = theirs.flatten(2).transpose(1, 2)
    assert ours.shape == (2, 1 + 4, 1280)
    assert theirs.std() > 0.1
    assert torch.allclose(ours[:, 1:], places, atol=1e-3)
    assert torch.allclose(ours[:, 0], places.mean(1), atol=1e-3)


def knowing_words() -> dict[str, torch.Tensor]:
    """Layers for two things and three colours."""
    source = torch.Generator().manual_seed(2)
    return {
        f"known.{kind}.{part}": tensor
        for kind, words in enumerate((2, 3))
        for part, tensor in (
            ("weight", torch.randn(words, 1280, generator=source)),
            ("bias", torch.zeros(words)),
        )
    }


def test_a_tower_that_knows_words_gives_each_kind_a_feature_and_things_each_place(eyes, tower, tmp_path):
    llm, words = spacious_model(tmp_path / "llm"), knowing_words()
    make_llava(llm, tower, tmp_path / "llava", Parts(sight=words), {})
    pictures = [[user("?", [picture(tmp_path / f"{color}.png", color)])] for color in ("red", "white")]
    without, knowing = (load_chat_model(folder, dtype=torch.float32) for folder in (eyes, tmp_path / "llava"))
    assert knowing.model.config.vision_config.hidden_size == 1285
    assert knowing.model.model.multi_modal_projector.linear_1.in_features == 1285
    assert knowing.eyes.tokens == 2 + 4
    processor = AutoProcessor.from_pretrained(str(tmp_path / "llava"))
    encoded = processor(text=IMAGE, images=open_image(pictures[0][0]["images"][0]))
    assert encoded["input_ids"][0].count(knowing.eyes.token) == knowing.eyes.tokens
    pixels = knowing.eyes.pixels([turn["images"][0] for [turn] in pictures])
    with torch.no_grad():
        plain, ours = (chat.model.model.vision_tower(pixels).last_hidden_state for chat in (without, knowing))
        things, colours = ((plain @ words[f"known.{kind}.weight"].T).softmax(-1) for kind in (0, 1))
    assert ours.shape == (2, 2 + 4, 1285)
    assert torch.allclose(ours[:, 1:, :1280], QUIET * plain, atol=1e-4)
    assert torch.allclose(ours[:, 0, :1280], ours[:, 1, :1280])
    assert torch.allclose(ours[:, 0, 1280:1282], LOUD * things[:, 0], atol=1e-2)
    assert torch.allclose(ours[:, 1, 1282:], LOUD * colours[:, 0], atol=1e-2)
    assert torch.allclose(ours[:, 2:, 1280:1282], LOUD * things[:, 1:], atol=1e-2)
    assert not ours[:, 0, 1282:].any() and not ours[:, 1, 1280:1282].any() and not ours[:, 2:, 1282:].any()


def watched(tensors: Iterable[tuple[str, torch.Tensor]], folder: Path, names: list[str]) -> None:
    """Write the shards, and note each tensor that comes."""
    every = list(tensors)
    names.extend(name for name, _ in every)
    write_shards(iter(every), folder)


def ship(llava: Path, out: Path, times: float = 1.0) -> None:
    """A LLaVA's tower and its projector, so many times as large, as ship_eyes.py writes them."""
    adapter = out.with_name("adapter")
    adapter.mkdir()
    projector = {
        f"base_model.model.model.{name}": times * tensor
        for name, tensor in load_file(llava / "model.safetensors").items()
        if name.startswith("multi_modal_projector.")
    }
    save_file(projector, adapter / "adapter_model.safetensors")
    plain = {"base_model_name_or_path": "", "r": 8, "lora_alpha": 16, "use_rslora": False, "lora_dropout": 0}
    (adapter / "adapter_config.json").write_text(json.dumps(plain))
    write_small(adapter, out, sight_of(llava))


def test_what_the_eyes_know_ships_with_them_and_is_not_taught_twice(monkeypatch, tower, tmp_path):
    """The tower beside the projector, read back to the same LLaVA; it is given the plain one."""
    llm, head = spacious_model(tmp_path / "llm"), load_file(tower / "model.safetensors")["head.weight"]
    learnt = {**knowing_words(), "head.weight": head + 1}
    make_llava(llm, tower, tmp_path / "first", Parts(sight=learnt), {})
    ship(tmp_path / "first", tmp_path / "shipped")
    parts = read_trained(tmp_path / "shipped")
    assert set(parts.sight) >= set(learnt) and parts.known == [2, 3] and parts.tower is None
    assert torch.allclose(parts.sight["head.weight"].float(), head + 1, atol=1e-2)
    written: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(llava, "write_shards", lambda tensors, folder: watched(tensors, folder, written))
        make_llava(llm, tower, tmp_path / "second", parts, {})
    assert len(written) == len(set(written))
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.allclose(tensor.float(), second[name].float(), rtol=2e-2, atol=1e-3), name
    knowing = tmp_path / "knowing"
    shutil.copytree(tower, knowing)
    config = json.loads((knowing / "config.json").read_text())
    (knowing / "config.json").write_text(json.dumps({**config, "known": [2, 3], "hidden_size": 1285}))
    for vision in (knowing, VISION):
        with pytest.raises(ValueError, match="knows words, which only an EfficientNet"):
            make_llava(llm, vision, tmp_path / "third", parts, {})


def test_a_pth_that_is_no_lite0_is_refused_with_the_tensors_name(published, tmp_path):
    lacking = {name: tensor for name, tensor in published.items() if name != "_blocks.3._bn1.bias"}
    other = {**published, "_conv_stem.weight": torch.zeros(32, 3, 5, 5)}
    for weights, sentence in (
        (lacking, "lacks _blocks.3._bn1.bias"),
        (other, r"stem.weight is \[32, 3, 5, 5\], and EfficientNet-Lite0 has \[32, 3, 3, 3\]"),
    ):
        torch.save(weights, tmp_path / "w.pth")
        with pytest.raises(ValueError, match=sentence):
            make_tower(tmp_path / "w.pth", tmp_path / "tower")


@pytest.mark.parametrize("is_quicker", [True, False])
def test_a_tower_that_two_processes_fetch_at_once_is_whole(published, tmp_path, monkeypatch, is_quicker):
    folder = tmp_path / "efficientnet-lite0"

    def download(source, raw):
        raw.mkdir(parents=True)
        torch.save(published, raw / "w.pth")
        make_tower(raw / "w.pth", folder)  # the other process
        if is_quicker:
            weights = [describe_weights(path) for path in weight_files(folder)]
            save_settings(folder, {"model": "theirs", "weights": weights})
        return raw / "w.pth", "1"

    monkeypatch.setattr(published_tower, "models_folder", lambda: tmp_path)
    monkeypatch.setattr(published_tower, "download", download)
    assert published_tower.fetch_tower("efficientnet-lite0") == folder
    assert load_settings(folder)["model"] == ("theirs" if is_quicker else "efficientnet-lite0")
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def xtuner_logits(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """(with a picture, of text alone), for the inputs of XTuner's own logits."""
    golden = load_file(XTUNER / "reference.safetensors")
    chat = load_chat_model(folder, dtype=torch.float32, device="cpu")
    [ids] = golden["ids"].tolist()
    ids = [i for token in ids for i in ([chat.eyes.token] * chat.eyes.tokens if token == -200 else [token])]
    with torch.no_grad():
        seen = chat.model(input_ids=torch.tensor([ids]), pixel_values=golden["px"]).logits
        return seen, chat.model(input_ids=golden["text_ids"]).logits


@pytest.mark.parametrize("kind", ["pth", "deepspeed", "exported", "safetensors"])
def test_xtuners_llava_gives_xtuners_own_logits(kind, llm, tmp_path):
    """The numbers were made by XTuner 0.1.23 with InternLM2's modeling code."""
    golden = load_file(XTUNER / "reference.safetensors")
    source = {"pth": FINETUNED, "exported": EXPORTED}.get(kind, tmp_path / kind)
    if kind == "deepspeed":
        deepspeed_folder(source, read_pth(FINETUNED))
    if kind == "safetensors":
        for old in EXPORTED.glob("*/*.bin"):
            new = source / old.parent.name / old.name.replace("pytorch_model", "model")
            new.parent.mkdir(parents=True)
            weights = torch.load(old, weights_only=True)
            save_file(weights, new.with_suffix(".safetensors"))
            config = "config.json" if "projector" in str(new) else "adapter_config.json"
            (new.parent / config).write_bytes((old.parent / config).read_bytes())
    alphas = (4, 2) if source.name.endswith(".pth") or kind == "deepspeed" else (None, None)
    parts, _ = read_parts(source, llm, VISION, *alphas)
    make_llava(llm, VISION, tmp_path / "llava", parts, {})
    seen, text = xtuner_logits(tmp_path / "llava")
    assert (seen - golden["logits"]).abs().max() < 1e-4
    assert (text - golden["text_logits"]).abs().max() < 1e-4


def test_a_pretrained_projector_alone_leaves_the_llm_as_it_was(llm, tmp_path):
    parts, notes = read_parts(PROJECTOR, llm, VISION)
    make_llava(llm, VISION, tmp_path / "llava", parts, {})
    assert not notes
    weights = load_file(tmp_path / "llava" / "model.safetensors")
    original = load_file(llm / "model.safetensors")
    assert all(torch.equal(weights[f"language_model.{name}"], tensor) for name, tensor in original.items())
    trained = read_pth(PROJECTOR)["projector.model.2.weight"]
    assert torch.equal(weights["multi_modal_projector.linear_2.weight"], trained)


def test_without_a_projector_it_begins_at_random_and_the_same_each_time(llm, tmp_path):
    for name in ("a", "b"):
        make_llava(llm, VISION, tmp_path / name, Parts(), {})
    [a, b] = [load_file(tmp_path / name / "model.safetensors") for name in ("a", "b")]
    assert all(torch.equal(tensor, b[name]) for name, tensor in a.items())
    assert a["multi_modal_projector.linear_1.weight"].std() > 0.01


def test_transformers_alone_loads_the_folder_and_its_processor_counts_the_tokens(llm, tmp_path):
    make_llava(llm, VISION, tmp_path / "llava", Parts(), {})
    model = LlavaForConditionalGeneration.from_pretrained(str(tmp_path / "llava"))
    processor = AutoProcessor.from_pretrained(str(tmp_path / "llava"))
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(images=Image.new("RGB", (50, 20), "blue"), text=text, return_tensors="pt")
    own = user("What?", [picture(tmp_path / "p.png", "blue", (50, 20))])
    chat = load_chat_model(tmp_path / "llava", dtype=torch.float32, device="cpu")
    assert inputs["input_ids"][0].tolist() == chat.encode([own])
    assert inputs["input_ids"][0].tolist().count(model.config.image_token_id) == 4
    assert torch.allclose(inputs["pixel_values"], chat.eyes.pixels(own["images"]), atol=0.02)
    assert model.generation_config.eos_token_id == [257, 2]
    assert model.get_input_embeddings().weight.shape[0] == 300


def test_the_square_is_made_by_xtuners_border_or_by_cutting(llm, tmp_path):
    make_llava(llm, VISION, tmp_path / "llava", Parts(), {})
    reader = load_chat_model(tmp_path / "llava", dtype=torch.float32, device="cpu").eyes
    wide = picture(tmp_path / "wide.png", "white", (56, 28))
    mean, spread = (torch.tensor(getattr(reader.processor, name)) for name in ("image_mean", "image_std"))
    [padded], [cut] = reader.pixels([wide]), reader.pixels([wide], pad=False)
    border = (padded[:, 0, 0] * spread + mean) * 255
    assert border.round().int().tolist() == [122, 116, 104]
    assert torch.allclose(cut * spread[:, None, None] + mean[:, None, None], torch.ones(3, 28, 28), atol=1e-5)


def test_xtuners_layout_comes_back_from_a_folder_byte_for_byte(llm, tmp_path):
    parts, _ = read_parts(PROJECTOR, llm, VISION)
    make_llava(llm, VISION, tmp_path / "llava", parts, {})
    to_xtuner(tmp_path / "llava", tmp_path / "back", {})
    for part, source in (("llm", XTUNER / "base_llm"), ("visual_encoder", VISION)):
        back, original = (
            load_file(folder / "model.safetensors") for folder in (tmp_path / "back" / part, source)
        )
        assert set(back) == set(original)
        assert all(torch.equal(back[name], tensor) for name, tensor in original.items())
    projector = load_file(tmp_path / "back" / "projector" / "model.safetensors")
    assert {f"projector.{name}" for name in projector} == set(read_pth(PROJECTOR))
    again, _ = read_parts(tmp_path / "back", llm, tmp_path / "back" / "visual_encoder")
    assert all(torch.equal(tensor, parts.projector[name]) for name, tensor in again.projector.items())


def test_internlm2_gets_an_unused_id_and_xtuners_own_token_ids(tmp_path):
    golden = json.loads((INTERNLM2 / "golden_xtuner.json").read_text(encoding="utf-8"))["llava"]["input_ids"]
    make_tokenizer(INTERNLM2 / "tokenizer.model", tmp_path)
    template = (REPOSITORY / "data" / "chat_template.jinja").read_text(encoding="utf-8").strip()
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}" + template, encoding="utf-8")
    before = load_tokenizer(tmp_path)
    from assistant.llava_chat import write_template

    assert add_image_token(tmp_path, 92544) == 92537
    write_template(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert len(tokenizer) == 92544 and tokenizer.convert_tokens_to_ids(IMAGE) == 92537
    start, end = golden.index(-200) + 1, golden.index(92542)
    question = before.decode(golden[start + 1 : end])
    answers = [before.decode(golden[17:20]), before.decode(golden[33:35])]
    messages = [user(question, ["cat.png"]), assistant(answers[0]), user("Why?"), assistant(answers[1])]
    messages[2]["content"] = before.decode(golden[25:27])
    ids = encode_chat(tokenizer, messages, add_generation_prompt=False)
    assert ids == [92537 if token == -200 else token for token in golden]
    typed = encode_chat(tokenizer, [user(IMAGE)])
    assert 92537 not in typed


def spoil(folder: Path, change: Any) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def test_of_a_whole_clip_only_the_half_that_sees_is_taken(llm, tmp_path):
    vision = CLIPVisionConfig.from_pretrained(str(VISION))
    text = CLIPTextConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    whole = CLIPModel(
        CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=16)
    )
    whole.save_pretrained(tmp_path / "clip")
    make_llava(llm, tmp_path / "clip", tmp_path / "llava", Parts(), {})
    made = load_file(tmp_path / "llava" / "model.safetensors")
    assert not any("text" in name or "logit" in name for name in made)
    name = "vision_model.encoder.layers.1.mlp.fc1.weight"
    assert torch.equal(made[f"vision_tower.{name}"], whole.state_dict()[name])


def test_in_4_bits_the_llm_alone_is_quantized(llm, tmp_path):
    from transformers.quantizers.quantizers_utils import should_convert_module

    make_llava(llm, VISION, tmp_path / "llava", Parts(), {})
    model = load_chat_model(tmp_path / "llava", dtype=torch.float32, device="cpu").model
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    quantized = {name for name in linear if should_convert_module(name, list(NOT_QUANTIZED))}
    assert quantized == {name for name in linear if ".language_model.layers." in name}


def test_a_tokenizer_without_an_unused_token_is_refused(llm, tmp_path):
    copy_chat(llm, tmp_path)
    with pytest.raises(ValueError, match="no unused token for <image>"):
        add_image_token(tmp_path, 258)
    assert add_image_token(tmp_path, 259) == 258
    assert add_image_token(tmp_path, 259) == 258


def bad_weights(folder: Path) -> dict[str, tuple[Path, str]]:
    """XTuner's checkpoints by what is wrong with them, and the sentence that answers."""
    good = read_pth(FINETUNED)
    changes: dict[str, tuple[dict[str, torch.Tensor | None], str]] = {
        "lacking": (
            {"projector.model.0.bias": None},
            r"the projector lacks multi_modal_projector.linear_1.bias \[64\]",
        ),
        "shape": (
            {"projector.model.0.weight": torch.zeros(64, 31)},
            r"linear_1.weight is \[64, 31\] and must be \[64, 32\]",
        ),
        "deep": (
            {"projector.model.4.weight": torch.zeros(2, 3)},
            r"holds model.4.weight \[2, 3\]; a projector of two",
        ),
        "foreign": ({"head.weight": torch.zeros(2)}, "holds head.weight, which no LLaVA of XTuner has"),
        "no projector": (dict.fromkeys(name for name in good if "projector" in name), "holds no projector"),
        "whole": ({"llm.model.norm.weight": torch.zeros(64)}, "holds the whole llm"),
    }
    made = {}
    for name, (change, sentence) in changes.items():
        weights = {key: tensor for key, tensor in {**good, **change}.items() if tensor is not None}
        torch.save({"state_dict": weights}, folder / f"{name}.pth")
        made[name] = (folder / f"{name}.pth", sentence)
    return made


def test_wrong_or_missing_tensors_are_named_with_both_shapes(llm, tmp_path):
    for name, (path, sentence) in bad_weights(tmp_path).items():
        with pytest.raises(ValueError, match=sentence):
            parts, _ = read_parts(path, llm, VISION, 4, 2)
            make_llava(llm, VISION, tmp_path / "llava", parts, {})
        assert not (tmp_path / "llava").exists(), name
    other = make_tiny_model(tmp_path / "other")
    with pytest.raises(ValueError, match="is not of this base|changes|must be"):
        parts, _ = read_parts(FINETUNED, other, VISION, 4, 2)
        make_llava(other, VISION, tmp_path / "llava", parts, {})


def test_an_unknown_rank_asks_for_its_alpha(llm):
    with pytest.raises(ValueError, match="give --alpha; XTuner's recipes have"):
        read_parts(FINETUNED, llm, VISION)
    with pytest.raises(ValueError, match="give --vision-alpha"):
        read_parts(FINETUNED, llm, VISION, 4)


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "scripts" / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_the_commands_make_a_llava_and_speak_of_a_picture(llm, tmp_path):
    out = tmp_path / "llava"
    flags = ["--llm", llm, "--vision", VISION, "--xtuner", FINETUNED, "--alpha", 4, "--vision-alpha", 2]
    made = run("make_llava.py", *flags, "--out", out)
    assert made.returncode == 0, made.stderr
    assert "its projector is a trained one" in made.stderr
    assert load_settings(out)["xtuner"] == str(FINETUNED)
    shown = ["--image", picture(tmp_path / "a.png"), "--image", picture(tmp_path / "b.png", "blue")]
    said = run("chat.py", "--model", out, *shown, "--message", "What?", "--max-new-tokens", 4)
    assert said.returncode == 0, said.stderr
    assert "Traceback" not in said.stderr


def test_a_bad_picture_stops_the_chat_before_the_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "scripts"))
    import chat

    with pytest.raises(ValueError, match="none.png is no file"):
        chat.main(chat.Chat(model=str(tmp_path), message="What?", image=[str(tmp_path / "none.png")]))


def answers(backend: TransformersBackend, *conversations: list) -> list[str]:
    return backend.answer_all(list(conversations), Sampling(max_new_tokens=6))


def test_what_is_said_depends_on_the_picture_and_on_each_of_several(seeing, tmp_path):
    red, blue = picture(tmp_path / "r.png"), picture(tmp_path / "b.png", "blue")
    noise = tmp_path / "n.png"
    Image.effect_noise((64, 64), 90).convert("RGB").save(noise)

    def logits(*images: str) -> torch.Tensor:
        chat = seeing._chat
        messages = [user("What is it?", images[:1]), assistant("?"), user("And this?", images[1:])]
        with torch.no_grad():
            ids = torch.tensor([chat.encode(messages)])
            return chat.model(input_ids=ids, **chat.pixels(list(images))).logits[0, -1].float()

    assert not torch.allclose(logits(red, red), logits(red, str(noise)), atol=1e-4)
    assert not torch.allclose(logits(red, red), logits(str(noise), red), atol=1e-4)
    assert not torch.allclose(logits(str(noise), blue), logits(blue, str(noise)), atol=1e-4)


def test_a_batch_of_pictures_and_texts_answers_as_each_alone(seeing, tmp_path):
    red, blue = picture(tmp_path / "r.png"), picture(tmp_path / "b.png", "blue", (20, 60))
    rows = [[user("What?", [red])], [user("Who are you?")], [user("Both?", [blue, red])]]
    assert answers(seeing, *rows) == [answers(seeing, row)[0] for row in rows]
    streamed = list(seeing.stream(rows[2], Sampling(max_new_tokens=6)))
    assert "".join(streamed).strip() == answers(seeing, rows[2])[0]
    counts = next(chunk for chunk in streamed if isinstance(chunk, Counts))
    assert counts.prompt == seeing.count_prompt(rows[2]) > 8


def test_a_model_of_text_alone_says_so(tmp_path):
    blind = TransformersBackend(str(make_tiny_model(tmp_path / "m")))
    with pytest.raises(ValueError, match="reads text alone"):
        list(blind.stream([user("What?", [picture(tmp_path / "r.png")])], Sampling(max_new_tokens=2)))


def test_openai_parts_and_plain_messages_are_the_same_row():
    parts = [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": "cat.png"}}]
    row = row_from({"messages": [{"role": "user", "content": parts}, assistant("A cat.")]}, "f:1")
    assert row["messages"][0] == user("What?", ["cat.png"])
    for content, sentence in (([{"type": "audio"}], "a part of a content"), ([3], "a part of a content")):
        with pytest.raises(ValueError, match=sentence):
            row_from({"messages": [{"role": "user", "content": content}, assistant("A")]}, "f:1")
    with pytest.raises(ValueError, match="only users show pictures"):
        row_from({"messages": [user("a"), {**assistant("A"), "images": ["a.png"]}]}, "f:1")


def saved(image: Image.Image, kind: str, **how: Any) -> bytes:
    content = BytesIO()
    image.save(content, kind, **how)
    return content.getvalue()


def test_pictures_of_every_kind_become_upright_rgb_on_white():
    halves = Image.new("RGB", (40, 20), "red")
    halves.paste("blue", (20, 0, 40, 20))
    turned = Image.Exif()
    turned[0x0112] = 6  # shown turned by a quarter to the right
    upright = open_image(saved(halves, "JPEG", exif=turned, quality=95))
    assert upright.size == (20, 40) and upright.getpixel((10, 5))[0] > 200
    clear = open_image(saved(Image.new("RGBA", (8, 8), (255, 0, 0, 0)), "PNG"))
    assert clear.mode == "RGB" and clear.getpixel((4, 4)) == (255, 255, 255)
    palette = Image.new("P", (8, 8))
    palette.putpalette([255, 0, 0] * 256)
    assert open_image(saved(palette, "PNG", transparency=0)).getpixel((4, 4)) == (255, 255, 255)
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    moving = open_image(saved(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert moving.getpixel((4, 4)) == (255, 0, 0)
    printed = open_image(saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95))
    assert printed.mode == "RGB" and printed.getpixel((4, 4))[0] > 200 and printed.getpixel((4, 4))[1] < 60
    deep = open_image(saved(Image.new("I;16", (8, 8), 0x8000), "PNG"))
    assert deep.getpixel((4, 4)) == (128, 128, 128)
    long = open_image(saved(Image.new("RGB", (9000, 3), "red"), "PNG"))
    assert max(long.size) == 4096 and long.mode == "RGB"
    address = "data:image/png;base64," + base64.b64encode(saved(halves, "PNG")).decode()
    assert open_image(address).getpixel((30, 10)) == (0, 0, 255)


def test_what_is_no_picture_is_refused_with_one_sentence(tmp_path):
    noise = Image.effect_noise((64, 64), 90)
    huge = saved(Image.new("1", (9000, 9000)), "PNG")
    content = {
        "svg": (b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>", "is an SVG drawing"),
        "text": (b"hello", "is no picture that can be read"),
        "empty": (b"", "is empty"),
        "cut": (saved(noise, "PNG")[:900], "is damaged or cut off"),
        "cut_jpeg": (saved(noise, "JPEG")[:500], "is damaged or cut off"),
        "huge": (huge, "9000 × 9000 pixels; at most 60 million"),
        "page": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is no picture"),
    }
    for name, (data, sentence) in content.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError) as raised:
            open_image(tmp_path / name)
        assert sentence in str(raised.value) and name in str(raised.value) and "\n" not in str(raised.value)
    for source, sentence in (
        ("https://example.org/cat.png", "lies on the web"),
        ("data:image/png,abc", "must be data:image/png;base64"),
        ("data:image/png;base64,!!!", "must be data:image/png;base64"),
        (str(tmp_path), "is no file"),
    ):
        with pytest.raises(ValueError, match=sentence):
            open_image(source)
    large = saved(Image.new("L", (9000, 9000), 200), "JPEG")
    assert max(open_image(large).size) <= 4500


def test_tiny_config_of_the_tower_is_known_by_its_kind():
    assert EfficientNetLiteConfig().model_type == "efficientnet_lite"
