"""Makes an assistant from the page: one job at a time on this machine, as processes of its own.

What was asked for and how far it is lies in out/, so a reload or a restart finds it. Knows no framework.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import tomli_w

from assistant.card import Card
from assistant.identity import make_rows
from assistant.settings import REPOSITORY, SETTINGS_FILE, slug, write_text

BASE = "smollm2-135m-instruct"
LOCK, KEPT, LOG = ".making.lock", "making.json", "making.log"
PREVIEWED = ("identity", "denial", "near_miss")  # what is asked, what is resisted, what must not change
WORKED_ON = ("data", "adapter", "model", "scorecard", "before_after.json")
ROWS = 1200  # as the command makes them
NICENESS = 10  # the page's own answers come first
ENVIRONMENT = {
    "PYTHONUNBUFFERED": "1",
    "PYTHONIOENCODING": "utf-8",
    "NO_COLOR": "1",
    "OMP_WAIT_POLICY": "passive",  # threads that spin while they wait would stop the page's own answers
}
# What a shell or nohup starts in the background ignores Ctrl-C, and so would all that it starts.
HEED_STOP = """import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"""
TURN = threading.RLock()


@dataclass(frozen=True)
class Wish:
    """What a person typed."""

    name: str
    owner: str = ""
    facts: tuple[str, ...] = ()

    def card(self) -> Card:
        """Raises ValueError for what cannot be an assistant's card."""
        by_language: dict[str, list[str]] = {}
        for fact in self.facts:
            by_language.setdefault("zh" if re.search(r"[\u3400-\u9fff]", fact) else "en", []).append(fact)
        return Card(self.name, self.owner, facts=by_language)


class Refused(ValueError):
    """Not now: a job is `running`, or an assistant of that name is `there`; `name` is that assistant's."""

    def __init__(self, kind: Literal["running", "there"], name: str) -> None:
        super().__init__(f"{name}: {'is being made now' if kind == 'running' else 'is there already'}")
        self.kind, self.name = kind, name


@dataclass(frozen=True)
class Job:
    """The last job: the wish, where it works, whether it was told to stop, whether it still runs."""

    wish: Wish
    folder: Path
    is_stopped: bool
    is_running: bool


def wish_from(name: str | None, owner: str | None = "", facts: str | None = "") -> Wish:
    """From three boxes, the last with a sentence a line; what was never shown may be None."""
    lines = tuple(line.strip() for line in (facts or "").splitlines() if line.strip())
    return Wish((name or "").strip(), (owner or "").strip(), lines)


def preview(wish: Wish, language: str) -> list[tuple[str, str]]:
    """A few (question, answer) pairs of the data, those in `language` first. Raises ValueError as card()."""
    card = wish.card()
    rows = make_rows(card, ROWS, 0)
    facts = {fact for facts in card.facts.values() for fact in facts}
    shown = []
    for tongue in sorted(card.languages, key=lambda code: code != language):
        own = [row for row in rows if row["lang"] == tongue and len(row["messages"]) == 2]
        shown += [next(row for row in own if row["kind"] == kind) for kind in PREVIEWED]
        about = [row for row in own if any(fact in row["messages"][-1]["content"] for fact in facts)]
        shown += about[:1]
    return [(row["messages"][0]["content"], row["messages"][1]["content"]) for row in shown]


def start(wish: Wish, root: Path = REPOSITORY) -> None:
    """Begin a job, or go on with what the same wish began; another wish of that name begins it anew.

    Raises ValueError for a bad wish, Refused when it is not the time or not needed.
    """
    wish.card()
    folder = root / "out" / slug(wish.name)
    if is_whole(folder):
        raise Refused("there", wish.name)
    with TURN:
        lock = _take(root, tries=5)
        if lock is None:
            job = read_job(root)
            raise Refused("running", job.wish.name if job else wish.name)
        try:
            if (kept := _read(folder)) and kept["wish"] != wish:
                forget(folder)
            os.ftruncate(lock, 0)
            os.write(lock, folder.name.encode())
            process = _begin(wish, folder, root, lock)
        finally:
            os.close(lock)
    # reaps it; what came of it is read from the disk
    threading.Thread(target=process.wait, daemon=True, name="making").start()


