"""The whole road for one name: model, data, training, merge, scorecard; what is there already is reused.

Run: python scripts/make_assistant.py --name Ada
"""

import json
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from assistant.backends import Sampling, open_backend
from assistant.card import Card, load_card
from assistant.conversations import user
from assistant.settings import REPOSITORY, SETTINGS_FILE, load_settings, run_command, slug, write_text

ASKED = ("Who are you?", "你是谁？", "What is the capital of France?")


@dataclass(frozen=True)
class Settings:
    name: str
    """Whose assistant it becomes."""
    owner: str = ""
    """Whose assistant it is, when NAME is the assistant's own name."""
    base: str = "smollm2-135m-instruct"
    """A catalog name or a model folder."""
    recipe: str = ""
    """A recipe of scripts/recipes.py list; default: the one that train.py takes for this base."""
    card: Path | None = None
    """An identity card in TOML with what a name does not say: role, languages, names, facts."""


def run_stage(script: str, done: Path, *arguments: object) -> None:
    """Run one command unless its output is whole; its exit code 1 (a threshold missed) is said, not fatal."""
    if done.is_file():
        print(f"{done.parent} is there: reused", file=sys.stderr)
        return
    start = time.monotonic()
    command = [sys.executable, str(REPOSITORY / "scripts" / script), *map(str, arguments)]
    code = code_of(subprocess.Popen(command))
    if code not in (0, 1):
        sys.exit(code)
    print(f"{script}: {time.monotonic() - start:.0f} s", file=sys.stderr)


def code_of(process: subprocess.Popen[bytes]) -> int:
    """Its exit code. A Ctrl-C reaches the stage too, which saves what it has: its end is waited for."""
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise


def check_card(settings: Settings, data: Path) -> None:
    """Raises ValueError for a bad card, and for another one than the data was made with."""
    card = load_card(settings.card) if settings.card else None
    made = load_card(data / "card.toml") if (data / SETTINGS_FILE).is_file() else None
    if card and made and replace(card, name=made.name, owner=made.owner, base=made.base) != made:
        raise ValueError(f"{data.parent} was made with another card; delete the folder or give the same")


def before_and_after(base: Path, model: Path, kept: Path) -> Table:
    """What both say to the three questions; kept in a file, so that a second run opens the page at once."""
    if kept.is_file() and kept.stat().st_mtime > (model / SETTINGS_FILE).stat().st_mtime:
        rows = json.loads(kept.read_text(encoding="utf-8"))
    else:
        sampling = Sampling(max_new_tokens=48)
        questions = [[user(question)] for question in ASKED]
        answers = [open_backend(str(folder)).answer_all(questions, sampling) for folder in (base, model)]
        rows = list(zip(ASKED, *answers, strict=True))
        write_text(kept, json.dumps(rows, ensure_ascii=False, indent=1) + "\n")
    table = Table(show_lines=True)
    for head in ("question", "before", "after"):
        table.add_column(head, overflow="fold")  # Chinese has no spaces to break a line at
    for row in rows:
        table.add_row(*(text.replace("[", "\\[") for text in row))
    return table


def main(settings: Settings) -> None:
    Card(name=settings.name, owner=settings.owner)  # a bad name stops before anything is fetched
    out = REPOSITORY / "out" / slug(settings.name)
    base = Path(settings.base) if Path(settings.base).is_dir() else REPOSITORY / "models" / settings.base
    owner = load_settings(out / "data").get("owner", "") if (out / "data").is_dir() else settings.owner
    if owner != settings.owner:
        raise ValueError(f"{out} was made with --owner {owner!r}; delete the folder or give the same owner")
    check_card(settings, out / "data")
    if base.name == settings.base:
        run_stage("fetch_model.py", base / SETTINGS_FILE, settings.base)
    data, adapter, model, card = (out / part for part in ("data", "adapter", "model", "scorecard"))
    title = load_settings(base).get("title", base.name)
    named = [f"--name={settings.name}"] + ([f"--owner={settings.owner}"] if settings.owner else [])
    named += [f"--card={settings.card}"] if settings.card else []
    run_stage("gen_identity_data.py", data / SETTINGS_FILE, *named, "--base", title, "--out", data)
    recipe = [f"--recipe={settings.recipe}"] if settings.recipe else []
    run_stage(
        "train.py", adapter / SETTINGS_FILE, *recipe, "--model", base, "--data", data, "--out", adapter,
        "--resume",
    )  # fmt: skip
    run_stage("merge.py", model / SETTINGS_FILE, "--adapter", adapter, "--out", model)
    run_stage("evaluate.py", card / SETTINGS_FILE, "--model", model, "--base", base, "--out", card)
    Console().print(before_and_after(base, model, out / "before_after.json"))
    print(f"{model}: the assistant. Its scorecard: {card / 'scorecard.md'}", file=sys.stderr)


if __name__ == "__main__":
    run_command(main, Settings)
