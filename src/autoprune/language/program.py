"""What a program is once it has been read: a name, options, and one tape of nodes per function.

A tape lists the steps of a function in an order in which they can run. Equal steps appear once (they are
interned), so a tape is a graph without repeated work, and local variable names are gone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from autoprune.errors import AutopruneError, Place
from autoprune.language.operators import OPERATORS
from autoprune.language.statistics import FUNCTIONS

CONSTANT, STATISTIC = "constant", "statistic"


@dataclass(frozen=True, kw_only=True)
class Option:
    """A header option of a `function`: one of `choices` (the first is the default), or a number from low to high."""

    name: str
    function: str
    doc: str
    choices: tuple[str, ...] = ()
    default_number: float = 0.0
    low: float = 0.0
    high: float = 0.0

    @property
    def default(self) -> str | float:
        return self.choices[0] if self.choices else self.default_number

    @property
    def allowed(self) -> str:
        """The values it takes, in words."""
        return ", ".join(self.choices) if self.choices else f"a number from {self.low:g} to {self.high:g}"

    def accepts(self, value: object) -> bool:
        if self.choices:
            return value in self.choices
        return isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high


_OPTION_ROWS = [
    Option(
        name="compare",
        function="score",
        choices=("row", "layer"),
        doc="where weights compete: every output row loses the same share, or one threshold holds for the matrix",
    ),
    Option(
        name="refine",
        function="score",
        choices=("none", "swaps", "dsnot", "permute"),
        doc="how the mask is improved: not at all; by swaps that lower the output error; by DSnoT's that restore "
        "means; for n:m patterns, by RIA's permutation of input columns, in layers where it is free at run time",
    ),
    Option(
        name="max_swaps",
        function="score",
        default_number=30.0,
        low=0.0,
        high=10_000.0,
        doc="swaps in each output row, at most, where refine is swaps",
    ),
    Option(
        name="protect",
        function="score",
        default_number=0.0,
        low=0.0,
        high=1.0,
        doc="share of each row's kept weights, those with the highest scores, that swaps may not prune",
    ),
    Option(
        name="update",
        function="score",
        choices=("none", "least_squares", "sparsegpt", "admm"),
        doc="what happens to the weights that stay: nothing; least squares for the layer's output; or mask and weights "
        "together, the score being asked again as weights change: sparsegpt (for 128 columns after another, or one "
        "group, with inverse_gram_diagonal of those that are left), admm",
    ),
    Option(
        name="towards_dense",
        function="score",
        default_number=0.0,
        low=0.0,
        high=1.0,
        doc="with an update: what it comes close to, from the layer's own outputs on the inputs it will receive (0) to "
        "the unpruned model's (1), which makes up for the layers before it; above 0 takes about twice the time",
    ),
    Option(
        name="granularity",
        function="allocate",
        choices=("block", "linear"),
        doc="what shares out the sparsity: whole blocks, or each linear layer by itself",
    ),
    Option(
        name="strength",
        function="allocate",
        default_number=1.0,
        low=-10.0,
        high=10.0,
        doc="what the result of allocate is multiplied by",
    ),
    Option(
        name="max_shift",
        function="allocate",
        default_number=0.15,
        low=0.0,
        high=1.0,
        doc="no layer's sparsity is further from the model's than this",
    ),
    Option(
        name="least_kept",
        function="allocate",
        default_number=0.5,
        low=0.1,
        high=1.0,
        doc="every layer keeps at least this share of what it would keep if all lost the same",
    ),
    Option(
        name="temperature",
        function="allocate",
        default_number=1.0,
        low=0.01,
        high=100.0,
        doc="the statistic of this name: a high one in softmax(x / temperature) evens layers out",
    ),
]

CHOOSES_MASK = ("sparsegpt", "admm")
"""Updates that choose the mask themselves, asking the score again as weights change: there is nothing to refine."""

OPTIONS: Mapping[str, Option] = MappingProxyType({option.name: option for option in _OPTION_ROWS})
"""Header options. Each belongs to one function and may be given only where that is defined."""


def accepted(**given: str | float | None) -> dict[str, str | float]:
    """Those of the given options that are not None; an error where a value is not allowed."""
    for name, value in given.items():
        if value is not None and not OPTIONS[name].accepts(value):
            given_text = repr(value[:40]) if isinstance(value, str) else f"{value:g}"
            raise AutopruneError(f"{name} cannot be {given_text}", remedy=f"use {OPTIONS[name].allowed}")
    return {name: value for name, value in given.items() if value is not None}


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
    """The steps of one `function`; `result` is the index of the node that is returned, `place` where it is."""

    nodes: tuple[Node, ...]
    result: int
    function: str = "score"
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
    def is_elementwise(self) -> bool:
        """Whether each element of the result depends on the statistics at its own place only."""
        return all(
            node.operator in (CONSTANT, STATISTIC) or OPERATORS[node.operator].kind == "elementwise"
            for _, node in self.steps()
        )

    @property
    def statistics(self) -> tuple[str, ...]:
        """Names of the statistics that the result depends on, in the order of the table."""
        named = {node.value for _, node in self.steps() if node.operator == STATISTIC}
        return tuple(name for name in FUNCTIONS[self.function].statistics if name in named)

    @property
    def collects(self) -> frozenset[str]:
        """What has to be measured for those statistics; empty where nothing has."""
        table = FUNCTIONS[self.function].statistics
        return frozenset(need for name in self.statistics for need in table[name].collects)


@dataclass(frozen=True, kw_only=True)
class Program:
    """A checked pruning algorithm: a score, an allocation, or both.

    `digest` identifies what it does, whatever its layout and names.
    """

    name: str
    doc: str
    text: str
    options: Mapping[str, str | float]
    score: Tape | None
    allocate: Tape | None
    canonical: str
    digest: str

    @property
    def compare(self) -> str:
        return str(self.options["compare"])

    def settings(self, function: str, **given: str | float | None) -> dict[str, str | float]:
        """The options of a function, with others where given; None leaves one as it is."""
        options = {name: self.options[name] for name, option in OPTIONS.items() if option.function == function}
        return options | accepted(**given)

    def require(self, function: str) -> Tape:
        """The tape of a function; an error where the program does not define it."""
        tape = {"score": self.score, "allocate": self.allocate}[function]
        if tape is None:
            raise AutopruneError(
                f"the program defines no {function}", where=self.name, remedy=f"add {FUNCTIONS[function].example}"
            )
        return tape

    @property
    def functions(self) -> tuple[Tape, ...]:
        """The tapes of the functions that the program defines."""
        return tuple(tape for tape in (self.score, self.allocate) if tape)
