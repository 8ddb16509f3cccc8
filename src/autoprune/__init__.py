"""autoprune: remove weights from any causal language model, with algorithms that are small texts."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from autoprune.errors import AutopruneError, ProgramError
from autoprune.memory import prefer_huge_pages

if TYPE_CHECKING:
    from autoprune.api import Diagnosis, Evaluation, Progress, PruneReport, TaskResult, diagnose, evaluate, prune
    from autoprune.sweeps import Sweep, read_sweep, sweep

prefer_huge_pages()  # before torch allocates

# Imported when they are first asked for: torch and transformers take seconds, and `autoprune --help` needs neither.
_HOME = {
    "Diagnosis": "api",
    "Evaluation": "api",
    "Progress": "api",
    "PruneReport": "api",
    "Sweep": "sweeps",
    "TaskResult": "api",
    "diagnose": "api",
    "evaluate": "api",
    "prune": "api",
    "read_sweep": "sweeps",
    "sweep": "sweeps",
}

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
    if name not in _HOME:
        raise AttributeError(f"module 'autoprune' has no attribute '{name}'")
    return getattr(import_module(f"autoprune.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
