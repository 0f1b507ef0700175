"""Where a published model comes from: its run's identity card, its base, and its settings."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assistant.catalog import Model, load_catalog, models_folder
from assistant.settings import load_settings, load_toml, slug

LICENCES = {"Apache-2.0": "apache-2.0", "MIT": "mit"}


@dataclass(frozen=True)
class Base:
    """What the model was made from; `id` is empty for a model that is on no hub."""

    title: str
    id: str = ""
    licence: str = "as its maker states"
    dequantized_from: str = ""
    dtype: str = ""


def card_of(run: Path, folder: Path) -> dict[str, Any]:
    """The identity card of the run, wherever a stage kept it."""
    kept = run / "data" / "card.toml"
    found = load_toml(kept) if kept.is_file() else {}
    for place in (folder, run / "model", run / "adapter"):
        found = found or load_settings(place).get("card", {})
    if not found.get("name"):
        raise ValueError(f"{run} has no card with a name; give the folder of a run, for example out/ada")
    return dict(found)


def base_of(run: Path, card: Mapping[str, Any], folder: Path | None = None) -> Base:
    """The base by the settings of its folder, wherever it lies now; when it is gone, by the catalog.

    `folder`: the model itself, which may be a base.
    """
    trained_on = Path(str(load_settings(run / "adapter").get("model", "")))
    if not trained_on.name and folder and "licence" in load_settings(folder):
        trained_on = folder
    made = load_settings(trained_on) if trained_on.name else {}
    known = _in_catalog(str(made.get("model", "")), trained_on.name, str(card.get("base", "")))
    made = made or (load_settings(models_folder() / known.name) if known else {})
    title = str(made.get("title") or card.get("base") or trained_on.name or "its base")
    hub = next((source.name for source in known.sources if source.kind == "hub"), "") if known else ""
    if made.get("source") == "hub":
        hub = str(made["source_name"])
    licence = str(made.get("licence") or (known.licence if known else Base.licence))
    return Base(title, hub, licence, str(made.get("dequantized_from", "")), str(made.get("dtype", "")))


def licence_fields(base: Base) -> dict[str, str]:
    """What hubs read of a licence; one that they have no word for by its name."""
    if base.licence in LICENCES:
        return {"license": LICENCES[base.licence]}
    link = {"license_link": f"https://huggingface.co/{base.id}"} if base.id else {}
    return {"license": "other", "license_name": slug(base.licence.split(":")[0]), **link}


def _in_catalog(*names: str) -> Model | None:
    wanted = {name.lower() for name in names if name}
    return next((m for m in load_catalog().values() if {m.name, m.title.lower()} & wanted), None)


def without_places(value: Any) -> Any:
    """The settings without paths of a machine: every text in them that looks like one."""
    if isinstance(value, Mapping):
        return {key: without_places(item) for key, item in value.items() if not _is_place(item)}
    return (
        [without_places(item) for item in value if not _is_place(item)] if isinstance(value, list) else value
    )


def _is_place(value: Any) -> bool:
    return isinstance(value, str) and bool(re.match(r"[/~\\]|\.\.?[/\\]|[A-Za-z]:[/\\]|file:", value))
