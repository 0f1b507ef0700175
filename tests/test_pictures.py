import json
import os
import random
import re
import shutil
from collections import Counter

import pytest
from PIL import Image, ImageDraw

from assistant.card import Card
from assistant.picture_judge import judge_picture, says_no_image
from assistant.pictures import making, packages, scenes
from assistant.pictures.composing import make_scenes
from assistant.pictures.making import Wanted, make_pictures
from assistant.pictures.mixture import asked_about, shown_record
from assistant.pictures.packages import archive_of, drawing_path, prepare_drawings, svg_of
from assistant.pictures.restyling import restyled
from assistant.pictures.rows import Asker
from assistant.pictures.scenes import MOST, Scene, colour_name, colours_of, draw_scene
from assistant.pictures.stamps import stamps
from assistant.pictures.things import (
    LANGUAGES,
    Style,
    article,
    held_out_families,
    load_styles,
    load_texts,
    load_things,
    plural,
    with_article,
)
from assistant.pictures.wordings import said_otherwise

THINGS = {thing.name: number for number, thing in enumerate(load_things())}
THINGS_BY_NAME = {thing.name: thing for thing in load_things()}
COLOURS = {"red": (221, 46, 68), "green": (60, 160, 70), "blue": (50, 110, 220), "orange": (250, 150, 20)}


@pytest.fixture(scope="module")
def drawn_once(tmp_path_factory):
    """Plain discs as the drawings of some sixty things: two styles to train on, one that is held out."""
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packages, "models_folder", lambda: folder)
        draw_discs()
        yield folder


def draw_discs():
    codes = [code for thing in load_things() for code in thing.codes]
    chosen = [thing.codes[0] for thing in load_things()[::9]]
    for name, style in load_styles().items():
        draws = name in ("noto", "fluent", "twemoji")
        for index, code in enumerate(chosen if draws else []):
            path = drawing_path(style, code)
            path.parent.mkdir(parents=True, exist_ok=True)
            image = Image.new("RGBA", (224, 224))
            colour = list(COLOURS.values())[index % len(COLOURS)]
            ImageDraw.Draw(image).ellipse((30, 40, 200, 180), fill=colour)
            packages.save_picture(image, path, lossless=True)
        listed = drawing_path(style, "x").with_name("drawn.json")
        listed.parent.mkdir(parents=True, exist_ok=True)
        listed.write_text(json.dumps({code: draws and code in chosen for code in codes}), encoding="utf-8")


@pytest.fixture
def drawings(drawn_once, tmp_path, monkeypatch):
    """An empty folder, with the discs as the drawings."""
    monkeypatch.setattr(packages, "models_folder", lambda: drawn_once)
    return tmp_path


@pytest.fixture(scope="module")
def made(drawn_once, tmp_path_factory):
    wanted = Wanted(align=150, instruct=400, pictures=120, probes=12, seed=3)
    folder = tmp_path_factory.mktemp("made") / "out"
    make_pictures(wanted, Card(name="Ada"), folder, 1, {"seed": 3})
    return folder


def texts_of(record):
    return [turn["value"] for turn in record["conversations"]]


def rows_of(folder, name):
    text = (folder / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()] if name.endswith("l") else json.loads(text)


def test_every_name_is_taught_once_and_every_emoji_shows_one_thing():
    things = load_things()
    assert len(things) >= 364
    for language in ("en", "zh"):
        taught = [thing.names[language][0] for thing in things]
        assert len(set(taught)) == len(taught)
    codes = [code for thing in things for code in thing.codes]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[0-9A-F]{4,5}", code) for code in codes)
    assert all(re.search(r"[\u3400-\u9fff]", name) for thing in things for name in thing.names["zh"])
    assert all(thing.measure for thing in things)


def test_every_style_says_its_licence_and_its_hash():
    for style in load_styles().values():
        assert style.licence in ("Apache-2.0", "MIT", "CC-BY-4.0", "CC-BY-3.0")
        assert re.fullmatch("[0-9a-f]{64}", style.sha256)
        assert style.version and style.author


