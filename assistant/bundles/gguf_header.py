"""What a GGUF file's header says (ggml's docs/gguf.md): a text, and how long the file must be.

Needs no library and reads no weights.
"""

import struct
from math import prod
from pathlib import Path
from typing import BinaryIO

SIZES = (1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8)  # bytes of each value type
TEXT, LIST = 8, 9
ALIGNMENT = "general.alignment"
# (numbers, bytes) of a block of each tensor type; of one that is not here only its beginning is checked
BLOCKS = {0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 30: (1, 2)}
BLOCKS |= {10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210)}


def read_text_field(path: Path, name: str) -> str:
    """The text under `name`; empty when there is none. Raises ValueError for what is no whole GGUF header."""
    return _read_header(path, name)[0]


def check_whole(path: Path) -> None:
    """Raises ValueError for a file that ends before the last of its weights."""
    needed, size = _read_header(path, "")[1], path.stat().st_size
    if size < needed:
        raise ValueError(f"is cut off: it has {size} bytes and its header promises {needed}; copy it again")


def _read_header(path: Path, name: str) -> tuple[str, int]:
    """The text under `name` (empty for none), and the bytes of the whole file."""
    found, alignment = "", 32
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError("is no GGUF file")
        try:
            _, tensors, count = struct.unpack("<IQQ", file.read(20))
            for _ in range(count):
                key = _read_text(file)
                (kind,) = struct.unpack("<I", file.read(4))
                if key == name and kind == TEXT:
                    found = _read_text(file)
                elif key == ALIGNMENT:
                    (alignment,) = struct.unpack("<I", file.read(4))
                else:
                    _skip(file, kind)
            end = max((_read_tensor_end(file) for _ in range(tensors)), default=0)
            return found, -(-file.tell() // alignment) * alignment + end
        except (struct.error, UnicodeDecodeError, IndexError, ZeroDivisionError):
            raise ValueError("has a damaged GGUF header; export it again") from None


def _read_tensor_end(file: BinaryIO) -> int:
    """Where a tensor's bytes end, from the beginning of the weights."""
    _read_text(file)
    (dimensions,) = struct.unpack("<I", file.read(4))
    shape = struct.unpack(f"<{dimensions}Q", file.read(8 * dimensions))
    kind, offset = struct.unpack("<IQ", file.read(12))
    numbers, size = BLOCKS.get(kind, (1, 0))
    return int(offset) + prod(shape) // numbers * size


def _read_text(file: BinaryIO) -> str:
    (length,) = struct.unpack("<Q", file.read(8))
    text = file.read(length)
    if len(text) != length:
        raise IndexError(length)
    return text.decode("utf-8")


def _skip(file: BinaryIO, kind: int) -> None:
    if kind == TEXT:
        file.seek(struct.unpack("<Q", file.read(8))[0], 1)
    elif kind == LIST:
        inner, count = struct.unpack("<IQ", file.read(12))
        if inner in (TEXT, LIST):
            for _ in range(count):
                _skip(file, inner)
        else:
            file.seek(SIZES[inner] * count, 1)
    else:
        file.seek(SIZES[kind], 1)
