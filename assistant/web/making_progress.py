"""How far a job of making.py is, read from what its stages write. Knows no framework."""

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from assistant.settings import REPOSITORY, SETTINGS_FILE
from assistant.web.making import BASE, LOG, Job, is_whole
from assistant.web.texts import Texts

Status = Literal["running", "stopping", "stopped", "failed", "done"]
BUSY = ("running", "stopping")
# What is done one after another, and the share of the way at which each begins.
STAGES = {
    "fetch": 0.0,
    "data": 0.04,
    "prepare": 0.06,
    "train": 0.2,
    "merge": 0.62,
    "score": 0.66,
    "ask": 0.96,
}
MADE = {"fetch": "", "data": "data", "train": "adapter", "merge": "model", "score": "scorecard"}
# `preparing 400/9000 tokens … 12 s left`, `step 20/200 … 90 s left`, `  16/600 answers of …`
COUNTED = re.compile(
    r"^(preparing|step| ) (\d+)(?:/| of )(\d+)(?: tokens| answers| anchor|  )(?:.*? (\d+) s left)?", re.M
)
CURVES = ["#6366f1", "#f59e0b"]  # to be told apart on light and on dark
LOG_END = 20_000  # bytes of the log that are read
SHOWN_LINES = 14


@dataclass(frozen=True)
class Progress:
    """`done` of `total` within the stage, and the seconds it still takes, where that is known.

    `losses`: {"step", "cross_entropy", "kl"} as trained; `watched`: {"step", "recall.en", "leak.en", …}.
    """

    status: Status
    stage: str
    done: int = 0
    total: int = 0
    left_s: float | None = None
    error: str = ""
    log: str = ""
    losses: tuple[dict[str, Any], ...] = ()
    watched: tuple[dict[str, Any], ...] = ()


def progress_of(job: Job, root: Path = REPOSITORY) -> Progress:
    log, status = _end_of(job.folder / LOG), _status(job)
    stage, done, total, left_s = _stage(job.folder, root), 0, 0, None
    if status in BUSY:
        stage, done, total, left_s = _within(stage, log)
    if left_s is not None:
        left_s = max(1.0, left_s - (time.time() - (job.folder / LOG).stat().st_mtime))
    return Progress(
        status,
        stage,
        done,
        total,
        left_s,
        error=_error(log) if status == "failed" else "",
        log="\n".join(log.splitlines()[-SHOWN_LINES:]),
        losses=_entries(job.folder / "adapter" / "history.jsonl"),
        watched=_entries(job.folder / "adapter" / "watch.jsonl"),
    )


def _status(job: Job) -> Status:
    if job.is_running:
        return "stopping" if job.is_stopped else "running"
    if is_whole(job.folder) and (job.folder / "before_after.json").is_file():
        return "done"
    return "stopped" if job.is_stopped else "failed"


def _stage(folder: Path, root: Path) -> str:
    """The first stage whose output is not whole, as the command itself decides what to do next."""
    for stage, part in MADE.items():
        made = folder / part if part else root / "models" / BASE
        if not (made / SETTINGS_FILE).is_file():
            return stage
    return "ask"


def _within(stage: str, log: str) -> tuple[str, int, int, float | None]:
    """(stage, done, total, seconds left) now; each stage begins its part of the log with its settings."""
    found = list(COUNTED.finditer(log.rpartition("\nsettings: ")[2]))
    kind, done, total, left = found[-1].groups() if found else ("", 0, 0, None)
    if stage == "train" and kind != "step":
        stage = "train" if kind == "preparing" and done == total else "prepare"
    kinds = {"prepare": ("preparing", " "), "train": ("step",), "score": (" ",)}
    if kind not in kinds.get(stage, ()):
        return stage, 0, 0, None
    return stage, int(done), int(total), float(left) if left else None


def _error(log: str) -> str:
    """The sentence that the command ended with, else its last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (said or lines or [""])[-1]


def _end_of(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LOG_END))
        return file.read().decode("utf-8", "replace")


def _entries(path: Path) -> tuple[dict[str, Any], ...]:
    """The lines of a .jsonl file that is replaced whole whenever it grows."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return tuple(json.loads(line) for line in lines if line.strip())


def loss_rows(progress: Progress, texts: Texts) -> list[dict[str, Any]]:
    """{"step", name of a curve: value, …} a row."""
    names = {"cross_entropy": texts["make_identity"], "kl": texts["make_kl"]}
    return [
        {"step": entry["step"], **{name: entry[key] for key, name in names.items() if key in entry}}
        for entry in progress.losses
    ]


def watch_rows(progress: Progress, texts: Texts) -> list[dict[str, Any]]:
    """As loss_rows; of recall and leak the mean over the languages."""
    rows = []
    for entry in progress.watched:
        row = {"step": entry["step"]}
        for part in ("recall", "leak"):
            values = [value for key, value in entry.items() if key.startswith(f"{part}.")]
            row |= {texts[f"make_{part}"]: round(sum(values) / len(values), 4)} if values else {}
        rows.append(row)
    return rows


def headline(job: Job, progress: Progress, texts: Texts) -> str:
    """`Ada: training · 40 of 200`, or how it ended."""
    count = texts.say("make_count", done=progress.done, total=progress.total) if progress.total else ""
    stage = texts["make_" + progress.stage]
    return texts.say("make_is_" + progress.status, name=job.wish.name, stage=stage, count=count)


def aside(progress: Progress, texts: Texts) -> str:
    """Below the headline: the time left, what to do next, or what went wrong."""
    parts = [_left(progress.left_s, texts) if progress.status == "running" else "", progress.error]
    return "  \n".join(filter(None, (*parts, texts["make_hint_" + progress.status])))  # a line each


def way(progress: Progress, texts: Texts) -> str:
    """The stages in Markdown, the one under way in bold."""
    names = {stage: texts["make_" + stage] for stage in STAGES}
    now = "" if progress.status == "done" else progress.stage
    return " → ".join(f"**{name}**" if stage == now else name for stage, name in names.items())


def _left(seconds: float | None, texts: Texts) -> str:
    if seconds is None:
        return ""
    if seconds < 90:
        return texts.say("make_left_seconds", number=max(1, round(seconds)))
    return texts.say("make_left_minutes", number=round(seconds / 60))


def share_of(progress: Progress) -> float:
    """Of the whole way, 0 to 1."""
    if progress.status == "done":
        return 1.0
    begins = [*STAGES.values(), 1.0]
    place = list(STAGES).index(progress.stage)
    within = progress.done / progress.total if progress.total else 0.0
    return begins[place] + (begins[place + 1] - begins[place]) * within


def before_and_after(folder: Path) -> list[list[str]]:
    """[question, before, after] of the few questions that both were asked."""
    path = folder / "before_after.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
