import importlib.util
import shutil
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_export import make_byte_level
from test_llava import XTUNER, picture, published, tower  # noqa: F401 (fixtures)
from test_xtuner import FINETUNED
from transformers import LlamaForCausalLM

from assistant.backends import Sampling, open_backend
from assistant.backends.llama_cpp_backend import LlamaCppBackend
from assistant.backends.transformers_backend import TransformersBackend
from assistant.conversations import assistant, images_of, user
from assistant.export import export_gguf
from assistant.folders import copy_chat, read_json
from assistant.glimpses import Seer, load_sight
from assistant.internlm2 import to_llama
from assistant.llama_cpp import Glimpse, pieces_of
from assistant.llama_engine import Engine
from assistant.llava import Parts, make_llava
from assistant.llava_shapes import written_shapes
from assistant.llava_xtuner import read_parts
from assistant.loading import load_chat_model, quiet_loading

pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")
GREEDY = Sampling(max_new_tokens=12, temperature=0.0)


@pytest.fixture(scope="module")
def eyes(tower, tmp_path_factory) -> Path:  # noqa: F811
    """A tiny LLM with GPT-2's tokens and a row of its embedding to spare, that sees with the EfficientNet."""
    folder = tmp_path_factory.mktemp("eyes")
    model = LlamaForCausalLM.from_pretrained(make_byte_level(folder / "llm", initializer_range=0.05))
    model.resize_token_embeddings(model.config.vocab_size + 2, mean_resizing=False)
    model.save_pretrained(folder / "llm")
    make_llava(folder / "llm", tower, folder / "llava", Parts(), {})
    return folder / "llava"


@pytest.fixture(scope="module")
def quick(eyes) -> LlamaCppBackend:
    backend = open_backend(str(eyes))
    assert isinstance(backend, LlamaCppBackend)
    return backend


def test_llama_cpp_gives_xtuners_own_logits_for_a_picture(tmp_path):
    golden, llm = load_file(XTUNER / "reference.safetensors"), tmp_path / "llm"
    llm.mkdir()
    to_llama(XTUNER / "base_llm", llm)
    copy_chat(make_byte_level(tmp_path / "bytes", 280), llm)
    parts, _ = read_parts(FINETUNED, llm, XTUNER / "base_vision", 4, 2)
    make_llava(llm, XTUNER / "base_vision", tmp_path / "llava", parts, {})
    export_gguf(tmp_path / "llava", tmp_path / "llm.gguf", "f32", of_llava=True)
    with torch.inference_mode():
        features = load_sight(tmp_path / "llava").get_image_features(pixel_values=golden["px"])
    states = [Glimpse(state.numpy().tobytes()) for state in features.pooler_output[0]]
    ids = [i for token in golden["ids"][0].tolist() for i in (states if token == -200 else [token])]
    engine = Engine(tmp_path / "llm.gguf")
    assert engine.read(ids)
    theirs = golden["logits"][0, -1]
    assert (torch.tensor(engine.logits()) - theirs).abs().max() < 2e-3 * theirs.abs().max()
    blank = [Glimpse(bytes(len(i.state))) if isinstance(i, Glimpse) else i for i in ids]
    assert engine.read(blank)
    assert (torch.tensor(engine.logits()) - theirs).abs().max() > 0.1 * theirs.abs().max()


def test_tower_and_projector_alone_see_what_the_whole_model_sees(eyes, tmp_path):
    seer, chat = Seer(eyes), load_chat_model(eyes, dtype=torch.float32, device="cpu")
    red, blue = picture(tmp_path / "1.png"), picture(tmp_path / "2.png", "blue")
    talk = [user("What is <image>?", [red]), assistant("Red."), user("And this?", [blue])]
    ids = seer.encode(talk)
    states = [token.state for token in ids if isinstance(token, Glimpse)]
    plain = [chat.eyes.token if isinstance(token, Glimpse) else token for token in ids]
    assert plain == chat.encode(talk) and len(states) == 2 * chat.eyes.tokens
    with torch.inference_mode():
        seen = chat.model.get_image_features(**chat.pixels(images_of(talk))).pooler_output
    ours = torch.frombuffer(bytearray(b"".join(states)), dtype=torch.float32)
    assert torch.allclose(ours.reshape(torch.cat(list(seen)).shape), torch.cat(list(seen)), atol=1e-5)


