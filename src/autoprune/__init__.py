"""autoprune: remove weights from any causal language model, with algorithms that are small texts."""

from typing import TYPE_CHECKING, Any

from autoprune.errors import AutopruneError, ProgramError
from autoprune.memory import prefer_huge_pages

if TYPE_CHECKING:
    from autoprune.api import Diagnosis, Evaluation, Progress, PruneReport, TaskResult, diagnose, evaluate, prune
    from autoprune.sweeps import Sweep, read_sweep, sweep

prefer_huge_pages()  # before torch allocates

__all__ = [
    "AutopruneError",
    "Diagnosis",
    "Evaluation",
    "ProgramError",
    "Progress",
    "PruneReport",
    "Sweep",
    "TaskResult",
    "diagnose",
    "evaluate",
    "prune",
    "read_sweep",
    "sweep",
]


def __getattr__(name: str) -> Any:
    """What is imported when it is first asked for: torch and transformers take seconds, `autoprune --help` needs
    neither."""
    if name not in __all__:
        raise AttributeError(f"module 'autoprune' has no attribute '{name}'")
    if name in ("Sweep", "read_sweep", "sweep"):
        from autoprune import sweeps

        return getattr(sweeps, name)
    from autoprune import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
