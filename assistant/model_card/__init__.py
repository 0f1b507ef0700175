"""The README of a published model, written from its run: base, data, settings, scorecard, use, limits.

Says nothing of this machine, and of the identity card only the name unless it is told to. Knows no host.
"""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import tomli_w

from assistant.bundles.front_matter import write_front_matter
from assistant.folders import copy_chat, read_json, write_json
from assistant.model_card.origin import Base, base_of, card_of, licence_fields, without_places
from assistant.model_card.usage import use_lines
from assistant.scorecard import markdown
from assistant.settings import DATA, load_settings, load_toml, slug, write_text

Form = Literal["merged", "adapter", "gguf"]
# What Hugging Face calls them: a merge there is of several models, ours is a finetune of one.
RELATIONS: dict[Form, str] = {"merged": "finetune", "adapter": "adapter", "gguf": "quantized"}
LIBRARIES: dict[Form, str] = {"merged": "transformers", "adapter": "peft", "gguf": "gguf"}


def write_model_card(
    run: Path, folder: Path, *, repo: str = "", include_facts: bool = False, scorecard: Path | None = None
) -> None:
    """Write README.md, and the scorecard's picture beside it, into `folder`: a model, an adapter or a .gguf.

    `scorecard`: its scorecard.json, where that is not the run's own.
    The owner and the facts of the card are written only with `include_facts`: ask the person first. In an
    adapter's copy the base gets its hub name, and the chat files come along; the run's own stay as they are.
    Raises ValueError for a folder that is none of these or a run without a name.
    """
    form, card = form_of(folder), card_of(run, folder)
    base = base_of(run, card)
    texts = load_toml(DATA / "model_card.toml")
    words = words_for(card, base, texts)
    title = texts["title"]["own" if card.get("owner") else "person"].format(**words)
    scorecard = scorecard or run / "scorecard" / "scorecard.json"
    picture = scorecard.with_name("scorecard.png")
    if picture.is_file():
        shutil.copyfile(picture, folder / "scorecard.png")
    parts = [
        f"# {title}",
        texts["what"][form].format(**words).strip(),
        *_section(texts, "base", _base_lines(base, texts)),
        *_section(texts, "data", _data_lines(run, card, texts)),
        *_section(texts, "settings", _settings_lines(run, texts)),
        *_section(texts, "scorecard", _scorecard_lines(scorecard, form, base, repo or title, texts)),
        *_section(texts, "use", use_lines(form, folder, base, repo or slug(title), texts)),
        *_section(texts, "limits", _limit_lines(form, words, texts)),
    ]
    if include_facts and (facts := list(_fact_lines(card, texts))):
        parts += _section(texts, "facts", facts)
    if form == "adapter" and not folder.resolve().is_relative_to(run.resolve()):
        _make_adapter_portable(run, folder, base)
    front = write_front_matter(front_matter(form, card, base, read_config(folder)))
    write_text(folder / "README.md", front + "\n" + "\n\n".join(parts) + "\n")


def _make_adapter_portable(run: Path, folder: Path, base: Base) -> None:
    """Its config names the base's folder on this machine; and its base's own chat would hide the identity."""
    config = read_json(folder / "adapter_config.json")
    write_json(folder / "adapter_config.json", {**config, "base_model_name_or_path": base.id or base.title})
    place = Path(str(load_settings(run / "adapter").get("model", "")))
    for source in (run / "model", place):
        if source.name and (source / "chat_template.jinja").is_file():
            return copy_chat(source, folder)


def form_of(folder: Path) -> Form:
    if (folder / "adapter_config.json").is_file():
        return "adapter"
    if (folder / "config.json").is_file():
        return "merged"
    if any(folder.glob("*.gguf")):
        return "gguf"
    raise ValueError(f"{folder} holds no model folder, adapter or .gguf file; give for example out/ada/model")


def read_config(folder: Path) -> dict[str, Any]:
    return read_json(folder / "config.json") if (folder / "config.json").is_file() else {}


