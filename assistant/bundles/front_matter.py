"""The YAML block at the head of a README, which tells a host what the repository is; and the hosts' rules."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

COLOURS = ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")
SDKS = ("gradio", "docker", "static")
LONGEST_DESCRIPTION = 60
PYTHON = re.compile(r"3\.\d+(\.\d+)?")


def write_front_matter(values: dict[str, Any]) -> str:
    """The block with its fences. Values are JSON, which YAML reads the same whatever a name holds."""
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
    return "\n".join(["---", *lines, "---"]) + "\n"


def read_front_matter(path: Path) -> dict[str, Any]:
    """The README's block. Raises ValueError when there is none or it is no YAML mapping."""
    try:
        import yaml
    except ModuleNotFoundError:
        raise RuntimeError("front matter is read by PyYAML; run: pip install -e '.[publish]'") from None
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    found = re.match(r"---\r?\n(.*?)\r?\n---\r?\n", text, re.DOTALL)
    if not found:
        raise ValueError(
            f"{path.name} has no front matter; it must begin with a block between two lines of ---"
        )
    try:
        values = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        raise ValueError(
            f"{path.name}: its front matter is no YAML ({' '.join(str(error).split())})"
        ) from None
    if not isinstance(values, dict):
        raise ValueError(f"{path.name}: its front matter must be `key: value` lines")
    return values


def huggingface_faults(values: dict[str, Any], folder: Path, sdk: str) -> Iterator[str]:
    """What Hugging Face would refuse, one sentence each."""
    yield from (f"{key} is missing" for key in ("title", "emoji", "sdk", "license") if not values.get(key))
    if values.get("sdk") not in SDKS:
        yield f"sdk {values.get('sdk')!r} is not offered; use {', '.join(SDKS)} (Streamlit runs in docker)"
    elif values["sdk"] != sdk:
        yield f"sdk {values['sdk']!r} is not the {sdk!r} of this variant"
    for key in ("colorFrom", "colorTo"):
        if key in values and values[key] not in COLOURS:
            yield f"{key} {values[key]!r} is no colour of theirs; use {', '.join(COLOURS)}"
    description = str(values.get("short_description", ""))
    if len(description) > LONGEST_DESCRIPTION:
        yield f"short_description has {len(description)} characters; at most {LONGEST_DESCRIPTION} are taken"
    if values.get("sdk") == "docker":
        yield from _docker_faults(values, folder)
    if values.get("sdk") == "gradio":
        yield from _gradio_faults(values, folder)


def _docker_faults(values: dict[str, Any], folder: Path) -> Iterator[str]:
    if not (folder / "Dockerfile").is_file():
        yield "sdk is docker, and there is no Dockerfile"
    elif not re.search(rf"\b{values.get('app_port', 7860)}\b", (folder / "Dockerfile").read_text("utf-8")):
        yield f"app_port {values.get('app_port', 7860)} is nowhere in the Dockerfile"
    if "sdk_version" in values:
        yield "sdk_version belongs to gradio; remove it"


def _gradio_faults(values: dict[str, Any], folder: Path) -> Iterator[str]:
    version, python = str(values.get("sdk_version", "")), values.get("python_version")
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        yield f"sdk_version {version!r} must be a full version such as 6.31.0"
    if not isinstance(python, str) or not PYTHON.fullmatch(python):
        yield f'python_version must be a text such as "3.12" (their own, 3.10, is too old), not {python!r}'
    if not (folder / str(values.get("app_file", "app.py"))).is_file():
        yield f"app_file {values.get('app_file')!r} does not exist"


def modelscope_faults(values: dict[str, Any], folder: Path, sdk: str) -> Iterator[str]:
    """What ModelScope needs, one sentence each."""
    yield from (f"{key} is missing" for key in ("domain", "license", "deployspec") if not values.get(key))
    entry = (values.get("deployspec") or {}).get("entry_file", "app.py")
    if not (folder / entry).is_file():
        yield f"deployspec.entry_file {entry!r} does not exist"
    if "datasets" in values:
        yield "datasets means something else on every host; remove it"