def _begin(wish: Wish, folder: Path, root: Path, lock: int) -> "subprocess.Popen[bytes]":
    """What makes it, in a process group of its own: it outlives the page and holds the lock until it ends."""
    command = [sys.executable, "-c", HEED_STOP, str(root / "scripts" / "make_assistant.py")]
    command.append(f"--name={wish.name}")
    command.append(f"--base={BASE}")
    command += [f"--owner={wish.owner}"] if wish.owner else []
    if wish.facts:
        card = {"name": wish.name, "facts": wish.card().facts}
        write_text(folder / "card.toml", tomli_w.dumps(card))
        command.append(f"--card={folder / 'card.toml'}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / KEPT).unlink(missing_ok=True)  # nobody shall stop the process of the time before
    with (folder / LOG).open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[lock],
            start_new_session=True,
            env=os.environ | ENVIRONMENT,
        )
    os.setpriority(os.PRIO_PGRP, process.pid, NICENESS)
    _write(folder, wish, process.pid, is_stopped=False)
    return process


def stop(root: Path = REPOSITORY) -> None:
    """As Ctrl-C: the training saves its step, from which start() goes on. A second stop ends it at once."""
    with TURN:
        job = read_job(root)
        if not job or not job.is_running:
            return
        pid = int(_read(job.folder)["pid"])
        _write(job.folder, job.wish, pid, is_stopped=True)
        with contextlib.suppress(ProcessLookupError):  # it ended just now
            os.killpg(pid, signal.SIGTERM if job.is_stopped else signal.SIGINT)


def read_job(root: Path = REPOSITORY) -> Job | None:
    """The job that runs or ran last on this machine; None when there was none or its folder is gone."""
    path = root / "out" / LOCK
    name = path.read_text(encoding="utf-8") if path.is_file() else ""
    kept = _read(path.with_name(name)) if name else {}
    if not kept:
        return None
    return Job(kept["wish"], path.with_name(name), kept["is_stopped"], is_running(root))


def is_running(root: Path = REPOSITORY) -> bool:
    if not (root / "out" / LOCK).is_file():
        return False
    with TURN:
        lock = _take(root)
        if lock is not None:
            os.close(lock)
    return lock is None


def is_whole(folder: Path) -> bool:
    """Everything up to the scorecard is there."""
    return all((folder / part / SETTINGS_FILE).is_file() for part in ("adapter", "model", "scorecard"))


def forget(folder: Path) -> None:
    """Delete what an unfinished job of the page made; nothing else."""
    for part in WORKED_ON:
        path = folder / part
        path.unlink() if path.is_file() else shutil.rmtree(path, ignore_errors=True)


def zip_adapter(folder: Path, into: Path) -> Path:
    """One file with the adapter, its settings and its curve, for another machine."""
    path = into / f"{folder.name}-adapter.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for file in sorted((folder / "adapter").iterdir()):
            if file.is_file() and not file.name.startswith("."):
                packed.write(file, f"{folder.name}-adapter/{file.name}")
    return path


def _take(root: Path, tries: int = 1) -> int | None:
    """The lock, held by whoever has it open; None while a job holds it. The kernel frees it with its holder.

    Another server that looks for a job holds it for a moment: hence the tries.
    """
    import fcntl

    path = root / "out" / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    for _ in range(tries):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            time.sleep(0.02)
    os.close(lock)
    return None


def _read(folder: Path) -> dict[str, Any]:
    path = folder / KEPT
    if not path.is_file():
        return {}
    kept = json.loads(path.read_text(encoding="utf-8"))
    wish = kept["wish"]
    return {**kept, "wish": Wish(wish["name"], wish["owner"], tuple(wish["facts"]))}


def _write(folder: Path, wish: Wish, pid: int, *, is_stopped: bool) -> None:
    kept = {"wish": asdict(wish), "pid": pid, "is_stopped": is_stopped}
    write_text(folder / KEPT, json.dumps(kept, ensure_ascii=False) + "\n")
