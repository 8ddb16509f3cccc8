"""Programs made by chance: random ones, and ones made from others by a small change or by mixing two.

Everything is drawn from the generator that is handed in. Expressions are trees whose every step has a type, and what
replaces a step has its type (`productions`), so that nearly all that is made can be read. It is read all the same;
what cannot be, what is longer than allowed and what makes no sense as a score is drawn again, up to TRIES times.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from itertools import islice
from random import Random
from types import MappingProxyType

import torch
from torch import Tensor

from autoprune.errors import AutopruneError, ProgramError
from autoprune.language.canonical import canonical_tape, expressions, print_program
from autoprune.language.check import check_memory, infer_types
from autoprune.language.interpret import interpret
from autoprune.language.operators import OPERATORS
from autoprune.language.parse import MAX_CONSTANT
from autoprune.language.productions import Production, leaves, productions
from autoprune.language.program import CONSTANT, OPTIONS, STATISTIC, Node, Option, Program, Tape, TapeBuilder
from autoprune.language.reader import read_program
from autoprune.language.space import ALLOCATE, Space
from autoprune.language.statistics import FUNCTIONS
from autoprune.language.types import AXES, Type

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

METHOD = ("refine", "update", "max_swaps", "protect", "towards_dense")
"""Options that are taken over together: what the numbers mean depends on the choices."""

MAX_STEPS = 40
"""Of a function that is made here; one made from a longer one may be as long."""
MAX_PLACES = 256
"""Places of a tree, the nearest to its root, that are looked at: unfolded, a tape may be exponentially large."""
TRIES = 60


@dataclass(frozen=True)
class Variant:
    """A program made from others (canonical text), and in words what was done; "" where nothing could be."""

    text: str
    change: str


def random_program(rng: Random, space: Space) -> str:
    """A random program of the space (canonical text): a few operators deep, most options at their defaults."""
    # Drawn once, not again with every try: of small programs, and of some options, more make sense.
    budget = rng.choices((1, 2, 3, 4), (1, 4, 4, 1))[0]
    options = _random_options(rng, space)
    functions = [SCORE, *[ALLOCATE] * (_needs_allocate(space) or (space.allocates and rng.random() < 0.3))]

    def attempt() -> _Changed:
        return _Draft(options, {name: random_tree(name, budget, rng) for name in functions}), "drawn at random"

    if found := _first_sound(attempt, space, most_flaws=0, most_steps=MAX_STEPS):
        return found.text
    return _program(_Draft.of(_example(SCORE), space), space).canonical


def mutated(program: Program, rng: Random, space: Space) -> Variant:
    """The program with one thing changed: a step, a constant, an option, or whether it has an `allocate`."""
    moves = _ordered([(_change_step, 6), (_change_option, 2), (_change_allocate, 1)], rng)
    return _variant(program, moves, rng, space)


def simplified(program: Program, rng: Random, space: Space) -> Variant:
    """The program with a step replaced by a part of its own, an option at its default, or without its `allocate`."""
    return _variant(program, _ordered([(_shorten, 3), (_reset, 1)], rng), rng, space)


def crossed(program: Program, other: Program, rng: Random, space: Space) -> Variant:
    """The program with a part of the other's score instead of, or joined to, one of its own; each group of options
    and the allocation are one's or the other's."""
    second = _Draft.of(other, space)

    def mix(draft: _Draft, rng: Random, space: Space) -> _Changed | None:
        changed = _take_part(second, draft, rng, space)
        for move in _header_moves(second):
            if changed and rng.random() < 0.5 and (taken := move(changed[0], rng, space)):
                changed = taken[0], f"{changed[1]}; {taken[1]}"
        return changed

    return _variant(program, [mix], rng, space, known=(other,))


def grafted(program: Program, other: Program, rng: Random, space: Space) -> Variant:
    """The program with one idea of the other: a part with a statistic that is new to it, a group of options that are
    not defaults, or the allocation. Where the other has none of these, any part of its score."""
    second = _Draft.of(other, space)
    ideas = [(partial(_take_statistic, second), 3.0), *((move, 1.0) for move in _header_moves(second, ideas=True))]
    return _variant(program, [*_ordered(ideas, rng), partial(_take_part, second)], rng, space, known=(other,))


# ---------------------------------------------------------------- trees


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


_Path = tuple[int, ...]
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


def _places(tree: Tree) -> list[tuple[_Path, Tree]]:
    """All places, from the root down, of which at most MAX_PLACES."""
    found: list[tuple[_Path, Tree]] = [((), tree)]
    for path, step in found:  # which grows meanwhile
        room = MAX_PLACES - len(found)
        found += [((*path, position), argument) for position, argument in enumerate(step.arguments)][:room]
    return found


def _put(tree: Tree, path: _Path, new: Tree) -> Tree:
    """The tree with something else at one place."""
    if not path:
        return new
    arguments = list(tree.arguments)
    arguments[path[0]] = _put(arguments[path[0]], path[1:], new)
    return replace(tree, arguments=tuple(arguments))


def _put_everywhere(tree: Tree, old: Tree, new: Tree) -> Tree:
    """The tree with something else at all places of a shared step."""
    done: dict[int, Tree] = {id(old): new}

    def renewed(step: Tree) -> Tree:
        if id(step) not in done:
            done[id(step)] = replace(step, arguments=tuple(renewed(argument) for argument in step.arguments))
        return done[id(step)]

    return renewed(tree)


def _shown(tree: Tree, function: str) -> str:
    """A tree in the words of the language, not too long."""
    *shared, (_, _, text) = expressions(tape_of(tree, function))
    text += " where " * bool(shared) + ", ".join(f"{name} = {step}" for _, name, step in shared)
    return text if len(text) <= 120 else f"{text[:117]}..."


# ---------------------------------------------------------------- random trees


def _often(name: str) -> float:
    return OFTEN.get(name, 1.0)


@cache
def _applications(function: str, target: Type) -> tuple[tuple[Production, float], ...]:
    """Productions with how often they are drawn: an operator's ways to make the type share what the operator has."""
    rows = productions(function, target)
    total: dict[str, float] = {}
    for row in rows:
        total[row.operator.name] = total.get(row.operator.name, 0.0) + _share(row)
    return tuple((row, _often(row.operator.name) * _share(row) / total[row.operator.name]) for row in rows)


