"""llama.cpp through its C functions: tokens, one sequence of evaluations, sampling, quantization of rows.

Knows nothing of messages or model folders. The functions are those of llama.h and ggml.h inside xllamacpp's
wheel (its own server reads a typed `<|im_end|>` as a control token). Long: C's signatures and their one user.
"""

import ctypes
import functools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MISSING = "GGUF files need llama.cpp, which is not installed; run: pip install -e '.[gguf]'"
BATCH = 512  # tokens evaluated by one call
LEAST_REUSED = 64  # tokens; fewer are not worth an answer that depends on what was asked before
STOP_POLL_S = 0.05
ZERO_KEY = "tokenizer.zero_token_id"  # in our own files: a C string cannot hold the zero character's piece
COUNTS = ("n_ctx", "n_batch", "n_ubatch", "n_seq_max")


class Struct(ctypes.Structure):
    """A C struct of any layout, passed and returned by value. Longer than every struct of llama.h.

    Only context parameters are looked into: these four counts have stood first since 2024.
    """

    _fields_ = [(name, ctypes.c_uint32) for name in COUNTS] + [("rest", ctypes.c_uint64 * 126)]


POINTER, INT, FLOAT, TEXT = ctypes.c_void_p, ctypes.c_int32, ctypes.c_float, ctypes.c_char_p
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
    "llama_batch_get_one": (Struct, [POINTER, INT]),
    "llama_decode": (INT, [POINTER, Struct]),
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
    """Let the OpenMP that is loaded within wait asleep, unless the environment says otherwise.

    By default its threads spin while they wait for each other: beside one busy process a token takes ten
    times as long, for a core that spins is taken from the thread that is waited for.
    """
    if "OMP_WAIT_POLICY" in os.environ or "GOMP_SPINCOUNT" in os.environ:
        yield
        return
    os.environ["OMP_WAIT_POLICY"] = "passive"  # read once, when the library is loaded
    try:
        yield
    finally:
        del os.environ["OMP_WAIT_POLICY"]


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
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Engine:
    """One GGUF model and one sequence that it has read. Not for two threads at once.

    `context` is in tokens. Raises ValueError for a file that is no language model, RuntimeError when memory
    or the library is lacking.
    """

    def __init__(self, path: Path, context: int = 0) -> None:
        self._c, self._model, self._context = library(), None, None
        self._model = self._c.llama_model_load_from_file(
            os.fsencode(path), self._c.llama_model_default_params()
        )
        if not self._model:
            raise ValueError(f"{path} is damaged or no GGUF that llama.cpp reads; export or fetch it again")
        self._vocab = self._c.llama_model_get_vocab(self._model)
        self._zero = self._zero_token()
        self.context = min(context or 2**31, self._c.llama_model_n_ctx_train(self._model))
        parameters = self._c.llama_context_default_params()
        if parameters.n_batch < parameters.n_ubatch or parameters.n_seq_max != 1:
            raise RuntimeError(f"this xllamacpp has another layout than the one known here; {MISSING}")
        parameters.n_ctx, parameters.n_batch, parameters.n_ubatch = self.context, BATCH, BATCH
        self._context = self._c.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise RuntimeError(f"{path}: not enough memory for a context of {self.context} tokens")
        self._c.llama_set_n_threads(self._context, cpu_count(), cpu_count())
        self._read: list[int] = []  # the tokens whose keys and values are in memory
        self._stop_flag = ctypes.create_string_buffer(2)
        self._watch_stop_flag()

    def close(self) -> None:
        if self._context:
            self._c.llama_free(self._context)
        if self._model:
            self._c.llama_model_free(self._model)
        self._context = self._model = None

    __del__ = close

    def _watch_stop_flag(self) -> None:
        """strlen(flag) is 0 until its first byte is set: a test between two operations without Python."""
        strlen = ctypes.cast(ctypes.CDLL(None).strlen, POINTER) if os.name == "posix" else None
        if strlen:
            self._c.llama_set_abort_callback(self._context, strlen, self._stop_flag)

    @contextmanager
    def stopped_by(self, is_stopped: Callable[[], bool]) -> Iterator[None]:
        """Within the block, an evaluation ends at once when `is_stopped` says so."""
        done = threading.Event()

        def watch() -> None:
            while not done.wait(STOP_POLL_S):
                if is_stopped():
                    self._stop_flag[0] = b"\1"
                    return

        watcher = threading.Thread(target=watch, daemon=True, name="stop")
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()
            self._stop_flag[0] = b"\0"

    def chat_template(self) -> str:
        """The Jinja template in the file; empty when it has none."""
        return (self._c.llama_model_chat_template(self._model, None) or b"").decode("utf-8")

    def control_tokens(self) -> dict[str, int]:
        count = self._c.llama_vocab_n_tokens(self._vocab)
        ids = (i for i in range(count) if self._c.llama_vocab_is_control(self._vocab, i))
        return {self.text_of(i): i for i in ids}

    def text_of(self, token: int) -> str:
        """A token's text as the file has it; empty for a number that is no token."""
        known = 0 <= token < self._c.llama_vocab_n_tokens(self._vocab)
        return self._c.llama_vocab_get_text(self._vocab, token).decode("utf-8", "replace") if known else ""

    def ends(self) -> dict[str, str]:
        """What a template calls bos_token and eos_token."""
        bos, eos = self._c.llama_vocab_bos(self._vocab), self._c.llama_vocab_eos(self._vocab)
        return {"bos_token": self.text_of(bos), "eos_token": self.text_of(eos)}

    def is_end(self, token: int) -> bool:
        return bool(self._c.llama_vocab_is_eog(self._vocab, token))

    def _zero_token(self) -> int | None:
        """The zero character's own token, if it has one that is no byte."""
        room = ctypes.create_string_buffer(16)
        size = self._c.llama_model_meta_val_str(self._model, ZERO_KEY.encode(), room, len(room))
        return int(room.value) if size > 0 else None

    def tokenize(self, text: str) -> list[int]:
        """Token ids of plain text: nothing in it is read as a control token, nothing is added."""
        first, *others = text.split("\0") if self._zero is not None else [text]
        ids = self._tokenize(first)
        for part in others:
            ids += [self._zero, *self._tokenize(part)]  # type: ignore[list-item]
        return ids

    def _tokenize(self, text: str) -> list[int]:
        raw = text.encode("utf-8", "replace")
        room = (INT * (len(raw) + 8))()
        count = self._c.llama_tokenize(self._vocab, raw, len(raw), room, len(room), False, False)
        assert count >= 0, count
        return [part for token in room[:count] for part in self._as_text(token)]

    def _as_text(self, token: int) -> list[int]:
        """A control token that merges made of plain text (SentencePiece: `<s` + `>`) is taken apart again."""
        if not self._c.llama_vocab_is_control(self._vocab, token):
            return [token]
        text = self.text_of(token)
        return self.tokenize(text[:-1]) + self.tokenize(text[-1])

    def bytes_of(self, token: int) -> bytes:
        """What a token adds to an answer; nothing for a control token."""
        if token == self._zero:
            return b"\0"
        room = ctypes.create_string_buffer(512)
        count = self._c.llama_token_to_piece(self._vocab, token, room, len(room), 0, False)
        return room.raw[: max(count, 0)]

    def read(self, ids: list[int], reuse: bool = True) -> bool:
        """Evaluate a prompt; its beginning is not read again when much of it is known. False when stopped."""
        same = 0
        while same < min(len(ids) - 1, len(self._read)) and ids[same] == self._read[same]:
            same += 1
        self._forget_from(same if reuse and same >= LEAST_REUSED else 0)
        for start in range(len(self._read), len(ids), BATCH):
            if not self._evaluate(ids[start : start + BATCH]):
                return False
        return True

    def generate(
        self, max_new_tokens: int, temperature: float = 0.0, top_p: float = 1.0, seed: int | None = None
    ) -> Iterator[int]:
        """Tokens after the prompt that was read, until one ends the answer or the block is stopped."""
        sampler = self._sampler(temperature, top_p, seed)
        try:
            for left in range(max_new_tokens, 0, -1):
                token = self._c.llama_sampler_sample(sampler, self._context, -1)
                if self.is_end(token):
                    return
                yield token
                if left == 1 or not self._evaluate([token]):
                    return
        finally:
            self._c.llama_sampler_free(sampler)

    def logits(self) -> list[float]:
        """Of the token after what was read, one for each of the vocabulary."""
        values = self._c.llama_get_logits_ith(self._context, -1)
        return list(values[: self._c.llama_vocab_n_tokens(self._vocab)])

    def _forget_from(self, position: int) -> None:
        self._c.llama_memory_seq_rm(self._c.llama_get_memory(self._context), 0, position, -1)
        del self._read[position:]

    def _evaluate(self, ids: list[int]) -> bool:
        """False when stopped. Raises RuntimeError when llama.cpp cannot."""
        tokens = (INT * len(ids))(*ids)
        code = self._c.llama_decode(self._context, self._c.llama_batch_get_one(tokens, len(ids)))
        if code == 0:
            self._read += ids
            return True
        self._forget_from(0)
        if code == 2:  # llama.h: aborted
            return False
        raise RuntimeError(
            f"llama.cpp could not go on (code {code}); start again with a shorter conversation"
        )

    def _sampler(self, temperature: float, top_p: float, seed: int | None) -> Any:
        c = self._c
        chain = c.llama_sampler_chain_init(True)
        if not temperature:
            c.llama_sampler_chain_add(chain, c.llama_sampler_init_greedy())
            return chain
        number = int.from_bytes(os.urandom(4)) if seed is None else seed % 2**32
        for part in (
            c.llama_sampler_init_temp(temperature),
            c.llama_sampler_init_top_p(top_p, 1),
            c.llama_sampler_init_dist(number),
        ):
            c.llama_sampler_chain_add(chain, part)
        return chain