@pytest.mark.parametrize(
    ("name", "one", "many"),
    [
        ("dog", "a dog", "dogs"),
        ("apple", "an apple", "apples"),
        ("unicorn", "a unicorn", "unicorns"),
        ("SUV", "an SUV", "SUVs"),
        ("hourglass", "an hourglass", "hourglasses"),
        ("mouse", "a mouse", "mice"),
        ("computer mouse", "a computer mouse", "computer mice"),
        ("glass of wine", "a glass of wine", "glasses of wine"),
        ("bow and arrow", "a bow and arrow", "bows and arrows"),
        ("butterfly", "a butterfly", "butterflies"),
        ("monkey", "a monkey", "monkeys"),
        ("grapes", "grapes", "grapes"),
        ("bread", "bread", "breads"),
    ],
)
def test_a_thing_is_spoken_of_as_people_do(name, one, many):
    thing = load_things()[THINGS[name]]
    assert with_article(thing, "en") == one
    assert plural(name) == many
    assert article("umbrella") == "an"


def test_chinese_titles_carry_the_measure_word():
    assert with_article(load_things()[THINGS["dog"]], "zh") == "一只狗"
    assert with_article(load_things()[THINGS["car"]], "zh") == "一辆汽车"


def test_every_answer_that_is_taught_is_right_and_in_its_language():
    import random

    dog = Scene("x", "noto", ((THINGS["dog"], load_things()[THINGS["dog"]].codes[0]),), "s")
    asker = Asker(random.Random(0), held_out=False)
    for kind in ("name", "kind", "yes_no", "count", "language"):
        for language in LANGUAGES:
            asked = getattr(asker, kind)(dog, language)
            rule = {"kind": kind, "lang": language, "answers": asked.accepted}
            rule["kind"] = f"name_{language}" if kind == "name" else kind
            assert judge_picture(rule, asked.answer), asked
            assert language == "en" or "dog" not in asked.answer


def test_a_word_of_one_language_is_answered_in_the_other_or_by_its_kind():
    import random

    dog, asker = load_things()[THINGS["dog"]], Asker(random.Random(0), held_out=False)
    asked = {language: [asker.word(dog, language) for _ in range(60)] for language in LANGUAGES}
    for language, each in asked.items():
        named = [one for one in each if one.kind == "word"]
        assert 0.5 < len(named) / len(each) < 0.95
        for one in each:
            assert any(name in one.answer for name in one.accepted[0]), one
        for one in named:
            other = "一只狗" if language == "en" else "a dog"
            assert other in one.question and other not in one.answer


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_wording_can_be_filled_for_every_thing(language):
    import random

    for held_out in (False, True):
        asker = Asker(random.Random(1), held_out=held_out)
        for number, thing in enumerate(load_things()):
            scene = Scene("x", "noto", ((number, thing.codes[0]),), "s")
            for kind in ("name", "kind", "yes_no", "count", "language"):
                asked = getattr(asker, kind)(scene, language)
                if asked:
                    assert "{" not in asked.question + asked.answer
                    assert bool(re.search(r"[\u3400-\u9fff]", asked.answer)) == (language == "zh")


def test_held_out_wordings_are_never_trained_on(made):
    trained = {
        text.removeprefix("<image>\n") for row in rows_of(made, "train.json") for text in texts_of(row)
    }
    asked = [row for row in rows_of(made, "dev.jsonl") if row["kind"] != "several"]
    assert asked
    assert not [row["question"] for row in asked if row["question"] in trained]


def test_held_out_styles_are_in_no_row_that_is_trained_on(made):
    dev = rows_of(made, "dev.jsonl")
    assert {row["style"] for row in dev if "style" in row} == {"twemoji"}
    trained = {row.get("image") for name in ("align.json", "train.json") for row in rows_of(made, name)}
    assert not trained & {row["image"] for row in dev if "image" in row}
    assert {row["style"] for row in rows_of(made, "seen.jsonl") if "style" in row} == {"noto", "fluent"}