def _share(production: Production) -> float:
    """How often the types of a production's arguments are drawn together; an exponent is mostly a constant."""
    odd = production.operator.name in CONSTANTS and production.arguments[1] is not Type.SCALAR
    return math.prod(_often(kind) for kind in production.arguments) * (0.05 if odd else 1)


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
        row for row in _applications(function, target) if roots not in fits or fits[roots](row[0])
    ]
    if roots in ("any", "least"):
        names = [*leaves(function, target), *[CONSTANT] * (target is Type.SCALAR)]
        choices += [(name, _often(name)) for name in names]
    return [choice for choice, _ in choices], [weight for _, weight in choices]


def _grown(function: str, target: Type, budget: int, rng: Random, roots: str = "any") -> Tree:
    """A random tree of a type, `budget` operators deep at most, reductions not counted."""
    choice = rng.choices(*_choices(function, target, roots if budget > 0 else "least"))[0]
    if isinstance(choice, str):
        return _leaf(choice, target, rng)
    budget -= choice.operator.kind != "reduce"
    return _applied(choice, target, tuple(_arguments(choice, function, budget, rng)))


def _arguments(production: Production, function: str, budget: int, rng: Random) -> Iterator[Tree]:
    name = production.operator.name
    for position, kind in enumerate(production.arguments):
        if name == "where" and position == 0:
            yield _grown(function, kind, 1, rng, roots="comparisons")
        elif name in CONSTANTS and position == 1 and kind is Type.SCALAR:
            yield _constant(rng.choice(CONSTANTS[name]))
        else:
            yield _grown(function, kind, budget, rng)


def _applied(production: Production, target: Type, arguments: tuple[Tree, ...]) -> Tree:
    return Tree(production.operator.name, target, arguments, over=production.over)


def _leaf(name: str, target: Type, rng: Random) -> Tree:
    if name == CONSTANT:
        return _constant(rng.choice(OTHER_CONSTANTS))
    leaf = Tree(STATISTIC, target, value=name)
    # A layer and its negative deserve the same mask, so the sign of a weight seldom says anything.
    return Tree("abs", target, (leaf,)) if name == "weight" and rng.random() < 0.9 else leaf


def _constant(value: float) -> Tree:
    return Tree(CONSTANT, Type.SCALAR, value=float(value))


