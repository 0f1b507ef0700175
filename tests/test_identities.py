"""Adapters side by side on one base, and how strongly they speak."""

import gc
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_chat import run_chat
from tiny_run import load_tiny, make_tiny_model

from assistant.backends import Sampling, Shared, open_backend
from assistant.backends.transformers_backend import Speaker, TransformersBackend
from assistant.conversations import user
from assistant.loading import load_chat_model
from assistant.merging import logits_of
from assistant.strength import check_strength_of
from assistant.web import sampling_from
from assistant.web.engine import Engine
from assistant.web.models import Engines, find_models, model_named

QUESTION = [user("Who are you?")]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """models/tiny, and two assistants whose adapters differ in size and in the layers they change."""
    root = tmp_path_factory.mktemp("root")
    base = make_tiny_model(root / "models" / "tiny")
    for seed, (name, targets) in enumerate({"ada": "all-linear", "bob": ["q_proj", "up_proj"]}.items()):
        torch.manual_seed(seed + 1)
        config = LoraConfig(r=4 * (seed + 1), lora_alpha=16, target_modules=targets, task_type="CAUSAL_LM")
        adapted = get_peft_model(load_tiny(base).model, config)
        for key, weight in adapted.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(weight, std=0.3)
        adapted.save_pretrained(str(root / "out" / name / "adapter"))
    return root


@pytest.fixture
def shared() -> Shared:
    return Shared()


def adapter(root: Path, name: str) -> str:
    return str(root / "out" / name / "adapter")


def opened(root: Path, name: str, shared: Shared) -> TransformersBackend:
    path = str(root / "models" / "tiny") if name == "base" else adapter(root, name)
    backend = open_backend(path, shared=shared)
    assert isinstance(backend, TransformersBackend)
    return backend


def said(backend: TransformersBackend, strength: float = 1.0) -> str:
    return "".join(backend.stream(QUESTION, Sampling(max_new_tokens=12, strength=strength)))


def alone(root: Path, name: str) -> str:
    return said(opened(root, name, Shared()))


def bytes_of(model: torch.nn.Module) -> dict[str, bytes]:
    """Every weight of the base, by the name it has without adapters."""
    return {
        name.replace(".base_layer", ""): tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()
        for name, tensor in model.state_dict().items()
        if "lora_" not in name
    }


def test_the_base_is_the_same_to_the_bit_before_with_and_after_adapters(root, shared):
    base = opened(root, "base", shared)
    names, weights = list(base._chat.model.state_dict()), bytes_of(base._chat.model)
    [logits] = logits_of(base._chat, [QUESTION])
    ada, bob = opened(root, "ada", shared), opened(root, "bob", shared)
    said(ada), said(bob, 0.5)
    assert bytes_of(base._chat.model) == weights
    assert torch.equal(logits_of(base._chat, [QUESTION])[0], logits)
    del ada, bob
    gc.collect()
    said(base)  # an adapter goes before the next answer
    assert list(base._chat.model.state_dict()) == names and bytes_of(base._chat.model) == weights
    assert torch.equal(logits_of(base._chat, [QUESTION])[0], logits)


def test_adapters_of_one_base_hold_it_once_and_let_it_go(root, shared):
    ada, bob = opened(root, "ada", shared), opened(root, "bob", shared)
    assert ada._chat.model is bob._chat.model is opened(root, "base", shared)._chat.model
    assert ada._chat.model is not opened(root, "ada", Shared())._chat.model
    assert sum(isinstance(kept, Speaker) for kept in shared._kept.values()) == 1
    del ada, bob
    gc.collect()
    assert len(shared._kept) == 0


def test_the_right_adapter_answers_in_requests_from_many_threads(root, shared):
    names, strengths = ("ada", "base", "bob"), (1.0, 0.0, 0.5)
    backends = {name: opened(root, name, shared) for name in names}
    asked = [(name, strength) for name in names for strength in strengths if name != "base"] + [("base", 1.0)]
    expected = {key: said(opened(root, key[0], Shared()), key[1]) for key in asked}
    assert len(set(expected.values())) == 5  # both at 0 are the base
    begin = threading.Barrier(8)

    def ask_all(turn: int) -> list[tuple[tuple[str, float], str]]:
        begin.wait()
        order = asked[turn % len(asked) :] + asked[: turn % len(asked)]
        return [((name, strength), said(backends[name], strength)) for name, strength in order]

    with ThreadPoolExecutor(8) as pool:
        answers = [answer for answers in pool.map(ask_all, range(8)) for answer in answers]
    assert all(answer == expected[key] for key, answer in answers)


def test_an_adapter_that_comes_or_goes_waits_for_the_answer_that_is_written(root, shared):
    base, expected = opened(root, "base", shared), alone(root, "base")
    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(said, base) for _ in range(6)]
        for name in ("ada", "bob", "ada"):
            assert said(opened(root, name, shared)) == alone(root, name)
    assert {answer.result() for answer in answers} == {expected}


