"""llama.cpp's C functions: their signatures, the structs they take, quantization of rows.

Knows nothing of messages or model folders. The functions are those of llama.h and ggml.h inside xllamacpp's
wheel (its own server reads a typed `<|im_end|>` as a control token).
"""

import ctypes
import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from itertools import groupby, islice
from pathlib import Path
from typing import Any

MISSING = "GGUF files need llama.cpp, which is not installed; run: pip install -e '.[gguf]'"
BATCH = 512  # tokens evaluated by one call
FREE_GUESS = 2**33  # bytes, where the system does not say
ZERO_KEY = "tokenizer.zero_token_id"  # in our own files: a C string cannot hold the zero character's piece
COUNTS = ("n_ctx", "n_batch", "n_ubatch", "n_seq_max")


class Struct(ctypes.Structure):
    """A C struct of any layout, passed and returned by value. Longer than every struct of llama.h.

    Only context parameters are looked into: these four counts have stood first since 2024.
    """

    _fields_ = [(name, ctypes.c_uint32) for name in COUNTS] + [("rest", ctypes.c_uint64 * 126)]


POINTER, INT, FLOAT, TEXT = ctypes.c_void_p, ctypes.c_int32, ctypes.c_float, ctypes.c_char_p


ARRAYS = ("token", "embd", "pos", "n_seq_id", "seq_id", "logits")


class Batch(ctypes.Structure):
    """llama_batch: for each token its position, its sequences, and whether its logits are wanted."""

    _fields_ = [("n_tokens", INT)] + [(name, POINTER) for name in ARRAYS]


FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "llama_backend_init": (None, []),
    "llama_log_set": (None, [POINTER, POINTER]),
    "llama_model_default_params": (Struct, []),
    "llama_model_load_from_file": (POINTER, [TEXT, Struct]),
    "llama_model_free": (None, [POINTER]),
    "llama_model_get_vocab": (POINTER, [POINTER]),
    "llama_model_n_ctx_train": (INT, [POINTER]),
    "llama_model_chat_template": (TEXT, [POINTER, TEXT]),
    "llama_model_meta_val_str": (INT, [POINTER, TEXT, POINTER, ctypes.c_size_t]),
    "llama_context_default_params": (Struct, []),
    "llama_init_from_model": (POINTER, [POINTER, Struct]),
    "llama_free": (None, [POINTER]),
    "llama_set_n_threads": (None, [POINTER, INT, INT]),
    "llama_set_abort_callback": (None, [POINTER, POINTER, POINTER]),
    "llama_get_memory": (POINTER, [POINTER]),
    "llama_memory_seq_rm": (ctypes.c_bool, [POINTER, INT, INT, INT]),
    "llama_n_ctx_seq": (ctypes.c_uint32, [POINTER]),
    "llama_model_n_layer": (INT, [POINTER]),
    "llama_model_n_embd": (INT, [POINTER]),
    "llama_model_n_head": (INT, [POINTER]),
    "llama_model_n_head_kv": (INT, [POINTER]),
    "llama_batch_init": (Batch, [INT, INT, INT]),
    "llama_batch_free": (None, [Batch]),
    "llama_decode": (INT, [POINTER, Batch]),
    "llama_get_logits_ith": (ctypes.POINTER(FLOAT), [POINTER, INT]),
    "llama_vocab_n_tokens": (INT, [POINTER]),
    "llama_vocab_get_text": (TEXT, [POINTER, INT]),
    "llama_vocab_is_control": (ctypes.c_bool, [POINTER, INT]),
    "llama_vocab_is_eog": (ctypes.c_bool, [POINTER, INT]),
    "llama_vocab_bos": (INT, [POINTER]),
    "llama_vocab_eos": (INT, [POINTER]),
    "llama_tokenize": (INT, [POINTER, TEXT, INT, POINTER, INT, ctypes.c_bool, ctypes.c_bool]),
    "llama_token_to_piece": (INT, [POINTER, INT, POINTER, INT, INT, ctypes.c_bool]),
    "llama_sampler_chain_init": (POINTER, [ctypes.c_bool]),
    "llama_sampler_chain_add": (None, [POINTER, POINTER]),
    "llama_sampler_init_greedy": (POINTER, []),
    "llama_sampler_init_temp": (POINTER, [FLOAT]),
    "llama_sampler_init_top_p": (POINTER, [FLOAT, ctypes.c_size_t]),
    "llama_sampler_init_dist": (POINTER, [ctypes.c_uint32]),
    "llama_sampler_sample": (INT, [POINTER, POINTER, INT]),
    "llama_sampler_free": (None, [POINTER]),
    "ggml_quantize_chunk": (ctypes.c_size_t, [INT, POINTER, POINTER, *[ctypes.c_int64] * 3, POINTER]),
}
LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


@LOG
def _be_quiet(level: int, text: bytes, data: Any) -> None:
    """llama.cpp prints hundreds of lines for each model; its errors come back as return codes."""


@contextmanager
def _threads_that_sleep() -> Iterator[None]:
    """Let the OpenMP that is loaded within spin for a moment and then sleep, unless the environment says
    otherwise.

    By default its threads spin on while they wait for each other: beside one busy process a token takes ten
    times as long, for a core that spins is taken from the thread that is waited for. If they sleep at once,
    waking them takes longer than the work of a small model (measured: docs/log.md).
    """
    if "OMP_WAIT_POLICY" in os.environ or "GOMP_SPINCOUNT" in os.environ:
        yield
        return
    os.environ["GOMP_SPINCOUNT"] = "300"  # read once, when the library is loaded
    try:
        yield
    finally:
        del os.environ["GOMP_SPINCOUNT"]