def random_tree(function: str, budget: int, rng: Random) -> Tree:
    """What a function may return, `budget` operators deep at most: not yet whether it makes sense."""
    if function == SCORE:
        return _grown(function, Type.RC, budget, rng, roots="chains")
    tree = _grown(function, Type.L, rng.randrange(budget + 1), rng)
    scaled = rng.random() < 0.7  # `strength` is in units of what is returned
    return Tree(rng.choice(("minmax", "standardize", "rank")), Type.L, (tree,), over="all") if scaled else tree


def _random_options(rng: Random, space: Space) -> dict[str, str | float]:
    options: dict[str, str | float] = {name: option.default for name, option in OPTIONS.items()}
    if rng.random() < 0.4:
        options["refine"], options["update"] = rng.choice(_methods(space))
    for name, option in OPTIONS.items():
        if name not in ("refine", "update") and rng.random() < (0.5 if option.choices else 0.3):
            options[name] = rng.choice(option.choices or NUMBERS[name])
    return options


# ---------------------------------------------------------------- drafts: a program in parts


@dataclass(frozen=True)
class _Draft:
    """A program in the making: its options, of which some may say nothing until it is `_settled`, and its functions."""

    options: Mapping[str, str | float]
    trees: Mapping[str, Tree]

    @classmethod
    def of(cls, program: Program, space: Space) -> _Draft:
        """The program, made to fit a space that it may not be from."""
        tapes = [tape for tape in program.functions if tape.function in space.functions and _searched(tape)]
        trees = {tape.function: tree_of(tape) for tape in tapes}
        for name in (SCORE, ALLOCATE) if _needs_allocate(space) else (SCORE,):
            trees.setdefault(name, tree_of(_example(name).require(name)))
        return _settled(cls(program.options, trees), space)

    def with_options(self, options: Mapping[str, str | float]) -> _Draft:
        return replace(self, options={**self.options, **options})

    def with_tree(self, function: str, tree: Tree) -> _Draft:
        return replace(self, trees={**self.trees, function: tree})

    def without(self, function: str) -> _Draft:
        return replace(self, trees={name: tree for name, tree in self.trees.items() if name != function})


_Changed = tuple[_Draft, str]
"""A changed draft, and the change in words."""
_Move = Callable[[_Draft, Random, Space], _Changed | None]
"""Makes one change, after which types may not fit; None where there is nothing of the kind at the place it drew."""


def _searched(tape: Tape) -> bool:
    return all(FUNCTIONS[tape.function].statistics[name].searched for name in tape.statistics)


@cache
def _example(function: str) -> Program:
    return read_program(FUNCTIONS[function].example)


def _methods(space: Space) -> tuple[tuple[str, str], ...]:
    """The pairs of refine and update of the space's programs; towards_dense takes an update."""
    pairs = tuple(pair for pair in space.methods if pair[1] != "none" or not space.frozen.get("towards_dense"))
    if not pairs:
        raise AutopruneError("no program has all the frozen options together", where="--freeze", remedy="freeze fewer")
    return pairs


def _needs_allocate(space: Space) -> bool:
    """Whether an option is frozen that only a program with an allocation can have."""
    frozen = (name for name, value in space.frozen.items() if value != OPTIONS[name].default)
    return space.allocates and any(OPTIONS[name].function == ALLOCATE for name in frozen)


def _says(name: str, draft: _Draft, space: Space) -> bool:
    """Whether an option makes a difference to what a draft does."""
    if (function := OPTIONS[name].function) not in draft.trees:
        return False
    match name:
        case "compare":
            return not space.pattern  # the groups of an n:m pattern are what competes
        case "max_swaps" | "protect":
            return draft.options["refine"] == "swaps"
        case "towards_dense":
            return draft.options["update"] != "none"
        case "temperature":
            return name in draft.trees[function].statistics
    return True


def _settled(draft: _Draft, space: Space) -> _Draft:
    """The draft with options as the space has them, and at their defaults where they say nothing."""
    frozen = {name: value for name, value in space.frozen.items() if OPTIONS[name].function in draft.trees}
    given = draft.options["refine"], draft.options["update"]
    refine, update = min(_methods(space), key=lambda pair: (pair[0] != given[0]) + (pair[1] != given[1]))
    draft = draft.with_options({"refine": refine, "update": update})
    silent = {name: option.default for name, option in OPTIONS.items() if not _says(name, draft, space)}
    return draft.with_options({**silent, **frozen})


