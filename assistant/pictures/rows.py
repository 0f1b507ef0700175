"""Questions about scenes with their answers, from data/pictures/.

Knows nothing of pixels; what colour a drawing has is asked of scenes.py.
"""

import random
from typing import Any, NamedTuple

from assistant.pictures.scenes import Scene
from assistant.pictures.things import (
    LANGUAGES,
    Thing,
    common,
    load_styles,
    load_texts,
    load_things,
    plural,
    with_article,
)
from assistant.pictures.wordings import choose_wording

WORDS_SORTED = 0.3  # share of the questions about a word that ask for its kind
Turn = tuple[str, str]


class Asked(NamedTuple):
    """One question with its answer, and what counts as right: any name of each group."""

    kind: str
    language: str
    question: str
    answer: str
    accepted: list[list[str]]


class Asker:
    """Makes questions about scenes from the train wordings or from the held-out ones."""

    def __init__(self, source: random.Random, *, held_out: bool) -> None:
        self.source, self.held_out = source, held_out

    def wording(self, language: str, section: str) -> Any:
        """One of a section's wordings of this side."""
        return choose_wording(language, section, self.source, held_out=self.held_out)

    def title(self, scene: Scene, language: str) -> Turn:
        """A title for the scene, under a prompt of its language that is never varied by what is asked."""
        return self.wording(language, "titles"), _first_upper(_all_things(scene, language))

    def name(self, scene: Scene, language: str) -> Asked:
        thing = _thing(scene)
        return self._filled("name", language, thing, [list(thing.names[language])])

    def kind(self, scene: Scene, language: str) -> Asked | None:
        """None for things that people sort differently."""
        thing = _thing(scene)
        if thing.kind not in common()["asked"]:
            return None
        return self._filled("kind", language, thing, [load_texts(language)["kinds"][thing.kind][1:]])

    def yes_no(self, scene: Scene, language: str) -> Asked:
        """About the kind or the name; half of the answers is yes."""
        thing, is_so = _thing(scene), self.source.random() < 0.5
        # of a thing without a plain kind only "no" can be said, so its kind is seldom asked for
        share = 0.6 if thing.kind in common()["asked"] else 0.0 if is_so else 0.2
        if self.source.random() < share:
            return self._is_kind(thing, language, is_so)
        return self._is_named(thing, language, is_so)

    def _is_kind(self, thing: Thing, language: str, is_so: bool) -> Asked:
        kinds = load_texts(language)["kinds"]
        others = [
            kind for kind in kinds if kind != thing.kind and thing.kind not in common()["unclear"][kind]
        ]
        asked = thing.kind if is_so else self.source.choice(others)
        slots = {"a_kind": kinds[asked][0], "kind": kinds[asked][1]}
        return self._yes_or_no("yes_no_kind", thing, language, is_so, slots)

    def _is_named(self, thing: Thing, language: str, is_so: bool) -> Asked:
        other = thing if is_so else self._another(thing)
        slots = {
            "other": with_article(other, language),
            "other_capital": _first_upper(with_article(other, language)),
            "other_name": other.names[language][0],
            "is_it_other": load_texts(language).get("is_it", ("", ""))[other.is_plural],
        }
        return self._yes_or_no("yes_no_name", thing, language, is_so, slots)

    def _yes_or_no(
        self, section: str, thing: Thing, language: str, is_so: bool, slots: dict[str, str]
    ) -> Asked:
        word = load_texts(language)["yes" if is_so else "no"]
        asked = self._filled(section, language, thing, [["yes" if is_so else "no"]], yes_no=word, **slots)
        return asked._replace(kind="yes_no")

    def _another(self, thing: Thing) -> Thing:
        """A thing that shares no name with this one; every second time one of the same kind."""
        near = self.source.random() < 0.5
        while True:
            other = self.source.choice(load_things())
            shared = any(set(other.names[tongue]) & set(thing.names[tongue]) for tongue in LANGUAGES)
            if not shared and (not near or other.kind == thing.kind):
                return other

    def count(self, scene: Scene, language: str) -> Asked | None:
        """How many of one thing, or of all things where they differ; sometimes of one that is not there."""
        things = [load_things()[number] for number, _ in scene.parts]
        if not all(thing.countable for thing in things):
            return None
        if len(scene.things) > 1:
            return self._counted(None, len(things), language)
        if len(things) == 1 and self.source.random() < 0.25:
            other = self._another(things[0])
            return self._counted(other, 0, language) if other.countable else None
        return self._counted(things[0], len(things), language)

    def _counted(self, thing: Thing | None, number: int, language: str) -> Asked:
        texts = load_texts(language)
        if language == "zh":
            name, measure = (
                (thing.names["zh"][0], thing.measure) if thing else ("东西", texts["thing_measure"])
            )
            counted = f"{texts['numbers'][number]}{measure}{name}"
            slots = {"name": name, "measure": measure, "counted": counted}
        else:
            one, many = (thing.name, plural(thing.name)) if thing else texts["thing"]
            counted = f"{texts['numbers'][number]} {one if number == 1 else many}"
            slots = {"names": many, "counted": counted, "there": f"{texts['there'][number != 1]} {counted}"}
        question, answer = self.wording(language, "count")
        if language == "zh" and number == 0:
            answer = f"没有{slots['name']}。"
        return Asked("count", language, question.format_map(slots), answer.format_map(slots), [[str(number)]])

    def colour(self, scene: Scene, language: str) -> Asked | None:
        """None where no colour dominates or the thing is spoken of in the plural."""
        thing, colours = _thing(scene), scene.colours(load_styles()[scene.style])
        if not colours or thing.is_plural:
            return None
        names = load_texts(language)["colour_names"]
        accepted = [name for colour in colours for name in names[colour]]
        named = names[colours[0]][0]
        slots = {"colour": named, "colour_capital": _first_upper(named)}
        return self._filled("colour", language, thing, [accepted], **slots)

    def language(self, scene: Scene, language: str) -> Asked:
        """Asked in the other language, to be answered in this one."""
        thing, asked_in = _thing(scene), LANGUAGES[1 - LANGUAGES.index(language)]
        answer = load_texts(language)["language_answer"].format_map(_slots(thing, language))
        return Asked(
            "language", language, self.wording(asked_in, "language"), answer, [list(thing.names[language])]
        )

    def both(self, scene: Scene, language: str) -> Asked:
        """For both names, which ties the Chinese one to the English one that the LLM knows."""
        thing = _thing(scene)
        return self._filled("both", language, thing, [list(thing.names[tongue]) for tongue in LANGUAGES])

    def word(self, thing: Thing, language: str) -> Asked:
        """With no picture: what a thing of the other language is called in this one, or its kind."""
        is_sorted = thing.kind in common()["asked"] and self.source.random() < WORDS_SORTED
        names = [[load_texts(language)["kinds"][thing.kind][1]] if is_sorted else list(thing.names[language])]
        return self._filled("word_kind" if is_sorted else "word", language, thing, names)

    def several(self, scene: Scene, language: str) -> Asked:
        question, answer = self.wording(language, "several")
        accepted = [list(load_things()[number].names[language]) for number in scene.things]
        answer = answer.format(things=_all_things(scene, language))
        return Asked("several", language, question, answer, accepted)

    def no_image(self, language: str) -> Asked:
        question, answer = self.wording(language, "no_image")
        return Asked("no_image", language, question, answer, [])

    def _filled(
        self, section: str, language: str, thing: Thing, accepted: list[list[str]], **more: str
    ) -> Asked:
        question, answer = self.wording(language, section)
        slots = _slots(thing, language) | more
        return Asked(section, language, question.format_map(slots), answer.format_map(slots), accepted)


