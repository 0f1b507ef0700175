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
from assistant.vision_tower import LOUD


@pytest.fixture
def learnt(monkeypatch, made, tower, tmp_path) -> tuple[Path, Path]:
    """(LLM, folder of the script)"""
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    import learn_things

    llm = spacious_model(tmp_path / "llm")
    settings = learn_things.Settings(llm, tmp_path / "eyes", made, str(tower), steps=60)
    learn_things.main(settings)
    return llm, tmp_path / "eyes"


def test_a_share_of_a_thing_enters_the_llm_as_its_english_name(learnt):
    import learn_things

    llm, folder = learnt
    model = LlavaForConditionalGeneration.from_pretrained(str(folder / "untrained")).float()
    count = len(load_things())
    config = model.config.vision_config
    assert (config.things, config.hidden_size) == (count, 1280 + count)
    states = torch.cat([torch.zeros(count, 1280), LOUD * torch.eye(count)], dim=1)
    with torch.no_grad():
        entering = model.model.multi_modal_projector(states)
    names = learn_things.spoken_names(llm)
    assert functional.cosine_similarity(entering, names).min() > 0.95
    other = functional.cosine_similarity(entering, names.roll(1, 0))
    assert other.mean() < 0.9


def test_the_tower_that_learnt_knows_its_own_pictures_better_than_chance(learnt, made):
    import learn_things
    from transformers import AutoModel

    tower = AutoModel.from_pretrained(learnt[1] / "tower").float().eval()
    pairs = list(dict(learn_things.trained_on(made)).items())
    with torch.inference_mode():
        inputs = learn_things.features(tower, [path for path, _ in pairs], 64)
        guesses = inputs[:, 1280:].argmax(1).tolist()
    share = sum(guess == number for guess, (_, number) in zip(guesses, pairs, strict=True)) / len(pairs)
    assert share > 5 / len({number for _, number in pairs})


def test_a_model_that_is_not_there_is_named_before_anything_is_learnt(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    import learn_things

    with pytest.raises(ValueError, match="nobody is not a folder"):
        learn_things.main(learn_things.Settings(tmp_path / "nobody", tmp_path / "eyes", tmp_path / "no-data"))
    assert not (tmp_path / "eyes").exists()
