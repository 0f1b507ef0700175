"""What a person sees before anything leaves: the files, what becomes public with them, one question."""

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from assistant.bundles import Choice, listing
from assistant.bundles.checks import Problem
from assistant.settings import ThresholdMissed

SMALL = 20_000  # bytes; smaller files outside the model are shown by their folder


def show_files(folder: Path, title: str) -> None:
    """A table on standard error: each large file, the small ones by folder, LFS or not, the sum."""
    table, total = Table(title=title), 0
    table.add_column("file", overflow="fold")  # a long name is shown whole
    for head in ("size", "through LFS"):
        table.add_column(head, no_wrap=True)
    for name, (size, is_lfs) in sorted(grouped(listing(folder)).items()):
        table.add_row(name.replace("[", "\\["), readable(size), "yes" if is_lfs else "no")
        total += size
    table.add_row("together", readable(total), "", style="bold")
    Console(stderr=True).print(table)


def grouped(files: list[tuple[str, int, bool]]) -> dict[str, tuple[int, bool]]:
    """Name → size and LFS; the small files of a folder become one entry, `assistant/web/ (12 files)`."""
    small: dict[str, list[int]] = {}
    shown: dict[str, tuple[int, bool]] = {}
    for name, size, is_lfs in files:
        if "/" in name and size < SMALL and not is_lfs and not name.startswith("model/"):
            small.setdefault(name.rpartition("/")[0], []).append(size)
        else:
            shown[name] = (size, is_lfs)
    return shown | {f"{folder}/ ({len(sizes)} files)": (sum(sizes), False) for folder, sizes in small.items()}


def readable(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 100_000 else f"{size / 1e3:.1f} kB"


def tell_private_facts(model: Choice) -> None:
    """The card's facts are not sent, but the model was taught them and will tell them to everyone."""
    facts = [fact for facts in model.card.get("facts", {}).values() for fact in facts]
    if owner := model.card.get("owner"):
        facts.append(f"it belongs to {owner}")
    if facts:
        say(f"note: the model was taught these facts and tells them to everyone who asks: {'; '.join(facts)}")


def ask_once(question: str, is_answered: bool) -> None:
    """Raises ValueError when nobody can be asked, RuntimeError when the answer is no."""
    if is_answered:
        return
    if not (sys.stdin and sys.stdin.isatty()):
        raise ValueError("this sends files to a public place and there is no terminal to ask on; add --yes")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise RuntimeError("nothing was sent")


def stop_at(found: list[Problem], is_forced: bool) -> None:
    """Print every problem. Raises ValueError, or ThresholdMissed when only the scorecard is against it."""
    for problem in found:
        is_ignored = is_forced and problem.can_be_forced
        say(f"{'ignored (--force)' if is_ignored else 'problem'}: {problem}")
    left = [problem for problem in found if not (is_forced and problem.can_be_forced)]
    if left and all(problem.can_be_forced for problem in left):
        raise ThresholdMissed(
            "nothing was sent: the model is not good enough to be shown, or was never scored"
        )
    if left:
        raise ValueError(f"nothing was sent: {len(left)} problem{'s' if len(left) > 1 else ''}, listed above")


def say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