def test_the_files_are_in_llava_s_format_with_every_picture_there(made):
    for name in ("align.json", "train.json", "dev.jsonl", "seen.jsonl"):
        rows = rows_of(made, name)
        for row in rows:
            turns = row["conversations"]
            assert [turn["from"] for turn in turns] == ["human", "gpt"] * (len(turns) // 2)
            marks = sum(text.count("<image>") for text in texts_of(row))
            assert marks == ("image" in row)
            assert "image" not in row or Image.open(made / row["image"]).size == (224, 224)
        assert len({row["id"] for row in rows}) == len(rows)
    assert "image" in rows_of(made, "train.json")[0]


def test_stage_one_has_titles_alone_and_both_languages(made):
    titles = [texts_of(row)[1] for row in rows_of(made, "align.json")]
    chinese = [title for title in titles if re.search(r"[\u3400-\u9fff]", title)]
    assert abs(len(chinese) - len(titles) / 2) <= 2
    assert not [title for title in titles if title.endswith((".", "。"))]


def test_a_conversation_about_several_things_asks_for_all_of_them_and_for_their_number(made):
    shown = {line["image"]: line["things"] for line in rows_of(made, "shown.jsonl")}
    rows = [row for row in rows_of(made, "train.json") if row["kind"] == "multi_turn"]
    several = [row for row in rows if len(set(shown[row["image"]])) > 1]
    assert 0.02 < len(several) / len(rows) < 0.5
    for row in several:
        names = shown[row["image"]]
        answers = texts_of(row)[1::2]
        assert len(answers) == 2
        for answer in answers:
            language = "zh" if re.search(r"[\u3400-\u9fff]", answer) else "en"
            groups = [list(load_things()[THINGS[name]].names[language]) for name in names]
            every = judge_picture({"kind": "several", "lang": language, "answers": groups}, answer)
            number = {"kind": "count", "lang": language, "answers": [[str(len(names))]]}
            assert every or judge_picture(number, answer), (names, answer)


def test_stage_two_holds_every_kind_and_yes_as_often_as_no(drawings):
    import random

    drawn = prepare_drawings(load_styles().values(), {c for t in load_things() for c in t.codes}, print)
    scenes = make_scenes(drawn, ["noto", "fluent"], 600, "s")
    maker = asked_about(Asker(random.Random(0), held_out=False), "yes_no", scenes)
    senses = [next(maker)[0].accepted[0][0] for _ in range(1000)]
    assert 430 < senses.count("yes") < 570
    counts = asked_about(Asker(random.Random(0), held_out=False), "count", scenes)
    numbers = [int(next(counts)[0].accepted[0][0]) for _ in range(1000)]
    assert all(numbers.count(number) > 60 for number in range(1, MOST + 1))
    assert numbers.count(0) > 10


def test_the_identity_is_asked_with_and_without_a_picture(made):
    rows = [row for row in rows_of(made, "train.json") if row["kind"] == "identity"]
    assert {"image" in row for row in rows} == {True, False}
    assert any("Ada" in texts_of(row)[-1] for row in rows)
    assert sum("image" in row for row in rows) / len(rows) == pytest.approx(0.75, abs=0.03)
    assert not [row for row in rows if "Marie Curie" in texts_of(row)[-2]]  # a near miss
    general = [row for row in rows_of(made, "train.json") if row["kind"] == "text"]
    assert abs(2 * sum("image" in row for row in general) - len(general)) <= 1
    assert [row for row in rows_of(made, "dev.jsonl") if row["kind"] == "identity" and "image" in row]
    assert (made / "card.toml").is_file()


def test_without_a_picture_the_answer_says_so(made):
    rows = [row for row in rows_of(made, "train.json") if row["kind"] == "no_image"]
    assert rows
    assert not [row for row in rows if "image" in row]
    assert all(says_no_image(texts_of(row)[-1]) for row in rows)
    presuming = {
        said_otherwise(question, language, random.Random(draw))
        for language in LANGUAGES
        for question, _ in load_texts(language)["no_image"]
        for draw in range(400)
    }
    others = [row for row in rows if texts_of(row)[0] not in presuming]
    assert abs(2 * len(others) - len(rows)) <= 2  # a half in the words in which pictures are asked about


def test_both_names_are_asked_for_at_once(made):
    rows = [row for row in rows_of(made, "train.json") if row["kind"] == "both"]
    assert rows
    for row in rows:
        answer = texts_of(row)[-1]
        assert "image" in row and re.search(r"[\u4e00-\u9fff]", answer) and re.search("[a-z]", answer)


def test_the_same_seed_gives_the_same_bytes_with_any_number_of_processes(drawings):
    wanted = Wanted(align=20, instruct=100, pictures=100, probes=8, seed=5)
    for name, workers in (("one", 1), ("two", 2)):
        make_pictures(wanted, None, drawings / name, workers, {})
    files = sorted(path.relative_to(drawings / "one") for path in (drawings / "one").rglob("*.*"))
    assert len(files) > 50
    for file in files:
        assert (drawings / "one" / file).read_bytes() == (drawings / "two" / file).read_bytes(), file
    make_pictures(
        Wanted(align=20, instruct=100, pictures=100, probes=8, seed=6), None, drawings / "six", 1, {}
    )
    assert (drawings / "one/train.json").read_bytes() != (drawings / "six/train.json").read_bytes()


def test_a_run_that_was_stopped_goes_on_with_what_it_had_drawn(drawings, monkeypatch):
    from assistant.pictures import making

    wanted = Wanted(align=20, instruct=100, pictures=150, probes=8, seed=5)
    drawn = []
    whole = making._draw_chunk

    def stopped(scenes, folder, side):
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(len(scenes))
        return whole(scenes, folder, side)

    monkeypatch.setattr(making, "_draw_chunk", stopped)
    with pytest.raises(KeyboardInterrupt):
        make_pictures(wanted, None, drawings / "out", 1, {})
    assert not (drawings / "out").exists()
    kept = {path.name: path.stat().st_mtime_ns for path in (drawings / ".out.partial/images").iterdir()}
    assert len(kept) == sum(drawn)
    monkeypatch.setattr(making, "_draw_chunk", whole)
    make_pictures(wanted, None, drawings / "out", 1, {})
    after = {path.name: path.stat().st_mtime_ns for path in (drawings / "out/images").iterdir()}
    assert len(after) > len(kept)
    assert {name: after[name] for name in kept} == kept


def test_a_folder_with_other_files_is_not_replaced(drawings):
    (drawings / "mine").mkdir()
    (drawings / "mine/thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(ValueError, match="something else"):
        make_pictures(Wanted(20, 100, 100, 8, 0), None, drawings / "mine", 1, {})
    assert (drawings / "mine/thesis.txt").is_file()


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (Wanted(20, 100, 5, 8, 0), "--pictures 5"),
        (Wanted(20, 5, 100, 8, 0), "-n 5"),
        (Wanted(20, 100, 100, 1, 0), "--probes"),
        (Wanted(20, 100, 100, 8, 0, side=9), "--side 9"),
        (Wanted(20, 100, 100, 8, 0, held_out=("twemojy",)), "did you mean twemoji"),
        (Wanted(20, 100, 100, 8, 0, base="nobody"), "nobody"),
    ],
)
def test_a_wrong_number_is_named(drawings, wanted, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        make_pictures(wanted, None, drawings / "out", 1, {})
    assert not (drawings / "out").exists()


def test_no_process_at_all_is_refused(drawings):
    with pytest.raises(ValueError, match="--workers 0"):
        make_pictures(Wanted(20, 100, 100, 8, 0), None, drawings / "out", 0, {})


def test_holding_every_family_out_is_refused():
    with pytest.raises(ValueError, match="leave at least one"):
        held_out_families({style.family for style in load_styles().values()})


def test_things_on_a_canvas_do_not_cover_one_another(drawings):
    code = load_things()[0].codes[0]
    style = load_styles()["noto"]
    for number in range(2, MOST + 1):
        scene = Scene("x", "noto", ((0, code),) * number, f"seed {number}")
        image = draw_scene(scene, style)
        assert image.size == (224, 224)
        assert spots(image) == number


def spots(image):
    """How many separate reddish things are in a picture."""
    small = image.resize((56, 56), Image.Resampling.NEAREST)
    pixels = small.load()
    red = {(x, y) for x in range(56) for y in range(56) if is_red(pixels[x, y])}
    groups = 0
    while red:
        waiting, size = [red.pop()], 0
        while waiting:
            x, y = waiting.pop()
            size += 1
            beside = {(x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1)} & red
            red -= beside
            waiting += beside
        groups += size > 12
    return groups


def is_red(pixel):
    return sum((a - b) ** 2 for a, b in zip(pixel, COLOURS["red"], strict=True)) < 60**2


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((221, 46, 68), "red"),
        ((255, 204, 77), "yellow"),
        ((244, 144, 12), "orange"),
        ((119, 178, 85), "green"),
        ((85, 172, 238), "blue"),
        ((170, 142, 214), "purple"),
        ((244, 171, 186), "pink"),
        ((193, 105, 79), "brown"),
        ((153, 170, 181), "grey"),
        ((41, 47, 51), "black"),
        ((66, 66, 66), ""),  # some call it black, some grey
        ((204, 204, 204), ""),
        ((245, 248, 250), "white"),
        ((0, 0, 0), "black"),
    ],
)
def test_a_colour_is_named_as_people_name_it(rgb, name):
    assert colour_name(*rgb) == name


