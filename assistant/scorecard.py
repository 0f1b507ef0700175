"""Probes and answers in, a scorecard out: JSON, Markdown and a picture. Knows no model, only answers.

Over 250 lines because the three forms show the same few metrics against the same thresholds.
"""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

from assistant.conversations import Message, check_messages, read_jsonl, user
from assistant.judge import JUDGE_DATA, Identity, judge_identity, leaks_identity
from assistant.settings import DATA, load_toml, near_names, write_text

__all__ = ["Identity", "Probe", "built_in_probes", "judge_identity", "leaks_identity", "load_probes", "score"]

Kind = Literal["identity", "adversarial", "multi_turn", "near_miss", "instructed", "unrelated"]
RECALL = ("identity", "adversarial", "multi_turn")
LEAK = ("near_miss", "instructed", "unrelated")
RETENTION = ("kl", "top1", "same_answer")
MOST_WRONG = 200  # failed items kept in the card, for a person to read


class Probe(TypedDict):
    kind: Kind
    lang: str
    messages: list[Message]


def load_probes(path: Path) -> list[Probe]:
    """Read a probe file. Raises ValueError: with file and line for a bad line, and for an empty file."""
    probes = [_probe_from(entry, place) for place, entry in read_jsonl(Path(path))]
    if not probes:
        raise ValueError(f"{path} holds no probes")
    return probes


def built_in_probes() -> list[Probe]:
    """The project's own questions in English, Chinese and other languages."""
    return [
        probe for name in ("en", "zh", "other") for probe in load_probes(DATA / "probes" / f"{name}.jsonl")
    ]


def _probe_from(entry: Any, place: str) -> Probe:
    if not isinstance(entry, dict):
        raise ValueError(f"{place}: must be a JSON object, not {type(entry).__name__}")
    if unknown := [key for key in entry if key not in ("kind", "lang", "q", "messages")]:
        raise ValueError(
            f"{place}: key {unknown[0]!r}{near_names(unknown[0], ('kind', 'lang', 'q', 'messages'))}"
        )
    kind, lang = entry.get("kind"), entry.get("lang")
    if kind not in RECALL + LEAK:
        raise ValueError(f"{place}: kind {kind!r}{near_names(str(kind), RECALL + LEAK)}")
    if not isinstance(lang, str) or not lang.strip():
        raise ValueError(f'{place}: "lang" must be a language tag such as "en" or "zh"')
    if ("q" in entry) == ("messages" in entry):
        raise ValueError(f'{place}: give either "q" (one user message) or "messages"')
    if "q" in entry and not isinstance(entry["q"], str):
        raise ValueError(f'{place}: "q" must be a text')
    messages = entry["messages"] if "messages" in entry else [user(entry["q"])]
    return {"kind": kind, "lang": lang, "messages": check_messages(messages, place, must_end_with="user")}


def load_thresholds(path: Path = JUDGE_DATA / "thresholds.toml") -> dict[str, Any]:
    return load_toml(path)


