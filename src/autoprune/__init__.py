"""autoprune: remove weights from any causal language model, with algorithms that are small texts."""

from autoprune.memory import prefer_huge_pages

prefer_huge_pages()  # before torch allocates

from autoprune.api import (  # noqa: E402
    Diagnosis,
    Evaluation,
    Progress,
    PruneReport,
    TaskResult,
    diagnose,
    evaluate,
    prune,
)
from autoprune.errors import AutopruneError, ProgramError  # noqa: E402
from autoprune.sweep import Sweep, read_sweep, sweep  # noqa: E402

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
