import random
import re

import pytest

from assistant.pictures.things import LANGUAGES, load_texts
from assistant.pictures.wordings import ASKED, choose_wording, is_held_out, said_otherwise


def question_of(item: str | list[str]) -> str:
    return item if isinstance(item, str) else item[0]


def plain(text: str) -> str:
    return re.sub(r"[^\w{}]", "", text).casefold()


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_wording_is_said_in_many_ways_with_its_slots_and_its_answer(language):
    for section in ASKED:
        items = load_texts(language)[section]
        source = random.Random(0)
        said = [choose_wording(language, section, source, held_out=False) for _ in range(600)]
        assert len({question_of(item) for item in said}) > 5 * len(items), section
        slots = {tuple(re.findall(r"\{\w+\}", question_of(item))) for item in said}
        assert slots == {
            tuple(re.findall(r"\{\w+\}", question_of(item)))
            for index, item in enumerate(items)
            if not is_held_out(index)
        }, section
        answers = {item[1] for item in items if not isinstance(item, str)}
        assert {item[1] for item in said if not isinstance(item, str)} <= answers


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_held_out_wording_comes_out_of_another_not_even_behind_an_opening(language):
    openings = load_texts(language)["openings"]
    held_out = {
        plain(question_of(item))
        for section in ASKED
        for index, item in enumerate(load_texts(language)[section])
        if is_held_out(index)
    }
    everywhere = {"你看到了什么", "whatdoyousee"}  # of two sections, held out in neither
    assert not held_out & everywhere
    source = random.Random(0)
    for section in ASKED:
        for _ in range(3000):
            said = question_of(choose_wording(language, section, source, held_out=False))
            for opening in openings:
                said = said.removeprefix(opening)
            assert plain(said) not in held_out, said


def test_a_held_out_wording_stays_word_for_word():
    source = random.Random(0)
    for section in ASKED:
        items = load_texts("zh")[section]
        for _ in range(50):
            assert choose_wording("zh", section, source, held_out=True) in items[4::5]


def test_one_wording_that_could_only_become_a_held_out_one_stays(monkeypatch):
    texts = {section: [] for section in ASKED} | {
        "alike": [["picture", "photo"]],
        "openings": ["So: "],
        "name": ["1", "2", "3", "4", "What does the photo show?"],
    }
    from assistant.pictures import wordings

    monkeypatch.setattr(wordings, "load_texts", lambda language: texts)
    for cached in (wordings._exchanges, wordings._held_out_cores):
        cached.cache_clear()
    source = random.Random(0)
    said = {said_otherwise("What does the picture show?", "en", source) for _ in range(200)}
    for cached in (wordings._exchanges, wordings._held_out_cores):
        cached.cache_clear()
    assert {plain(one.removeprefix("So: ")) for one in said} == {"whatdoesthepictureshow"}
