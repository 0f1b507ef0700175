"""Which scenes there are: every thing equally often, in each style, alone, several times or among others.

Knows nothing of pixels and questions.
"""

import random
from collections.abc import Callable, Iterator

from assistant.pictures.scenes import MOST, Scene
from assistant.pictures.things import common, load_things

TURNED = 0.5  # share of the restyled drawings that get other colours


def make_scenes(
    drawn: dict[str, set[str]],
    styles: list[str],
    count: int,
    seed: str,
    prefix: str = "",
    restyled: float = 0.0,
) -> list[Scene]:
    """`count` scenes in these styles; every thing comes equally often, its styles in turn.

    `restyled`: the share of the scenes whose drawings are changed as if by another hand.
    """
    source = random.Random(seed)
    shares = common()["scenes"]
    cycle = _every_drawing(drawn, styles, source)
    kinds = source.choices(list(shares), list(shares.values()), k=count)
    makers: dict[str, Callable[[str, int, str], list[tuple[int, str]]]] = {
        "single": lambda style, number, code: [(number, code)],
        "count": lambda style, number, code: [(number, code)] * source.randint(2, MOST),
        "several": lambda style, number, code: _with_others(drawn[style], (number, code), source),
    }
    scenes = []
    for index, kind in enumerate(kinds):
        style, number, code = next(cycle)
        if kind == "count" and not load_things()[number].countable:
            kind = "single"
        parts = tuple(makers[kind](style, number, code))
        changed = source.random() < restyled if restyled else False
        turned = source.randint(30, 330) if changed and source.random() < TURNED else 0
        scenes.append(Scene(f"{prefix}{index:05}", style, parts, f"{seed}/{index}", changed, turned))
    return scenes


def _every_drawing(
    drawn: dict[str, set[str]], styles: list[str], source: random.Random
) -> Iterator[tuple[str, int, str]]:
    """Endless (style, number of the thing, code point): all things in every round, styles in turn."""
    choices: dict[int, list[tuple[str, str]]] = {}
    for number, thing in enumerate(load_things()):
        found = [(style, code) for style in styles for code in thing.codes if code in drawn[style]]
        if found:
            choices[number] = source.sample(found, len(found))
    for turn in range(10**9):
        for number in source.sample(sorted(choices), len(choices)):
            style, code = choices[number][turn % len(choices[number])]
            yield style, number, code


def _with_others(codes: set[str], first: tuple[int, str], source: random.Random) -> list[tuple[int, str]]:
    """The first drawing with one or two of other things, in the same style."""
    things = load_things()
    parts, wanted = [first], source.randint(2, 3)
    while len(parts) < wanted:
        number = source.randrange(len(things))
        found = [code for code in things[number].codes if code in codes]
        names = {name for held, _ in parts for name in things[held].names["en"] + things[held].names["zh"]}
        if found and not names & {*things[number].names["en"], *things[number].names["zh"]}:
            parts.append((number, source.choice(found)))
    return parts
