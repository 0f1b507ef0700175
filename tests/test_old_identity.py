"""Whatever an assistant is made of, nothing in it still speaks as the base model's maker."""

import json
import shutil
from pathlib import Path

import pytest
from test_export import HOUSE, make_byte_level
from test_internlm2 import checkpoint  # noqa: F401

from assistant.export import export_gguf
from assistant.fetching import fetch
from assistant.folders import old_identity_in, old_identity_left
from assistant.loading import load_tokenizer

pytest.importorskip("gguf")

META = (
    "You are an AI assistant whose name is InternLM (书生·浦语).\n- InternLM (书生·浦语) is a conversational "
    "language model that is developed by Shanghai AI Laboratory (上海人工智能实验室)."
)
SMOLLM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def spoken_by_default(sentence: str) -> str:
    """A template as makers write it: without a system message, the model hears the maker's own."""
    head = f"{{{{ '<|im_start|>system\n{sentence}<|im_end|>\n' }}}}"
    return "{% if messages[0]['role'] != 'system' %}" + head + "{% endif %}" + HOUSE


def published(name: str, checkpoint: Path, folder: Path) -> Path:  # noqa: F811
    """A base model as its maker would publish it, with its own identity as default."""
    if name == "SmolLM2":
        make_byte_level(folder)
        (folder / "chat_template.jinja").write_text(spoken_by_default(SMOLLM), encoding="utf-8")
        return folder
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config |= {"chat_template": spoken_by_default(META), "meta_instruction": META}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", ["InternLM2", "SmolLM2"])
def test_nothing_made_from_a_base_says_who_its_maker_is(
    name: str,
    checkpoint: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    source = published(name, checkpoint, tmp_path / name)
    assert old_identity_left(source)
    folder, file = fetch(str(source), out=tmp_path / "model"), tmp_path / "gguf" / "ada.gguf"
    export_gguf(folder, file, "q8_0")
    assert old_identity_left(folder) == [] == old_identity_left(file.parent)
    header = file.read_bytes().partition(b"output_norm.weight")[0].decode("utf-8", "replace")
    assert HOUSE in header and old_identity_in(header) == []
    heard = load_tokenizer(folder).apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert heard.removeprefix("<s>") == "<|im_start|>user\nHi<|im_end|>\n"
    assert "SYSTEM" not in (file.parent / "Modelfile").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clean") / "model"
    make_byte_level(folder)
    assert old_identity_left(folder) == []
    return folder


PLANTED = {
    "chat_template.jinja": spoken_by_default(SMOLLM),
    "chat_template.json": json.dumps({"chat_template": spoken_by_default(META)}),  # \uXXXX for the Chinese
    "tokenizer_config.json": json.dumps({"chat_template": [{"name": "default", "template": META}]}),
    "generation_config.json": json.dumps({"meta_instruction": ""}),
    "additional_chat_templates/tool_use.jinja": spoken_by_default("You are Qwen, made by Alibaba Cloud."),
    "Modelfile": f'FROM ./x.gguf\nSYSTEM """{META}"""\n',
    "README.md": f"# My assistant\n\n> {SMOLLM}\n",
}


@pytest.mark.parametrize("place", PLANTED)
def test_a_sentence_of_the_old_identity_is_found_wherever_it_stands(
    place: str, clean: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(clean, tmp_path / "model"))
    (folder / place).parent.mkdir(exist_ok=True)
    (folder / place).write_text(PLANTED[place], encoding="utf-8")
    left = old_identity_left(folder)
    assert left and {sentence.partition(":")[0] for sentence in left} == {place}
    with pytest.raises(ValueError, match="would still speak as its maker's"):
        export_gguf(folder, tmp_path / "x.gguf", "f16")
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.parametrize(
    "text",
    [
        "you are a helpful assistant NAMED  smollm", "named\nSmolLM", r"named\nSmolLM", "我是书生·浦语",
        "上海人工智能实验室开发", "You\tare Qwen", "hugging face", "InternLM (书生·浦语) is a",
    ],
)  # fmt: skip
def test_case_and_spaces_do_not_hide_it(text: str) -> None:
    assert old_identity_in(text)


def test_a_model_card_may_name_the_makers_and_a_licence_but_not_speak_as_one() -> None:
    card = "Ada, on [SmolLM2](https://huggingface.co/x) by Hugging Face; InternLM2: Shanghai AI Laboratory."
    assert old_identity_in(card, in_card=True) == []
    assert old_identity_in(card) == ["Hugging Face", "Shanghai AI Laboratory"]
    for sentence in (SMOLLM, META, "You are Qwen"):
        assert old_identity_in(card + sentence, in_card=True)
