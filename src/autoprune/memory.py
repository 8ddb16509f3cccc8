"""How the process takes memory from the system, and how much it has."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from functools import cache
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
_LARGEST_MMAP_THRESHOLD = 32 << 20


def prefer_huge_pages() -> None:
    """Let torch align large CPU tensors to huge pages: fewer page faults, and less memory lost between tensors.

    Torch reads the setting when it first allocates; one that the user made is kept.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


@cache
def reuse_freed_memory() -> None:
    """Let glibc's malloc keep what was freed, for the rest of the process; elsewhere this does nothing.

    By default it returns memory to the system at every lull and gets it back zeroed, page by page. In the lockstep of
    `autoprune.stream`, where tensors of all micro-batches come and go, that costs about a tenth of a prune on a CPU.
    What was freed before, as by reading a text, is given back first: small pieces that large tensors do not fit in.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        libc = ctypes.CDLL(None)
        mallopt, malloc_trim = libc.mallopt, libc.malloc_trim
    except AttributeError:  # a libc without them, such as musl
        return
    malloc_trim(ctypes.c_size_t(0))
    mallopt(_M_TRIM_THRESHOLD, 1 << 30)
    mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)


def forget_peak() -> None:
    """Let the kernel's peak of resident memory start again from what is resident now."""
    with contextlib.suppress(OSError):  # not Linux, or forbidden: the peak is that of the process's whole life
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int | None:
    """The most that this process had resident since `forget_peak`, or ever; None where it cannot be told."""
    if (peak := status_bytes("VmHWM")) is not None:
        return peak
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def status_bytes(name: str) -> int | None:
    """A line of Linux's account of this process, as "VmRSS"; None elsewhere."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)
