import pytest

from assistant.picture_judge import judge_picture, numbers_in, says_name, says_no_image, says_yes
from assistant.pictures.things import load_things

DOG, BEAR, CAN = ["dog", "puppy"], ["bear", "brown bear"], ["can of food", "tin", "can"]


@pytest.mark.parametrize(
    ("answer", "accepted", "right"),
    [
        ("This is a dog.", DOG, True),
        ("dog", DOG, True),
        ("I see two Dogs!", DOG, True),
        ("It's a cute little puppy playing in the grass", DOG, True),
        ("It is not a dog.", DOG, False),
        ("This isn't a dog, it is a cat.", DOG, False),
        ("This is a cat, not a dog.", DOG, False),
        ("This is a dog, not a cat.", DOG, True),
        ("It is not a cat but a dog.", DOG, True),
        ("There is no dog in the picture.", DOG, False),
        ("It is a dog or a cat.", DOG, False),
        ("Maybe a cat, maybe a dog.", DOG, False),
        ("a dog, a cat, a horse, a cow, a pig", DOG, False),
        ("This is a hot dog.", DOG, False),
        ("This is a dogma.", DOG, False),
        ("No doubt a dog.", DOG, True),
        ("It is a teddy bear.", BEAR, False),
        ("It is a bear.", BEAR, True),
        ("I can see a cat.", CAN, False),
        ("It is a can.", CAN, True),
        ("This is a panda", BEAR, False),
        ("", DOG, False),
        ("dog dog dog dog", DOG, True),
        ("The picture shows a dog in front of a house.", DOG, True),
    ],
)
def test_an_english_name_is_right_when_it_is_affirmed(answer, accepted, right):
    assert says_name(answer, accepted, "en") is right


@pytest.mark.parametrize(
    ("answer", "accepted", "right"),
    [
        ("这是一只狗。", ["狗"], True),
        ("狗", ["狗"], True),
        ("这不是狗。", ["狗"], False),
        ("这不是猫，而是狗。", ["狗"], True),
        ("这是猫，不是狗。", ["狗"], False),
        ("图里没有狗。", ["狗"], False),
        ("这是一个热狗。", ["狗"], False),
        ("这是一只熊猫。", ["猫"], False),
        ("这是一只熊猫。", ["熊"], False),
        ("这是一只猫头鹰。", ["猫"], False),
        ("这是一只海马。", ["马"], False),
        ("我马上告诉你。", ["马"], False),
        ("图片里画的是一匹马。", ["马"], True),
        ("这是狗或者猫。", ["狗"], False),
        ("可能是狗，也可能是狼。", ["狗"], False),
        ("这是一条牛仔裤。", ["奶牛", "牛"], False),
        ("毫无疑问，这是一只狗。", ["狗"], True),
        ("一只可爱的小狗在草地上。", ["狗", "小狗"], True),
        ("这是一桶爆米花。", ["爆米花"], True),
    ],
)
def test_a_chinese_name_is_right_when_it_is_affirmed(answer, accepted, right):
    assert says_name(answer, accepted, "zh") is right


@pytest.mark.parametrize(
    ("answer", "sense"),
    [
        ("Yes, it is a dog.", True),
        ("yes", True),
        ("No, it is a cat.", False),
        ("No doubt, it is a dog.", True),
        ("That's right.", True),
        ("That's not right.", False),
        ("It isn't.", False),
        ("I am not sure.", None),
        ("I am sure it is not one.", False),
        ("I know yesterday.", None),
        ("是的，这是一只狗。", True),
        ("是", True),
        ("不是，这是一只猫。", False),
        ("不，这是一只猫。", False),
        ("这不是狗。", False),
        ("没错。", True),
        ("不对。", False),
        ("不知道。", None),
        ("有。", True),
        ("没有。", False),
        ("", None),
    ],
)
def test_a_yes_is_told_from_a_no(answer, sense):
    assert says_yes(answer) is sense


@pytest.mark.parametrize(
    ("answer", "numbers"),
    [
        ("There are three dogs.", {3}),
        ("3", {3}),
        ("3 dogs", {3}),
        ("There is a dog.", {1}),
        ("There are no dogs.", {0}),
        ("No, there are two.", {2}),
        ("three or four", {3, 4}),
        ("This one shows three dogs.", {3}),
        ("Dogs.", set()),
        ("图里有三只狗。", {3}),
        ("有两只狗。", {2}),
        ("一共有五只。", {5}),
        ("有一只狗。", {1}),
        ("没有狗。", {0}),
        ("有2只狗", {2}),
        ("两三只", {2, 3}),
        ("有一些狗。", set()),
        ("我看到五个三明治。", {5}),
    ],
)
def test_a_number_is_read_in_digits_and_words(answer, numbers):
    assert numbers_in(answer) == numbers


@pytest.mark.parametrize(
    ("answer", "says_so"),
    [
        ("I see no picture here. Please send me one.", True),
        ("There is no image in our chat yet.", True),
        ("I cannot see a photo.", True),
        ("I'm sorry, but I can't view any images.", True),
        ("Please upload the picture.", True),
        ("The picture shows a dog.", False),
        ("There are no dogs in the picture.", False),
        ("It is not a dog in the picture.", False),
        ("我没有看到图片，请发一张给我。", True),
        ("我们的对话里还没有照片，请先发图。", True),
        ("图片里没有狗。", False),
        ("图片里是一只狗。", False),
    ],
)
def test_an_answer_without_a_picture_must_say_that_there_is_none(answer, says_so):
    assert says_no_image(answer) is says_so


@pytest.mark.parametrize(
    ("kind", "lang", "answers", "answer", "right"),
    [
        ("name_en", "en", [["dog"]], "这是一只狗。", False),
        ("name_zh", "zh", [["狗"]], "This is a dog.", False),
        ("language", "zh", [["狗"]], "这是一只狗。", True),
        ("several", "en", [["dog"], ["cat"]], "I see a dog and a cat.", True),
        ("several", "en", [["dog"], ["cat"]], "I see a dog.", False),
        ("several", "en", [["dog"], ["cat"]], "I see a dog and a bus.", False),
        ("kind", "en", [["animal", "creature"]], "It is an animal.", True),
        ("kind", "en", [["animal", "creature"]], "It is a dog.", False),
        ("kind", "zh", [["动物"]], "这是植物。", False),
        ("colour", "en", [["red", "pink"]], "It is mostly red.", True),
        ("colour", "en", [["red"]], "It is mostly pink.", False),
        ("colour", "zh", [["红色", "红"]], "它主要是红色的。", True),
        ("count", "en", [["3"]], "There are three dogs.", True),
        ("count", "en", [["3"]], "There are three or four dogs.", False),
        ("yes_no", "zh", [["no"]], "不是，这是猫。", True),
        ("yes_no", "en", [["no"]], "It is a cat.", False),
    ],
)
def test_each_kind_of_probe_has_its_rule(kind, lang, answers, answer, right):
    assert judge_picture({"kind": kind, "lang": lang, "answers": answers}, answer) is right


def test_an_unknown_kind_of_probe_is_named():
    with pytest.raises(ValueError, match="smell"):
        judge_picture({"kind": "smell", "answers": [["sweet"]]}, "sweet")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_taught_name_is_right_for_its_own_thing_and_for_no_other(language):
    things = load_things()
    for index, thing in enumerate(things):
        taught = thing.names[language][0]
        assert says_name(taught, list(thing.names[language]), language), taught
        for other in (*things[index + 1 : index + 4], *things[max(index - 3, 0) : index]):
            if taught not in other.names[language]:
                assert not says_name(taught, list(other.names[language]), language), (taught, other.name)
