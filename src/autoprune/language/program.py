"""What a program is once it has been read: a name, options, and one tape of nodes per function.

A tape lists the steps of a function in an order in which they can run. Equal steps appear once (they are
interned), so a tape is a graph without repeated work, and local variable names are gone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from autoprune.errors import Place
from autoprune.language.statistics import STATISTICS

CONSTANT, STATISTIC = "constant", "statistic"

OPTIONS: Mapping[str, tuple[str, ...]] = MappingProxyType({"compare": ("row", "layer")})
"""Header options and their values; the first value is the default."""


@dataclass(frozen=True)
class Node:
    """One step. `operator` is a key of OPERATORS, or CONSTANT / STATISTIC with its `value`.

    `arguments` are indices of earlier nodes; `over` is the axis of a reduction or normaliser.
    """

    operator: str
    arguments: tuple[int, ...] = ()
    value: float | str | None = None
    over: str | None = None
    place: Place = field(default=Place(), compare=False)


class TapeBuilder:
    """Appends nodes, giving an equal node its first index again."""

    def __init__(self) -> None:
        self._index: dict[Node, int] = {}

    def add(self, node: Node) -> int:
        return self._index.setdefault(node, len(self._index))

    def __len__(self) -> int:
        return len(self._index)

    @property
    def nodes(self) -> tuple[Node, ...]:
        return tuple(self._index)


@dataclass(frozen=True)
class Tape:
    """The steps of one function; `result` is the index of the node that is returned, `place` where it is."""

    nodes: tuple[Node, ...]
    result: int
    place: Place = field(default=Place(), compare=False)

    def used(self) -> set[int]:
        """Indices of the nodes that the result depends on."""
        found, stack = set(), [self.result]
        while stack:
            index = stack.pop()
            if index not in found:
                found.add(index)
                stack.extend(self.nodes[index].arguments)
        return found

    def steps(self) -> Iterator[tuple[int, Node]]:
        used = self.used()
        return ((index, node) for index, node in enumerate(self.nodes) if index in used)

    @property
    def statistics(self) -> tuple[str, ...]:
        """Names of the statistics that the result depends on, in the order of the table."""
        named = {node.value for _, node in self.steps() if node.operator == STATISTIC}
        return tuple(name for name in STATISTICS if name in named)


@dataclass(frozen=True, kw_only=True)
class Program:
    """A checked pruning algorithm. `digest` identifies what it does, whatever its layout and names."""

    name: str
    doc: str
    text: str
    options: Mapping[str, str]
    score: Tape
    canonical: str
    digest: str

    @property
    def compare(self) -> str:
        return self.options["compare"]

    @property
    def statistics(self) -> tuple[str, ...]:
        return self.score.statistics

    @property
    def collects(self) -> frozenset[str]:
        """Running sums the collector must keep; empty where no calibration text is needed."""
        return frozenset(name for key in self.statistics for name in STATISTICS[key].collects)
