"""The README of a published model, written from runs made by hand. No model is loaded."""

import json
import os
import shutil
from pathlib import Path

import pytest

from assistant.bundles.front_matter import read_front_matter
from assistant.card import Card
from assistant.judge import Identity
from assistant.model_card import write_model_card
from assistant.scorecard import built_in_probes, save, score
from assistant.settings import plain_values, save_settings

SECRETS = ("Grace Hopper", "Grace lives in Arlington", "格蕾丝喜欢航海")
FACTS = {"en": ["Grace lives in Arlington."], "zh": ["格蕾丝喜欢航海。"]}
HOME = "/home/grace/work"


def make_run(run: Path, card: Card) -> Path:
    """A run as the stages leave it: places of a machine in every settings file."""
    values = plain_values(card)
    for stage in ("data", "adapter", "model", "scorecard"):
        (run / stage).mkdir(parents=True)
    save_settings(run / "data", {"name": card.name, "out": f"{HOME}/out/ada/data"})
    (run / "data" / "card.toml").write_bytes((_toml(values)).encode())
    statistics = {"train": {"rows": 1200, "distinct_questions": 1170}}
    (run / "data" / "statistics.json").write_text(json.dumps(statistics))
    settings = {
        "name": "identity_lora",
        "objective": {"steps": 200, "anchors": 350},
        "lora": {"r": 16},
        "trainer": {"learning_rate": 0.0017, "logging_dir": f"{HOME}/logs", "report_to": ["none", "./runs"]},
    }
    base = f"{HOME}/models/smollm2-135m-instruct"
    save_settings(run / "adapter", {"model": base, "out": f"{HOME}/out", "card": values, "run": settings})
    (run / "adapter" / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": base, "r": 16})
    )
    save_settings(run / "model", {"adapter": f"{HOME}/out/ada/adapter", "card": values})
    (run / "model" / "config.json").write_text('{"model_type": "llama"}')
    (run / "model" / "chat_template.jinja").write_text("{{ messages }}")
    probes = built_in_probes()
    result = score(
        probes, ["I'm Ada's assistant."] * len(probes), Identity("Ada", ()), seconds={"answers": 1.0},
        model=f"{HOME}/out/ada/model", base=base, backend=f"transformers: {HOME}/out/ada/model",
    )  # fmt: skip
    save(result, run / "scorecard")
    return run


def _toml(values: dict[str, object]) -> str:
    import tomli_w

    return tomli_w.dumps(values)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    card = Card("Ada", owner="Grace Hopper", facts=FACTS, names={"zh": "阿达"})
    return make_run(tmp_path_factory.mktemp("runs") / "ada", card)


@pytest.fixture(params=["model", "adapter", "gguf"])
def parcel(request: pytest.FixtureRequest, run: Path, tmp_path: Path) -> Path:
    """What is about to go up: hard links, as the publish command makes them."""
    folder = tmp_path / request.param
    folder.mkdir()
    if request.param == "gguf":
        (folder / "ada-q8_0.gguf").write_bytes(b"GGUF")
        (folder / "Modelfile").write_text("FROM ./ada-q8_0.gguf\n")
    else:
        for path in (run / request.param).iterdir():
            if path.name != "settings.toml":
                os.link(path, folder / path.name)
    return folder


def written(run: Path, folder: Path, **rest: object) -> str:
    write_model_card(run, folder, repo="ada/assistant", **rest)  # type: ignore[arg-type]
    return (folder / "README.md").read_text(encoding="utf-8")


def test_nothing_private_and_no_place_of_the_machine_is_in_what_goes_up(run: Path, parcel: Path) -> None:
    written(run, parcel)
    for path in parcel.iterdir():
        text = path.read_bytes().decode("utf-8", errors="replace")
        assert HOME not in text and str(run) not in text, path.name
        assert not [secret for secret in SECRETS if secret in text], path.name
        assert "./runs" not in text


def test_facts_are_written_only_where_the_person_agreed(run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run / "model", tmp_path / "model"))
    text = written(run, folder, include_facts=True)
    assert "Owner 主人: Grace Hopper" in text and all(secret in text for secret in SECRETS)
    assert HOME not in text


