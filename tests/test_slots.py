"""Several conversations at once through one llama.cpp engine."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from test_export import make_byte_level
from test_llama_cpp import WIDE

from assistant.backends import Counts, Notice, Sampling, open_backend
from assistant.conversations import Message, assistant, user
from assistant.export import export_gguf

pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")

# No two begin alike, so that no slot knows one; the last are read in two pieces. With their answers all are
# shorter than 256 tokens: attention goes over blocks of so many, for all slots as many as the longest needs.
TALKS = [[user(f"{number} times: what do you say? " * (1 + number * 8 // 9))] for number in range(10)]
ENDLESS = Sampling(max_new_tokens=10_000, temperature=1.0, top_p=1.0, seed=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_byte_level(tmp_path_factory.mktemp("model"), **WIDE)


def opened(folder: Path, kind: Any) -> Any:
    out = folder / "gguf" / f"{kind}.gguf"
    if not out.is_file():
        export_gguf(folder, out, kind)
    return open_backend(str(out))


@pytest.fixture
def backend(folder: Path) -> Any:
    made = opened(folder, "q8_0")
    yield made
    assert is_over(made)


def is_over(backend: Any, seconds: float = 20) -> bool:
    """Nobody is written to, every slot is free and the thread has ended."""
    slots, end = backend._slots, time.monotonic() + seconds
    while time.monotonic() < end:
        if not slots._thread and not slots._seated and len(slots._free) == backend._engine.sequences:
            return True
        time.sleep(0.02)
    return False


def say(backend: Any, talk: list[Message], sampling: Sampling) -> str:
    return "".join(backend.stream(talk, sampling))


def slow(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its steps take so long that an endless answer, some ninety tokens, outlasts what is done meanwhile."""
    evaluate = backend._engine.evaluate
    monkeypatch.setattr(backend._engine, "evaluate", lambda parts: (time.sleep(0.05), evaluate(parts))[1])


def greedy(tokens: int) -> Sampling:
    return Sampling(max_new_tokens=tokens)


def together(backend: Any, samplings: list[Sampling]) -> list[str]:
    with ThreadPoolExecutor(len(TALKS)) as pool:
        return list(pool.map(say, [backend] * len(TALKS), TALKS, samplings))


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_conversations_beside_each_other_get_exactly_the_answers_they_get_alone(folder: Path, kind: str):
    """With quantized weights every number is the same; the answers end at different times."""
    drawn = [Sampling(5 + 5 * at, temperature=1.0, top_p=0.95, seed=at) for at in range(len(TALKS))]
    for samplings in ([greedy(40)] * len(TALKS), drawn):
        backend = opened(folder, kind)
        alone = [say(backend, talk, sampling) for talk, sampling in zip(TALKS, samplings, strict=True)]
        assert len(set(alone)) == len(alone) and backend._engine.sequences == 4
        for _ in range(3):
            backend = opened(folder, kind)  # it remembers nothing
            assert together(backend, samplings) == alone
            assert is_over(backend)


@pytest.mark.parametrize(("kind", "share"), [("f32", 2e-4), ("f16", 2e-3)])
def test_whole_numbers_differ_in_their_last_bits_beside_others_and_no_more(folder, kind, share):
    """One row and several go through different sums: as the logits show, no answer but at a near tie."""
    engine = opened(folder, kind)._engine
    prompts = [engine.tokenize(talk[0]["content"])[:60] for talk in TALKS[:4]]

    def logits(place: int) -> list[float]:
        values = engine._c.llama_get_logits_ith(engine._context, place)
        return list(values[: engine._c.llama_vocab_n_tokens(engine._vocab)])

    def read(parts: list[tuple[int, int, list[int]]]) -> list[list[float]]:
        return [logits(place) for place in engine.evaluate(parts)]

    firsts = [read([(at, 0, prompt)])[0] for at, prompt in enumerate(prompts)]
    nexts = [read([(at, len(prompt), [7])])[0] for at, prompt in enumerate(prompts)]
    for at in range(4):
        engine.forget(at, 0)
    both = (
        (firsts, read([(at, 0, prompt) for at, prompt in enumerate(prompts)])),
        (nexts, read([(at, len(prompt), [7]) for at, prompt in enumerate(prompts)])),
    )
    for alone, beside in both:
        for one, other in zip(alone, beside, strict=True):
            assert max(abs(a - b) for a, b in zip(one, other, strict=True)) < share * max(map(abs, one))