def test_a_drawing_of_many_colours_has_no_colour_to_ask_for(tmp_path, monkeypatch):
    monkeypatch.setattr(packages, "models_folder", lambda: tmp_path)
    style = Style("striped", "f", "p", "1", "0" * 64, "MIT", "a")
    image = Image.new("RGBA", (224, 224))
    for index, colour in enumerate(COLOURS.values()):
        image.paste((*colour, 255), (index * 56, 0, index * 56 + 56, 224))
    drawing_path(style, "1F308").parent.mkdir(parents=True)
    packages.save_picture(image, drawing_path(style, "1F308"), lossless=True)
    assert colours_of(style, "1F308") == ()
    assert load_texts("en")["colour_names"]["red"]


def test_icons_are_called_by_a_name_that_one_thing_has_and_that_shows_it():
    style = Style("icons", "f", "p", "1", "0" * 64, "MIT", "a", form="{}-fill", without=("mouse",))
    names = packages.spoken_names(style)
    assert names[THINGS_BY_NAME["elephant"].codes[0]] == ["elephant-fill"]
    assert "ice-cream-cone-fill" in names[THINGS_BY_NAME["ice cream cone"].codes[0]]
    assert names[THINGS_BY_NAME["mouse"].codes[0]] == []
    every = [name for each in names.values() for name in each]
    assert len(every) == len(set(every)) and "moon-fill" not in every  # the full one or the crescent


