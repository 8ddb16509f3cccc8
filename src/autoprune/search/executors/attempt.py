"""One task, one scorer: what every executor does with them, so that all of them record the same outcome."""

from __future__ import annotations

import time
from dataclasses import replace

from autoprune.errors import AutopruneError
from autoprune.memory import forget_peak, peak_bytes, status_bytes
from autoprune.search.protocol import Outcome, Scorer, Task

OUT_OF_MEMORY = "out of memory"
"""What the error of an outcome begins with, whichever library was refused the memory."""

_SHORTAGES = (OUT_OF_MEMORY, "allocate memory", "bad_alloc")
_LONGEST_MESSAGE = 500


def attempt(scorer: Scorer, task: Task) -> Outcome:
    """The outcome of a task, an exception of the scorer included, with the peak memory of this process meanwhile."""
    start = time.monotonic()
    forget_peak()
    try:
        outcome = scorer.score(task)
    except Exception as error:
        outcome = Outcome(error=_in_one_line(error), seconds=time.monotonic() - start)
    return outcome if outcome.peak_bytes is not None else replace(outcome, peak_bytes=peak_bytes())


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
    in_use = status_bytes("VmData")
    if in_use is None:
        return
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = in_use + allowance_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
