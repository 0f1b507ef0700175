"""The table and the picture of identity_ablation.py. Knows results alone: dicts of numbers."""

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

Result = dict[str, Any]
COLUMNS: dict[str, tuple[Callable[[Result], float | None], bool]] = {
    f"{title} {lang}": (
        lambda r, part=part, kind=kind, lang=lang: r[part].get(kind, {}).get(lang),
        part == "recall",
    )
    for title, part, kind in (
        ("recall", "recall", "identity"),
        ("denial", "recall", "adversarial"),
        ("turn 2+", "recall", "multi_turn"),
        ("near miss", "leak", "near_miss"),
        ("instructed", "leak", "instructed"),
        ("unrelated", "leak", "unrelated"),
    )
    for lang in ("en", "zh")
} | {
    "KL": (lambda r: r["retention"]["kl"], False),
    "top-1": (lambda r: r["retention"]["top1"], True),
    "same": (lambda r: r["retention"]["same_answer"], True),
}
NOTE = (
    "Mean over names and seeds, the worst in brackets. Recall, denial, turn 2+, top-1, same: high is good. "
    "Near miss, instructed, unrelated (leaks), KL (nats a token): low is good."
)
COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#000000",
    "#8c6bb1",
    "#a6761d",
    "#999999",
)


def table(by_label: Mapping[str, list[Result]]) -> str:
    """The results at scale 1, a line a variant; then, where there are other scales, a line a scale."""
    whole = {label: [r for r in entries if r["scale"] == 1] for label, entries in by_label.items()}
    lines = [NOTE, "", *_lines({label: entries for label, entries in whole.items() if entries})]
    curves = {label: scales_of(entries) for label, entries in by_label.items()}
    rows = {
        f"{label} × {scale:g}": es
        for label, parts in curves.items()
        if len(parts) > 1
        for scale, es in parts.items()
    }
    if rows:
        lines += ["", "The strength curve: the adapter at several scales.", "", *_lines(rows)]
    return "\n".join(lines) + "\n"


def scales_of(entries: Iterable[Result]) -> dict[float, list[Result]]:
    scales: dict[float, list[Result]] = {}
    for entry in sorted(entries, key=lambda r: r["scale"]):
        scales.setdefault(entry["scale"], []).append(entry)
    return scales


def _lines(rows: Mapping[str, list[Result]]) -> list[str]:
    head = ["variant", "cases", *COLUMNS]
    return [
        _line(head),
        _line(["---"] * len(head)),
        *(
            _line([label, str(len(entries)), *map(_cell_of(entries), COLUMNS)])
            for label, entries in rows.items()
        ),
    ]


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell_of(entries: list[Result]) -> Callable[[str], str]:
    def cell(column: str) -> str:
        found = mean_and_worst(entries, column)
        digits = 4 if column == "KL" else 2 if column.startswith(("recall", "denial", "turn")) else 3
        return "-" if found is None else f"{found[0]:.{digits}f} ({found[1]:.{digits}f})"

    return cell


def mean_and_worst(entries: list[Result], column: str) -> tuple[float, float] | None:
    """None where no entry has this number."""
    value_of, wants_high = COLUMNS[column]
    values = [value for value in map(value_of, entries) if value is not None]
    return (fmean(values), (min if wants_high else max)(values)) if values else None


def recall_of(entries: list[Result]) -> float:
    return _mean(entries, "recall", ("identity", "adversarial", "multi_turn"))


def leak_of(entries: list[Result]) -> float:
    return _mean(entries, "leak", ("near_miss", "instructed", "unrelated"))


def _mean(entries: list[Result], part: str, kinds: Iterable[str]) -> float:
    """Over kinds, English and Chinese, and entries; what was not asked is left out."""
    values = [r[part].get(kind, {}).get(lang) for r in entries for kind in kinds for lang in ("en", "zh")]
    return fmean([value for value in values if value is not None] or [0.0])


def draw_frontier(by_label: Mapping[str, list[Result]], path: Path) -> None:
    """Recall against leak and against KL: a small dot a case, a large one a variant, a line its scales."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    leaks, kls = figure.subplots(1, 2, sharey=True)
    for index, (label, entries) in enumerate(by_label.items()):
        colour = COLOURS[index % len(COLOURS)]
        _draw_variant(leaks, entries, leak_of, colour, label)
        _draw_variant(kls, entries, kl_of, colour, "")
    leaks.set_ylabel("recall: identity, denials, turn 2 and later (mean)")
    leaks.set_xlabel("leak: near misses and unrelated questions (mean)")
    kls.set_xlabel("KL to the base on its own answers, nats a token")
    kls.set_xscale("log")
    for axes in (leaks, kls):
        axes.set_ylim(-0.03, 1.03)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    leaks.set_xlim(left=-0.01)
    figure.suptitle("Who says the name when asked, and what it costs  (best: top left)")
    figure.legend(loc="outside lower center", ncols=min(len(by_label), 6), frameon=False)
    _save(figure, path)


def kl_of(entries: list[Result]) -> float:
    # a log axis has no zero
    return max(fmean(r["retention"]["kl"] or 0.0 for r in entries), 1e-4)


def _draw_variant(axes: Any, entries: list[Result], x_of: Any, colour: str, label: str) -> None:
    whole = [r for r in entries if r["scale"] == 1]
    axes.scatter(
        [x_of([r]) for r in whole],
        [recall_of([r]) for r in whole],
        s=14,
        color=colour,
        alpha=0.35,
        linewidths=0,
    )
    parts = scales_of(entries)
    points = [(x_of(part), recall_of(part)) for part in parts.values()]
    if len(points) > 1:
        axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.2, alpha=0.8, zorder=2)
        for (x, y), scale in zip(points, parts, strict=True):
            axes.annotate(
                f"×{scale:g}", (x, y), xytext=(4, -9), textcoords="offset points", fontsize=7, color=colour
            )
    mean = whole or entries
    axes.scatter(
        [x_of(mean)],
        [recall_of(mean)],
        s=110,
        color=colour,
        edgecolors="white",
        linewidths=1.2,
        label=label or None,
        zorder=3,
    )


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    figure.savefig(beside, format="png", metadata={"Software": None})
    os.replace(beside, path)