def test_four_are_written_to_at_once_and_the_fifth_hears_its_place_and_comes_next(backend, monkeypatch):
    slow(backend, monkeypatch)
    first = [backend.stream(TALKS[at], ENDLESS) for at in range(4)]
    for stream in first:
        assert next(chunk for chunk in stream if chunk)
    with_lock = [len(backend._slots._seated)]
    fifth, sixth = (backend.stream(TALKS[at], greedy(5)) for at in (4, 5))
    for stream, place in ((fifth, 1), (sixth, 2)):
        notice = next(chunk for chunk in stream if isinstance(chunk, Notice))
        assert (notice.kind, notice.number) == ("waiting", place)
    sixth.close()
    first[2].close()
    assert "".join(fifth) == say(backend, TALKS[4], greedy(5)) and with_lock == [4]
    for stream in first:
        stream.close()


def test_each_goes_on_where_its_own_slot_knows_the_conversation(backend, monkeypatch):
    talks = [[user(f"{name} and nobody else " * 20)] for name in ("Ada", "Bob", "Eve")]
    for talk in talks:
        talk.append(assistant(say(backend, talk, greedy(6))))
    sizes: list[int] = []
    evaluate = backend._engine.evaluate

    def counted(parts):
        sizes.extend(len(ids) for _, _, ids in parts)
        return evaluate(parts)

    monkeypatch.setattr(backend._engine, "evaluate", counted)
    for talk in talks:
        say(backend, [*talk, user("and?")], greedy(1))
    assert len(sizes) == 3 and max(sizes) < 60, sizes


def test_a_stop_while_a_long_prompt_is_read_does_not_disturb_who_is_written_to(backend, monkeypatch):
    alone = say(backend, TALKS[0], greedy(60))
    decode, reading = backend._engine.evaluate, threading.Event()
    interrupted: list[bool] = []

    def slow(parts):
        if any(len(ids) > 100 for _, _, ids in parts):
            reading.set()
            time.sleep(0.2)  # the stop comes before llama.cpp begins: it must look at it
        places = decode(parts)
        interrupted.append(places is None)
        return places

    monkeypatch.setattr(backend._engine, "evaluate", slow)
    written = backend.stream(TALKS[0], greedy(60))
    said = next(chunk for chunk in written if chunk)
    other = backend.stream([user("long " * 80)], ENDLESS)
    next(other)
    assert reading.wait(20)
    other.close()
    assert said + "".join(written) == alone
    assert any(interrupted)


def test_an_engine_that_cannot_go_on_says_so_to_those_it_reads_for_and_then_works_again(backend, monkeypatch):
    alone, evaluate = say(backend, TALKS[1], greedy(9)), backend._engine.evaluate

    def broken(parts):
        monkeypatch.setattr(backend._engine, "evaluate", evaluate)
        raise RuntimeError("llama.cpp could not go on (code -3)")

    monkeypatch.setattr(backend._engine, "evaluate", broken)
    with pytest.raises(RuntimeError, match="could not go on"):
        say(backend, TALKS[1], greedy(9))
    assert is_over(backend) and say(backend, TALKS[1], greedy(9)) == alone


def test_whoever_leaves_at_any_moment_leaves_nothing_behind(backend):
    def leave(at: int) -> None:
        stream = backend.stream(TALKS[at], ENDLESS)
        for _ in range(at % 4):
            next(stream)
        stream.close()

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(leave, list(range(10)) * 4))
    assert is_over(backend) and not backend._slots._waiting


def test_where_memory_is_short_there_are_fewer_slots_and_the_same_answers(folder, backend, monkeypatch):
    monkeypatch.setattr("assistant.llama_engine.free_memory", lambda: 0)
    single = opened(folder, "q8_0")
    assert single._engine.sequences == 1 and single.context == backend.context
    assert say(single, TALKS[2], greedy(9)) == say(backend, TALKS[2], greedy(9))
    slow(single, monkeypatch)
    first = single.stream(TALKS[0], ENDLESS)
    next(chunk for chunk in first if chunk)
    second = single.stream(TALKS[1], greedy(3))
    assert next(chunk for chunk in second if isinstance(chunk, Notice)).number == 1
    first.close()
    *_, counts = second
    assert isinstance(counts, Counts) and counts.answer == 3 and is_over(single)


@pytest.mark.parametrize("kind", ["f32", "q8_0"])
def test_a_batch_takes_all_slots_and_gives_the_same_answers_each_time(folder: Path, kind: str, monkeypatch):
    backend = opened(folder, kind)
    sizes: list[int] = []
    evaluate = backend._engine.evaluate
    monkeypatch.setattr(
        backend._engine, "evaluate", lambda parts: (sizes.append(len(parts)), evaluate(parts))[1]
    )
    first, again = (backend.answer_all(TALKS, greedy(40)) for _ in range(2))
    assert first == again and len(set(first)) > 1
    assert max(sizes) == backend._engine.sequences > 1
    if kind == "q8_0":
        assert first == [say(backend, talk, greedy(40)).strip() for talk in TALKS]


def test_a_batch_that_is_given_up_leaves_no_one_in_the_line(backend):
    def stop(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        backend.answer_all(TALKS * 20, greedy(40), stop)
    assert is_over(backend) and not backend._slots._waiting