def test_strength_0_is_the_base_and_1_is_as_trained(root, shared):
    ada, trained = opened(root, "ada", shared), load_chat_model(adapter(root, "ada"))
    base = load_chat_model(str(root / "models" / "tiny"))  # in the processor's own number format, as all here
    assert said(ada, 0) == alone(root, "base") != said(ada) == alone(root, "ada")
    [as_trained], [as_base] = logits_of(trained, [QUESTION]), logits_of(base, [QUESTION])
    with ada._identities.speaking(ada._key):
        assert torch.equal(logits_of(ada._chat, [QUESTION])[0], as_trained)
    with ada._identities.speaking(ada._key, 0):
        assert torch.equal(logits_of(ada._chat, [QUESTION])[0], as_base)
    for name, weight in trained.model.named_parameters():
        if "lora_B" in name:
            weight.data *= 0.5
    [half] = logits_of(trained, [QUESTION])
    with ada._identities.speaking(ada._key, 0.5):
        assert torch.equal(logits_of(ada._chat, [QUESTION])[0], half)
    assert not torch.equal(half, as_trained) and not torch.equal(half, as_base)


def test_a_damaged_adapter_leaves_the_others_and_the_base_as_they_are(root, shared, tmp_path):
    broken = tmp_path / "adapter"
    broken.mkdir()
    for file in Path(adapter(root, "ada")).iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    config = json.loads((broken / "adapter_config.json").read_text())
    (broken / "adapter_config.json").write_text(json.dumps(config | {"r": 3}))
    base = opened(root, "base", shared)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="size mismatch"):
            open_backend(str(broken), shared=shared)
        assert said(base) == alone(root, "base")
        assert not any("lora_" in name for name in base._chat.model.state_dict())
    ada = opened(root, "ada", shared)
    with pytest.raises(RuntimeError, match="size mismatch"):
        open_backend(str(broken), shared=shared)
    assert said(ada) == alone(root, "ada")


def test_more_than_plain_lora_has_a_base_of_its_own_and_no_strength(root, shared, tmp_path):
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    get_peft_model(load_tiny(root / "models" / "tiny").model, config).save_pretrained(str(tmp_path / "whole"))
    whole = open_backend(str(tmp_path / "whole"), shared=shared)
    assert isinstance(whole, TransformersBackend) and not whole.has_strength
    assert whole._chat.model is not opened(root, "base", shared)._chat.model
    with pytest.raises(ValueError, match="has none to set"):
        check_strength_of(tmp_path / "whole", 0.5)


@pytest.mark.parametrize("wrong", [-1, 9, float("nan"), "text"])
def test_a_wrong_strength_is_one_sentence(root, shared, wrong):
    for ask in (
        lambda: check_strength_of(adapter(root, "ada"), wrong),
        lambda: said(opened(root, "ada", shared), wrong),
    ):
        with pytest.raises(ValueError, match=r"^strength .+ is out of range; 0 is the base, 1 as trained"):
            ask()
    done = run_chat("--model", adapter(root, "ada"), "--message", "hi", "--strength", str(wrong))
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("error: strength ")
    assert "Traceback" not in done.stderr and done.stdout == ""


def test_a_model_without_a_strength_says_so(root):
    done = run_chat("--model", str(root / "models" / "tiny"), "--message", "hi", "--strength", "0.5")
    assert done.returncode == 2 and "only a LoRA adapter has" in done.stderr.splitlines()[-1]


def test_a_page_keeps_strength_within_limits():
    strengths = [sampling_from(0, 1, 64, given).strength for given in (9, -1, float("nan"), 0.7)]
    assert strengths == [1.5, 0, 0, 0.7]


def test_a_chat_changes_who_answers_and_how_strongly(root):
    typed = f"Who are you?\n/use {adapter(root, 'bob')}\n/clear\nWho are you?\n/strength 0\n/clear\n"
    typed += "Who are you?\n"
    typed += "/strength text\n/strength 9\n/use nobody\n/use\n"
    done = run_chat("--model", adapter(root, "ada"), "--max-new-tokens", "12", typed=typed)
    assert done.returncode == 0 and "Traceback" not in done.stderr
    wanted = "\n".join(
        said(opened(root, name, Shared()), strength)
        for name, strength in (("ada", 1), ("bob", 1), ("bob", 0))
    )
    # a random model may write a carriage return, which a pipe read as text makes a line break
    assert done.stdout.replace("> ", "").strip() == wanted.replace("\r\n", "\n").replace("\r", "\n")
    for sentence in (
        "strength 0\n",
        "strength 'text' is no number",
        "strength 9.0 is out",
        "no model 'nobody'",
    ):
        assert sentence in done.stderr


def test_a_name_finds_the_adapter_first_and_base_what_it_was_made_from(root, tmp_path):
    models = find_models("", root)
    assert model_named("ada", models) == model_named("out/ada/adapter", models) == adapter(root, "ada")
    assert model_named("base", models, f"transformers: {adapter(root, 'bob')}").endswith("models/tiny")
    assert model_named("http://x/v1#me", models) == "http://x/v1#me"
    assert model_named(str(tmp_path), models) == str(tmp_path)
    with pytest.raises(ValueError, match="did you mean ada"):
        model_named("adda", models)


def test_the_pages_engines_share_one_base(root):
    engines = Engines(Engine(adapter(root, "ada")), root)
    all_of_them = [engines.get(id) for id in ("out/ada/adapter", "out/bob/adapter", "models/tiny")]
    answers = ["".join(one.stream(QUESTION, Sampling(max_new_tokens=12))) for one in all_of_them]
    assert answers == [alone(root, name) for name in ("ada", "bob", "base")]
    assert len({id(one.backend._chat.model) for one in all_of_them}) == 1