def words_for(card: Mapping[str, Any], base: Base, texts: Mapping[str, Any]) -> dict[str, str]:
    name, kind = str(card["name"]), "own" if card.get("owner") else "person"
    names = {"name": name, "name_zh": str(card.get("names", {}).get("zh", name))}
    return {
        **names,
        "who": texts["who"][f"{kind}_en"].format(**names),
        "who_zh": texts["who"][f"{kind}_zh"].format(**names),
        "base": base.title,
        "languages": ", ".join(card.get("languages", ["zh", "en"])),
    }


def front_matter(
    form: Form, card: Mapping[str, Any], base: Base, config: Mapping[str, Any]
) -> dict[str, Any]:
    """What the hubs read: licence, base and its relation, languages, task, library, tags."""
    values: dict[str, Any] = {**licence_fields(base)}
    if base.id:
        values |= {"base_model": [base.id], "base_model_relation": RELATIONS[form]}
    sees = str(config.get("model_type", "")).startswith("llava")
    return {
        **values,
        "language": list(card.get("languages", ["zh", "en"])),
        "pipeline_tag": "image-text-to-text" if sees else "text-generation",
        "library_name": LIBRARIES[form],
        "tags": ["little-assistant", "identity", "conversational", *(["lora"] if form == "adapter" else [])],
    }


def _section(texts: Mapping[str, Any], key: str, lines: Iterator[str] | list[str]) -> list[str]:
    return [f"## {texts['headings'][key]}", "\n".join(lines)]


def _base_lines(base: Base, texts: Mapping[str, Any]) -> Iterator[str]:
    words = {"base": base.title, "base_id": base.id, "licence": base.licence}
    yield texts["base"]["known" if base.id else "unknown"].format(**words)
    yield texts["base"]["licence"].format(**words)
    if base.dequantized_from:
        yield texts["base"]["dequantized"].format(file=base.dequantized_from, dtype=base.dtype)


def _data_lines(run: Path, card: Mapping[str, Any], texts: Mapping[str, Any]) -> Iterator[str]:
    path = run / "data" / "statistics.json"
    train = read_json(path).get("train", {}) if path.is_file() else {}
    anchors = load_settings(run / "adapter").get("run", {}).get("objective", {}).get("anchors")
    if train:
        yield texts["data"]["identity"].format(
            rows=train["rows"], questions=train["distinct_questions"],
            languages=", ".join(card.get("languages", [])),
        )  # fmt: skip
    if anchors:
        yield texts["data"]["general"].format(anchors=anchors)
    if not train and not anchors:
        yield texts["data"]["missing"]


def _settings_lines(run: Path, texts: Mapping[str, Any]) -> Iterator[str]:
    made_by = load_settings(run / "adapter")
    if not made_by.get("run"):
        yield texts["settings"]["missing"]
        return
    kept = {key: made_by[key] for key in ("kept_step", "torch") if key in made_by}
    yield f"```toml\n{tomli_w.dumps(without_places({**made_by['run'], **kept})).strip()}\n```"


def _scorecard_lines(
    path: Path, form: Form, base: Base, model: str, texts: Mapping[str, Any]
) -> Iterator[str]:
    if not path.is_file():
        yield texts["scorecard"]["missing"]
        return
    scores = read_json(path)
    engine = str(scores.get("backend", "")).partition(":")[0]
    shown = markdown({**scores, "model": model, "base": base.title, "backend": engine})
    yield shown.partition("\n")[2].strip()
    if form == "gguf" and engine == "transformers":
        yield f"\n{texts['scorecard']['merged_alone']}"
    if path.with_name("scorecard.png").is_file():
        yield f"\n{texts['scorecard']['picture']}"


def _limit_lines(form: Form, words: Mapping[str, str], texts: Mapping[str, Any]) -> Iterator[str]:
    yield texts["limits"]["text"].format(**words)
    if form == "adapter":
        yield texts["limits"]["adapter"]


def _fact_lines(card: Mapping[str, Any], texts: Mapping[str, Any]) -> Iterator[str]:
    if card.get("owner"):
        yield texts["facts"]["owner"].format(owner=card["owner"])
    for facts in card.get("facts", {}).values():
        yield from (texts["facts"]["fact"].format(fact=" ".join(fact.split())) for fact in facts)
