import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from stand_in import ANSWER, StandIn, stand_in

from assistant.backends import Counts, Notice, Sampling, Shared, default_model, fit, open_backend
from assistant.backends.pump import Turns, pump
from assistant.conversations import Message, assistant, system, user
from assistant.settings import REPOSITORY

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture
def server():
    with stand_in() as standing:
        yield standing


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory) -> Path:
    """A random Llama whose tokens are bytes: nearly every token is a piece of a character."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny") / "model"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({"<end>": 0} | {piece: i for i, piece in enumerate(alphabet, 1)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", pad_token="<end>")
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=400,
        eos_token_id=0,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def backend(tiny_model):
    return open_backend(str(tiny_model))


def is_over(condition, seconds: float = 5) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def answering_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "answer"]


def test_two_threads_that_load_leave_the_number_format_as_it_was(tiny_model, monkeypatch):
    """transformers sets the format of new tensors while it loads: another load must not find 16 bits."""
    import torch
    from transformers import AutoModelForCausalLM

    from assistant.loading import load_chat_model

    real = AutoModelForCausalLM.from_pretrained
    loading, first_is_in, second_is_through = [], threading.Event(), threading.Event()

    def from_pretrained(path: str, dtype: torch.dtype, **given: object) -> object:
        loading.append(dtype)
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        if len(loading) == 1:
            first_is_in.set()
            second_is_through.wait(0.5)  # in vain, when one waits for the other
        else:
            second_is_through.set()
            time.sleep(1)
        torch.set_default_dtype(before)
        return real(path, dtype=dtype, **given)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
    dtypes = (torch.bfloat16, torch.float16)
    threads = [
        threading.Thread(target=load_chat_model, args=[tiny_model], kwargs={"dtype": d}) for d in dtypes
    ]
    threads[0].start()
    assert first_is_in.wait(10)
    threads[1].start()
    for thread in threads:
        thread.join(30)
    assert loading == list(dtypes) and torch.get_default_dtype() is torch.float32


def test_a_model_on_a_gpu_attends_without_a_plan_for_each_length(tiny_model, monkeypatch):
    """Loaded as for a GPU, on a machine that may have none: what is set is torch's own switch."""
    import torch

    from assistant.devices import attend_at_any_length
    from assistant.loading import load_chat_model

    monkeypatch.setattr(torch.nn.Module, "to", lambda module, *_, **__: module)
    attend_at_any_length.cache_clear()
    torch.backends.cuda.enable_cudnn_sdp(True)
    load_chat_model(tiny_model, device="cpu")
    assert torch.backends.cuda.cudnn_sdp_enabled()
    load_chat_model(tiny_model, device="cuda", dtype=torch.float32)
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_streamed_chunks_join_to_the_answer_of_the_batch(backend):
    sampling = Sampling(max_new_tokens=40)
    streamed = "".join(backend.stream([user("hello")], sampling)).strip()
    [batched] = backend.answer_all([[user("hello")]], sampling)
    assert streamed.rstrip("\ufffd") == batched.rstrip("\ufffd")


def test_a_character_in_pieces_is_held_back_until_it_is_whole(backend):
    from assistant.backends.transformers_backend import TextStream

    chunks: list[str] = []
    tokenizer = backend._chat.tokenizer
    stream = TextStream(tokenizer, chunks.append)
    import torch

    stream.put(torch.tensor([[1, 2, 3]]))
    for token in tokenizer("我是 Ada 🚀!", add_special_tokens=False)["input_ids"]:
        stream.put(torch.tensor([token]))
    stream.end()
    assert "".join(chunks) == "我是 Ada 🚀!"
    assert "我" in chunks and "🚀" in chunks


def test_closing_the_stream_ends_the_generation(backend):
    backend._chat.stop_ids[:] = [0]
    stream = backend.stream([user("hello")], Sampling(max_new_tokens=10_000, temperature=1.0, seed=1))
    next(chunk for chunk in stream if chunk)
    stream.close()
    assert is_over(lambda: not answering_threads(), 2)


