# ruff: noqa: F401, F811 - fixtures are imported, and named again as arguments
from pathlib import Path

import pytest
import torch
from test_llava import published, spacious_model, tower
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
    settings = learn_things.Settings(llm, tmp_path / "eyes", made, str(tower), epochs=40.0, blocks=1)
    learn_things.main(settings)
    return llm, tmp_path / "eyes"


def test_a_share_of_a_thing_enters_the_llm_as_its_english_name(learnt):
    import learn_things

    llm, folder = learnt
    model = LlavaForConditionalGeneration.from_pretrained(str(folder / "untrained")).float()
    config = model.config.vision_config
    assert config.known == [len(load_things()), 11, 11, 6]
    count = sum(config.known)
    assert config.hidden_size == 1280 + count
    states = torch.cat([torch.zeros(count, 1280), LOUD * torch.eye(count)], dim=1)
    with torch.no_grad():
        entering = model.model.multi_modal_projector(states)
    names = learn_things.spoken_words(llm)
    assert functional.cosine_similarity(entering, names).min() > 0.95
    other = functional.cosine_similarity(entering, names.roll(1, 0))
    assert other.mean() < 0.9


def test_the_tower_that_learnt_knows_its_own_pictures_better_than_chance(learnt, made):
    import learn_things
    from transformers import AutoModel

    tower = AutoModel.from_pretrained(learnt[1] / "tower").float().eval()
    paths, labels = learn_things.read_shown(made)
    pixels = learn_things.pixels_of(paths, 64)
    with torch.inference_mode():
        seen = tower((pixels.float() / 255 - MEAN) / SPREAD).last_hidden_state[:, :4, 1280:]
    start = 0
    for kind, each in enumerate(labels):
        known = each.sum(1) > 0
        guesses = seen[known, kind, start : start + each.shape[1]].argmax(1)
        share = (each[known].gather(1, guesses[:, None]) > 0).float().mean()
        chance = each[known].mean(0).max()
        assert share > 1.3 * chance, (kind, share, chance)
        start += each.shape[1]


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
        learn_things.read_shown(tmp_path)
