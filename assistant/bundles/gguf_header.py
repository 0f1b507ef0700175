"""One text out of a GGUF file's header (ggml's docs/gguf.md). Needs no library and reads no weights."""

import struct
from pathlib import Path
from typing import BinaryIO

SIZES = (1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8)  # bytes of each value type
TEXT, LIST = 8, 9


def read_text_field(path: Path, name: str) -> str:
    """The text under `name`; empty when there is none. Raises ValueError for what is no whole GGUF header."""
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError("is no GGUF file")
        try:
            _, _, count = struct.unpack("<IQQ", file.read(20))
            for _ in range(count):
                key = _read_text(file)
                (kind,) = struct.unpack("<I", file.read(4))
                if key == name and kind == TEXT:
                    return _read_text(file)
                _skip(file, kind)
        except (struct.error, UnicodeDecodeError, IndexError):
            raise ValueError("has a damaged GGUF header; export it again") from None
    return ""


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