def test_a_stop_event_ends_the_generation(backend):
    stop = threading.Event()
    chunks = backend.stream([user("hello")], Sampling(max_new_tokens=10_000), stop)
    next(chunks)
    stop.set()
    list(chunks)
    assert is_over(lambda: not answering_threads(), 2)


def test_the_same_seed_gives_the_same_answer(backend):
    def say(seed: int) -> str:
        sampling = Sampling(max_new_tokens=30, temperature=1.0, top_p=1.0, seed=seed)
        return "".join(backend.stream([user("hello")], sampling))

    assert say(3) == say(3) != say(4)


def test_a_long_conversation_loses_its_oldest_turns_and_says_so(backend):
    turns: list[Message] = [system("be kind")]
    for number in range(20):
        turns += [user(f"question {number}"), assistant(f"answer {number}")]
    chunks = list(backend.stream([*turns, user("last")], Sampling(max_new_tokens=5)))
    [notice] = [chunk for chunk in chunks if isinstance(chunk, Notice)]
    ids, dropped = backend.fit([*turns, user("last")], 5)
    text = backend._chat.tokenizer.decode(ids)
    assert notice.kind == "shortened" and notice.number == dropped and dropped % 2 == 0
    assert text.startswith("system: be kind\nuser: question") and "last" in text and "question 0" not in text
    assert len(backend.fit([*turns[: -dropped + 2], user("last")], 5)[0]) <= backend.context


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 50, 20_001])
@pytest.mark.parametrize("has_system", [False, True])
def test_what_fits_is_found_in_few_looks_however_long_the_conversation_is(count, has_system):
    looks: list[int] = []

    def encode(messages: list[Message]) -> list[int]:
        looks.append(len(messages))
        return [0] * sum(len(message["content"]) + 4 for message in messages)

    talk = [assistant("b") if at % 2 else user("a") for at in range(count)]
    talk = [*([system("s")] if has_system else []), *talk]
    for context in (140, 1000):
        looks.clear()
        ids, dropped = fit(encode, talk, context, 100)
        assert len(looks) <= 16
        kept = [
            d
            for d in range(0, count, 2)
            if 5 * (has_system + count - d) <= context - min(100, max(64, context // 4))
        ]
        assert dropped == kept[0] and len(ids) == 5 * (has_system + count - dropped)
    with pytest.raises(
        ValueError, match=f"the message is {5 + 5 * has_system + 5 * (count % 2 == 0)} tokens"
    ):
        fit(encode, talk, 64, 100)


def test_a_conversation_that_takes_long_to_read_holds_up_nobody(backend, monkeypatch):
    is_reading, may_go_on = threading.Event(), threading.Event()
    real = backend.fit

    def read(messages: list[Message], most: int) -> tuple[list[int], int]:
        if messages[0]["content"] == "long":
            is_reading.set()
            assert may_go_on.wait(20)
        return real(messages, most)

    monkeypatch.setattr(backend, "fit", read)
    long = backend.stream([user("long")], Sampling(max_new_tokens=3))
    next(long)
    assert is_reading.wait(5)
    assert "".join(backend.stream([user("short")], Sampling(max_new_tokens=3)))
    long.close()
    may_go_on.set()
    assert is_over(lambda: not answering_threads(), 2)


def test_one_message_longer_than_the_context_is_refused_in_a_sentence(backend):
    with pytest.raises(ValueError, match="write a shorter one"):
        list(backend.stream([user("word " * 500)], Sampling(max_new_tokens=5)))


def test_one_generation_at_a_time_and_the_second_hears_its_place(backend):
    first = backend.stream([user("a")], Sampling(max_new_tokens=10_000, temperature=1.0))
    next(chunk for chunk in first if chunk)
    # the answer is endless but for the context: the line must be felt before it ends
    with backend._turns.take():
        second = backend.stream([user("b")], Sampling(max_new_tokens=3))
        heard = [next(second) for _ in range(5)]
        assert any(isinstance(chunk, Notice) and chunk.kind == "waiting" for chunk in heard)
        first.close()
        second.close()
    assert is_over(lambda: not answering_threads(), 2)


def test_models_that_share_the_cores_speak_one_after_the_other_and_a_pair_side_by_side(tiny_model, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    shared = Shared()
    one, two = open_backend(str(tiny_model), shared=shared), open_backend(str(other), shared=shared)
    endless, brief = Sampling(max_new_tokens=350, temperature=1.0), Sampling(max_new_tokens=3)
    first = one.stream([user("a")], replace(endless, pair="x"))
    next(chunk for chunk in first if chunk)
    with one._line.take(pair="x"):  # type: ignore[attr-defined]
        waiting = two.stream([user("b")], brief)
        notice = next(chunk for chunk in waiting if isinstance(chunk, Notice))
        assert (notice.kind, notice.number) == ("waiting", 2)
        assert not any(next(waiting) for _ in range(3))
        beside = list(two.stream([user("c")], replace(brief, pair="x")))
        assert "".join(beside) and not any(isinstance(chunk, Notice) for chunk in beside)
        first.close()
    assert "".join(waiting)


def test_a_pair_stands_together_in_the_line():
    turns, order = Turns(), []

    def take(pair: str) -> None:
        with turns.take(pair=pair):
            order.append(pair)
            time.sleep(0.2)

    with turns.take():
        threads = [threading.Thread(target=take, args=(pair,)) for pair in ("x", "", "x", "y")]
        for number, thread in enumerate(threads, 2):
            thread.start()
            assert is_over(lambda number=number: len(turns._line) == number)
    for thread in threads:
        thread.join(5)
    assert order == ["x", "x", "", "y"]


def test_turns_are_taken_first_come_first_served():
    turns, order = Turns(), []

    def take(number: int) -> None:
        with turns.take():
            order.append(number)

    with turns.take():
        threads = []
        for number in range(6):
            threads.append(threading.Thread(target=take, args=(number,)))
            threads[-1].start()
            assert is_over(lambda: len(turns._line) == len(threads) + 1)
    for thread in threads:
        thread.join(5)
    assert order == list(range(6))


def test_a_silent_engine_still_beats_so_that_it_can_be_closed():
    ended = threading.Event()

    def work(emit, is_stopped) -> None:
        while not is_stopped():
            time.sleep(0.01)
        ended.set()

    stream = pump(work)
    assert next(stream) == ""
    stream.close()
    assert ended.wait(2)


def test_the_last_chunk_counts_the_tokens(backend, server: StandIn):
    asked = [system("be kind"), user("hello")]
    *_, counts = backend.stream(asked, Sampling(max_new_tokens=9))
    assert (counts.prompt, counts.answer, counts.ending) == (len(backend.fit(asked, 9)[0]), 9, "length")
    assert counts.prompt == backend.count_prompt(asked) and backend.count_text("hello") == 5
    *_, counts = open_backend(server.url).stream(asked, Sampling())
    assert isinstance(counts, Counts) and (counts.prompt, counts.answer, counts.ending) == (9, 4, "stop")


def test_an_endpoint_streams(server: StandIn):
    chunks = list(open_backend(server.url).stream([system("s"), user("Who are you?")], Sampling(seed=7)))
    assert [chunk for chunk in chunks if chunk] == ANSWER
    request = server.requests[0]
    assert request["messages"] == [system("s"), user("Who are you?")]
    assert (request["model"], request["max_tokens"], request["temperature"]) == ("ada", 512, 0.0)
    assert request["seed"] == 7


@pytest.mark.parametrize("question", ["endless", "silent"])
def test_closing_the_stream_closes_the_http_response(server: StandIn, question: str):
    stream = open_backend(server.url).stream([user(question)], Sampling())
    next(chunk for chunk in stream if chunk or question == "silent")
    assert is_over(lambda: bool(server.requests))
    stream.close()
    assert server.closed.wait(3)


def test_an_endpoint_answers_many_in_order(server: StandIn):
    done: list[int] = []
    backend = open_backend(server.url + "#ada")
    answers = backend.answer_all([[user(f"q{i}")] for i in range(9)], Sampling(), done.append)
    assert answers == [f"{i}q" for i in range(9)] and sum(done) == 9


def test_errors_of_an_endpoint_are_one_sentence(server: StandIn, monkeypatch):
    def error_of(address: str, question: str = "hello") -> str:
        with pytest.raises(RuntimeError) as raised:
            list(open_backend(address).stream([user(question)], Sampling()))
        assert "\n" not in str(raised.value)
        return str(raised.value)

    assert "cannot be reached" in error_of("http://127.0.0.1:9/v1#ada")
    assert "has no model 'bob'" in error_of(server.url + "#bob")
    assert "broke off" in error_of(server.url, "break")
    monkeypatch.setenv("OPENAI_API_KEY", "wrong")
    assert "refused the key" in error_of(server.url + "#ada")


def test_a_slow_endpoint_is_given_up_in_a_sentence(server: StandIn, monkeypatch):
    import openai

    monkeypatch.setattr("assistant.backends.openai_backend.TIMEOUT", openai.Timeout(0.2))
    with pytest.raises(RuntimeError, match="did not answer in time|broke off"):
        list(open_backend(server.url).stream([user("silent")], Sampling()))


def test_an_endpoint_needs_neither_torch_nor_transformers(server: StandIn):
    script = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from assistant.backends import Sampling, open_backend\n"
        f"backend = open_backend({server.url!r})\n"
        "print(''.join(backend.stream([{'role': 'user', 'content': 'hi'}], Sampling())))\n"
        "try:\n    open_backend('models/x')\n"
        "except RuntimeError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=REPOSITORY, timeout=60
    )
    assert done.returncode == 0, done.stderr
    answer, refusal = done.stdout.splitlines()
    assert answer == "".join(ANSWER)
    assert "not installed" in refusal and "[train]" in refusal


def test_what_is_no_model_is_refused_with_what_would_be_one(tmp_path):
    with pytest.raises(ValueError, match="no address"):
        open_backend("models/x", "openai")
    with pytest.raises(ValueError, match="does not exist; make one: .*export_gguf"):
        open_backend("ada.gguf")
    with pytest.raises(ValueError, match=r"config\.json"):
        open_backend(str(tmp_path))


def test_the_default_is_named_then_newest_then_base(tmp_path, monkeypatch):
    monkeypatch.delenv("ASSISTANT_MODEL", raising=False)
    with pytest.raises(RuntimeError, match="make assistant NAME"):
        default_model(tmp_path)

    def make(folder: str, age: int) -> None:
        import os

        config = tmp_path / folder / "config.json"
        config.parent.mkdir(parents=True)
        config.write_text("{}", encoding="utf-8")
        os.utime(config, (1e9 - age, 1e9 - age))

    make("models/smollm2-135m-instruct", 0)
    assert default_model(tmp_path) == str(tmp_path / "models/smollm2-135m-instruct")
    make("out/bob/model", 20)
    make("out/ada/model", 10)
    (tmp_path / "out/eve/model").mkdir(parents=True)
    assert default_model(tmp_path) == str(tmp_path / "out/ada/model")
    make("out/.publish/model", 0)  # a model on its way to a host, and a page that was built with one
    make("out/page/model", 0)
    (tmp_path / "out/page/deploy.json").write_text("{}", encoding="utf-8")
    assert default_model(tmp_path) == str(tmp_path / "out/ada/model")
    monkeypatch.setenv("ASSISTANT_MODEL", "http://127.0.0.1:1/v1")
    assert default_model(tmp_path) == "http://127.0.0.1:1/v1"
