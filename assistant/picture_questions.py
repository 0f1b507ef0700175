"""Which questions about pictures a scorecard asks: of a data folder, its stamps, and an even part of them.

Knows nothing of models; what counts as right is picture_judge's matter.
"""

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from assistant.conversations import Message, assistant, read_jsonl, user
from assistant.pictures.rows import Asked, Asker
from assistant.pictures.scenes import Scene
from assistant.pictures.stamps import Stamp
from assistant.pictures.things import LANGUAGES, PICTURES, load_things
from assistant.settings import near_names

FILES = {"held_out": "dev.jsonl", "seen": "seen.jsonl"}
SPLITS = (*FILES, "stamps")
KINDS = ("name", "kind", "yes_no", "count", "colour", "language", "several")
MULTI_TURN = ("name", "colour")  # what is asked in the second turn
BLIND = ("name", "colour")  # what is also asked without the picture
PICTURE_KINDS = (*KINDS, "multi_turn")
ALL_KINDS = (*PICTURE_KINDS, "identity", "no_image", "blind")
PROBE_SHARES = PICTURES / "probe.json"


@dataclass(frozen=True)
class PictureProbe:
    """`kind`: how it is counted; `rule`: what picture_judge reads of it ("kind", "lang", "answers")."""

    split: str
    kind: str
    lang: str
    messages: list[Message]
    rule: dict[str, Any]
    style: str = ""
    thing: str = ""


def load_picture_probes(data: Path, seed: int = 0) -> list[PictureProbe]:
    """All questions of a folder of gen_image_data.py, with those asked in turn 2 and without their picture.

    Raises ValueError with file and line for a bad line or a missing picture.
    """
    probes = [
        _probe_from(entry, place, data, split)
        for split, name in FILES.items()
        for place, entry in read_jsonl(data / name)
    ]
    if not probes:
        raise ValueError(f"{data} holds no questions; make it with scripts/gen_image_data.py")
    held_out = [probe for probe in probes if probe.split == "held_out"]
    return [*probes, *_in_second_turn(held_out, random.Random(seed)), *_without_picture(held_out)]


def _probe_from(entry: Any, place: str, data: Path, split: str) -> PictureProbe:
    if not isinstance(entry, dict):
        raise ValueError(f"{place}: must be a JSON object, not {type(entry).__name__}")
    kind = counted_as(str(entry.get("kind")))
    if kind not in (*KINDS, "identity", "no_image"):
        raise ValueError(f"{place}: kind {entry.get('kind')!r}{near_names(kind, ALL_KINDS)}")
    if entry.get("lang") not in LANGUAGES:
        raise ValueError(f'{place}: "lang" must be one of {", ".join(LANGUAGES)}')
    if not isinstance(entry.get("question"), str) or not isinstance(entry.get("answers"), list):
        raise ValueError(f'{place}: needs "question", a text, and "answers", groups of names')
    rule = {key: entry[key] for key in ("kind", "lang", "answers")}
    messages = [user(entry["question"], _picture_of(entry, place, data, kind))]
    named = {key: str(entry.get(key) or "") for key in ("style", "thing")}
    return PictureProbe(split, kind, entry["lang"], messages, rule, **named)


def counted_as(kind: str) -> str:
    """A rule's kind as the scorecard names it: both languages' names are one."""
    return "name" if kind in ("name_en", "name_zh") else kind


def _picture_of(entry: dict[str, Any], place: str, data: Path, kind: str) -> list[str]:
    if kind == "no_image":
        return []
    if not isinstance(entry.get("image"), str):
        raise ValueError(f'{place}: needs "image", the name of a picture')
    path = data / entry["image"]
    if not path.is_file():
        raise ValueError(
            f"{place}: its picture {entry['image']} is not in {data}; copy images/ too or make the data again"
        )
    return [str(path)]


def _in_second_turn(probes: Iterable[PictureProbe], source: random.Random) -> Iterator[PictureProbe]:
    """Questions after one for the kind, which was answered rightly; the picture is in turn 1 alone."""
    asker = Asker(source, held_out=True)
    numbers = {thing.name: number for number, thing in enumerate(load_things())}
    for probe in probes:
        number = numbers.get(probe.thing)
        if probe.kind in MULTI_TURN and number is not None:
            before = asker.kind(_scene(number, probe.style), probe.lang)
            if before:
                yield replace(probe, kind="multi_turn", messages=_after(probe.messages[0], before))


def _scene(number: int, style: str) -> Scene:
    return Scene("", style, ((number, load_things()[number].codes[0]),), "")


def _after(message: Message, before: Asked) -> list[Message]:
    first = user(before.question, message["images"])
    return [first, assistant(before.answer), user(message["content"])]


def _without_picture(probes: Iterable[PictureProbe]) -> Iterator[PictureProbe]:
    """Each such question once with no picture given: a right answer says so instead of inventing one."""
    once = {probe.messages[0]["content"]: probe for probe in probes if probe.kind in BLIND}
    for question, probe in once.items():
        rule = {"kind": "no_image", "lang": probe.lang, "answers": []}
        yield replace(probe, kind="blind", messages=[user(question)], rule=rule, style="")


def stamp_probes(stamps: Iterable[Stamp], seed: int = 0) -> list[PictureProbe]:
    """For the name of what a stamp shows, in each language."""
    source, things = random.Random(seed), {thing.name: thing for thing in load_things()}
    asker, numbers = Asker(source, held_out=True), {name: i for i, name in enumerate(things)}
    return [
        _stamp_probe(stamp, asker.name(_scene(numbers[stamp.thing], ""), language))
        for stamp in stamps
        for language in LANGUAGES
    ]


def _stamp_probe(stamp: Stamp, asked: Asked) -> PictureProbe:
    rule = {"kind": f"name_{asked.language}", "lang": asked.language, "answers": asked.accepted}
    messages = [user(asked.question, [str(stamp.path)])]
    return PictureProbe("stamps", "name", asked.language, messages, rule, "stamps", stamp.thing)


def even_part(probes: list[PictureProbe], count: int, seed: int = 0) -> list[PictureProbe]:
    """About `count` of the probes, of every split, kind and language in proportion; all of them for 0.

    Raises ValueError for less than 0.
    """
    if count < 0:
        raise ValueError("--image-probes must be 0 (all questions) or more")
    if not count or count >= len(probes):
        return probes
    groups: dict[tuple[str, str, str], list[int]] = {}
    for index, probe in enumerate(probes):
        groups.setdefault((probe.split, probe.kind, probe.lang), []).append(index)
    source, ranks = random.Random(seed), {}
    for group in groups.values():
        for rank, index in enumerate(source.sample(group, len(group))):
            ranks[index] = (rank + 0.5) / len(group)
    return [probes[index] for index in sorted(sorted(ranks, key=lambda index: ranks[index])[:count])]


def load_probe_shares(path: Path | None) -> dict[str, tuple[float, int]]:
    """{style: (share named by the linear probe, pictures)} of benchmarks/picture_probe.py's file.

    Raises ValueError for a file that is none; without a path the shipped file, if there is one.
    """
    if path is None and not PROBE_SHARES.is_file():
        return {}
    path = path or PROBE_SHARES
    try:
        styles = json.loads(path.read_text(encoding="utf-8"))["styles"]
        return {style: (float(each["right"]), int(each["of"])) for style, each in styles.items()}
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; benchmarks/picture_probe.py --out makes it") from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError, AttributeError):
        raise ValueError(f"{path} is no file of benchmarks/picture_probe.py; make it again") from None
