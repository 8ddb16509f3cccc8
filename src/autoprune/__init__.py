"""autoprune: remove weights from any causal language model, with algorithms that are small texts."""

from autoprune.memory import prefer_huge_pages

prefer_huge_pages()  # before torch allocates

from autoprune.api import Diagnosis, Evaluation, Progress, PruneReport, diagnose, evaluate, prune  # noqa: E402
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
    "diagnose",
    "evaluate",
    "prune",
    "read_sweep",
    "sweep",
]