def test_an_icon_has_one_colour_of_its_own_and_always_the_same():
    icon = '<svg><path fill="currentColor"/><path stroke="#000" fill="#2F88FF"/></svg>'
    drawn = {packages.in_colour(icon, f"mdi/{code}") for code in range(20)}
    assert len(drawn) > 15 and drawn == {packages.in_colour(icon, f"mdi/{code}") for code in range(20)}
    for text in drawn:
        line, outline, inside = re.findall(r'"(#[0-9a-f]{6})"', text)
        assert line == outline != inside and {line, inside} <= set(packages.INKS)


def test_what_is_shown_says_where_each_thing_is_put(drawings, monkeypatch):
    put = []
    monkeypatch.setattr(
        scenes, "_paste", lambda canvas, drawing, x, y, size, source: put.append((x, y, size))
    )
    drawn = prepare_drawings(load_styles().values(), {c for t in load_things() for c in t.codes}, print)
    for scene in make_scenes(drawn, ["noto"], 30, "s", "t", restyled=0.5):
        put.clear()
        draw_scene(scene, load_styles()["noto"])
        assert len(put) == len(scene.parts) and put == scenes.boxes_of(scene, load_styles()["noto"])
        assert shown_record(scene)["boxes"] == [[round(part / 224, 3) for part in box] for box in put]


