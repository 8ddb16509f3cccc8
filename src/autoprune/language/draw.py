"""Random trees: what is drawn how often, of what there is to make a value of a type."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from random import Random
from types import MappingProxyType

from autoprune.language.productions import Production, leaves, productions
from autoprune.language.program import CONSTANT, STATISTIC
from autoprune.language.trees import Tree
from autoprune.language.types import Type

SCORE = "score"
COMPARISONS = frozenset({"greater", "less", "greater_equal", "less_equal", "equal", "not_equal"})

OFTEN: Mapping[str, float] = MappingProxyType(
    # arithmetic and functions
    {"multiply": 8, "divide": 4, "add": 4, "power": 0.7, "negate": 0.2, "where": 0.4}
    | {"sqrt": 3, "square": 2, "sign": 0.5, "exp": 0.3, "tanh": 0.3, "maximum": 0.7, "minimum": 0.7, "clip": 0.3}
    | dict.fromkeys(COMPARISONS, 0.2)
    | {"equal": 0.1, "not_equal": 0.1}  # of measured numbers no two are equal
    # along an axis; those that sort a matrix are slow
    | {"mean": 2, "norm": 2, "min": 0.3, "median": 0.3, "quantile": 0.3}
    | {"standardize": 0.5, "minmax": 0.5, "softmax": 0.2, "rank": 0.4, "cumulative_sum": 0.2}
    # types of arguments; a CC has C times C numbers, and a product with it takes C times as much work
    | {Type.SCALAR: 0.5, Type.R: 0.7, Type.C: 2, Type.RC: 2, Type.CC: 0.05}
    | {"matmul": 0.3, "diagonal": 1}
    # statistics; a sum of squares is nearly free, a gram matrix is not, a gradient takes a backward pass
    | {"weight": 12, "depth": 2, "input_norm": 8, "input_std": 2, "input_max": 2}
    | {"output_norm": 0.3, "inverse_gram_diagonal": 0.7, "gradient": 0.5, "output_gradient": 0.3}
    | {"sparsity": 4, "temperature": 0.3, "spectral_alpha": 0.3, "marginal_damage": 0.3, CONSTANT: 12}
)
"""How often something is drawn among what may stand in its place; what is not named has 1."""

CONSTANTS: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {"power": (0.25, 0.5, 1.5, 2, 3, -0.5, -1), "quantile": (0.05, 0.1, 0.25, 0.75, 0.9, 0.95)}
)
"""Constants that the second argument of an operator is drawn from."""
OTHER_CONSTANTS = (0.01, 0.1, 0.2, 0.5, 2, 3, 5, 10)

NUMBERS: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {
        "max_swaps": (5, 10, 30, 100),
        "protect": (0, 0.1, 0.25, 0.5),
        "towards_dense": (0, 0.25, 0.5, 0.75, 1),
        "strength": (-0.2, -0.1, -0.05, 0.05, 0.1, 0.2, 0.3),
        "max_shift": (0.05, 0.1, 0.15, 0.2, 0.3),
        "least_kept": (0.3, 0.5, 0.7, 0.9),
        "temperature": (0.3, 0.5, 1, 2, 4),
    }
)
"""Values that header options are drawn from, where they are numbers."""


def often(name: str) -> float:
    return OFTEN.get(name, 1.0)


@cache
def applications(function: str, target: Type) -> tuple[tuple[Production, float], ...]:
    """Productions with how often they are drawn: an operator's ways to make the type share what the operator has."""
    rows = productions(function, target)
    total: dict[str, float] = {}
    for row in rows:
        total[row.operator.name] = total.get(row.operator.name, 0.0) + _share(row)
    return tuple((row, often(row.operator.name) * _share(row) / total[row.operator.name]) for row in rows)


def _share(production: Production) -> float:
    """How often the types of a production's arguments are drawn together; an exponent is mostly a constant."""
    odd = production.operator.name in CONSTANTS and production.arguments[1] is not Type.SCALAR
    return math.prod(often(kind) for kind in production.arguments) * (0.05 if odd else 1)


@cache
def _choices(function: str, target: Type, roots: str) -> tuple[list[Production | str], list[float]]:
    """What a value of the type may be, operators and leaves, with weights. `roots` are "any"; "chains": operators with
    an argument of that type; "comparisons"; or "least": leaves and reductions, which end as their arguments grow."""
    fits: dict[str, Callable[[Production], bool]] = {
        "chains": lambda row: target in row.arguments,
        "comparisons": lambda row: row.operator.name in COMPARISONS,
        "least": lambda row: row.operator.kind == "reduce",
    }
    choices: list[tuple[Production | str, float]] = [
        row for row in applications(function, target) if roots not in fits or fits[roots](row[0])
    ]
    if roots in ("any", "least"):
        names = [*leaves(function, target), *[CONSTANT] * (target is Type.SCALAR)]
        choices += [(name, often(name)) for name in names]
    return [choice for choice, _ in choices], [weight for _, weight in choices]


def grown(function: str, target: Type, budget: int, rng: Random, roots: str = "any") -> Tree:
    """A random tree of a type, `budget` operators deep at most, reductions not counted."""
    choice = rng.choices(*_choices(function, target, roots if budget > 0 else "least"))[0]
    if isinstance(choice, str):
        return leaf(choice, target, rng)
    budget -= choice.operator.kind != "reduce"
    return applied(choice, target, tuple(fresh_arguments(choice, function, budget, rng)))


def fresh_arguments(production: Production, function: str, budget: int, rng: Random) -> Iterator[Tree]:
    name = production.operator.name
    for position, kind in enumerate(production.arguments):
        if name == "where" and position == 0:
            yield grown(function, kind, 1, rng, roots="comparisons")
        elif name in CONSTANTS and position == 1 and kind is Type.SCALAR:
            yield constant(rng.choice(CONSTANTS[name]))
        else:
            yield grown(function, kind, budget, rng)


def applied(production: Production, target: Type, arguments: tuple[Tree, ...]) -> Tree:
    return Tree(production.operator.name, target, arguments, over=production.over)


def leaf(name: str, target: Type, rng: Random) -> Tree:
    if name == CONSTANT:
        return constant(rng.choice(OTHER_CONSTANTS))
    leaf = Tree(STATISTIC, target, value=name)
    # A layer and its negative deserve the same mask, so the sign of a weight seldom says anything.
    return Tree("abs", target, (leaf,)) if name == "weight" and rng.random() < 0.9 else leaf


def constant(value: float) -> Tree:
    return Tree(CONSTANT, Type.SCALAR, value=float(value))


def random_tree(function: str, budget: int, rng: Random) -> Tree:
    """What a function may return, `budget` operators deep at most: not yet whether it makes sense."""
    if function == SCORE:
        return grown(function, Type.RC, budget, rng, roots="chains")
    tree = grown(function, Type.L, rng.randrange(budget + 1), rng)
    scaled = rng.random() < 0.7  # `strength` is in units of what is returned
    return Tree(rng.choice(("minmax", "standardize", "rank")), Type.L, (tree,), over="all") if scaled else tree


def drawn_production(function: str, target: Type, fits: Callable[[Production], bool], rng: Random) -> Production | None:
    rows = [row for row in applications(function, target) if fits(row[0])]
    return rng.choices([row for row, _ in rows], [often for _, often in rows])[0] if rows else None
