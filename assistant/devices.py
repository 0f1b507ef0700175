"""What this machine computes on, and in which number format it is fast. Knows nothing of models."""

from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

CONTEXT_BYTES = 2**29  # what CUDA itself takes of a card, about, outside of torch's own count
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


@cache
def attend_at_any_length() -> None:
    """Leaves attention on a GPU to kernels that take rows of any length as they come.

    cuDNN's, which torch prefers on an H100 and newer, first makes a plan for each new length: milliseconds a
    layer, where each step and each token of an answer has another length (docs/log.md, 2026-11-30).
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def device_of_machine() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def limit_gpu_memory(gib: float) -> None:
    """Keep this process to `gib` of each GPU, its context included, as a smaller card would; 0: no limit."""
    if not gib or not torch.cuda.is_available():
        return
    for device in range(torch.cuda.device_count()):
        total = torch.cuda.get_device_properties(device).total_memory
        share = (gib * 2**30 - CONTEXT_BYTES) / total
        torch.cuda.set_per_process_memory_fraction(min(max(share, 0.0), 1.0), device)


def memory_of(device: torch.device) -> int:
    """Bytes that torch may use on the device: what is free, and what this process holds already."""
    if device.type != "cuda":
        import psutil

        return int(psutil.virtual_memory().available + psutil.Process().memory_info().rss)
    free, total = torch.cuda.mem_get_info(device)
    allowed = int(total * torch.cuda.get_per_process_memory_fraction(device))
    return min(allowed, free + torch.cuda.memory_reserved(device))


def name_of(device: torch.device) -> str:
    """`NVIDIA H100, a card of 80 GiB`, or `CPU`."""
    if device.type != "cuda":
        return "CPU"
    found = torch.cuda.get_device_properties(device)
    return f"{found.name}, a card of {found.total_memory / 2**30:.0f} GiB"


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
