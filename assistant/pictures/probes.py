"""Held-out questions about held-out pictures, with what counts as right. Who judges is not known here."""

import random

from assistant.card import Card
from assistant.identity import make_rows
from assistant.pictures.mixture import PICTURED, Record, asked_about, fits, record_of, turns_of
from assistant.pictures.rows import Asked, Asker
from assistant.pictures.scenes import Scene
from assistant.pictures.things import LANGUAGES, load_things


def make_probes(scenes: list[Scene], each: int, seed: str, card: Card | None) -> list[Record]:
    """`each` held-out records of every kind, half in each language, with wordings that no other row holds.

    Each has "lang", "question" and "answers": groups of names, of which a right answer holds one each.
    """
    source = random.Random(seed)
    asker = Asker(source, held_out=True)
    probes: list[Record] = []
    for kind in PICTURED:
        maker = asked_about(asker, kind, source.sample(scenes, len(scenes)))
        probes += [_probe(f"{kind}-{index:04}", *next(maker)) for index in range(each)]
    for index in range(min(each, 8)):  # there are no more wordings
        asked = asker.no_image(LANGUAGES[index % len(LANGUAGES)])
        probes.append(_probe(f"no_image-{index:04}", asked, None))
    probes += _identity_probes(scenes, each, source, card)
    source.shuffle(probes)
    return probes


def _probe(name: str, asked: Asked, scene: Scene | None) -> Record:
    kind = f"name_{asked.language}" if asked.kind == "name" else asked.kind
    probe = record_of(name, [(asked.question, asked.answer)], scene, kind)
    probe |= {"lang": asked.language, "question": asked.question, "answers": asked.accepted}
    if scene:
        probe["style"] = scene.style
        probe["thing"] = ", ".join(load_things()[number].name for number in scene.things)
    return probe


def _identity_probes(
    scenes: list[Scene], each: int, source: random.Random, card: Card | None
) -> list[Record]:
    """Held-out identity questions, each beside a picture that has nothing to do with it."""
    if card is None:
        return []
    rows = make_rows(card, max(40, each * 2), 0, dev=True)
    rows = [row for row in rows if row.get("kind") == "identity"][:each]
    fitting = [scene for scene in scenes if fits("name", scene)]
    probes = []
    for index, row in enumerate(rows):
        question, answer = turns_of(row["messages"])[-1]
        asked = Asked("identity", row.get("lang", "en"), question, answer, [])
        probes.append(_probe(f"identity-{index:04}", asked, source.choice(fitting)))
    return probes