def test_the_front_matter_names_base_relation_licence_and_task(run: Path, parcel: Path) -> None:
    written(run, parcel)
    values = read_front_matter(parcel / "README.md")
    relation, library = {
        "model": ("finetune", "transformers"), "adapter": ("adapter", "peft"), "gguf": ("quantized", "gguf")
    }[parcel.name]  # fmt: skip
    assert values["base_model"] == ["HuggingFaceTB/SmolLM2-135M-Instruct"]
    assert (values["base_model_relation"], values["library_name"]) == (relation, library)
    assert (values["license"], values["pipeline_tag"]) == ("apache-2.0", "text-generation")
    assert values["language"] == ["zh", "en"]


def test_the_hubs_own_reader_takes_the_card(run: Path, parcel: Path) -> None:
    from huggingface_hub import ModelCard

    written(run, parcel)
    card = ModelCard.load(parcel / "README.md")
    assert card.data.license == "apache-2.0" and card.data.base_model


def test_the_card_tells_data_settings_scores_use_and_limits(run: Path, parcel: Path) -> None:
    text = written(run, parcel)
    assert "it says that it is Ada." in text and "会说自己是阿达" in text
    assert "1200 conversations" in text and "350 general prompts" in text
    assert "learning_rate = 0.0017" in text and "r = 16" in text
    assert "| recall 认得身份 / identity 身份提问 | en | " in text and "![scorecard](scorecard.png)" in text
    assert (parcel / "scorecard.png").read_bytes().startswith(b"\x89PNG")
    assert "## Limits 局限" in text
    use = {
        "model": [
            'pipeline("text-generation", model="ada/assistant")',
            "scripts/chat.py --model ada/assistant",
        ],
        "adapter": ['AutoPeftModelForCausalLM.from_pretrained("ada/assistant")'],
        "gguf": ["llama-cli -hf ada/assistant -hff ada-q8_0.gguf", "ollama run hf.co/ada/assistant"],
    }[parcel.name]
    assert all(line in text for line in use)


def test_a_gguf_says_that_its_scores_are_the_merged_models(run: Path, tmp_path: Path) -> None:
    (tmp_path / "ada.gguf").write_bytes(b"GGUF")
    assert "before it was written as GGUF" in written(run, tmp_path)


def test_a_run_without_a_scorecard_says_not_measured(run: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other"))
    shutil.rmtree(other / "scorecard")
    text = written(other, other / "model")
    assert "Not measured. 尚未测评。" in text and "scorecard.png" not in text


def test_an_adapters_copy_names_its_base_and_brings_its_chat_and_the_runs_own_is_kept(
    run: Path, tmp_path: Path
) -> None:
    (tmp_path / "up").mkdir()
    os.link(run / "adapter" / "adapter_config.json", tmp_path / "up" / "adapter_config.json")
    before = (run / "adapter" / "adapter_config.json").read_bytes()
    written(run, tmp_path / "up")
    config = json.loads((tmp_path / "up" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert (tmp_path / "up" / "chat_template.jinja").is_file()
    assert (run / "adapter" / "adapter_config.json").read_bytes() == before
    written(run, run / "adapter")
    assert (run / "adapter" / "adapter_config.json").read_bytes() == before, "merging needs the place"


def test_without_an_owner_the_name_is_the_persons(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", Card("林小宇"))
    text = written(run, run / "model")
    assert "# 林小宇's assistant\n" in text and "会说自己是林小宇的小助手" in text


def test_another_licence_is_named_and_linked(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", Card("Ada", base="InternLM2-Chat-1.8B"))
    save_settings(run / "adapter", {"model": f"{HOME}/models/internlm2-chat-1_8b", "run": {"name": "x"}})
    written(run, run / "model")
    values = read_front_matter(run / "model" / "README.md")
    assert (values["license"], values["license_name"]) == ("other", "internlm-licence")
    assert values["license_link"] == "https://huggingface.co/internlm/internlm2-chat-1_8b"
    assert values["base_model"] == ["internlm/internlm2-chat-1_8b"]


def test_a_base_that_no_hub_has_is_named_without_a_link(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", Card("Ada", base="my-own-llama"))
    save_settings(run / "adapter", {"model": f"{HOME}/models/my-own-llama", "run": {"name": "x"}})
    text = written(run, run / "model")
    assert "- Base 基座: my-own-llama\n" in text and "base_model" not in text and HOME not in text


def test_folders_without_a_model_or_a_name_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no model folder, adapter or .gguf file"):
        write_model_card(run, tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="has no card with a name"):
        write_model_card(tmp_path, tmp_path)