@functools.cache
def library() -> Any:
    """The C functions. Raises RuntimeError when xllamacpp is not installed or exports others."""
    try:
        with _threads_that_sleep():
            import xllamacpp.xllamacpp as extension
    except ImportError:
        raise RuntimeError(MISSING) from None
    found = ctypes.CDLL(extension.__file__)
    try:
        for name, (result, arguments) in FUNCTIONS.items():
            function = getattr(found, name)
            function.restype, function.argtypes = result, arguments
    except AttributeError as error:
        raise RuntimeError(f"this xllamacpp is not the one known here ({error}); {MISSING}") from None
    found.llama_log_set(_be_quiet, None)
    found.llama_backend_init()
    return found


def quantize_rows(rows: Any, kind: int, row_bytes: int) -> Any:
    """float32 rows [n, columns] as uint8 [n, row_bytes] of ggml's type number `kind`; all cores."""
    from concurrent.futures import ThreadPoolExecutor

    import numpy

    c, result = library(), numpy.empty((len(rows), row_bytes), dtype=numpy.uint8)
    rows = numpy.ascontiguousarray(rows, dtype=numpy.float32)
    threads = cpu_count()
    step = -(-len(rows) // threads)

    def quantize(start: int) -> None:
        part, out = rows[start : start + step], result[start : start + step]
        written = c.ggml_quantize_chunk(kind, part.ctypes.data, out.ctypes.data, 0, *part.shape, None)
        assert written == out.nbytes, (written, out.nbytes)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(quantize, range(0, len(rows), step)))
    return result


def cpu_count() -> int:
    """Cores that this process may use, not more than OMP_NUM_THREADS, by which one shares a machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    said = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, int(said)) if said.isdecimal() and int(said) else cores


def free_memory() -> int:
    """Bytes that this process may still take; a guess where the system does not say."""
    found = [FREE_GUESS]
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found.append(next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024)
    with suppress(OSError, ValueError):  # in a container
        most, now = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
        found.append(most - now)
    return max(0, min(found))


def check_layout(c: Any) -> None:
    """Raises RuntimeError when llama.h's two structs do not look as they are written down here."""
    parameters, batch = c.llama_context_default_params(), c.llama_batch_init(1, 0, 1)
    pointers = [bool(getattr(batch, name)) for name in ARRAYS]
    is_known = batch.n_tokens == 0 and pointers == [True, False, True, True, True, True]
    c.llama_batch_free(batch)
    if not is_known or parameters.n_batch < parameters.n_ubatch or parameters.n_seq_max != 1:
        raise RuntimeError(f"this xllamacpp has another layout than the one known here; {MISSING}")


class Glimpse(int):
    """Stands among token ids for a place of a picture: `state`, hidden float32, enters the layers there.

    Its number is below 0 and the same for the same state, so that a beginning is known again.
    """

    state: bytes

    def __new__(cls, state: bytes) -> "Glimpse":
        glimpse = super().__new__(cls, ~int.from_bytes(sha256(state).digest()[:8]))
        glimpse.state = state
        return glimpse


def pieces_of(ids: list[int], most: int) -> Iterator[list[int]]:
    """The ids in pieces of at most `most`, each either all tokens or all places of pictures."""
    for _, run in groupby(ids, lambda token: isinstance(token, Glimpse)):
        while piece := list(islice(run, most)):
            yield piece


class Tokens:
    """Room for a batch of BATCH tokens, filled again for every evaluation."""

    def __init__(self, sequences: int) -> None:
        self._tokens: Any = (INT * BATCH)()
        self._positions: Any = (INT * BATCH)()
        self._wanted: Any = (ctypes.c_int8 * BATCH)()
        self._counts = (INT * BATCH)(*[1] * BATCH)
        self._sequences = (INT * sequences)(*range(sequences))
        self._pointers = (POINTER * BATCH)()

    def of(self, parts: list[tuple[int, int, list[int]]]) -> tuple[Batch, list[int]]:
        """The batch, and the place of the last token of each part."""
        at, last = 0, []
        for sequence, position, ids in parts:
            end = at + len(ids)
            own = ctypes.addressof(self._sequences) + sequence * ctypes.sizeof(INT)
            self._positions[at:end] = range(position, position + len(ids))
            self._pointers[at:end] = [own] * len(ids)
            self._wanted[at:end] = [0] * (len(ids) - 1) + [1]
            last.append(end - 1)
            at = end
        arrays = (self._positions, self._counts, self._pointers, self._wanted)
        addresses = [ctypes.addressof(array) for array in arrays]
        return Batch(at, *self._entering([token for *_, ids in parts for token in ids]), *addresses), last

    def _entering(self, ids: list[int]) -> tuple[int | None, int | None]:
        """The addresses of tokens or of states: llama.cpp takes one kind at a time."""
        states = [token.state for token in ids if isinstance(token, Glimpse)]
        if not states:
            self._tokens[: len(ids)] = ids
            return ctypes.addressof(self._tokens), None
        assert len(states) == len(ids), "tokens and places of pictures in one evaluation"
        self._states = ctypes.create_string_buffer(b"".join(states))
        return None, ctypes.addressof(self._states)