def _program(draft: _Draft, space: Space) -> Program:
    """The program that a settled draft is."""
    return _printed(draft, _tapes(draft), space)


def _printed(draft: _Draft, tapes: Sequence[Tape], space: Space) -> Program:
    program = read_program(print_program(draft.options, tapes))
    if refusal := space.refusal(program):
        raise AutopruneError(refusal)
    return program


def _tapes(draft: _Draft) -> list[Tape]:
    """The functions of a draft; an error where one cannot be read."""
    tapes = [tape_of(draft.trees[name], name) for name in FUNCTIONS if name in draft.trees]
    for tape in tapes:
        check_memory(tape, infer_types(tape))
    return tapes


def _steps(tapes: Sequence[Tape]) -> int:
    return max(len(tape.nodes) for tape in tapes)


def _first_sound(
    attempt: Callable[[], _Changed | None],
    space: Space,
    *,
    most_flaws: int,
    most_steps: int,
    known: frozenset[str] = frozenset(),
) -> Variant | None:
    """The first result of a few attempts that is a program of the space, not known, neither too long nor senseless."""
    for _ in range(TRIES):
        if not (changed := attempt()):
            continue
        draft = _settled(changed[0], space)
        try:
            tapes = _tapes(draft)
        except ProgramError:  # types that do not fit over another axis, or too many matrices alive
            continue
        found = islice(_flaws(tapes, str(draft.options["compare"])), most_flaws + 1)
        if _steps(tapes) > most_steps or len(list(found)) > most_flaws:
            continue
        program = _printed(draft, tapes, space)
        if program.digest not in known:
            return Variant(program.canonical, changed[1])
    return None


def _variant(
    program: Program, moves: Sequence[_Move], rng: Random, space: Space, known: tuple[Program, ...] = ()
) -> Variant:
    """What the first move that succeeds makes of a program: no more flawed than it is; else the program itself."""
    draft = _Draft.of(program, space)
    parent = _program(draft, space)
    for move in moves:
        found = _first_sound(
            partial(move, draft, rng, space),
            space,
            most_flaws=len(list(_flaws(parent.functions, parent.compare))),
            most_steps=max(MAX_STEPS, _steps(parent.functions)),
            known=frozenset({parent.digest, *(other.digest for other in known)}),
        )
        if found:
            return found
    return Variant(parent.canonical, "")


def _ordered(moves: Sequence[tuple[_Move, float]], rng: Random) -> list[_Move]:
    """All moves in a random order; the first is each with a probability proportional to its weight. Since a move is
    tried until it succeeds, those that often fail are no rarer than they should be."""
    keyed = sorted(moves, key=lambda pair: -(rng.random() ** (1 / pair[1])))  # Efraimidis and Spirakis, 2006
    return [move for move, _ in keyed]


# ---------------------------------------------------------------- moves: one change of a draft


def _change_step(draft: _Draft, rng: Random, space: Space) -> _Changed | None:
    edit = rng.choices((_other, _turned, _wrapped, _regrown, _part), (5, 3, 3, 2, 1))[0]
    return _edited(edit, draft, rng, everywhere=rng.random() < 0.5)


def _shorten(draft: _Draft, rng: Random, space: Space) -> _Changed | None:
    return _edited(_part, draft, rng, everywhere=True)


def _edited(
    edit: Callable[[Tree, str, Random], Tree | None], draft: _Draft, rng: Random, *, everywhere: bool
) -> _Changed | None:
    """Something else in place of a step; of one that occurs more than once, perhaps everywhere."""
    function = rng.choices(list(draft.trees), [2 if name == SCORE else 1 for name in draft.trees])[0]
    tree = draft.trees[function]
    path, old = rng.choice(_places(tree))
    if not (new := edit(old, function, rng)):
        return None
    shared = everywhere and old.arguments
    draft = draft.with_tree(function, _put_everywhere(tree, old, new) if shared else _put(tree, path, new))
    return draft, f"replaced {_shown(old, function)} by {_shown(new, function)}"


