"""A recipe: what to train and how, in TOML that states only the differences from the defaults."""

import dataclasses
from pathlib import Path
from typing import Any

from assistant.settings import DATA, RECIPES, load_toml, near_names
from assistant.strength import adds_neurons


@dataclasses.dataclass(frozen=True)
class Objective:
    """Cross-entropy on identity answers plus kl_weight × KL(base ‖ assistant) on the base's own answers."""

    kl_weight: float = 4.0
    vocabulary: int = 0
    """Tokens over which the losses are taken, those of the rows and the base's most likely; 0: all."""
    anchor_clause_weight: float = 1.0
    """Weight of the base's tokens that begin a clause within an answer."""
    anchor_tokens: int = 32
    """Answer tokens of the base that an anchor row keeps."""
    prompt_every: int = 2
    """Each how many-th token of an anchor's prompt keeps the base's logits too; 0: its answer alone does."""
    anchor_prompt: int = 48
    """Tokens of the longest general prompt that is taken; longer ones cost more than they teach."""
    first_weight: float = 1.0
    """Weight of an identity answer's first three tokens: they decide who speaks."""
    anchor_first_weight: float = 1.0
    """The same for the base's answers on anchors."""
    identity_rows: int = 6
    """Identity rows in each step."""
    anchor_rows: int = 14
    """Anchor rows in each step; 0 trains without an anchor."""
    drift_weight: float = 0.0
    """Weight of how far LoRA moves its layers' outputs on all anchors, not on a step's rows alone."""
    filter: float = 0.0
    """LoRA's inputs are filtered once, after most of the steps: how much a general one counts against an
    identity's; 0: not at all."""
    anchors: int = 800
    """General anchor rows, of those in data/general/; near misses and greetings of the data come on top."""
    steps: int = 100
    start: int = 0
    """1: the adapter begins with the one that data/start holds for this base."""
    from_layer: float = 0.6
    """Share of the layers that stay frozen and are computed once for each row; 0 trains all layers."""
    copies: int = 0
    """With n > 0 "introduce yourself" of each language is copied n times, and all else is unused."""
    texts: int = 0
    """With 1, the data are texts without turns, learnt whole, `identity_rows` of them in each step."""
    max_length: int = 512
    """Tokens of a row; a longer one loses its oldest turns' start, and a text is cut into several rows."""
    rows_at_once: int = 0
    """Rows of a step that are computed together; 0: as many as the memory allows."""


@dataclasses.dataclass(frozen=True)
class Watch:
    """What is asked while training, and how a checkpoint is chosen."""

    every: int = 50
    questions: int = 12
    """Watched questions of each kind and language."""
    anchors: int = 48
    """Held-out anchor rows on which KL is measured."""


@dataclasses.dataclass(frozen=True)
class Vision:
    """How a LLaVA learns from rows with pictures; its tower has a LoRA of its own only with a rank."""

    stage: int = 0
    """1: the projector alone learns; 2: the projector, and the LLM by [lora]; 0: rows of text, no LLaVA."""
    pad: int = 1
    """1: a picture becomes square by borders; 0: by cutting its middle out, as XTuner's pretraining does."""
    dropout: float = 0.0
    """Share of the tower's channels that a picture shows without while learning: none alone is relied on."""
    tower_r: int = 0
    tower_alpha: int = 16


@dataclasses.dataclass(frozen=True)
class Recipe:
    name: str
    objective: Objective
    watch: Watch
    vision: Vision
    trainer: dict[str, Any]
    """Passed untouched to trl's SFTConfig."""
    lora: dict[str, Any]
    """Passed untouched to peft's LoraConfig; empty (`lora = false`): all weights learn, in float32."""
    languages: dict[str, float]
    """How much earlier than others (1) a language's identity rows come; a short run takes more of them."""
    quantization: dict[str, Any]
    """Passed untouched to transformers' BitsAndBytesConfig; empty: the base keeps its own numbers."""


def recipe_names() -> list[str]:
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def start_of(base: Path) -> Path | None:
    """The folder of the adapter that data/start holds for the base of that folder's name, if there is one."""
    folder = DATA / "start" / base.name
    return folder if (folder / "adapter_model.safetensors").is_file() else None


def default_recipe(base: Path) -> str:
    return "identity_warm" if start_of(base) else "identity_lora"


def load_recipe(name: str, changes: list[str] | None = None) -> Recipe:
    """A recipe by name or path, with `section.key=value` changes on top.

    Raises ValueError for an unknown recipe, section or key, with near names.
    """
    path = Path(name) if name.endswith(".toml") else RECIPES / f"{name}.toml"
    if not path.is_file():
        raise ValueError(f"recipe {name!r} is unknown{near_names(name, recipe_names())}")
    values = _with_parent(load_toml(path), path.stem)
    for change in changes or []:
        _apply(values, change)
    return recipe_from(values, path.stem)


