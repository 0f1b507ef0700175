"""Rules whose keeping can be seen from an answer's text."""

import pytest

from assistant.obedience import load_rules

KEPT = [
    ("capital letters", "ROME IS THE CAPITAL OF ITALY.", "Rome is the capital."),
    ("Dear reader", '"Dear reader, it is Rome.', "It is Rome, dear reader."),
    ("pirate", "Arrr, it be Rome!", "The area around Rome."),
    ("Watson", "Elementary, my dear Watson.", "Elementary, my dear friend."),
    ("cat", "Meow! Rome.", "Rome, a city of cats."),
    ("five words", "The capital is Rome.", "The capital of Italy is Rome."),
    ("one sentence", "It is Rome", "It is Rome. It is old."),
    ("question of your own", "Why do you ask?", "Why? Because."),
    ("bulleted", "Here:\n- boil water", "Boil water."),
    ("JSON", '```json\n{"answer": "Rome"}', '{"city": "Rome"}'),
    ("French", "Rome est la capitale.", "Rome is la capitale."),
    ("do not know", "I don't know.", "I know that."),
    ('combination "th"', "Rome", "Rome is the one"),
    ('"over"', "It is Rome. Over.", "Over to you: Rome"),
    ("quotation marks", "“It is Rome.”", '"It" is Rome.'),
    ("好的", "好的，是罗马。", "是罗马，好的。"),
    ("英文", "It is Rome.", "It is Rome，罗马"),
    ("十个字", "罗马。", "意大利的首都是罗马，它是一座古城。"),
    ("一句话", "首都是罗马。", "首都是罗马。很古老。"),
    ("编号", "1. 烧水", "先烧水"),
    ("不知道", "我不知道。", "是罗马。"),
]


@pytest.mark.parametrize(("rule", "kept", "broken"), KEPT)
def test_a_rule_tells_an_answer_that_keeps_to_it_from_one_that_does_not(rule, kept, broken):
    [found] = [found for found, _ in load_rules() if rule in found.system]
    assert found.is_kept_by(kept) and not found.is_kept_by(broken)


def test_every_rule_is_asked_with_every_question_of_its_language_as_a_system_prompt_and_before_it():
    rules = load_rules()
    assert len(rules) == len({rule.system for rule, _ in rules}) == 30
    for rule, conversations in rules:
        assert len(conversations) == 10
        for system, plain in zip(conversations[::2], conversations[1::2], strict=True):
            assert system[0]["content"] == rule.system
            assert plain[0]["content"] == f"{rule.system} {system[1]['content']}"
        assert not rule.is_kept_by("")