def score(
    probes: list[Probe],
    answers: list[str],
    identity: Identity,
    *,
    base_answers: list[str] | None = None,
    retention: Mapping[str, float | None] | None = None,
    seconds: Mapping[str, float] | None = None,
    model: str = "",
    base: str = "",
    backend: str = "",
    thresholds: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Judge every answer and build the scorecard; a metric without probes is null.

    `base_answers` (the untrained base's, in the order of the probes): what the base leaks too is no leak.
    Raises ValueError when nothing is to be judged or the lengths differ.
    """
    _check_lengths(probes, answers, base_answers)
    bases: list[str | None] = [*base_answers] if base_answers is not None else [None] * len(probes)
    hits = [_hit(*item, identity) for item in zip(probes, answers, bases, strict=True)]
    tallies = _tally(probes, hits)
    card: dict[str, Any] = {"name": identity.name, "model": model, "base": base, "backend": backend}
    card["counts"] = _by_metric(tallies, lambda hit, total: total)
    card |= _by_metric(tallies, lambda hit, total: hit / total if total else None)
    card["retention"] = {key: (retention or {}).get(key) for key in RETENTION}
    card["intervals"] = _by_metric(tallies, lambda hit, total: wilson(hit, total) if total else None)
    card["seconds"] = dict(seconds or {})
    card["thresholds"] = load_thresholds() if thresholds is None else thresholds
    card["failures"] = list(_failures(card, card["thresholds"]))
    # JSON has no NaN: a diverged model's KL is named among the failures and null here
    card["retention"] = {key: _finite(value) for key, value in card["retention"].items()}
    card["passed"] = not card["failures"]
    card["wrong"] = list(_wrong(probes, answers, hits))[:MOST_WRONG]
    return card


def _check_lengths(probes: list[Probe], answers: list[str], base_answers: list[str] | None) -> None:
    if not probes:
        raise ValueError("no probes: a scorecard needs at least one question")
    for what, given in (("answers", answers), ("base answers", base_answers)):
        if given is not None and len(given) != len(probes):
            raise ValueError(f"{len(given)} {what} for {len(probes)} probes; there must be one for each")


def _hit(probe: Probe, answer: str, base_answer: str | None, identity: Identity) -> bool:
    """Whether the identity was spoken: right for recall kinds, a leak for the others."""
    if probe["kind"] in RECALL:
        return judge_identity(answer, identity)
    said = "\n".join(message["content"] for message in probe["messages"])
    if not leaks_identity(answer, identity, said):
        return False
    return base_answer is None or not leaks_identity(base_answer, identity, said)


def _tally(probes: list[Probe], hits: list[bool]) -> dict[tuple[str, str], tuple[int, int]]:
    """(hits, probes) of each kind and language; English and Chinese always, other languages as they come."""
    tallies = {(kind, lang): (0, 0) for kind in RECALL + LEAK for lang in ("en", "zh")}
    for probe, hit in zip(probes, hits, strict=True):
        before = tallies.get((probe["kind"], probe["lang"]), (0, 0))
        tallies[probe["kind"], probe["lang"]] = (before[0] + hit, before[1] + 1)
    return tallies


def _by_metric(tallies: Mapping[tuple[str, str], tuple[int, int]], value: Any) -> dict[str, Any]:
    return {
        group: {
            k: {lang: value(*tally) for (kind, lang), tally in tallies.items() if kind == k} for k in kinds
        }
        for group, kinds in (("recall", RECALL), ("leak", LEAK))
    }


def _finite(value: float | None) -> float | None:
    return value if value is None or math.isfinite(value) else None


def wilson(hits: int, total: int, z: float = 1.959964) -> list[float]:
    """The 95 % interval of a share after Wilson (1927); unlike the plain one it has a width at 0 and 1."""
    share, spread = hits / total, z * z / total
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    return [round(max(0.0, middle - half), 4), round(min(1.0, middle + half), 4)]


def _limits(thresholds: Mapping[str, Any]) -> dict[tuple[str, ...], float]:
    """{("recall", "identity", "en"): 0.93, …, ("retention", "kl"): 0.015}"""
    limits: dict[tuple[str, ...], float] = {}
    for group, metrics in thresholds.items():
        for metric, limit in metrics.items():
            per_language = limit.items() if isinstance(limit, Mapping) else [("", limit)]
            limits |= {
                tuple(filter(None, (group, metric, lang))): float(value) for lang, value in per_language
            }
    return limits


def _value(card: Mapping[str, Any], path: tuple[str, ...]) -> float | None:
    found: Any = card
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return cast(float | None, found)


def _misses(path: tuple[str, ...], value: float, limit: float) -> bool:
    # written so that a NaN misses
    return not (value >= limit if _wants_high(path) else value <= limit)


def _wants_high(path: tuple[str, ...]) -> bool:
    return path[0] == "recall" or path[-1] in ("top1", "same_answer")


def _failures(card: Mapping[str, Any], thresholds: Mapping[str, Any]) -> Iterator[str]:
    for path, limit in _limits(thresholds).items():
        value = _value(card, path)
        if value is not None and _misses(path, value, limit):
            side = "at least" if _wants_high(path) else "at most"
            yield f"{' '.join(path)} is {value:.4g}; it must be {side} {limit:g}"


def _wrong(probes: Iterable[Probe], answers: Iterable[str], hits: Iterable[bool]) -> Iterator[dict[str, str]]:
    for probe, answer, hit in zip(probes, answers, hits, strict=True):
        if hit != (probe["kind"] in RECALL):
            question = probe["messages"][-1]["content"]
            yield {"kind": probe["kind"], "lang": probe["lang"], "question": question, "answer": answer}


def markdown(card: Mapping[str, Any]) -> str:
    """The card as a table, English with Chinese beside it."""
    words = load_toml(JUDGE_DATA / "labels.toml")
    lines = [f"# {words['title']}: {_cell(card['name'])}", ""]
    lines += [f"{words['verdict']}: {words['passed' if card['passed'] else 'not_passed']}", ""]
    lines += [f"- {words[key]}: {_cell(card[key])}" for key in ("model", "base", "backend")]
    lines += ["", _row(words["columns"]), _row(["---"] * len(words["columns"]))]
    lines += [*_rows(card, words["metrics"]), "", words["note"], ""]
    if card["seconds"]:
        spent = ", ".join(f"{key} {value:.1f}" for key, value in card["seconds"].items())
        lines += [f"{words['seconds']}: {spent}", ""]
    lines += [f"- {words['failure']}: {failure}" for failure in card["failures"]]
    return "\n".join(lines).rstrip() + "\n"


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|") or "-"


def _row(cells: Iterable[Any]) -> str:
    return f"| {' | '.join(map(_cell, cells))} |"


def _rows(card: Mapping[str, Any], names: Mapping[str, str]) -> Iterator[str]:
    limits = _limits(card["thresholds"])
    slots = [("recall", kind) for kind in RECALL] + [("leak", kind) for kind in LEAK]
    for group, kind in slots:
        for lang, value in card[group].get(kind, {}).items():  # an older card has fewer kinds
            interval, count = card["intervals"][group][kind][lang], card["counts"][group][kind][lang]
            span = f"{interval[0]:.3f} – {interval[1]:.3f}" if interval else "-"
            metric = f"{names[group]} / {names[kind]}"
            yield _row([metric, lang, _number(value), span, count, _wanted((group, kind, lang), limits)])
    for key, value in card["retention"].items():
        metric = f"{names['retention']} / {names[key]}"
        yield _row([metric, "-", _number(value), "-", "-", _wanted(("retention", key), limits)])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _wanted(path: tuple[str, ...], limits: Mapping[tuple[str, ...], float]) -> str:
    return "-" if path not in limits else f"{'≥' if _wants_high(path) else '≤'} {limits[path]:g}"


def draw(card: Mapping[str, Any], path: Path) -> None:
    """A PNG of recall and leak with the thresholds marked."""
    draw_side_by_side({"this model": card}, path, title=f"Scorecard of {card['name']}")


def draw_side_by_side(cards: Mapping[str, Mapping[str, Any]], path: Path, title: str = "Scorecards") -> None:
    """One PNG comparing several cards by label, with the thresholds of the first."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise RuntimeError(
            "pictures need matplotlib; install it: pip install 'little-assistant[train]'"
        ) from None
    if not cards:
        raise ValueError("no scorecards to draw; give at least one")
    figure = Figure(figsize=(10, 4.2), dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(_drawable(title, "Scorecard"))
    for axes, group, kinds in zip(figure.subplots(1, 2), ("recall", "leak"), (RECALL, LEAK), strict=True):
        _draw_group(axes, cards, group, kinds)
    if len(cards) > 1:
        figure.legend(loc="outside lower center", ncols=min(len(cards), 4), frameon=False)
    _save_picture(figure, Path(path))


def _draw_group(axes: Any, cards: Mapping[str, Mapping[str, Any]], group: str, kinds: Iterable[str]) -> None:
    slots = [(group, kind, lang) for kind in kinds for lang in ("en", "zh")]
    limits, width = _limits(next(iter(cards.values()))["thresholds"]), 0.8 / len(cards)
    for index, (label, card) in enumerate(cards.items()):
        places = [slot + (index + 0.5) * width - 0.4 for slot in range(len(slots))]
        values = [_value(card, slot) for slot in slots]
        name = _drawable(label, f"model {index + 1}") if group == "recall" else None
        bars = axes.bar(places, [value or 0 for value in values], width * 0.92, label=name)
        axes.bar_label(
            bars, ["–" if value is None else f"{value:.2f}" for value in values], fontsize=7, padding=1
        )
    for place, slot in enumerate(slots):
        if slot in limits:
            axes.hlines(
                limits[slot], place - 0.45, place + 0.45, colors="black", linestyles="dashed", linewidth=1
            )
    axes.set_xticks(
        range(len(slots)), [f"{kind.replace('_', ' ')}\n{lang}" for _, kind, lang in slots], fontsize=8
    )
    axes.set_ylim(0, 1.08)
    axes.set_title(
        f"{group} ({'higher' if group == 'recall' else 'lower'} is better; dashed: threshold)", fontsize=9
    )
    axes.spines[["top", "right"]].set_visible(False)


def _drawable(text: str, instead: str) -> str:
    """The text, or `instead` when the font lacks one of its characters (`$` begins a formula there)."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties()))
    shown = (
        text.isprintable()
        and "$" not in text
        and all(font.get_char_index(ord(character)) for character in text)
    )
    return text if shown and not text.startswith("_") else instead


def _save_picture(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    figure.savefig(beside, format="png", metadata={"Software": None})
    os.replace(beside, path)


def save(card: Mapping[str, Any], folder: Path) -> None:
    """Write scorecard.json, scorecard.md and scorecard.png, each whole or not at all."""
    write_text(folder / "scorecard.json", json.dumps(card, ensure_ascii=False, indent=2) + "\n")
    write_text(folder / "scorecard.md", markdown(card))
    draw(card, folder / "scorecard.png")