def _slots(thing: Thing, language: str) -> dict[str, str]:
    """What the wordings of a language may say of a thing."""
    texts = load_texts(language)
    a_kind, kind, *_ = texts["kinds"].get(thing.kind, ["", ""])
    slots = {
        "a": with_article(thing, language),
        "a_capital": _first_upper(with_article(thing, language)),
        "foreign": with_article(thing, LANGUAGES[1 - LANGUAGES.index(language)]),
        "name": thing.names[language][0],
        "a_kind": a_kind,
        "kind": kind,
        "kind_capital": _first_upper(kind),
    }
    for key in ("this", "it", "is_it"):
        if key in texts:
            slots[key] = texts[key][thing.is_plural]
            slots[f"{key}_small"] = slots[key][0].lower() + slots[key][1:]
    return slots


def _thing(scene: Scene) -> Thing:
    return load_things()[scene.parts[0][0]]


def _all_things(scene: Scene, language: str) -> str:
    """`a dog`, `three dogs`, `a dog and a cat`; `三只狗`."""
    things, texts = load_things(), load_texts(language)
    number = len(scene.parts)
    if number > 1 and len(scene.things) == 1:
        thing = things[scene.things[0]]
        if language == "zh":
            return f"{texts['numbers'][number]}{thing.measure}{thing.names['zh'][0]}"
        return f"{texts['numbers'][number]} {plural(thing.name)}"
    names = [with_article(things[index], language) for index in scene.things]
    *first, last = names
    return f"{texts['comma'].join(first)}{texts['and']}{last}" if first else last


def _first_upper(text: str) -> str:
    return text[:1].upper() + text[1:]
