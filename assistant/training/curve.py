"""The picture of a run: losses above, recall and leak of the watched questions below."""

from pathlib import Path
from typing import Any


def draw_curve(history: list[dict[str, Any]], watched: list[dict[str, Any]], path: Path) -> None:
    """Write a PNG, whole or not at all. `history`: the Trainer's log; `watched`: entries of watch.jsonl."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    steps = [entry for entry in history if "cross_entropy" in entry]
    for key, label in (("cross_entropy", "cross-entropy (identity)"), ("kl", "KL to the base (anchors)")):
        logged = [entry for entry in steps if key in entry]
        if logged:
            upper.plot([e["step"] for e in logged], [e[key] for e in logged], label=label)
    upper.set_yscale("log")
    upper.set_ylabel("nats a token")
    for part in sorted({key for entry in watched for key in entry if "." in key}):
        dashed = "--" if part.startswith("leak") else "-"
        lower.plot(
            [e["step"] for e in watched], [e.get(part) for e in watched], dashed, marker="o", label=part
        )
    lower.set_ylim(-0.05, 1.05)
    lower.set_xlabel("step")
    for axes in (upper, lower):
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    beside = path.with_name(f".{path.name}.partial")
    figure.savefig(beside, format="png", dpi=100)
    beside.replace(path)
