"""The pruning language: a program is a small text that gives every weight a score, every layer a share, or both.

`read_program` reads, checks and canonicalises a text; `interpret` runs it. Nothing is ever executed as Python.
"""

from autoprune.language.explain import explain, reference
from autoprune.language.interpret import interpret
from autoprune.language.operators import OPERATORS
from autoprune.language.program import Program
from autoprune.language.reader import read_program
from autoprune.language.statistics import FUNCTIONS, LAYER_STATISTICS, STATISTICS

__all__ = [
    "FUNCTIONS",
    "LAYER_STATISTICS",
    "OPERATORS",
    "STATISTICS",
    "Program",
    "explain",
    "interpret",
    "read_program",
    "reference",
]