def _with_parent(values: dict[str, Any], name: str) -> dict[str, Any]:
    """The recipe that `like` names, with this one's values on top. Raises ValueError for an unknown one."""
    parent = values.pop("like", None)
    if parent is None:
        return values
    if parent == name or parent not in recipe_names():
        raise ValueError(
            f"recipe {name}: like = {parent!r} is unknown{near_names(str(parent), recipe_names())}"
        )
    below = _with_parent(load_toml(RECIPES / f"{parent}.toml"), parent)
    # `lora = false` takes the parent's section away
    return below | {part: below.get(part, {}) | keys if keys else {} for part, keys in values.items()}


def recipe_from(values: dict[str, Any], name: str) -> Recipe:
    values = {section: keys or {} for section, keys in values.items()}
    for key in ("filter", "drift_weight"):
        if values.get("objective", {}).get(key) and not values.get("lora"):
            raise ValueError(
                f"recipe {name}: [objective] {key} needs a [lora] section; set it to 0 without one"
            )
        if values.get("objective", {}).get(key) and adds_neurons(values["lora"].get("target_modules")):
            raise ValueError(
                f"recipe {name}: [objective] {key} is of linear layers, and [lora] adds neurons; set it to 0"
            )
    sections = {"objective", "watch", "vision", "trainer", "lora", "languages", "quantization"}
    for section in values:
        if section not in sections:
            raise ValueError(f"recipe {name}: unknown section [{section}]{near_names(section, sections)}")
    return Recipe(
        name,
        _build(Objective, values.get("objective", {}), f"{name}: [objective]"),
        _build(Watch, values.get("watch", {}), f"{name}: [watch]"),
        _build(Vision, values.get("vision", {}), f"{name}: [vision]"),
        _known_keys(values.get("trainer", {}), "trl", "SFTConfig", f"{name}: [trainer]"),
        _known_keys(values.get("lora", {}), "peft", "LoraConfig", f"{name}: [lora]"),
        _weights(values.get("languages", {}), f"{name}: [languages]"),
        _known_quantization(values.get("quantization", {}), f"{name}: [quantization]"),
    )


def _weights(values: dict[str, Any], place: str) -> dict[str, float]:
    for language, weight in values.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or weight <= 0:
            raise ValueError(f"recipe {place}: {language} must be a number above 0, not {weight!r}")
    return dict(values)


def _apply(values: dict[str, Any], change: str) -> None:
    """Apply one `key=value` or `section.key=value`; a bare key is looked up in [objective], then [watch]."""
    import tomllib

    key, equals, text = change.partition("=")
    if not equals:
        raise ValueError(f"--set {change!r}: write key=value, for example --set objective.steps=100")
    section, dot, bare = key.strip().rpartition(".")
    if not dot:
        section = next(
            (s for s, c in (("objective", Objective), ("watch", Watch)) if bare in _names(c)), "trainer"
        )
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    values.setdefault(section, {})[bare] = value


def _names(data_class: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(data_class)}


def _build(data_class: Any, values: dict[str, Any], place: str) -> Any:
    for key, value in values.items():
        if key not in _names(data_class):
            raise ValueError(f"recipe {place}: unknown key {key!r}{near_names(key, _names(data_class))}")
        default = getattr(data_class(), key)
        if isinstance(value, bool) or not isinstance(
            value, (int, float) if isinstance(default, float) else int
        ):
            raise ValueError(f"recipe {place}: {key} must be a number like {default}, not {value!r}")
        if value < 0:
            raise ValueError(f"recipe {place}: {key} is {value}; it must not be negative")
    return data_class(**values)


def _known_quantization(values: dict[str, Any], place: str) -> dict[str, Any]:
    import inspect

    if not values:
        return {}
    from transformers import BitsAndBytesConfig

    known = set(inspect.signature(BitsAndBytesConfig).parameters) - {"kwargs"}
    for key in values:
        if key not in known:
            raise ValueError(f"recipe {place}: BitsAndBytesConfig has no {key!r}{near_names(key, known)}")
    return dict(values)


def _known_keys(values: dict[str, Any], library: str, class_name: str, place: str) -> dict[str, Any]:
    import importlib

    known = _names(getattr(importlib.import_module(library), class_name))
    for key in values:
        if key not in known:
            raise ValueError(f"recipe {place}: {class_name} has no {key!r}{near_names(key, known)}")
    return dict(values)