def test_known_styles_are_asked_about_in_emoji_alone(drawings, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(making, "make_scenes", lambda drawn, styles, *rest: asked.append(styles) or [])
    monkeypatch.setattr(making, "make_probes", lambda *rest: [])
    monkeypatch.setattr(making, "_write", lambda *rest: None)
    making.make_pictures(Wanted(0, 0, 100, 8, 0), None, tmp_path / "out", 1, {})
    taught, seen, unseen = asked
    assert {"mdi", "noto"} <= set(taught) and "mdi" not in seen and "noto" in seen
    assert not set(unseen) & set(taught)


def test_an_icon_is_found_by_its_other_spellings_and_not_where_it_shows_something_else():
    icons = {
        "width": 32,
        "height": 32,
        "icons": {
            "dogface": {"body": "<path/>"},
            "cat-1": {"body": "<g/>", "width": 64},
            "turkey": {"body": "flag"},
        },
        "aliases": {"hound": {"parent": "dogface"}},
    }
    style = Style("s", "f", "p", "1", "0" * 64, "MIT", "a", icons={"1F983": "", "1F415": "hound"})
    assert "<path/>" in svg_of(icons, style, "1F436", {"dog-face"})
    assert 'viewBox="0 0 64 32"' in svg_of(icons, style, "1F408", {"cat"})
    assert "<path/>" in svg_of(icons, style, "1F415", set())
    assert svg_of(icons, style, "1F983", {"turkey"}) is None
    assert svg_of(icons, style, "1F42E", {"cow-face"}) is None


@pytest.mark.slow
def test_a_real_package_is_fetched_checked_and_drawn_once(tmp_path, monkeypatch):
    pytest.importorskip("resvg_py")
    if shutil.which("npm") is None:
        pytest.skip("npm is missing")
    monkeypatch.setattr(packages, "models_folder", lambda: tmp_path)
    style, told = load_styles()["fxemoji"], []
    try:
        drawn = prepare_drawings([style], ["1F436", "1F68B"], lambda *given: told.append(given))
    except RuntimeError as error:
        pytest.skip(str(error))
    # the dog is under another name in the package, and its tram is a black square
    assert drawn == {"fxemoji": {"1F436"}}
    assert Image.open(drawing_path(style, "1F436")).size == (224, 224)
    assert told[-1] == ("fxemoji", 2, 2)
    shutil.rmtree(tmp_path / "pictures/packages")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert prepare_drawings([style], ["1F436", "1F68B"], print) == drawn


def test_a_package_with_other_content_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(packages, "models_folder", lambda: tmp_path)
    (tmp_path / "npm").write_text(
        '#!/bin/sh\nfor last; do :; done\necho other > "$last/p.tgz"\n', encoding="utf-8"
    )
    (tmp_path / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(ValueError, match="sha256|hash"):
        archive_of(load_styles()["fxemoji"])
    assert not list((tmp_path / "pictures/packages").iterdir())


def test_a_missing_npm_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(packages, "models_folder", lambda: tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="npm is missing"):
        archive_of(load_styles()["fxemoji"])
    assert not list((tmp_path / "pictures/packages").iterdir())


def test_stamps_are_known_by_their_captions(tmp_path):
    for name, caption in (
        ("a", "A dog."),
        ("b", "A brown bear."),
        ("c", "A nice view."),
        ("d", "Some grapes."),
    ):
        Image.new("RGBA", (9, 9)).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(f"{caption}\nzh_CN.utf8=图。\n", encoding="utf-8")
    found = {stamp.path.stem: stamp for stamp in stamps(tmp_path)}
    assert {name: stamp.thing for name, stamp in found.items()} == {"a": "dog", "b": "bear", "d": "grapes"}
    assert found["a"].names["zh"][0] == "狗"


def colourful() -> Image.Image:
    """A red circle with a blue spot on nothing, RGBA."""
    drawing = Image.new("RGBA", (128, 128))
    pen = ImageDraw.Draw(drawing)
    pen.ellipse((10, 10, 118, 118), fill=(220, 30, 30, 255))
    pen.ellipse((50, 50, 70, 70), fill=(30, 30, 220, 255))
    return drawing


def test_a_restyled_drawing_keeps_its_shape_and_its_colour_and_follows_its_seed():
    before = colourful()
    made = {seed: restyled(before, f"seed {seed}") for seed in range(40)}
    assert len({image.tobytes() for image in made.values()}) > 20
    for seed, image in made.items():
        assert image.tobytes() == restyled(before, f"seed {seed}").tobytes()
        assert image.mode == "RGBA" and image.getpixel((0, 0))[3] == 0
        red, green, blue, alpha = image.getpixel((image.width // 2, image.height // 4))
        assert alpha == 255 and colour_name(red, green, blue) == "red", seed


def test_a_drawing_in_other_colours_is_asked_about_by_those(tmp_path, monkeypatch):
    monkeypatch.setattr(packages, "models_folder", lambda: tmp_path)
    style = Style("discs", "f", "p", "1", "0" * 64, "MIT", "a")
    drawing_path(style, "1F7E2").parent.mkdir(parents=True)
    packages.save_picture(colourful(), drawing_path(style, "1F7E2"), lossless=True)
    for turned, colour in ((0, "red"), (120, "green"), (230, "blue")):
        scene = Scene("one", style.name, ((0, "1F7E2"),), "seed 5", True, turned)
        assert scene.colours(style) == (colour,)
        levels = iter(draw_scene(scene, style).tobytes())
        found = Counter(colour_name(*pixel) for pixel in zip(levels, levels, levels, strict=True))
        assert found[colour] > 4 * max(found[other] for other in ("red", "green", "blue") if other != colour)


def test_what_each_picture_shows_stands_beside_the_rows(made):
    shown = rows_of(made, "shown.jsonl")
    trained = {row.get("image") for name in ("align.json", "train.json") for row in rows_of(made, name)}
    assert {line["image"] for line in shown} == trained - {None}
    names = {thing.name: thing for thing in load_things()}
    for line in shown:
        assert 1 <= len(line["things"]) <= MOST and (made / line["image"]).is_file()
        if line["kind"]:
            assert {names[name].kind for name in line["things"]} == {line["kind"]}
        if len(set(line["things"])) > 1:
            assert not line["kind"] and not line["colour"]
    by_image = {line["image"]: line for line in shown}
    for row in rows_of(made, "train.json"):
        question, answer = texts_of(row)[:2]
        if row["kind"] == "count" and row["conversations"] and "image" in row and len(texts_of(row)) == 2:
            numbers = load_texts("en")["numbers"]
            number = next((n for n, word in enumerate(numbers) if f"{word} " in answer.lower()), None)
            if number and re.match(r"[A-Z]", question.removeprefix("<image>\n")):
                assert number == len(by_image[row["image"]]["things"]), row


def test_so_many_of_the_scenes_to_learn_from_are_restyled(drawings):
    drawn = prepare_drawings(load_styles().values(), {c for t in load_things() for c in t.codes}, print)
    plain = make_scenes(drawn, ["noto"], 400, "s")
    some = make_scenes(drawn, ["noto"], 400, "s", restyled=0.5)
    assert not any(scene.restyled for scene in plain)
    assert 150 < sum(scene.restyled for scene in some) < 250
    assert 70 < sum(scene.turned > 0 for scene in some) < 130
    assert not any(scene.turned and not scene.restyled for scene in some)
    image = draw_scene(some[0], load_styles()["noto"])
    assert image.size == (224, 224)
    with pytest.raises(ValueError, match="--restyled 1.5: a share lies between 0 and 1"):
        make_pictures(Wanted(20, 100, 100, 8, 0, restyled=1.5), None, drawings / "out", 1, {})
