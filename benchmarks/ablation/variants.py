"""What is compared: variants of the identity data and its training, and the file that lists them."""

import dataclasses
from pathlib import Path
from typing import Any

from assistant.settings import load_toml, near_names, plain_values, slug
from assistant.training.recipe import recipe_names


@dataclasses.dataclass(frozen=True)
class Variant:
    """One line of the table. With `system` or `adapter` nothing is trained."""

    label: str
    recipe: str = "identity_lora"
    set: tuple[str, ...] = ()
    names: int = 0
    """How many of the names; 0: all."""
    seeds: int = 1
    n: int = 1200
    """Rows that are generated, as gen_identity_data.py -n."""
    wordings: str = ""
    """A folder of wordings instead of data/identity/."""
    rows: dict[str, int] = dataclasses.field(default_factory=dict)
    """Identity rows of each language that are kept of those generated; empty: all rows, of all kinds."""
    kinds: tuple[str, ...] = ("identity",)
    """Kinds that `rows` counts."""
    times: int = 1
    """Copies of each kept row."""
    general: dict[str, int] = dataclasses.field(default_factory=dict)
    """General prompts of each language, whose answers by the base are learnt by heart beside the identity."""
    system: dict[str, str] = dataclasses.field(default_factory=dict)
    """A system prompt for each language instead of training."""
    adapter: str = ""
    """A trained adapter's folder instead of training."""

    def made_by(self) -> dict[str, Any]:
        """All that changes a result: not how many are made."""
        return {key: value for key, value in plain_values(self).items() if key not in ("names", "seeds")}


@dataclasses.dataclass(frozen=True)
class Case:
    variant: Variant
    name: str
    seed: int
    scale: float = 1.0

    @property
    def key(self) -> str:
        return f"{self.run}--x{self.scale:g}"

    @property
    def run(self) -> str:
        """What one training serves: all scales."""
        return f"{slug(self.variant.label)}--{slug(self.name)}--s{self.seed}"


def load_variants(path: Path) -> tuple[list[str], list[Variant]]:
    """(names, variants) of a file. Raises ValueError, one sentence, for what it does not understand."""
    values = load_toml(path)
    if unknown := set(values) - {"names", "variant"}:
        raise ValueError(
            f"{path}: unknown key {min(unknown)!r}{near_names(min(unknown), ('names', 'variant'))}"
        )
    names, entries = values.get("names"), values.get("variant")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f'{path}: names must be a list of names, for example names = ["Ada"]')
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path} has no variant; write one as [[variant]] with a label")
    variants = [_variant(entry, f"{path}: variant {number}") for number, entry in enumerate(entries, 1)]
    if len({slug(variant.label) for variant in variants}) < len(variants):
        raise ValueError(f"{path}: two variants have the same label; each needs its own")
    return names, variants


def _variant(entry: dict[str, Any], place: str) -> Variant:
    fields = {field.name: field for field in dataclasses.fields(Variant)}
    for key, value in entry.items():
        if key not in fields:
            raise ValueError(f"{place}: unknown key {key!r}{near_names(key, fields)}")
        wanted = type(getattr(Variant(""), key))
        given = tuple(value) if wanted is tuple and isinstance(value, list) else value
        if not isinstance(given, wanted) or isinstance(given, bool):
            raise ValueError(f"{place}: {key} must be like {getattr(Variant('x'), key)!r}, not {value!r}")
        entry = entry | {key: given}
    if not entry.get("label"):
        raise ValueError(f"{place} has no label; give it one, for the table")
    variant = Variant(**entry)
    if not variant.recipe.endswith(".toml") and variant.recipe not in recipe_names():
        known = near_names(variant.recipe, recipe_names())
        raise ValueError(f"{place}: recipe {variant.recipe!r} is unknown{known}")
    if variant.wordings and not Path(variant.wordings).is_dir():
        raise ValueError(
            f"{place}: {variant.wordings} is no folder; wordings must name one like data/identity"
        )
    return variant
