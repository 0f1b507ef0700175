"""The mixture of both stages in LLaVA's json, and the probes. Knows nothing of pixels and files' places."""

import random
from collections import Counter
from collections.abc import Iterator
from itertools import cycle
from typing import Any

from assistant.anchors import general_prompts, key_of, load_answers, shipped_answers
from assistant.card import Card
from assistant.conversations import Message
from assistant.identity import make_rows
from assistant.pictures.rows import Asked, Asker, Turn
from assistant.pictures.scenes import SIDE, Scene, boxes_of
from assistant.pictures.things import LANGUAGES, common, load_styles, load_things

Record = dict[str, Any]
PICTURED = ("name", "kind", "yes_no", "count", "colour", "language", "several")
TAUGHT = (*PICTURED, "both")  # no probe asks for the last
EVENLY = ("count", "colour")  # kinds whose answers are few: each comes equally often
ABOUT_OTHERS = ("near_miss", "greeting")  # kinds of identity rows that are not about the assistant


def image_path(scene: Scene) -> str:
    return f"images/{scene.name}.webp"


def shown_record(scene: Scene) -> Record:
    """What a picture shows, in English: its things, where each lies (centre and side as shares of the
    picture's), their kind and colour where it has one."""
    things = [load_things()[number] for number, _ in scene.parts]
    kinds = {thing.kind for thing in things} & set(common()["asked"])
    style, one = load_styles()[scene.style], len(scene.things) == 1
    return {
        "image": image_path(scene),
        "things": [thing.name for thing in things],
        "boxes": [[round(part / SIDE, 3) for part in box] for box in boxes_of(scene, style)],
        "kind": kinds.pop() if one and kinds else "",
        "colour": "".join(scene.colours(style)[:1]) if one else "",
    }


