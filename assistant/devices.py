"""What this machine computes on, and in which number format it is fast. Knows nothing of models."""

from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h


@cache
def keep_freed_memory() -> None:
    """For training and scoring: the C library keeps what torch frees instead of handing it back page by page.

    Each step asks for the same large blocks again, and fresh pages from the kernel are slow.
    """
    import ctypes

    with suppress(OSError, AttributeError):  # not glibc: nothing to tune
        tune = ctypes.CDLL("libc.so.6").mallopt
        for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 << 20)):
            tune(option, value)


def device_of_machine() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def fast_dtype(device: str) -> torch.dtype:
    """bfloat16 where the processor multiplies it natively, else float16 on a GPU and float32 on a CPU."""
    if device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if (
        torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        and _has_native_bf16()
    ):
        return torch.bfloat16
    return torch.float32


@cache
def _has_native_bf16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
