"""One GGUF model in llama.cpp: its tokens, evaluations of several sequences together, sampling.

Knows nothing of messages. Long: the one user of llama.h's functions.
"""

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from assistant.llama_cpp import (
    BATCH,
    INT,
    POINTER,
    ZERO_KEY,
    Tokens,
    check_layout,
    cpu_count,
    free_memory,
    library,
    pieces_of,
)

LEAST_REUSED = 64  # tokens; fewer are not worth an answer that depends on what was asked before
KEY_AND_VALUE_BYTES = 4  # of one number of one layer: 16 bits each
MOST_BYTES = 2**31  # for the keys and values of all sequences, and a quarter of what is free


def same_beginning(ids: list[int], known: list[int]) -> int:
    """How many of the prompt's tokens need not be read again; its last one is, for its logits."""
    most = min(len(ids) - 1, len(known))
    same = next((at for at in range(most) if ids[at] != known[at]), most)
    return same if same >= LEAST_REUSED else 0


class Engine:
    """One GGUF model and the sequences that it has read. Not for two threads at once.

    `context` is in tokens, for each of at most `sequences`, which are fewer where memory is short. Raises
    ValueError for a file that is no language model, RuntimeError when memory or the library is lacking.
    """

    def __init__(self, path: Path, context: int = 0, sequences: int = 1) -> None:
        self._c, self._model, self._context = library(), None, None
        self._model = self._c.llama_model_load_from_file(
            os.fsencode(path), self._c.llama_model_default_params()
        )
        if not self._model:
            raise ValueError(f"{path} is damaged or no GGUF that llama.cpp reads; export or fetch it again")
        self._vocab = self._c.llama_model_get_vocab(self._model)
        self._zero = self._zero_token()
        self.context = min(context or 2**31, self._c.llama_model_n_ctx_train(self._model))
        self.sequences = max(1, min(sequences, self._most_sequences()))
        self._context = self._open_context()
        if not self._context:
            self.sequences = 1
            self._context = self._open_context()
        if not self._context:
            raise RuntimeError(f"{path}: not enough memory for a context of {self.context} tokens")
        assert self._c.llama_n_ctx_seq(self._context) >= self.context, self.context
        self._c.llama_set_n_threads(self._context, cpu_count(), cpu_count())
        self._batch = Tokens(self.sequences)
        self._read: list[int] = []  # the tokens of read() whose keys and values are in memory
        self._stop_flag = ctypes.create_string_buffer(2)
        self._watch_stop_flag()

    def _most_sequences(self) -> int:
        """How many contexts may be held: their keys and values are written to memory when it is opened."""
        head = self._c.llama_model_n_embd(self._model) / max(1, self._c.llama_model_n_head(self._model))
        heads = self._c.llama_model_n_layer(self._model) * self._c.llama_model_n_head_kv(self._model)
        size = max(1.0, heads * head * KEY_AND_VALUE_BYTES * self.context)
        return int(min(MOST_BYTES, free_memory() / 4) / size)

    def _open_context(self) -> Any:
        check_layout(self._c)
        parameters = self._c.llama_context_default_params()
        parameters.n_ctx, parameters.n_seq_max = self.context * self.sequences, self.sequences
        parameters.n_batch = parameters.n_ubatch = BATCH
        return self._c.llama_init_from_model(self._model, parameters)

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

    def stop(self, is_wanted: bool = True) -> None:
        """From any thread: evaluations end at once, also one that goes on, until this is taken back."""
        self._stop_flag[0] = b"\1" if is_wanted else b"\0"

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
        """Evaluate a prompt as the only sequence; a long beginning that is known is not read again.

        False when stopped.
        """
        same = same_beginning(ids, self._read) if reuse else 0
        self.forget(0, same)
        del self._read[same:]
        return all(self._go_on(piece) for piece in pieces_of(ids[same:], BATCH))

    def generate(
        self, max_new_tokens: int, temperature: float = 0.0, top_p: float = 1.0, seed: int | None = None
    ) -> Iterator[int]:
        """Tokens after the prompt that was read, until one ends the answer or the evaluation is stopped."""
        sampler = self.sampler(temperature, top_p, seed)
        try:
            for left in range(max_new_tokens, 0, -1):
                token = self.sample(sampler)
                if self.is_end(token):
                    return
                yield token
                if left == 1 or not self._go_on([token]):
                    return
        finally:
            self.free_sampler(sampler)

    def _go_on(self, ids: list[int]) -> bool:
        if self.evaluate([(0, len(self._read), ids)]) is None:
            return False
        self._read += ids
        return True

    def logits(self) -> list[float]:
        """Of the token after what was read, one for each of the vocabulary."""
        values = self._c.llama_get_logits_ith(self._context, -1)
        return list(values[: self._c.llama_vocab_n_tokens(self._vocab)])

    def forget(self, sequence: int, position: int) -> None:
        """What the sequence has read from this position on."""
        self._c.llama_memory_seq_rm(self._c.llama_get_memory(self._context), sequence, position, -1)

    def evaluate(self, parts: list[tuple[int, int, list[int]]]) -> list[int] | None:
        """Read (sequence, position of the first token, tokens) of each together, at most BATCH tokens in all.

        The places at which sample() finds each one's logits; None when stopped: then it is as if nothing had
        been read. Raises RuntimeError when llama.cpp cannot.
        """
        batch, last = self._batch.of(parts)
        code = self._c.llama_decode(self._context, batch)
        if code == 0:
            return last
        for sequence, position, _ in parts:
            self.forget(sequence, position)
        if code == 2:  # llama.h: aborted
            return None
        raise RuntimeError(
            f"llama.cpp could not go on (code {code}); start again with a shorter conversation"
        )

    def sample(self, sampler: Any, place: int = -1) -> int:
        """The next token by the logits at this place of what was evaluated last."""
        return int(self._c.llama_sampler_sample(sampler, self._context, place))

    def free_sampler(self, sampler: Any) -> None:
        self._c.llama_sampler_free(sampler)

    def sampler(self, temperature: float, top_p: float, seed: int | None) -> Any:
        """Of one answer, to be freed after it."""
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