def _other(old: Tree, function: str, rng: Random) -> Tree | None:
    """Another leaf, or the same arguments under another operator."""
    if old.operator == CONSTANT:
        assert isinstance(old.value, float)
        return _constant(_near(old.value, rng) if rng.random() < 0.7 else rng.choice(OTHER_CONSTANTS))
    if old.operator == STATISTIC:
        names = [name for name in leaves(function, old.type) if name != old.value]
        return _leaf(rng.choices(names, [_often(name) for name in names])[0], old.type, rng) if names else None
    kinds = tuple(argument.type for argument in old.arguments)

    def fits(row: Production) -> bool:
        return row.arguments == kinds and row.operator.name != old.operator

    production = _drawn(function, old.type, fits, rng)
    return _applied(production, old.type, old.arguments) if production else None


def _turned(old: Tree, function: str, rng: Random) -> Tree | None:
    """The same operator over another axis, which may change the type, or with its two arguments the other way round."""
    if not old.over:
        return replace(old, arguments=old.arguments[::-1]) if len(old.arguments) == 2 else None
    over = rng.choice([axis for axis in AXES if axis != old.over])
    kind = OPERATORS[old.operator].result_type(tuple(argument.type for argument in old.arguments), over)
    return replace(old, over=over, type=kind) if kind else None


def _wrapped(old: Tree, function: str, rng: Random) -> Tree | None:
    """An operator with the old step as one of its arguments, and new ones beside it."""

    def fits(row: Production) -> bool:
        return old.type in row.arguments and row.operator.name != "where"  # it would be the condition

    production = _drawn(function, old.type, fits, rng)
    if not production:
        return None
    arguments = list(_arguments(production, function, 0, rng))
    arguments[rng.choice([at for at, kind in enumerate(production.arguments) if kind is old.type])] = old
    return _applied(production, old.type, tuple(arguments))


def _regrown(old: Tree, function: str, rng: Random) -> Tree:
    return _grown(function, old.type, rng.choice((1, 2)), rng)


def _part(old: Tree, function: str, rng: Random) -> Tree | None:
    """One of the values of the same type that a step is made of."""
    parts = [step for path, step in _places(old) if path and step.type is old.type]
    return rng.choice(parts) if parts else None


def _drawn(function: str, target: Type, fits: Callable[[Production], bool], rng: Random) -> Production | None:
    rows = [row for row in _applications(function, target) if fits(row[0])]
    return rng.choices([row for row, _ in rows], [often for _, often in rows])[0] if rows else None


def _near(value: float, rng: Random) -> float:
    """A number a factor or a step away, of few digits."""
    step = 1 if abs(value) >= 2 else 0.1
    near = value * rng.choice((0.5, 0.8, 1.25, 2)) if rng.random() < 0.6 else value + rng.choice((-step, step))
    return max(-MAX_CONSTANT, min(MAX_CONSTANT, float(f"{near:.3g}")))


def _change_option(draft: _Draft, rng: Random, space: Space) -> _Changed | None:
    names = [name for name in OPTIONS if name not in space.frozen and _says(name, draft, space)]
    if not names:
        return None
    name = rng.choice(names)
    if name in ("refine", "update"):
        return _set(draft, dict(zip(("refine", "update"), rng.choice(_methods(space)), strict=True)))
    return _set(draft, {name: _other_value(OPTIONS[name], draft.options[name], rng)})


def _other_value(option: Option, value: str | float, rng: Random) -> str | float:
    if isinstance(value, str):
        return rng.choice([choice for choice in option.choices if choice != value])
    near = _near(value, rng) if rng.random() < 0.5 else rng.choice(NUMBERS[option.name])
    near = round(near) if option.name == "max_swaps" else near
    return max(option.low, min(option.high, near))


def _set(draft: _Draft, options: Mapping[str, str | float]) -> _Changed | None:
    words = [
        f"{name} from {_value(draft.options[name])} to {_value(value)}"
        for name, value in options.items()
        if value != draft.options[name]
    ]
    return (draft.with_options(options), f"changed {', '.join(words)}") if words else None


