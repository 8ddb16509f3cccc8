"""Every way to make a value of a type: the operators' type rules, turned round.

What samples programs at random and what writes a grammar for language models both read this table, so whatever they
make passes the type check.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product

from autoprune.language.operators import OPERATORS, Operator
from autoprune.language.statistics import FUNCTIONS
from autoprune.language.types import AXES, Type

TYPES = {"score": (Type.SCALAR, Type.R, Type.C, Type.RC, Type.CC), "allocate": (Type.SCALAR, Type.L)}
"""Types of the values that may occur in a function."""


@dataclass(frozen=True)
class Production:
    """An operator with the types of its arguments, and the axis where it takes one."""

    operator: Operator
    arguments: tuple[Type, ...]
    over: str | None = None


@cache
def productions(function: str, target: Type) -> tuple[Production, ...]:
    """All applications of operators to values of `function` whose result is a `target`, in the order of the table."""
    found = []
    for operator in OPERATORS.values():
        for over in AXES if operator.takes_axis else (None,):
            for arguments in product(TYPES[function], repeat=operator.arity):
                if operator.result_type(arguments, over) is target:
                    found.append(Production(operator, arguments, over))
    return tuple(found)


@cache
def leaves(function: str, target: Type) -> tuple[str, ...]:
    """Names of the statistics of a type that a search may use; a scalar may also be a constant."""
    return tuple(name for name, row in FUNCTIONS[function].statistics.items() if row.type is target and row.searched)
