"""What of a folder is sent, and how it is described in one line. Knows no host."""

from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from pathlib import Path

NOT_SENT = (
    "__pycache__/*",
    "*/__pycache__/*",
    "*.partial",
    ".DS_Store",
    "*/.DS_Store",
    ".git/*",
    ".ms_upload_cache*",
)
# A run's own records: they hold the card with its facts, and where things lay on this machine.
RECORDS = ("settings.toml", "*/settings.toml", "card.toml", "*.jsonl")
MADE_BY_HOSTS = (".gitattributes", "configuration.json", "README.md")


def left_out(what: str) -> list[str]:
    """Patterns of files that stay here: of a page what Python leaves behind, of a model its records too."""
    return [*NOT_SENT, *(RECORDS if what == "model" else ())]


def files_of(folder: Path, what: str) -> list[Path]:
    """The files that are sent, in a fixed order."""
    patterns = left_out(what)
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    return [folder / name for name in names if not any(fnmatch(name, pattern) for pattern in patterns)]


def described(folder: Path, what: str) -> str:
    sizes = [path.stat().st_size for path in files_of(folder, what)]
    return f"{len(sizes)} file{'s' if len(sizes) > 1 else ''}, {sum(sizes) / 1e6:.1f} MB"


def say_what_is_left(there: Iterable[str], folder: Path, say: Callable[[str], None]) -> None:
    """Files of an earlier upload are not deleted: they may be someone's. They are named."""
    old = [name for name in there if name not in MADE_BY_HOSTS and not (folder / name).exists()]
    if old:
        shown = ", ".join(old[:5]) + (f" and {len(old) - 5} more" if len(old) > 5 else "")
        say(f"left there from before, not among what was sent: {shown}")
