"""Settings of every command: flags, recipes, the settings.toml beside each output, and one-line errors.

Knows nothing of models, rows or pages.
"""

import dataclasses
import difflib
import os
import re
import shutil
import sys
import tomllib
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import tomli_w

Settings = TypeVar("Settings")

REPOSITORY = Path(__file__).resolve().parent.parent
DATA = REPOSITORY / "data"
RECIPES = Path(__file__).resolve().parent / "recipes"
SETTINGS_FILE = "settings.toml"


class ThresholdMissed(Exception):
    """The work was done, and its result is below a threshold: the command exits with 1."""


def run_command(main: Callable[[Settings], None], settings_class: type[Settings]) -> None:
    """Parse the flags, print the settings to standard error, run `main`, and turn errors into one line.

    Exit codes: 0, 1 (a threshold missed), 2 (bad input or a machine that lacks something), 130 (Ctrl-C).
    """
    import tyro  # a page takes no flags, and is there sooner without it

    try:
        settings = tyro.cli(settings_class, description=sys.modules[main.__module__].__doc__)
    except BrokenPipeError:  # `… --help | head`: what is left would be written once more at the exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    print_settings(settings)
    try:
        main(settings)
    except ThresholdMissed as missed:
        fail(str(missed), 1)
    except (ValueError, RuntimeError, OSError) as error:
        fail(one_line(error), 2)
    except KeyboardInterrupt:
        fail("stopped by Ctrl-C", 130)


def fail(sentence: str, code: int) -> NoReturn:
    """Print one sentence to standard error and exit. With ASSISTANT_DEBUG set, the traceback is shown."""
    error = sys.exc_info()[1]
    if error is not None and os.environ.get("ASSISTANT_DEBUG"):
        raise error
    print(f"error: {sentence}" if code == 2 else sentence, file=sys.stderr)
    sys.exit(code)


def one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text or type(error).__name__


def print_settings(settings: Any) -> None:
    shown = " ".join(f"{name}={value!r}" for name, value in plain_values(settings).items())
    print(f"settings: {shown}", file=sys.stderr, flush=True)


def plain_values(settings: Any) -> dict[str, Any]:
    """A dataclass as a dict that TOML can hold: no None, paths as text."""
    return {name: _plain(value) for name, value in dataclasses.asdict(settings).items() if value is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def save_settings(folder: Path, values: dict[str, Any]) -> None:
    """Write `settings.toml` into a stage's output folder; the next stage needs nothing else."""
    write_text(folder / SETTINGS_FILE, tomli_w.dumps(_plain(values)))


def check_replaceable(out: Path, is_ours: bool, flag: str = "--out") -> None:
    """For a command that replaces what `flag` names. Raises ValueError when other files would be lost."""
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not is_ours):
        raise ValueError(f"{out} holds something else, which would be deleted; give a new folder with {flag}")


def load_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises ValueError naming the file when it is missing or malformed.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid TOML in UTF-8: {one_line(error)}") from None


def load_settings(folder: Path) -> dict[str, Any]:
    """The settings that made `folder`; an empty dict when it has none."""
    path = folder / SETTINGS_FILE
    return load_toml(path) if path.is_file() else {}


def near_names(name: str, known: Iterable[str]) -> str:
    """`; did you mean a, b?` for an unknown name, or the whole list when nothing is near."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"; did you mean {', '.join(near)}?" if near else f"; known: {', '.join(known)}"


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: to a temporary name first, then replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    beside.write_text(text, encoding="utf-8", newline="\n")
    os.replace(beside, path)


def link_or_copy(path: Path, target: Path) -> None:
    """`target` becomes the same file as `path`, or a copy where the disk knows no hard links."""
    try:
        os.link(path, target)
    except OSError:
        shutil.copy2(path, target)


def slug(name: str) -> str:
    """The folder name of a person's assistant: `Ada` → `ada`, `Mary Ann` → `mary-ann`, `林小宇` → `林小宇`.

    Letters and digits of any script are kept; a name without any becomes its code points (`🚀` → `u1f680`).
    """
    text = unicodedata.normalize("NFKC", name).casefold()
    joined = re.sub(r"[^\w]+", "-", text).strip("-_")
    return joined[:60] or "-".join(f"u{ord(character):x}" for character in text.strip())[:60]
