"""How the process takes memory from the system, on Linux, for tensors that come and go by the hundred.

Measured on a Wanda prune of SmolLM2-135M with two cores: see LOG.md.
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache

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
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # a libc without it, such as musl
        return
    mallopt(_M_TRIM_THRESHOLD, 1 << 30)
    mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
