"""One task, one scorer: what every executor does with them, so that all of them record the same outcome.

Also what a process must know about its memory: how much a task took at most, and a limit on it.
"""

from __future__ import annotations

import contextlib
import sys
import time
from dataclasses import replace
from pathlib import Path

from autoprune.errors import AutopruneError
from autoprune.search.protocol import Outcome, Scorer, Task

OUT_OF_MEMORY = "out of memory"
"""What the error of an outcome begins with, whichever library was refused the memory."""

_SHORTAGES = (OUT_OF_MEMORY, "allocate memory", "bad_alloc")
_LONGEST_MESSAGE = 500


def attempt(scorer: Scorer, task: Task) -> Outcome:
    """The outcome of a task, an exception of the scorer included, with the peak memory of this process meanwhile."""
    start = time.monotonic()
    _forget_peak()
    try:
        outcome = scorer.score(task)
    except Exception as error:
        outcome = Outcome(error=_in_one_line(error), seconds=time.monotonic() - start)
    return outcome if outcome.peak_bytes is not None else replace(outcome, peak_bytes=_peak_bytes())


def _in_one_line(error: Exception) -> str:
    text = " ".join(str(error).split())[:_LONGEST_MESSAGE]
    if isinstance(error, MemoryError) or any(shortage in text.lower() for shortage in _SHORTAGES):
        return OUT_OF_MEMORY
    return text if isinstance(error, AutopruneError) else f"{type(error).__name__}: {text}".removesuffix(": ")


def cannot_make(error: Exception) -> AutopruneError:
    """What the caller is told of an exception of `ScorerRecipe.make`: its own words where the user can mend it."""
    if isinstance(error, AutopruneError):
        return error
    return AutopruneError(
        f"the scorer cannot be made here ({_in_one_line(error)})",
        remedy="make it in process to see where it fails",
    )


def limit_memory(allowance_bytes: int) -> None:
    """From here on, refuse this process more than `allowance_bytes` above what it uses now; Linux only.

    RLIMIT_DATA counts private writable memory, so neither shared libraries nor mapped checkpoints; torch, numpy and
    Python raise an exception when they meet it. Address space (RLIMIT_AS) would count what CUDA merely reserves.
    """
    in_use = _status_bytes("VmData")
    if in_use is None:
        return
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = in_use + allowance_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _forget_peak() -> None:
    """Let the kernel's peak of resident memory start again from what is resident now."""
    with contextlib.suppress(OSError):  # not Linux, or forbidden: the peak is that of the process's whole life
        Path("/proc/self/clear_refs").write_text("5")


def _peak_bytes() -> int | None:
    if (peak := _status_bytes("VmHWM")) is not None:
        return peak
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _status_bytes(name: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)
