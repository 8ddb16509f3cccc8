"""A function of a program as a tree, every step with its type: what chance can cut and put together.

Shared steps of a tape are shared objects here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from autoprune.language.canonical import canonical_tape, expressions
from autoprune.language.check import infer_types
from autoprune.language.program import STATISTIC, Node, Tape, TapeBuilder
from autoprune.language.types import Type

MAX_PLACES = 256
"""Places of a tree, the nearest to its root, that are looked at: unfolded, a tape may be exponentially large."""


@dataclass(frozen=True, eq=False)
class Tree:
    """A step with all that it is made of, as in `Node`. A step that a tape shares is one object."""

    operator: str
    type: Type
    arguments: tuple[Tree, ...] = ()
    value: float | str | None = None
    over: str | None = None

    @cached_property
    def statistics(self) -> frozenset[str]:
        own = {str(self.value)} if self.operator == STATISTIC else set()
        return frozenset(own).union(*(argument.statistics for argument in self.arguments))


Path = tuple[int, ...]
"""Which argument to follow, from the root on."""


def tree_of(tape: Tape) -> Tree:
    """The result of a checked tape."""
    types = infer_types(tape)
    trees: dict[int, Tree] = {}
    for index, node in tape.steps():
        arguments = tuple(trees[argument] for argument in node.arguments)
        trees[index] = Tree(node.operator, types[index], arguments, node.value, node.over)
    return trees[tape.result]


def tape_of(tree: Tree, function: str) -> Tape:
    """The canonical tape with a tree as its result."""
    builder = TapeBuilder()
    indices: dict[int, int] = {}  # by identity: a shared step is visited once

    def add(step: Tree) -> int:
        if id(step) not in indices:
            arguments = tuple(add(argument) for argument in step.arguments)
            indices[id(step)] = builder.add(Node(step.operator, arguments, step.value, step.over))
        return indices[id(step)]

    result = add(tree)
    return canonical_tape(Tape(builder.nodes, result, function))


def places(tree: Tree) -> list[tuple[Path, Tree]]:
    """All places, from the root down, of which at most MAX_PLACES."""
    found: list[tuple[Path, Tree]] = [((), tree)]
    for path, step in found:  # which grows meanwhile
        room = MAX_PLACES - len(found)
        found += [((*path, position), argument) for position, argument in enumerate(step.arguments)][:room]
    return found


def put(tree: Tree, path: Path, new: Tree) -> Tree:
    """The tree with something else at one place."""
    if not path:
        return new
    arguments = list(tree.arguments)
    arguments[path[0]] = put(arguments[path[0]], path[1:], new)
    return replace(tree, arguments=tuple(arguments))


def put_everywhere(tree: Tree, old: Tree, new: Tree) -> Tree:
    """The tree with something else at all places of a shared step."""
    done: dict[int, Tree] = {id(old): new}

    def renewed(step: Tree) -> Tree:
        if id(step) not in done:
            done[id(step)] = replace(step, arguments=tuple(renewed(argument) for argument in step.arguments))
        return done[id(step)]

    return renewed(tree)


def shown(tree: Tree, function: str) -> str:
    """A tree in the words of the language, not too long."""
    *shared, (_, _, text) = expressions(tape_of(tree, function))
    text += " where " * bool(shared) + ", ".join(f"{name} = {step}" for _, name, step in shared)
    return text if len(text) <= 120 else f"{text[:117]}..."
