"""A scorecard of pictures as Markdown and as a drawing, and its folder. Judges nothing."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from assistant.picture_scorecard import limits_of, value_at, wants_high
from assistant.pictures.things import LANGUAGES, PICTURES
from assistant.settings import load_toml, write_text

COLOURS = {"en": "#4c78a8", "zh": "#f58518"}
MEASURES = ("right", "heeded")


def save_pictures(card: Mapping[str, Any], folder: Path) -> None:
    """Write scorecard.json, scorecard.md and scorecard.png, each whole or not at all."""
    write_text(folder / "scorecard.json", json.dumps(card, ensure_ascii=False, indent=2) + "\n")
    write_text(folder / "scorecard.md", markdown(card))
    draw(card, folder / "scorecard.png")


def markdown(card: Mapping[str, Any]) -> str:
    """The card as tables, English with Chinese beside it."""
    words = load_toml(PICTURES / "labels.toml")
    lines = [f"# {words['title']}", ""]
    lines += [f"{words['verdict']}: {words['passed' if card['passed'] else 'not_passed']}", ""]
    about = ("name", "model", "base", "backend", "data")
    lines += [f"- {words[key]}: {_cell(card[key])}" for key in about if card.get(key)]
    lines += ["", *_table(words["columns"], _questions(card, words)), ""]
    if card["styles"]:
        lines += [*_table(words["style_columns"], _styles(card)), ""]
    if card["of_probe"]:
        lines += [*_table(words["share_columns"], _beside_probe(card, words)), ""]
    if any(value is not None for value in card["retention"].values()):
        lines += [*_table(words["kept_columns"], _kept(card, words)), ""]
    lines += [f"{words['titled']}: {_number(card['titled'])}", "", words["note"], ""]
    spent = ", ".join(f"{key} {value:.1f}" for key, value in card["seconds"].items())
    lines += [f"{words['seconds']}: {spent}", ""] if spent else []
    lines += [f"- {words['failure']}: {failure}" for failure in card["failures"]]
    return "\n".join(lines).rstrip() + "\n"


def _table(columns: list[str], rows: Iterable[list[Any]]) -> list[str]:
    return [_row(columns), _row(["---"] * len(columns)), *map(_row, rows)]


def _row(cells: Iterable[Any]) -> str:
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|") or "-"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _wanted(thresholds: Mapping[str, Any], *path: str) -> str:
    limit = limits_of(thresholds).get(path)
    return "" if limit is None else f"{'≥' if wants_high(path) else '≤'} {limit:g}"


def _questions(card: Mapping[str, Any], words: Mapping[str, Any]) -> Iterator[list[Any]]:
    for split, kinds in card["counts"].items():
        for kind, languages in kinds.items():
            for lang, count in languages.items():
                place = (split, kind, lang)
                low, high = card["intervals"][split][kind][lang]
                wanted = [_wanted(card["thresholds"], measure, *place) for measure in MEASURES]
                yield [
                    f"{words['splits'][split]} / {words['kinds'][kind]}",
                    lang,
                    _number(card["right"][split][kind][lang]),
                    f"{low:.3f} – {high:.3f}",
                    _number(card["heeded"][split][kind][lang]),
                    _number(card["titles"][split][kind][lang]),
                    count,
                    " · ".join(dict.fromkeys(filter(None, wanted))),
                ]


def _styles(card: Mapping[str, Any]) -> Iterator[list[Any]]:
    for style, shares in card["styles"].items():
        spoken = [_share(shares.get(lang)) for lang in LANGUAGES]
        yield [style, *spoken, _share(card["probe"].get(style))]


def _share(entry: Mapping[str, Any] | None) -> str:
    return f"{entry['right']:.3f} ({entry['of']})" if entry else "-"


def _beside_probe(card: Mapping[str, Any], words: Mapping[str, Any]) -> Iterator[list[Any]]:
    for split, kinds in card["of_probe"].items():
        for kind, languages in kinds.items():
            for lang, value in languages.items():
                label = f"{words['splits'][split]} / {words['kinds'][kind]}"
                wanted = _wanted(card["thresholds"], "of_probe", split, kind, lang)
                yield [label, lang, _number(value), wanted]


def _kept(card: Mapping[str, Any], words: Mapping[str, Any]) -> Iterator[list[Any]]:
    for key, value in card["retention"].items():
        shown = "-" if value is None else f"{value:.5f}"
        yield [words["retention"][key], shown, _wanted(card["thresholds"], "retention", key)]


def draw(card: Mapping[str, Any], path: Path) -> None:
    """A PNG: right answers by kind of question, and spoken names by style beside the probe."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise RuntimeError(
            "pictures need matplotlib; install it: pip install 'little-assistant[train]'"
        ) from None
    figure = Figure(figsize=(10, 5.6), dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1)
    _draw_kinds(above, card)
    _draw_styles(below, card)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    figure.savefig(beside, format="png", metadata={"Software": None})
    os.replace(beside, path)


def _draw_kinds(axes: Any, card: Mapping[str, Any]) -> None:
    split = next(iter(card["counts"]))
    kinds = list(card["counts"][split])
    _draw_bars(
        axes, [kind.replace("_", " ") for kind in kinds], [card["right"][split][kind] for kind in kinds]
    )
    for place, lang, kind in _places(kinds):
        heeded = value_at(card, ("heeded", split, kind, lang))
        if heeded is not None:
            axes.plot(place, heeded, marker="_", color="black", markersize=14, clip_on=False)
        limit = limits_of(card["thresholds"]).get(("right", split, kind, lang))
        if limit is not None:
            axes.hlines(limit, place - 0.2, place + 0.2, colors="grey", linestyles="dashed", linewidth=1)
    title = "{}: right answers (line: answers to what was asked; dashed: threshold)"
    axes.set_title(title.format(split.replace("_", "-")), fontsize=9)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=8)


def _draw_styles(axes: Any, card: Mapping[str, Any]) -> None:
    styles = list(card["styles"])
    shares = [{lang: each["right"] for lang, each in card["styles"][style].items()} for style in styles]
    _draw_bars(axes, styles, shares)
    for place, style in enumerate(styles):
        if style in card["probe"]:
            axes.hlines(
                card["probe"][style]["right"], place - 0.42, place + 0.42, colors="black", linewidth=1
            )
    axes.set_title("spoken names by drawing style (line: linear probe on the same features)", fontsize=9)


def _places(labels: list[str]) -> Iterator[tuple[float, str, str]]:
    for index, label in enumerate(labels):
        for lang, shift in zip(LANGUAGES, (-0.2, 0.2), strict=True):
            yield index + shift, lang, label


def _draw_bars(axes: Any, labels: list[str], shares: Sequence[Mapping[str, float]]) -> None:
    for lang, shift in zip(LANGUAGES, (-0.2, 0.2), strict=True):
        values = [each.get(lang) for each in shares]
        places = [index + shift for index in range(len(labels))]
        bars = axes.bar(places, [value or 0 for value in values], 0.38, color=COLOURS[lang], label=lang)
        texts = ["–" if value is None else f"{value:.2f}" for value in values]
        axes.bar_label(bars, texts, fontsize=7, padding=1)
    axes.set_xticks(range(len(labels)), labels, fontsize=8)
    axes.set_ylim(0, 1.12)
    axes.spines[["top", "right"]].set_visible(False)