def _value(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _reset(draft: _Draft, rng: Random, space: Space) -> _Changed | None:
    """An option at its default, or no allocation."""
    free = [name for name, option in OPTIONS.items() if draft.options[name] != option.default]
    names = [name for name in free if name not in space.frozen] + [ALLOCATE] * _may_drop(draft, space)
    if not names:
        return None
    name = rng.choice(names)
    return _dropped(draft) if name == ALLOCATE else _set(draft, {name: OPTIONS[name].default})


def _change_allocate(draft: _Draft, rng: Random, space: Space) -> _Changed | None:
    if _may_drop(draft, space):
        return _dropped(draft)
    if ALLOCATE in draft.trees or not space.allocates:
        return None
    tree = random_tree(ALLOCATE, 1, rng)
    draft = draft.with_tree(ALLOCATE, tree).with_options({"strength": rng.choice(NUMBERS["strength"])})
    return draft, f"added allocate, {_shown(tree, ALLOCATE)}"


def _may_drop(draft: _Draft, space: Space) -> bool:
    return ALLOCATE in draft.trees and not _needs_allocate(space)


def _dropped(draft: _Draft) -> _Changed:
    return draft.without(ALLOCATE), "removed allocate: every layer loses the same"


# ---------------------------------------------------------------- moves that take something from a second program


def _take_part(second: _Draft, draft: _Draft, rng: Random, space: Space) -> _Changed | None:
    """Any part of the second program's score."""
    return _given(draft, [step for _, step in _places(second.trees[SCORE])], rng)


def _take_statistic(second: _Draft, draft: _Draft, rng: Random, space: Space) -> _Changed | None:
    """A part of the second program's score with a statistic that is new to the first."""
    new = second.trees[SCORE].statistics - draft.trees[SCORE].statistics
    return _given(draft, [step for _, step in _places(second.trees[SCORE]) if new & step.statistics], rng)


def _given(draft: _Draft, donors: list[Tree], rng: Random) -> _Changed | None:
    """One of the donors instead of a step of its type, or joined to a step by an operator."""
    donors = [step for step in donors if step.operator != CONSTANT]
    if not donors:
        return None
    path, old = rng.choice(_places(draft.trees[SCORE]))
    alike = [step for step in donors if step.type is old.type]
    if path and alike and rng.random() < 0.7:
        # Leaves say little of where they come from.
        new = rng.choices(alike, [9 if step.arguments else 1 for step in alike])[0]
        words = f"replaced {_shown(old, SCORE)} by {_shown(new, SCORE)} of the second program"
    else:
        donor = rng.choice(donors)
        if not (new := _joined(old, donor, rng)):
            return None
        words = f"joined {_shown(donor, SCORE)} of the second program, as {_shown(new, SCORE)}"
    if _shown(new, SCORE) == _shown(old, SCORE):
        return None
    return draft.with_tree(SCORE, _put(draft.trees[SCORE], path, new)), words


def _joined(old: Tree, donor: Tree, rng: Random) -> Tree | None:
    pair = (old.type, donor.type)

    def fits(row: Production) -> bool:
        return row.arguments in (pair, pair[::-1]) and row.operator.name not in COMPARISONS

    production = _drawn(SCORE, old.type, fits, rng)
    if not production:
        return None
    return _applied(production, old.type, (old, donor) if production.arguments == pair else (donor, old))


def _header_moves(second: _Draft, *, ideas: bool = False) -> list[_Move]:
    """What else can be taken: groups of options, the allocation. `ideas` leaves out those that are all defaults."""
    groups = [names for names in (("compare",), METHOD) if not ideas or _unusual(second, names)]
    return [*(partial(_take_options, second, names) for names in groups), partial(_take_allocate, second)]


def _unusual(draft: _Draft, names: tuple[str, ...]) -> bool:
    return any(draft.options[name] != OPTIONS[name].default for name in names)


def _take_options(second: _Draft, names: tuple[str, ...], draft: _Draft, rng: Random, space: Space) -> _Changed | None:
    return _set(draft, {name: second.options[name] for name in names})


def _take_allocate(second: _Draft, draft: _Draft, rng: Random, space: Space) -> _Changed | None:
    if not (tree := second.trees.get(ALLOCATE)):
        return None
    options = {name: second.options[name] for name, option in OPTIONS.items() if option.function == ALLOCATE}
    return draft.with_tree(ALLOCATE, tree).with_options(options), "took allocate of the second program"


# ---------------------------------------------------------------- what makes no sense

_SHAPES = {Type.SCALAR: (1, 1), Type.R: (6, 1), Type.C: (1, 40), Type.RC: (6, 40), Type.CC: (40, 40), Type.L: (1, 9)}


@cache
def _made_up(function: str) -> Mapping[str, Tensor]:
    """Statistics of a layer, or of layers, that never were: inputs about 1, weights of all sizes up to that."""
    generator = torch.Generator().manual_seed(0)

    def drawn(kind: Type) -> Tensor:
        positive = torch.randn(_SHAPES[kind], generator=generator).exp()
        return positive.T @ positive / len(positive) if kind is Type.CC else positive

    values = {name: drawn(row.type) for name, row in FUNCTIONS[function].statistics.items()}
    if function == SCORE:
        values["input_mean"] *= torch.randn(_SHAPES[Type.C], generator=generator).sign()
        size_R1 = torch.logspace(-2, 0, _SHAPES[Type.R][0])[:, None]
        values["weight"] = size_R1 * torch.randn(_SHAPES[Type.RC], generator=generator)
    return MappingProxyType(values)


def _flaws(tapes: Sequence[Tape], compare: str) -> Iterator[str]:
    """The ways in which functions make no sense, those that are quick to see first."""
    for tape in tapes:
        yield from _score_flaws(tape) if tape.function == SCORE else _allocate_flaws(tape)
    for tape in tapes:
        if len(tape.nodes) <= MAX_STEPS:
            yield from _idle_steps(tape, compare)


def _score_flaws(tape: Tape) -> Iterator[str]:
    """A score tells the weights of a row apart, by the weights themselves, in the same way for a layer and its
    negative (which are equally hard to prune), and more often than not the larger one has the higher score."""
    layer = _made_up(SCORE)
    weight_RC = layer["weight"]
    score_RC = interpret(tape, layer)
    order_RC = _order(score_RC)
    ranks = torch.stack([order_RC.argsort().flatten(), _order(weight_RC.abs()).argsort().flatten()])
    if float(torch.corrcoef(ranks.float())[0, 1]) < 0.1:
        yield "large weights have low scores"
    if len(score_RC.unique()) < score_RC.numel() / 3:
        yield "many weights have the same score"
    if not torch.equal(order_RC, _order(interpret(tape, {**layer, "weight": -weight_RC}))):
        yield "the sign of weights matters"
    if torch.equal(order_RC, _order(interpret(tape, {**layer, "weight": weight_RC.flip(1)}))):
        yield "weights do not matter"


def _allocate_flaws(tape: Tape) -> Iterator[str]:
    """An allocation tells layers apart."""
    if len(interpret(tape, _made_up(ALLOCATE)).unique()) < 2:
        yield "all layers are alike"


def _idle_steps(tape: Tape, compare: str) -> Iterator[str]:
    """Steps of a canonical tape that could be left out: with a part of theirs instead, or a constant, the same is
    pruned."""
    layer, types = _made_up(tape.function), infer_types(tape)
    leaves = {index: _leaf_value(node, layer) for index, node in enumerate(tape.nodes) if not node.arguments}
    values = _passed_on(tape, {}, leaves)
    effect = _effect(values[tape.result], tape.function, compare)
    for index, node in enumerate(tape.nodes):
        near = {part for argument in node.arguments for part in (argument, *tape.nodes[argument].arguments)}
        shorter = (values[part] for part in sorted(near) if types[part] is types[index])
        results = (_passed_on(tape, values, {index: value})[tape.result] for value in shorter)
        if types[index] is not Type.SCALAR and bool((values[index] == values[index][0, 0]).all()):
            yield f"{node.operator} is the same everywhere"
        elif any(torch.allclose(_effect(r, tape.function, compare), effect, rtol=1e-4, atol=1e-6) for r in results):
            yield f"{node.operator} makes no difference"


def _leaf_value(node: Node, layer: Mapping[str, Tensor]) -> Tensor:
    return layer[node.value] if isinstance(node.value, str) else torch.tensor([[node.value]])


def _passed_on(tape: Tape, values: Mapping[int, Tensor], changed: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """The values of steps once some have changed, and with them those that depend on them."""
    new = dict(changed)
    for index, node in enumerate(tape.nodes):
        if index not in new and not new.keys().isdisjoint(node.arguments):
            arguments = (new[argument] if argument in new else values[argument] for argument in node.arguments)
            new[index] = OPERATORS[node.operator](*arguments, over=node.over)
    return {**values, **new}


def _effect(result: Tensor, function: str, compare: str) -> Tensor:
    """What of a result counts: the order of scores that compete; how allocations differ, since all layers are shifted
    to meet the model's sparsity."""
    if function == ALLOCATE:
        return result - result.mean()
    return _order(result if compare == "row" else result.reshape(1, -1)).float()


def _order(score_RC: Tensor) -> Tensor:
    return score_RC.argsort(dim=1, stable=True)
