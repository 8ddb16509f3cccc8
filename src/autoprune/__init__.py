"""autoprune: remove weights from any causal language model, with algorithms that are small texts."""

from autoprune.api import Evaluation, Progress, PruneReport, evaluate, prune
from autoprune.errors import AutopruneError, ProgramError

__all__ = ["AutopruneError", "Evaluation", "ProgramError", "Progress", "PruneReport", "evaluate", "prune"]
