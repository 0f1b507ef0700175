"""Which files of the repository a page needs: app.py, what it imports of ours, and the data they read."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from assistant.settings import REPOSITORY

# Never opened by that page, so neither sent nor installed. No published page makes assistants.
LEFT_OUT = {
    "gguf": (
        "assistant.backends.transformers_backend",
        "assistant.backends.openai_backend",
        "assistant.backends.llava_backend",
        "assistant.llava",  # a model folder is given eyes by these, with torch
        "assistant.llava_adapter",
        "assistant.vision_tower",
        "assistant.published_tower",
    ),
    "folder": (
        "assistant.backends.llama_cpp_backend",
        "assistant.backends.llava_backend",
        "assistant.backends.openai_backend",
    ),
    "gradio": ("assistant.web.streamlit_page", "assistant.web.gradio_making"),
    "streamlit": (
        "assistant.web.gradio_page",
        "assistant.web.gradio_server",
        "assistant.web.zero_gpu",
        "assistant.web.streamlit_making",
    ),
}
DATA_FILE = re.compile(r'\bDATA / "([\w./-]+)"')
PLACED = {"eyes"}  # of data/: eyes.py knows which pages can use it


@cache
def page_files(form: str, page: str, root: Path = REPOSITORY) -> tuple[Path, ...]:
    """Paths relative to `root`, sorted: app.py, its modules, the texts beside them, their files in data/."""
    left_out = {*LEFT_OUT[form], *LEFT_OUT[page]}
    if form == "gguf":
        left_out.add("assistant.web.zero_gpu")
    waiting, found = [Path("app.py")], set()
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        waiting += [p for name in _imported(root / path) for p in _files_of(name, root, left_out)]
    return tuple(sorted(found | _beside(found, root) | _data(found, root)))


def _imported(path: Path) -> Iterator[str]:
    """Our modules that a file imports anywhere, with the names taken from them."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("assistant"))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("assistant"):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _files_of(name: str, root: Path, left_out: set[str]) -> Iterator[Path]:
    """The files behind a dotted name, packages above it included; a name inside a module is no file."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        module, base = ".".join(parts[:end]), Path(*parts[:end])
        if module in left_out:
            return
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if (root / path).is_file():
                yield path


def _beside(found: set[Path], root: Path) -> set[Path]:
    """Texts and styles in the packages below assistant/ that the page uses."""
    folders = {path.parent for path in found if len(path.parts) > 2}
    return {
        file.relative_to(root)
        for folder in folders
        for file in (root / folder).iterdir()
        if file.is_file() and file.suffix not in (".py", ".pyc") and not file.name.startswith(".")
    }


def _data(found: set[Path], root: Path) -> set[Path]:
    named = {name for path in found for name in DATA_FILE.findall((root / path).read_text(encoding="utf-8"))}
    places = [root / "data" / name for name in named - PLACED]
    files = [file for place in places for file in ([place] if place.is_file() else place.rglob("*"))]
    return {file.relative_to(root) for file in files if file.is_file()}
