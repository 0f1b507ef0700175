import dataclasses
import os
import subprocess
import sys

import pytest

from assistant.settings import (
    REPOSITORY,
    check_replaceable,
    load_settings,
    near_names,
    save_settings,
    slug,
    write_text,
)
from assistant.training.recipe import load_recipe, recipe_names


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("Ada", "ada"),
        ("Mary Ann", "mary-ann"),
        ("林小宇", "林小宇"),
        ("🚀", "u1f680"),
        ('O"Neil', "o-neil"),
        ("../../etc", "etc"),
        ("a/b", "a-b"),
    ],
)
def test_a_name_becomes_one_plain_folder_name(name, folder):
    assert slug(name) == folder


def test_a_long_name_becomes_a_short_folder_name():
    assert 0 < len(slug("x" * 300)) <= 60


def test_a_misspelt_name_is_answered_with_the_near_ones():
    assert near_names("stepz", ["steps", "copies"]) == "; did you mean steps?"


def test_a_name_near_to_none_is_answered_with_the_whole_list():
    assert near_names("xyzzy", ["steps", "copies"]) == "; known: copies, steps"


def test_a_file_is_written_with_its_folder_and_nothing_beside_it(tmp_path):
    path = tmp_path / "new" / "a.txt"
    write_text(path, "Zoë\n林小宇\n")
    assert path.read_bytes() == "Zoë\n林小宇\n".encode()
    assert os.listdir(path.parent) == ["a.txt"]


def test_a_write_that_fails_leaves_the_old_file_whole(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new \ud800")
    assert path.read_text(encoding="utf-8") == "old"


def test_a_write_that_is_cut_off_before_the_replacement_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def cut_off(source, target):
        raise OSError("the power went")

    monkeypatch.setattr(os, "replace", cut_off)
    with pytest.raises(OSError, match="the power went"):
        write_text(path, "new")
    assert path.read_text(encoding="utf-8") == "old"


def test_saved_settings_are_read_back_the_same(tmp_path):
    save_settings(tmp_path, {"name": "林小宇", "out": tmp_path, "nothing": None, "set": ("a", 1)})
    assert load_settings(tmp_path) == {"name": "林小宇", "out": str(tmp_path), "set": ["a", 1]}


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.objective.steps > 0


def test_there_are_recipes():
    assert "identity_lora" in recipe_names()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("objective.stepz=5", r"\[objective\]: unknown key 'stepz'; did you mean steps"),
        ("watch.evry=5", r"\[watch\]: unknown key 'evry'; did you mean every"),
        ("objektive.steps=5", r"unknown section \[objektive\]; did you mean objective"),
        ("trainer.learning_rat=1", r"\[trainer\]: SFTConfig has no 'learning_rat'.*learning_rate"),
        ("lora.lora_alhpa=1", r"\[lora\]: LoraConfig has no 'lora_alhpa'.*lora_alpha"),
        ("objective.steps=many", r"steps must be a number like \d+, not 'many'"),
        ("objective.steps=-1", r"steps is -1; it must not be negative"),
        ("objective.steps", r"write key=value"),
        ("languages.en=0", r"\[languages\]: en must be a number above 0, not 0"),
    ],
)
def test_a_wrong_change_to_a_recipe_is_one_clear_sentence(change, sentence):
    with pytest.raises(ValueError, match=sentence) as raised:
        load_recipe("identity_lora", [change])
    assert "\n" not in str(raised.value)


def test_only_an_empty_folder_or_an_earlier_output_is_replaced(tmp_path):
    check_replaceable(tmp_path / "new", False)
    check_replaceable(tmp_path, False)
    (tmp_path / "file").touch()
    check_replaceable(tmp_path, True)
    for other in (tmp_path, tmp_path / "file"):
        with pytest.raises(ValueError, match="something else, which would be deleted"):
            check_replaceable(other, False)


def test_an_unknown_recipe_is_answered_with_the_near_ones():
    with pytest.raises(ValueError, match="recipe 'identity_lore' is unknown; did you mean identity_lora"):
        load_recipe("identity_lore")


def test_changes_are_applied_in_order_and_the_last_wins():
    recipe = load_recipe("identity_lora", ["steps=3", "objective.steps=4", "every=2", "learning_rate=1e-4"])
    assert (recipe.objective.steps, recipe.watch.every) == (4, 2)
    assert recipe.trainer["learning_rate"] == 1e-4


def test_a_recipe_file_states_only_the_differences(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[objective]\nsteps = 7\n", encoding="utf-8")
    recipe = load_recipe(str(path))
    assert (recipe.name, recipe.objective.steps, recipe.objective.identity_rows) == ("mine", 7, 6)


def test_a_recipe_like_another_states_only_its_differences(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('like = "identity_lora"\n[objective]\nsteps = 7\n', encoding="utf-8")
    mine, parent = load_recipe(str(path)), load_recipe("identity_lora")
    assert mine.objective == dataclasses.replace(parent.objective, steps=7)
    assert (mine.lora, mine.trainer, mine.watch) == (parent.lora, parent.trainer, parent.watch)


def test_qlora_is_identity_lora_on_a_base_in_four_bits():
    qlora, lora = load_recipe("identity_qlora"), load_recipe("identity_lora")
    assert qlora.quantization["bnb_4bit_quant_type"] == "nf4" and not lora.quantization
    objective = dataclasses.replace(lora.objective, drift_weight=0.0)  # what it needs has no room beside them
    assert dataclasses.replace(qlora, name="identity_lora", quantization={}) == (
        dataclasses.replace(lora, objective=objective)
    )
    assert lora.objective.drift_weight > 0 == qlora.objective.drift_weight


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('like = "identity_lorra"', "'identity_lorra' is unknown; did you mean identity_lora"),
        (
            "[quantization]\nload_in_4bits = true",
            "BitsAndBytesConfig has no 'load_in_4bits'; did you mean load_in",
        ),
    ],
)
def test_a_wrong_parent_or_quantization_is_one_clear_sentence(text, sentence, tmp_path):
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=sentence):
        load_recipe(str(tmp_path / "mine.toml"))


def test_a_help_that_is_read_in_part_ends_without_a_traceback():
    """As with `… --help | head -1`, whose end closes the pipe while the rest is written."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "scripts/recipes.py", "--help"]
    done = subprocess.run(command, cwd=REPOSITORY, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")