def test_its_next_word_is_that_of_transformers(quick, eyes, tmp_path):
    chat = load_chat_model(eyes, dtype=torch.float32, device="cpu")
    red, blue = picture(tmp_path / "1.png"), picture(tmp_path / "2.png", "blue")
    found = []
    for talk in (
        [user("What?", [red])],
        [user("What?", [blue])],
        [user("你看", [red, blue]), assistant("好"), user("多少？")],
        [user("no picture")],
    ):
        assert quick.count_prompt(talk) == len(chat.encode(talk))
        assert quick._engine.read(quick._chat.encode(talk))
        with torch.inference_mode():
            ids = torch.tensor([chat.encode(talk)])
            theirs = chat.model(input_ids=ids, **chat.pixels(images_of(talk))).logits[0, -1]
        found.append(torch.tensor(quick._engine.logits()))
        assert (found[-1] - theirs).abs().max() < 0.01 * theirs.std()
    assert (found[0] - found[1]).abs().max() > 0.1 * found[0].std()


def test_it_shows_what_it_sees_and_answers_many(quick, tmp_path):
    red, blue = picture(tmp_path / "1.png"), picture(tmp_path / "2.png", "blue")
    talks = [[user("What?", [name])] for name in (red, blue)]
    assert quick.answer_all(talks, GREEDY) == ["".join(quick.stream(talk, GREEDY)).strip() for talk in talks]
    assert quick.sees and quick.seen(red).size == (64, 64)


def test_a_picture_is_read_once_in_a_conversation(quick, tmp_path, monkeypatch):
    red, read = picture(tmp_path / "1.png"), list[int]()
    evaluate = quick._engine.evaluate

    def counted(parts):
        read.extend(token for *_, ids in parts for token in ids)
        return evaluate(parts)

    monkeypatch.setattr(quick._engine, "evaluate", counted)
    talk = [user("What is this? " * 8, [red])]
    answer = "".join(quick.stream(talk, GREEDY))
    assert sum(isinstance(token, Glimpse) for token in read) == quick._eyes.tokens
    read.clear()
    "".join(quick.stream([*talk, assistant(answer), user("And?")], GREEDY))
    assert read and not any(isinstance(token, Glimpse) for token in read)


def test_pieces_hold_either_tokens_or_places_of_a_picture():
    seen = [Glimpse(bytes([number] * 8)) for number in range(3)]
    assert list(pieces_of([1, 2, 3, *seen, 4], 2)) == [[1, 2], [3], seen[:2], seen[2:], [4]]
    assert len({*seen, Glimpse(bytes(8))}) == 3 and max(seen) < 0


def test_where_llama_cpp_is_missing_transformers_speaks(eyes, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "xllamacpp" else find(name))
    assert isinstance(open_backend(str(eyes)), TransformersBackend)


def test_without_room_for_a_file_torch_speaks_and_says_so(eyes, monkeypatch, capsys):
    usage = shutil.disk_usage(eyes)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**6))
    assert isinstance(open_backend(str(eyes)), TransformersBackend)
    assert "has no room for" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("multi_modal_projector.linear_1.bias", None, "lacks multi_modal_projector.linear_1.bias"),
        ("vision_tower.head.bias", torch.zeros(7), r"vision_tower.head.bias is \[7\] and must be \[1280\]"),
        ("language_model.model.norm.weight", None, "model.norm.weight"),
        ("language_model.model.embed_tokens.weight", 1e6, "holds numbers that 16 bits do not"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused_in_a_sentence(eyes, tmp_path, name, value, sentence):
    folder = Path(shutil.copytree(eyes, tmp_path / "broken"))
    weights = load_file(folder / "model.safetensors")
    old = weights.pop(name)
    if value is not None:
        weights[name] = torch.full_like(old, value) if isinstance(value, float) else value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=sentence):
        open_backend(str(folder))


def test_seeing_waits_while_another_thread_loads_in_16_bits(eyes):
    """Else what sees is made in 16 bits too, or leaves them set when the other is through."""
    made = []
    threads = [
        threading.Thread(target=lambda: made.append(load_sight(eyes))),
        threading.Thread(target=lambda: made.append(written_shapes(read_json(eyes / "config.json")))),
    ]
    with quiet_loading():
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(1)
        waited = list(made)
        torch.set_default_dtype(before)
    for thread in threads:
        thread.join(30)
    assert not waited and len(made) == 2
    sight = next(one for one in made if isinstance(one, torch.nn.Module))
    assert {tensor.dtype for tensor in sight.vision_tower.parameters()} == {torch.float32}
