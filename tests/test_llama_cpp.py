import json
import os
import string
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from test_export import CONTROL, HOUSE, TYPED, make_byte_level, make_sentencepiece
from tiny_run import learn_by_heart, load_tiny

from assistant.backends import Notice, Sampling, open_backend
from assistant.conversations import Message, assistant, system, user
from assistant.export import export_gguf
from assistant.settings import REPOSITORY

pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")

DEFAULT = REPOSITORY / "models" / "smollm2-135m-instruct"
CAPITAL = [user("What is the capital of France?")]
ENDLESS = Sampling(max_new_tokens=10_000, temperature=1.0, top_p=1.0, seed=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_byte_level(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def file(folder) -> Path:
    out = folder / "gguf" / "tiny.gguf"
    export_gguf(folder, out, "f32")
    return out


@pytest.fixture(scope="module")
def backend(file):
    return open_backend(str(file))


def conversations() -> list[list[Message]]:
    talk: list[list[Message]] = [[user(text)] for text in ["你是谁？", "\n\nhello  2024", "", *TYPED]]
    return [*talk, [system("be kind"), user("a"), assistant("b"), user("<|im_start|>c")]]


def is_over(seconds: float = 2) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(thread.name in ("answer", "slots") for thread in threading.enumerate()):
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("make", [make_byte_level, make_sentencepiece])
def test_a_conversation_has_the_ids_that_training_gave_it(tmp_path, make):
    from assistant.loading import encode_chat, load_tokenizer

    folder = make(tmp_path)
    export_gguf(folder, tmp_path / "x.gguf", "f16")
    backend, tokenizer = open_backend(str(tmp_path / "x.gguf")), load_tokenizer(folder)
    starts = tokenizer.convert_tokens_to_ids("<|im_start|>")
    for messages in conversations():
        ids, _ = backend.fit(messages, 5)  # type: ignore[attr-defined]
        assert ids.count(starts) == len(messages) + 1, messages
        assert ids.count(1) <= 1 or make is make_byte_level, messages
        assert ids == encode_chat(tokenizer, messages), messages


def test_greedy_answers_are_those_of_transformers(folder, backend):
    """Up to the first near tie of a random model: llama.cpp keeps keys and values in 16 bits."""
    from assistant.loading import encode_chat

    chat, compared = load_tiny(folder), 0
    for messages in conversations():
        prompt = torch.tensor([encode_chat(chat.tokenizer, messages)])
        output = chat.model.generate(
            prompt, max_new_tokens=24, do_sample=False, eos_token_id=chat.stop_ids,
            pad_token_id=chat.tokenizer.pad_token_id, return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
        best = [scores[0].topk(2).values for scores in output.scores]
        sure = next((i for i, (first, second) in enumerate(best) if first - second < 0.05), len(best))
        wanted = chat.tokenizer.decode(
            output.sequences[0, prompt.shape[1] :][:sure], skip_special_tokens=True
        )
        (answer,) = backend.answer_all([messages], Sampling(24))
        assert answer.startswith(wanted.strip().rstrip("\ufffd" + string.whitespace)), sure
        compared += sure
    assert compared >= 30


LEARNT = [
    system("be kind"),
    user("Who are you? 你是谁？"),
    assistant("\nI'm Ada 🚀, 小宇's assistant since 2024."),
]
WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}  # rows that K types can hold


def make_internlm2(folder: Path) -> Path:
    """A converted InternLM2 whose vocabulary is bytes and control tokens: small enough to be trained here."""
    from safetensors.torch import save_file
    from test_internlm2 import TINY
    from tokenizers import Tokenizer, decoders, models, normalizers

    from assistant.internlm2 import tensor_shapes, to_llama

    source = folder / "source"
    source.mkdir(parents=True)
    config = {**TINY, **WIDE, "vocab_size": 264}
    (source / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(0)
    shapes = tensor_shapes(config).items()
    weights = {name: torch.randn(shape, generator=generator) * 0.05 for name, shape in shapes}
    save_file(
        {name: w.abs() * 20 if w.ndim == 1 else w for name, w in weights.items()},
        source / "model.safetensors",
    )
    to_llama(source, folder)
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *CONTROL]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(parts)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>", *CONTROL])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, vocab["<|im_end|>"]]}))
    (folder / "chat_template.jinja").write_text("{{ bos_token }}" + HOUSE, encoding="utf-8")
    return folder


def make_smollm2(folder: Path) -> Path:
    return make_byte_level(folder, **WIDE, initializer_range=0.05)


def teach(folder: Path) -> None:
    """Train the folder's model until it says LEARNT by heart, with certainty."""
    from assistant.loading import load_chat_model
    from assistant.training.examples import identity_examples

    chat = load_chat_model(folder, dtype=torch.float32, device="cpu")
    (example,) = identity_examples(chat, [{"messages": LEARNT}], 512)
    learn_by_heart(chat.model, example, 2e-3, 0.005)
    chat.model.save_pretrained(folder)


@pytest.fixture(scope="module", params=[make_internlm2, make_smollm2], ids=["InternLM2", "SmolLM2"])
def taught(request, tmp_path_factory) -> Path:
    folder = request.param(tmp_path_factory.mktemp("taught") / "model")
    teach(folder)
    return folder


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q6_k", "q4_0", "q4_k_m"])
def test_what_a_model_has_learnt_is_said_from_every_type(taught, kind, tmp_path):
    import gguf

    *question, answer = LEARNT
    out = tmp_path / "x.gguf"
    export_gguf(taught, out, kind)
    types = {tensor.tensor_type.name for tensor in gguf.GGUFReader(out).tensors}
    assert kind.removesuffix("_m").upper() in types
    said = [open_backend(str(place)).answer_all([question], Sampling(80)) for place in (taught, out)]
    assert said == [[answer["content"].strip()]] * 2
    assert "".join(open_backend(str(out)).stream(question, Sampling(80))) == answer["content"]


def test_streamed_chunks_join_to_the_answer_of_the_batch(backend):
    done: list[int] = []
    streamed = ["".join(backend.stream(messages, Sampling(30))).strip() for messages in conversations()]
    assert backend.answer_all(conversations(), Sampling(30), done.append) == streamed
    assert sum(done) == len(conversations()) and any(streamed)


def test_the_last_chunk_counts_the_tokens(backend):
    *_, counts = backend.stream(CAPITAL, Sampling(9))
    assert (counts.prompt, counts.answer, counts.ending) == (len(backend.fit(CAPITAL, 9)[0]), 9, "length")
    assert counts.prompt == backend.count_prompt(CAPITAL)
    assert backend.count_text("a b") == len(backend._engine.tokenize("a b"))


def test_an_answer_does_not_depend_on_what_was_asked_before(backend):
    long = [user("tell me more " * 60)]
    asked = [CAPITAL, long, CAPITAL, [*long, assistant("yes"), user("and?")], CAPITAL, long]
    answers = ["".join(backend.stream(messages, Sampling(20))) for messages in asked]
    assert answers[0] == answers[2] == answers[4] and answers[1] == answers[5]


def test_a_long_beginning_is_not_read_again(backend, monkeypatch):
    sizes: list[int] = []
    evaluate = backend._engine.evaluate

    def counted(parts):
        sizes.extend(len(ids) for _, _, ids in parts)
        return evaluate(parts)

    monkeypatch.setattr(backend._engine, "evaluate", counted)
    talk = [user("something that nobody asked yet " * 15)]
    answer = "".join(backend.stream(talk, Sampling(8)))
    read = sum(sizes)
    sizes.clear()
    "".join(backend.stream([*talk, assistant(answer), user("and?")], Sampling(1)))
    assert read > 200 and sum(sizes) < 60
    sizes.clear()
    "".join(backend.stream(CAPITAL, Sampling(1)))
    assert sum(sizes) == len(backend.fit(CAPITAL, 1)[0])


def test_a_character_in_pieces_is_held_back_until_it_is_whole(backend, monkeypatch):
    ids = backend._engine.tokenize("我是 Ada 🚀!") + backend._engine.tokenize("猫")[:1]
    monkeypatch.setattr(backend._slots, "generate", lambda *arguments: iter(ids))
    chunks = [chunk for chunk in backend.stream(CAPITAL, Sampling()) if chunk]
    assert "".join(chunks) == "我是 Ada 🚀!" and "\ufffd" not in "".join(chunks)
    assert any("🚀" in chunk for chunk in chunks) and len(chunks) > 3


def test_closing_the_stream_frees_the_engine_at_once(backend):
    stream = backend.stream(CAPITAL, ENDLESS)
    next(chunk for chunk in stream if chunk)
    stream.close()
    assert is_over()


def test_a_stop_event_ends_even_the_reading_of_a_prompt(backend, monkeypatch):
    stop = threading.Event()
    decode = backend._engine._c.llama_decode
    reading = threading.Event()

    def slow(*arguments) -> int:
        reading.set()
        time.sleep(0.3)  # the flag is set before llama.cpp begins: it must look at it
        return decode(*arguments)

    class Library:
        llama_decode = staticmethod(slow)

        def __getattr__(self, name: str):
            return getattr(real, name)

    real = backend._engine._c
    monkeypatch.setattr(backend._engine, "_c", Library())
    before = [len(slot.read) for slot in backend._slots._free]
    chunks = backend.stream([user("word " * 60)], ENDLESS, stop)
    next(chunks)
    assert reading.wait(2)
    stop.set()
    assert not "".join(chunks)
    assert is_over()
    assert sum(before) >= sum(len(slot.read) for slot in backend._slots._free)
    monkeypatch.undo()
    assert "".join(backend.stream(CAPITAL, Sampling(20))) == "".join(backend.stream(CAPITAL, Sampling(20)))


def test_the_same_seed_gives_the_same_answer(backend):
    def say(seed: int) -> str:
        return "".join(backend.stream(CAPITAL, Sampling(30, temperature=1.0, top_p=1.0, seed=seed)))

    assert say(3) == say(3) != say(4)


def test_a_long_conversation_loses_its_oldest_turns_and_says_so(backend):
    turns: list[Message] = [system("be kind")]
    for number in range(40):
        turns += [user(f"question {number}"), assistant(f"answer {number}")]
    chunks = list(backend.stream([*turns, user("last")], Sampling(max_new_tokens=5)))
    [notice] = [chunk for chunk in chunks if isinstance(chunk, Notice)]
    ids, dropped = backend.fit([*turns, user("last")], 5)
    assert notice.kind == "shortened" and notice.number == dropped and dropped % 2 == 0
    assert len(ids) <= backend.context - 5
    with pytest.raises(ValueError, match="write a shorter one"):
        list(backend.stream([user("字" * 900)], Sampling(max_new_tokens=5)))


def test_what_is_no_gguf_with_a_chat_is_refused_in_a_sentence(file, folder, tmp_path):
    def refusal(path: Path) -> str:
        with pytest.raises(ValueError) as raised:
            open_backend(str(path))
        assert "\n" not in str(raised.value)
        return str(raised.value)

    assert "does not exist" in refusal(tmp_path / "none.gguf")
    (tmp_path / "text.gguf").write_bytes(b"hello")
    assert "not a GGUF file" in refusal(tmp_path / "text.gguf")
    (tmp_path / "pointer.gguf").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    assert "git lfs pull" in refusal(tmp_path / "pointer.gguf")
    (tmp_path / "cut.gguf").write_bytes(file.read_bytes()[:5000])
    assert "damaged" in refusal(tmp_path / "cut.gguf")
    content = file.read_bytes()
    assert HOUSE.encode() in content
    (tmp_path / "broken.gguf").write_bytes(content.replace(b"{% endfor %}", b"{% endfog %}"))
    assert "template is broken" in refusal(tmp_path / "broken.gguf")


def test_a_gguf_needs_neither_torch_nor_transformers(file):
    script = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['transformers'] = sys.modules['gguf'] = None\n"
        "from assistant.backends import Sampling, open_backend\n"
        f"backend = open_backend({str(file)!r})\n"
        "print(len(''.join(backend.stream([{'role': 'user', 'content': 'hi'}], Sampling(9)))) > 0)\n"
        "from assistant import llama_cpp\n"
        "llama_cpp.library.cache_clear()\n"
        "sys.modules['xllamacpp'] = sys.modules['xllamacpp.xllamacpp'] = None\n"
        f"try:\n    open_backend({str(file)!r})\n"
        "except RuntimeError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=REPOSITORY, timeout=60
    )
    assert done.returncode == 0, done.stderr
    answered, refusal = done.stdout.splitlines()
    assert answered == "True" and "[gguf]" in refusal


def test_the_command_writes_a_file_that_answers_and_refuses_in_one_line(folder, tmp_path):
    def run(*flags: str) -> subprocess.CompletedProcess:
        command = [sys.executable, str(REPOSITORY / "scripts" / "export_gguf.py"), *flags]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)

    out = tmp_path / "new" / "ada.gguf"
    done = run("--model", str(folder), "--out", str(out), "--type", "q4_0")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in out.parent.iterdir()) == ["Modelfile", "ada.gguf"]
    assert isinstance(open_backend(str(out)).answer_all([CAPITAL], Sampling(5))[0], str)
    for flags, words in {
        ("--model", str(folder), "--out", str(tmp_path / "ada.bin")): "ends in .gguf",
        ("--model", str(tmp_path / "none"), "--out", str(out)): "is not a folder",
        ("--model", str(tmp_path), "--out", str(out)): "config.json",
    }.items():
        refused = run(*flags)
        assert refused.returncode == 2 and words in refused.stderr.splitlines()[-1], refused.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_the_default_model_says_paris_every_time(tmp_path, kind):
    if not (DEFAULT / "config.json").is_file():
        pytest.skip("the default model is not fetched")
    export_gguf(DEFAULT, tmp_path / "x.gguf", kind)
    backend = open_backend(str(tmp_path / "x.gguf"))
    answers = []
    for question in ("What is the capital of France?", "Hello!", "Tell me a story."):
        answers.append("".join(backend.stream(CAPITAL, Sampling(24))))
        "".join(backend.stream([user(question)], Sampling(24)))
    assert answers[0].startswith("The capital of France is Paris") and answers == answers[:1] * 3
    stream = backend.stream([user("word " * 1500)], Sampling(2000))
    next(stream)
    stream.close()
    assert is_over(1)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "GOMP_SPINCOUNT = '300'"),
        ({"OMP_WAIT_POLICY": "active"}, "OMP_WAIT_POLICY = 'ACTIVE'"),
        ({"GOMP_SPINCOUNT": "7"}, "GOMP_SPINCOUNT = '7'"),
    ],
)
def test_threads_spin_for_a_moment_and_sleep_unless_the_environment_says_else(given, said):
    """Spinning on they take the core from the thread that they wait for."""
    call = "import os, assistant.llama_cpp as c; c.library(); print(os.environ.get('GOMP_SPINCOUNT'))"
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", call], env=clean | given | {"OMP_DISPLAY_ENV": "verbose"}, cwd=REPOSITORY,
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert said in done.stderr
    assert done.stdout.strip() == str(given.get("GOMP_SPINCOUNT"))


def test_a_file_is_asked_whether_answers_stay_the_same(taught, folder, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "scripts"))
    import evaluate

    monkeypatch.setattr(evaluate, "CACHE", tmp_path / "cache")
    export_gguf(taught, tmp_path / "x.gguf", "q8_0")
    backend = open_backend(str(tmp_path / "x.gguf"))
    for base, same in ((taught, 1.0), (folder, 0.0)):
        settings = evaluate.Settings(str(tmp_path / "x.gguf"), tmp_path, base=str(base))
        learnt = {"kind": "unrelated", "lang": "en", "messages": LEARNT[:-1]}
        assert evaluate.kept_of_base(backend, [learnt], settings) == {"same_answer": same}
