"""Questions about pictures and answers in, a scorecard out: JSON, Markdown and a picture.

Knows no model and no page, only answers; how it looks is picture_report's matter.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from assistant.judge import Identity, judge_identity
from assistant.picture_habits import heeds, is_title
from assistant.picture_judge import judge_picture
from assistant.picture_questions import ALL_KINDS, PICTURE_KINDS, SPLITS, PictureProbe, counted_as
from assistant.pictures.things import LANGUAGES, PICTURES
from assistant.scorecard import MOST_WRONG, RETENTION, wilson
from assistant.settings import load_toml

ANSWER_TOKENS = 64  # the longest taught answer takes 47
TITLES_ARE_ANSWERS = ("name", "language", "several")
COMPARED = ("name", "language")  # what a linear probe can do too
Slot = tuple[str, str, str]  # split, kind, language
Shares = Mapping[str, tuple[float, int]]


def score_pictures(
    probes: list[PictureProbe],
    answers: list[str],
    identity: Identity | None = None,
    *,
    probe_shares: Shares | None = None,
    retention: Mapping[str, float] | None = None,
    seconds: Mapping[str, float] | None = None,
    thresholds: Mapping[str, Any] | None = None,
    **about: str,
) -> dict[str, Any]:
    """Judge every answer and build the scorecard; questions of identity count only with an `identity`.

    `probe_shares`: see load_probe_shares. Raises ValueError when nothing is to be judged or lengths differ.
    """
    if len(probes) != len(answers):
        raise ValueError(f"{len(answers)} answers for {len(probes)} questions; there must be one for each")
    asked = [pair for pair in zip(probes, answers, strict=True) if identity or pair[0].kind != "identity"]
    if not asked:
        raise ValueError("no questions: a scorecard of pictures needs at least one")
    right = [is_right(probe, answer, identity) for probe, answer in asked]
    card: dict[str, Any] = {"name": identity.name if identity else "", **about}
    card |= _shares(asked, right)
    card["styles"] = dict(_by_style(asked, right))
    card["probe"] = {style: {"right": share, "of": of} for style, (share, of) in (probe_shares or {}).items()}
    card["of_probe"] = _beside_probe(card["right"], asked, probe_shares or {})
    card["titled"] = _titled(card)
    card["retention"] = {key: (retention or {}).get(key) for key in RETENTION}
    card["seconds"] = dict(seconds or {})
    card["thresholds"] = load_toml(PICTURES / "thresholds.toml") if thresholds is None else thresholds
    card["failures"] = list(_failures(card))
    card["retention"] = {key: _finite(value) for key, value in card["retention"].items()}
    card["passed"] = not card["failures"]
    card["wrong"] = list(_wrong(asked, right))[:MOST_WRONG]
    return card


def is_right(probe: PictureProbe, answer: str, identity: Identity | None = None) -> bool:
    if probe.kind == "identity":
        return identity is not None and judge_identity(answer, identity)
    return judge_picture(probe.rule, answer)


def is_titled(probe: PictureProbe, answer: str, right: bool) -> bool:
    """Whether an answer is only a title; a right one to another question ("Orange") is none."""
    return is_title(answer) and not (right and _wants(probe) not in TITLES_ARE_ANSWERS)


def _wants(probe: PictureProbe) -> str:
    """What a question asks for, whichever turn it is in."""
    return counted_as(str(probe.rule["kind"]))


def _shares(asked: list[tuple[PictureProbe, str]], right: list[bool]) -> dict[str, Any]:
    """{"counts", "right", "intervals", "heeded", "titles"}, each by split, kind and language."""
    totals, hits, heeded, titles = Counter[Slot](), Counter[Slot](), Counter[Slot](), Counter[Slot]()
    for (probe, answer), is_hit in zip(asked, right, strict=True):
        slot = probe.split, probe.kind, probe.lang
        totals[slot] += 1
        hits[slot] += is_hit
        heeded[slot] += is_hit or (probe.kind != "identity" and heeds(probe.rule, answer))
        titles[slot] += is_titled(probe, answer, is_hit)
    return {
        "counts": _nested(totals, lambda slot: totals[slot]),
        "right": _nested(totals, lambda slot: hits[slot] / totals[slot]),
        "intervals": _nested(totals, lambda slot: wilson(hits[slot], totals[slot])),
        "heeded": _nested(totals, lambda slot: heeded[slot] / totals[slot]),
        "titles": _nested(totals, lambda slot: titles[slot] / totals[slot]),
    }


def _nested(slots: Iterable[Slot], value: Callable[[Slot], Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """By split, kind and language, in the order of SPLITS, ALL_KINDS and LANGUAGES."""
    order = [(split, kind, lang) for split in SPLITS for kind in ALL_KINDS for lang in LANGUAGES]
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for slot in sorted(slots, key=order.index):
        found.setdefault(slot[0], {}).setdefault(slot[1], {})[slot[2]] = value(slot)
    return found


def _titled(card: Mapping[str, Any]) -> float | None:
    """The share of titles among answers to held-out questions for something else; high after stage 1."""
    counts, titles = card["counts"].get("held_out", {}), card["titles"].get("held_out", {})
    slots = [(kind, lang) for kind in counts for lang in counts[kind] if _is_no_title(kind)]
    total = sum(counts[kind][lang] for kind, lang in slots)
    return sum(counts[kind][lang] * titles[kind][lang] for kind, lang in slots) / total if total else None


def _is_no_title(kind: str) -> bool:
    return kind in (*PICTURE_KINDS, "identity") and kind not in (*TITLES_ARE_ANSWERS, "multi_turn")


def _by_style(asked: list[tuple[PictureProbe, str]], right: list[bool]) -> Iterator[tuple[str, Any]]:
    """(style, {language: {"right": share of spoken names, "of": pictures}})"""
    found: dict[str, dict[str, list[bool]]] = {}
    for (probe, _), is_hit in zip(asked, right, strict=True):
        if probe.kind == "name":
            found.setdefault(probe.style, {}).setdefault(probe.lang, []).append(is_hit)
    for style, languages in sorted(found.items()):
        yield (
            style,
            {lang: {"right": sum(each) / len(each), "of": len(each)} for lang, each in languages.items()},
        )


def _beside_probe(right: Mapping[str, Any], asked: list[tuple[PictureProbe, str]], shares: Shares) -> Any:
    """{split: {kind: {language: share right ÷ the probe's on the same styles}}}; empty without the probe."""
    styles: dict[Slot, Counter[str]] = {}
    for probe, _ in asked:
        if probe.kind in COMPARED:
            styles.setdefault((probe.split, probe.kind, probe.lang), Counter())[probe.style] += 1
    known = {slot: each for slot, each in styles.items() if all(shares.get(style) for style in each)}
    ceilings = {slot: _mean(each, shares) for slot, each in known.items()}
    return _nested(
        [slot for slot, ceiling in ceilings.items() if ceiling],
        lambda slot: right[slot[0]][slot[1]][slot[2]] / ceilings[slot],
    )


def _mean(styles: Counter[str], shares: Shares) -> float:
    """The probe's share on pictures of which each style has so many."""
    return sum(shares[style][0] * count for style, count in styles.items()) / styles.total()


def limits_of(thresholds: Mapping[str, Any], place: tuple[str, ...] = ()) -> dict[tuple[str, ...], float]:
    """{("right", "held_out", "kind", "en"): 0.9, …, ("retention", "kl"): 0.004}"""
    found: dict[tuple[str, ...], float] = {}
    for key, value in thresholds.items():
        path = (*place, key)
        found |= limits_of(value, path) if isinstance(value, Mapping) else {path: float(value)}
    return found


def value_at(card: Mapping[str, Any], path: tuple[str, ...]) -> float | None:
    found: Any = card
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return None if found is None else float(found)


def wants_high(path: tuple[str, ...]) -> bool:
    return path[-1] != "kl"


def _failures(card: Mapping[str, Any]) -> Iterator[str]:
    """One sentence for each threshold that is missed; what was not measured misses none."""
    for path, limit in limits_of(card["thresholds"]).items():
        value = value_at(card, path)
        if value is None:
            continue
        reached = value >= limit if wants_high(path) else value <= limit
        if not reached:  # so is NaN
            wanted = "at least" if wants_high(path) else "at most"
            yield f"{' '.join(path)} is {value:.4f}, wanted {wanted} {limit:g}"


def _finite(value: float | None) -> float | None:
    return value if value is None or math.isfinite(value) else None


def _wrong(asked: list[tuple[PictureProbe, str]], right: list[bool]) -> Iterator[dict[str, Any]]:
    for (probe, answer), is_hit in zip(asked, right, strict=True):
        if not is_hit:
            images = probe.messages[0].get("images", [])
            yield {
                "split": probe.split, "kind": probe.kind, "lang": probe.lang, "style": probe.style,
                "image": Path(images[0]).name if images else "", "question": probe.messages[-1]["content"],
                "wanted": probe.rule["answers"], "answer": answer,
            }  # fmt: skip
