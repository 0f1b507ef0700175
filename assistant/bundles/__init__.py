"""A bundle: the folder that becomes a public page, in the repository's own layout, with its model inside.

Builds it and lists it; knows nothing of credentials or uploads.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assistant.bundles.choosing import Choice, choose_model
from assistant.bundles.eyes import place_eyes
from assistant.bundles.front_matter import write_front_matter
from assistant.bundles.lfs import files_in, in_lfs, write_attributes
from assistant.bundles.sources import page_files
from assistant.bundles.targets import FILES, Target, find_target, gradio_version, pinned
from assistant.bundles.weights import place_model
from assistant.settings import REPOSITORY, check_replaceable, write_text

__all__ = [
    "Bundle",
    "Choice",
    "Target",
    "build_bundle",
    "choose_model",
    "find_target",
    "listing",
    "requirements_of",
]

DEPLOY_FILE = "deploy.json"
LEAST_MEMORY_GB, BESIDE_MODEL_GB = 2, 1
HOUSE_REQUIREMENTS = (
    "# What the page runs with; the host adds its own. Versions as they ran when this was made.\n"
)


@dataclass(frozen=True)
class Bundle:
    folder: Path
    target: Target
    model: Choice


def build_bundle(target: str, variant: str, model: Choice, out: Path, say: Callable[[str], None]) -> Bundle:
    """Write the page and its model into `out`, whole or not at all; an earlier bundle there is replaced.

    Raises ValueError for an unknown target, a model it cannot show, or an `out` that holds something else.
    """
    chosen = find_target(target, variant)
    check_replaceable(out, (out / DEPLOY_FILE).is_file(), "--bundle-only")
    beside = out.with_name(f".{out.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        _fill(beside, chosen, model, say)
        shutil.rmtree(out, ignore_errors=True)
        beside.replace(out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return Bundle(out, chosen, model)


def _fill(folder: Path, target: Target, model: Choice, say: Callable[[str], None]) -> None:
    if model.kind == "hub" and target.host == "modelscope":
        raise ValueError(
            f"--model {model.place}: a page on ModelScope may not reach other hubs; fetch the model first "
            "(scripts/fetch_model.py) and give its folder"
        )
    _add_sources(folder, target)
    opened = place_model(model, target.form, folder, say)
    place_eyes(target, folder, REPOSITORY, say)
    write_text(
        folder / DEPLOY_FILE,
        json.dumps(_deployed(target, model, opened), ensure_ascii=False, indent=2) + "\n",
    )
    lines = "".join(f"{line}\n" for line in requirements_of(target, model))
    write_text(folder / "requirements.txt", HOUSE_REQUIREMENTS + lines)
    write_text(folder / "packages.txt", "".join(f"{name}\n" for name in target.packages))
    write_text(folder / "README.md", _readme(target, model))
    for name, template in (target.extra or {}).items():
        text = (FILES / template).read_text(encoding="utf-8")
        write_text(folder / name, text.replace("{memory}", str(_memory_gb(folder / "model"))))
    write_attributes(folder, target.largest_plain_mb)


def _add_sources(folder: Path, target: Target) -> None:
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise ValueError(
            f"no folder can be made in {folder.parent} ({error.strerror}); give another"
        ) from None
    if target.page == "python39":
        shutil.copyfile(FILES / "python39.py", folder / "app.py")
        return
    for path in page_files(target.form, target.page, REPOSITORY):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / path, folder / path)
    shutil.copyfile(REPOSITORY / "LICENSE", folder / "LICENSE")


def _deployed(target: Target, model: Choice, opened: str) -> dict[str, Any]:
    """What app.py reads at start, where its environment says nothing else."""
    values: dict[str, Any] = {"name": model.name, "model": opened}
    if target.form == "gguf" and model.kind == "hub":
        owner, name, file = opened.split("/")
        values |= {"model": file, "repository": f"{owner}/{name}"}
    return {**values, "environment": target.environment or {}}


def requirements_of(target: Target, model: Choice) -> list[str]:
    """The lines of requirements.txt, each with the version that runs here."""
    names = list(target.requirements)
    if model.kind == "hub" and target.page == "streamlit":
        names.append("huggingface-hub")  # beside Gradio it is there already
    return [pinned(name) for name in names]


def _memory_gb(model: Path) -> int:
    """What a container needs for the model that goes along; one that is fetched may need more."""
    size = sum(path.stat().st_size for path in model.iterdir())
    return max(LEAST_MEMORY_GB, -(-size // 10**9) + BESIDE_MODEL_GB)


def _readme(target: Target, model: Choice) -> str:
    from assistant.model_card.origin import base_of, licence_fields

    base = base_of(model.run, model.card, model.path)
    slots = {"title": model.title, "title_zh": f"{model.name}的小助手", "gradio": gradio_version()}
    slots["licence"] = base.licence
    front: dict[str, Any] = {
        key: value.format(**slots) if isinstance(value, str) else value
        for key, value in (target.front or {}).items()
    }
    if front and target.front_rules == "huggingface" and model.kind == "hub":
        front["models"] = ["/".join(model.place.split("/")[:2])]
    if "license" in front and model.kind != "hub":  # the page's code is Apache-2.0, its weights may not be
        front |= licence_fields(base)
    text = (FILES / "readme.md").read_text(encoding="utf-8").format(**slots)
    return (write_front_matter(front) + "\n" if front else "") + text


def listing(folder: Path) -> list[tuple[str, int, bool]]:
    """Each file of the bundle: its name, bytes, and whether it goes through LFS."""
    names = files_in(folder)
    through_lfs = in_lfs(folder, names)
    return [(name, (folder / name).stat().st_size, name in through_lfs) for name in names]
