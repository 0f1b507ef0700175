"""A small copy of the project with a tiny random base model, so that a whole assistant takes seconds."""

import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from tiny_run import CHANGES, make_tiny_model

from assistant.settings import REPOSITORY, save_settings
from assistant.web.making import BASE

STEPS = 40
RECIPE = {"steps": STEPS, "watch.every": 10, "anchors": 8, "watch.questions": 1, "watch.anchors": 2}


def make_workshop(root: Path, steps: int = STEPS) -> Path:
    """The commands and pages of this repository, with models/ and out/ of its own below `root`."""
    copy_project(root)
    make_tiny_model(root / "models" / BASE)
    save_settings(root / "models" / BASE, {"title": "Tiny"})
    lines = [change.replace("=", " = ") for change in CHANGES if not change.startswith(("steps", "watch"))]
    lines += [f"{key} = {value}" for key, value in (RECIPE | {"steps": steps}).items()]
    write_recipe(root / "assistant" / "recipes" / "identity_lora.toml", lines)
    return root


def make_stage(root: Path) -> Path:
    """A copy whose make_assistant.py plays: it trains until it is stopped, and the second time to the end."""
    copy_project(root)
    (root / "models" / BASE).mkdir(parents=True)
    save_settings(root / "models" / BASE, {"title": "Tiny"})
    shutil.copy(Path(__file__).with_name("played_assistant.py"), root / "scripts" / "make_assistant.py")
    return root


def make_narrow_stage(root: Path) -> Path:
    """A copy that lets llama.cpp answer one conversation after the other, so that others wait."""
    make_stage(root)
    backend = root / "assistant" / "backends" / "llama_cpp_backend.py"
    text = backend.read_text(encoding="utf-8")
    backend.write_text(re.sub(r"^MOST_SLOTS = \d+", "MOST_SLOTS = 1", text, flags=re.MULTILINE), "utf-8")
    return root


def copy_project(root: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__")
    for part in ("assistant", "scripts", ".streamlit"):
        shutil.copytree(REPOSITORY / part, root / part, ignore=ignored)
    shutil.copy(REPOSITORY / "app.py", root)
    (root / "data").symlink_to(REPOSITORY / "data")


def write_recipe(path: Path, lines: list[str]) -> None:
    """Keys with a section go there; the others belong to [objective]."""
    parts: dict[str, list[str]] = {}
    for line in lines:
        section, _, rest = line.rpartition(".") if "." in line.split(" = ")[0] else ("objective", "", line)
        parts.setdefault(section, []).append(rest)
    path.write_text("".join(f"[{name}]\n" + "\n".join(keys) + "\n" for name, keys in parts.items()), "utf-8")


def environment_of(root: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(root)}


def wait_until(is_so: Callable[[], object], log: Path, timeout_s: float = 90) -> None:
    end = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < end, log.read_text(encoding="utf-8") if log.is_file() else "no log"
        time.sleep(0.1)