def align_records(scenes: list[Scene], count: int, seed: str) -> list[Record]:
    """Stage 1: a title under each picture, in turn in each language."""
    source = random.Random(seed)
    asker = Asker(source, held_out=False)
    order = cycle(source.sample(scenes, len(scenes)))
    records = []
    for index in range(count):
        # the language of a picture changes from one round to the next
        scene, language = next(order), LANGUAGES[(index + index // len(scenes)) % len(LANGUAGES)]
        records.append(record_of(f"a{index:06}", [asker.title(scene, language)], scene))
    return records


def instruct_records(
    scenes: list[Scene], count: int, seed: str, card: Card | None, base: str
) -> list[Record]:
    """Stage 2: questions of every kind, rows without a picture, and with a card its identity."""
    source = random.Random(seed)
    asker = Asker(source, held_out=False)
    shares = dict(common()["shares"])
    if card is None:
        shares["name"] += shares.pop("identity")
    makers: dict[str, Iterator[tuple[list[Turn], Scene | None]]] = {
        kind: _pictured(asker, kind, scenes) for kind in TAUGHT
    }
    makers |= {
        "multi_turn": _conversations(asker, scenes),
        "no_image": _without_image(asker, scenes),
        "text": _general(source, base, scenes),
        "word": _words(asker),
    }
    if card is not None:
        makers["identity"] = _identity(asker, card, scenes, count * shares["identity"] // 100)
    kinds = [kind for kind, share in shares.items() for _ in range(count * share // 100)]
    kinds += ["name"] * (count - len(kinds))
    source.shuffle(kinds)
    records = [record_of(f"i{index:06}", *next(makers[kind]), kind) for index, kind in enumerate(kinds)]
    # XTuner takes its columns from the first record: one without an image would lose every image
    first = next(index for index, record in enumerate(records) if "image" in record)
    records[0], records[first] = records[first], records[0]
    return records


def record_of(name: str, turns: list[Turn], scene: Scene | None, kind: str = "") -> Record:
    conversation = []
    for index, (question, answer) in enumerate(turns):
        shown = "<image>\n" if scene and index == 0 else ""
        conversation += [{"from": "human", "value": shown + question}, {"from": "gpt", "value": answer}]
    record: Record = {"id": name}
    if scene:
        record["image"] = image_path(scene)
    return record | ({"kind": kind} if kind else {}) | {"conversations": conversation}


def _ask(asker: Asker, kind: str, scene: Scene, language: str) -> Asked | None:
    return getattr(asker, kind)(scene, language)


def fits(kind: str, scene: Scene) -> bool:
    """Whether a kind of question may be asked about a scene at all."""
    if kind == "count":
        return True
    return (len(scene.things) > 1) == (kind == "several") and (kind == "several" or len(scene.parts) == 1)


def asked_about(asker: Asker, kind: str, scenes: list[Scene]) -> Iterator[tuple[Asked, Scene]]:
    """Endless questions of one kind, languages in turn; each count and each colour equally often."""
    fitting = [scene for scene in scenes if fits(kind, scene)]
    if not fitting:
        raise ValueError(f"no picture for questions of kind {kind!r}; ask for more pictures")
    turn = 0
    while True:
        found = False
        for scene in _evenly(kind, fitting, asker.source) if kind in EVENLY else fitting:
            asked = _ask(asker, kind, scene, LANGUAGES[turn % len(LANGUAGES)])
            if asked:
                found = True
                turn += 1
                yield asked, scene
        if not found:
            raise ValueError(f"no picture for questions of kind {kind!r}; ask for more pictures")
        asker.source.shuffle(fitting)


def _evenly(kind: str, scenes: list[Scene], source: random.Random) -> Iterator[Scene]:
    """The scenes so that each number of things, or each colour, comes equally often."""
    groups: dict[Any, list[Scene]] = {}
    for scene in scenes:
        colours = scene.colours(load_styles()[scene.style]) if kind == "colour" else ()
        groups.setdefault(colours[:1] or len(scene.parts), []).append(scene)
    for _ in range(max(map(len, groups.values()))):
        for group in groups.values():
            yield source.choice(group)


def _pictured(asker: Asker, kind: str, scenes: list[Scene]) -> Iterator[tuple[list[Turn], Scene | None]]:
    for asked, scene in asked_about(asker, kind, asker.source.sample(scenes, len(scenes))):
        yield [(asked.question, asked.answer)], scene


def _conversations(asker: Asker, scenes: list[Scene]) -> Iterator[tuple[list[Turn], Scene | None]]:
    """Two to four different questions about one picture; the language may change on the way."""
    while True:
        scene = asker.source.choice(scenes)
        kinds = [kind for kind in PICTURED if fits(kind, scene)]
        turns: list[Turn] = []
        language = asker.source.choice(LANGUAGES)
        for kind in asker.source.sample(kinds, min(len(kinds), asker.source.randint(2, 4))):
            if asker.source.random() < 0.15:
                language = LANGUAGES[1 - LANGUAGES.index(language)]
            asked = _ask(asker, kind, scene, language)
            turns += [(asked.question, asked.answer)] if asked else []
        if len(turns) > 1:
            yield turns, scene


def _without_image(asker: Asker, scenes: list[Scene]) -> Iterator[tuple[list[Turn], Scene | None]]:
    """No picture was sent: questions that presume one, then questions of every other kind."""
    about = [asked_about(asker, kind, asker.source.sample(scenes, len(scenes))) for kind in PICTURED]
    while True:
        for makers in about:
            for _ in LANGUAGES:
                asked, _scene = next(makers)
                # the language of the answer is the one that is asked for
                refusal = asker.no_image(asked.language)
                for question in (refusal.question, asked.question):
                    yield [(question, refusal.answer)], None


def _words(asker: Asker) -> Iterator[tuple[list[Turn], Scene | None]]:
    """No picture: the names of all things into the other language, so that pictures are called by them."""
    while True:
        things = load_things()
        for turn, thing in enumerate(asker.source.sample(things, len(things))):
            asked = asker.word(thing, LANGUAGES[turn % len(LANGUAGES)])
            yield [(asked.question, asked.answer)], None


def _general(
    source: random.Random, base: str, scenes: list[Scene]
) -> Iterator[tuple[list[Turn], Scene | None]]:
    """The shipped answers of the base to the general prompts, which it must go on giving: every second one
    beside a picture."""
    answers = load_answers(shipped_answers(base))
    rows = []
    for prompt in general_prompts():
        messages = prompt["messages"]
        if messages[0]["role"] != "system" and key_of(messages) in answers:
            rows.append(turns_of([*messages, {"role": "assistant", "content": answers[key_of(messages)]}]))
    if not rows:
        raise ValueError(
            f"data/general/answers holds no answers of {base!r}; give --base smollm2-135m-instruct"
        )
    while True:
        for index, turns in enumerate(source.sample(rows, len(rows))):
            yield turns, source.choice(scenes) if index % 2 else None


def _identity(
    asker: Asker, card: Card, scenes: list[Scene], count: int
) -> Iterator[tuple[list[Turn], Scene | None]]:
    """Three of four identity rows with a picture, one of them after a question about it."""
    rows = [
        row
        for row in make_rows(card, max(20, min(count * 2, 2000)), 0)
        if row["messages"][0]["role"] != "system" and row.get("kind") not in ABOUT_OTHERS
    ]
    fitting = [scene for scene in scenes if fits("name", scene)]
    while True:
        for index, row in enumerate(asker.source.sample(rows, len(rows))):
            turns, scene = turns_of(row["messages"]), asker.source.choice(fitting)
            if index % 4 == 3:
                asked = asker.name(scene, row.get("lang", "en"))
                turns = [(asked.question, asked.answer), *turns]
            yield turns, scene if index % 4 else None


def turns_of(messages: list[Message]) -> list[Turn]:
    texts = [message["content"] for message in messages]
    return list(zip(texts[::2], texts[1::2], strict=True))


def statistics(records: list[Record], probes: list[Record], scenes: list[Scene]) -> dict[str, Any]:
    """Counts by kind, language, style and thing."""
    answers = [
        turn["value"] for record in records for turn in record["conversations"] if turn["from"] == "gpt"
    ]
    return {
        "rows": len(records),
        "with_image": sum("image" in record for record in records),
        "kinds": dict(sorted(Counter(record.get("kind", "title") for record in records).items())),
        "answers_with_chinese": sum(
            any("\u4e00" <= letter <= "\u9fff" for letter in text) for text in answers
        ),
        "answers": len(answers),
        "styles": dict(sorted(Counter(scene.style for scene in scenes).items())),
        "things": len({number for scene in scenes for number in scene.things}),
        "probes": dict(sorted(Counter(f"{probe['kind']}/{probe['lang']}" for probe in probes).items())),
    }
