# ruff: noqa: F401, F811 - fixtures are imported, and named again as arguments
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_llava import published, ship, spacious_model, tower
from test_pictures import drawn_once, made
from torch.nn import functional
from transformers import LlavaForConditionalGeneration

from assistant.pictures.things import load_things
from assistant.settings import REPOSITORY
from assistant.vision_tower import LOUD, MEAN, SPREAD


@pytest.fixture
def learnt(monkeypatch, made, tower, tmp_path) -> tuple[Path, Path]:
    """(LLM, folder of the script)"""
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    import learn_things

    llm = spacious_model(tmp_path / "llm")
    settings = learn_things.Settings(
        llm, tmp_path / "eyes", made, str(tower), epochs=40.0, blocks=1, otherwise=False
    )
    learn_things.main(settings)
    return llm, tmp_path / "eyes"


def test_a_share_of_a_thing_enters_the_llm_as_its_english_name(learnt):
    import shown_words

    llm, folder = learnt
    model = LlavaForConditionalGeneration.from_pretrained(str(folder / "untrained")).float()
    config = model.config.vision_config
    assert config.known == [len(load_things()), 11, 11, 6]
    count = sum(config.known)
    assert config.hidden_size == 1280 + count
    states = torch.cat([torch.zeros(count, 1280), LOUD * torch.eye(count)], dim=1)
    with torch.no_grad():
        entering = model.model.multi_modal_projector(states)
    names = shown_words.spoken_words(llm)
    assert functional.cosine_similarity(entering, names).min() > 0.95
    other = functional.cosine_similarity(entering, names.roll(1, 0))
    assert other.mean() < 0.9


def test_the_tower_that_learnt_knows_its_own_pictures_better_than_chance(learnt, made):
    import learn_things
    from transformers import AutoModel

    tower = AutoModel.from_pretrained(learnt[1] / "tower").float().eval()
    shown = learn_things.read_shown(made, 2)
    pixels = learn_things.pixels_of(shown.paths, 64)
    with torch.inference_mode():
        seen = tower((pixels.float() / 255 - MEAN) / SPREAD).last_hidden_state[:, :4, 1280:]
    start = 0
    for kind, each in enumerate(shown.labels):
        known = each.sum(1) > 0
        guesses = seen[known, kind, start : start + each.shape[1]].argmax(1)
        share = (each[known].gather(1, guesses[:, None]) > 0).float().mean()
        chance = each[known].mean(0).max()
        assert share > 1.3 * chance, (kind, share, chance)
        start += each.shape[1]


def test_stage_one_begins_afresh_from_the_tower_of_eyes_that_shipped(learnt, tower, tmp_path):
    import eyes_again

    llm, folder = learnt
    first = load_file(folder / "untrained" / "model.safetensors")
    ship(folder / "untrained", tmp_path / "shipped", times=-1)
    eyes_again.main(eyes_again.Settings(llm, tmp_path / "shipped", tower, tmp_path / "again", afresh=True))
    again = load_file(tmp_path / "again" / "untrained" / "model.safetensors")
    assert again.keys() == first.keys() and not (tmp_path / "again" / "start").exists()
    for name, tensor in first.items():
        assert torch.allclose(tensor.float(), again[name].float(), rtol=2e-2, atol=1e-3), name


def test_a_model_that_is_not_there_is_named_before_anything_is_learnt(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    import learn_things

    with pytest.raises(ValueError, match="nobody is not a folder"):
        learn_things.main(learn_things.Settings(tmp_path / "nobody", tmp_path / "eyes", tmp_path / "no-data"))
    assert not (tmp_path / "eyes").exists()


def test_data_that_does_not_say_what_is_shown_is_to_be_made_again(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    import learn_things

    with pytest.raises(ValueError, match=r"has no shown.jsonl; make the data again"):
        learn_things.read_shown(tmp_path, 7)
    (tmp_path / "shown.jsonl").write_text('{"image": "a.webp", "things": ["dog"]}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="does not say where things lie; make the data again"):
        learn_things.read_shown(tmp_path, 7)


def test_a_place_is_called_by_the_thing_that_lies_there(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    from shown_words import NOTHING, read_shown

    boxes = [[0.2, 0.2, 0.35], [0.8, 0.6, 0.3]]
    line = {"image": "a.webp", "things": ["dog", "cat"], "boxes": boxes, "kind": "", "colour": ""}
    (tmp_path / "shown.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    shown = read_shown(tmp_path, 4)
    names = [thing.name for thing in load_things()]
    found = [["" if n == NOTHING else names[n] for n in row] for row in shown.places[0].tolist()]
    assert found == [["dog"] * 1 + [""] * 3, ["", "", "", ""], ["", "", "", "cat"], ["", "", "", ""]]
    assert shown.labels[0][0, names.index("dog")] == 0.5 and shown.labels[3][0, 1] == 1


def test_pictures_and_what_lies_where_are_moved_alike(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    import seen_otherwise

    torch.manual_seed(0)
    places = torch.full((64, 7, 7), -1)
    places[:, 1:4, 1:4] = 5
    lit = (places == 5).float().repeat_interleave(32, 1).repeat_interleave(32, 2) * 255
    pixels, there = seen_otherwise.moved(lit[:, None].expand(-1, 3, -1, -1), places)
    middle = pixels[:, 0].unfold(1, 32, 32).unfold(2, 32, 32)[..., 15:17, 15:17].mean((-1, -2))
    assert ((middle > 127) == (there == 5)).float().mean() > 0.95
    assert not torch.equal(there, places) and set(there.unique().tolist()) == {-1, 5}
    _, there, _ = seen_otherwise.seen_otherwise(lit[:, None].expand(-1, 3, -1, -1), places)
    assert not torch.equal(there, places)


def test_half_of_the_pictures_keep_their_colours_and_are_known_for_it(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    import seen_otherwise

    torch.manual_seed(0)
    red = torch.tensor([200.0, 40.0, 40.0])[:, None, None].expand(64, 3, 64, 64)
    seen, _, own = seen_otherwise.seen_otherwise(red, torch.zeros(64, 2, 2, dtype=torch.long))
    first = seen[:, :, 0, 0]
    is_red = (first[:, 0] > 2.5 * first[:, 1]) & ((first[:, 1] - first[:, 2]).abs() < 1)
    shown = first.std(1) > 1e-3  # a hidden corner is grey
    assert 16 < own.sum() < 48
    assert is_red[own & shown].all() and not is_red[~own & shown].all()
