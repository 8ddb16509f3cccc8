"""Programs made by chance: random ones, and ones made from others by a small change or by mixing two.

Everything is drawn from the generator that is handed in. Expressions are trees whose every step has a type, and what
replaces a step has its type (`productions`), so that nearly all that is made can be read. It is read all the same;
what cannot be, what is longer than allowed and what makes no sense as a score is drawn again, up to TRIES times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import islice
from random import Random

from autoprune.errors import AutopruneError, ProgramError
from autoprune.language.canonical import print_program
from autoprune.language.check import check_memory, infer_types
from autoprune.language.draw import (
    COMPARISONS,
    NUMBERS,
    OTHER_CONSTANTS,
    SCORE,
    applied,
    constant,
    drawn_production,
    fresh_arguments,
    grown,
    leaf,
    often,
    random_tree,
)
from autoprune.language.flaws import MAX_STEPS, flaws
from autoprune.language.operators import OPERATORS
from autoprune.language.parse import MAX_CONSTANT
from autoprune.language.productions import Production, leaves
from autoprune.language.program import CONSTANT, OPTIONS, STATISTIC, Option, Program, Tape
from autoprune.language.reader import read_program
from autoprune.language.space import ALLOCATE, Space
from autoprune.language.statistics import FUNCTIONS
from autoprune.language.trees import Tree, places, put, put_everywhere, shown, tape_of, tree_of
from autoprune.language.types import AXES

METHOD = ("refine", "update", "max_swaps", "protect", "towards_dense")
"""Options that are taken over together: what the numbers mean depends on the choices."""

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
    options = random_options(rng, space)
    functions = [SCORE, *[ALLOCATE] * (space.needs_allocate or (space.allocates and rng.random() < 0.3))]

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
        for name in (SCORE, ALLOCATE) if space.needs_allocate else (SCORE,):
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


def random_options(rng: Random, space: Space) -> dict[str, str | float]:
    options: dict[str, str | float] = {name: option.default for name, option in OPTIONS.items()}
    if rng.random() < 0.4:
        options["refine"], options["update"] = rng.choice(space.methods)
    for name, option in OPTIONS.items():
        if name not in ("refine", "update") and rng.random() < (0.5 if option.choices else 0.3):
            options[name] = rng.choice(option.choices or NUMBERS[name])
    return options


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
    refine, update = min(space.methods, key=lambda pair: (pair[0] != given[0]) + (pair[1] != given[1]))
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
        found = islice(flaws(tapes, str(draft.options["compare"])), most_flaws + 1)
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
            most_flaws=len(list(flaws(parent.functions, parent.compare))),
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
    path, old = rng.choice(places(tree))
    if not (new := edit(old, function, rng)):
        return None
    shared = everywhere and old.arguments
    draft = draft.with_tree(function, put_everywhere(tree, old, new) if shared else put(tree, path, new))
    return draft, f"replaced {shown(old, function)} by {shown(new, function)}"


def _other(old: Tree, function: str, rng: Random) -> Tree | None:
    """Another leaf, or the same arguments under another operator."""
    if old.operator == CONSTANT:
        assert isinstance(old.value, float)
        return constant(_near(old.value, rng) if rng.random() < 0.7 else rng.choice(OTHER_CONSTANTS))
    if old.operator == STATISTIC:
        names = [name for name in leaves(function, old.type) if name != old.value]
        return leaf(rng.choices(names, [often(name) for name in names])[0], old.type, rng) if names else None
    kinds = tuple(argument.type for argument in old.arguments)

    def fits(row: Production) -> bool:
        return row.arguments == kinds and row.operator.name != old.operator

    production = drawn_production(function, old.type, fits, rng)
    return applied(production, old.type, old.arguments) if production else None


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

    production = drawn_production(function, old.type, fits, rng)
    if not production:
        return None
    arguments = list(fresh_arguments(production, function, 0, rng))
    arguments[rng.choice([at for at, kind in enumerate(production.arguments) if kind is old.type])] = old
    return applied(production, old.type, tuple(arguments))


def _regrown(old: Tree, function: str, rng: Random) -> Tree:
    return grown(function, old.type, rng.choice((1, 2)), rng)


def _part(old: Tree, function: str, rng: Random) -> Tree | None:
    """One of the values of the same type that a step is made of."""
    parts = [step for path, step in places(old) if path and step.type is old.type]
    return rng.choice(parts) if parts else None


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
        return _set(draft, dict(zip(("refine", "update"), rng.choice(space.methods), strict=True)))
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
    return draft, f"added allocate, {shown(tree, ALLOCATE)}"


def _may_drop(draft: _Draft, space: Space) -> bool:
    return ALLOCATE in draft.trees and not space.needs_allocate


def _dropped(draft: _Draft) -> _Changed:
    return draft.without(ALLOCATE), "removed allocate: every layer loses the same"


# ---------------------------------------------------------------- moves that take something from a second program


def _take_part(second: _Draft, draft: _Draft, rng: Random, space: Space) -> _Changed | None:
    """Any part of the second program's score."""
    return _given(draft, [step for _, step in places(second.trees[SCORE])], rng)


def _take_statistic(second: _Draft, draft: _Draft, rng: Random, space: Space) -> _Changed | None:
    """A part of the second program's score with a statistic that is new to the first."""
    new = second.trees[SCORE].statistics - draft.trees[SCORE].statistics
    return _given(draft, [step for _, step in places(second.trees[SCORE]) if new & step.statistics], rng)


def _given(draft: _Draft, donors: list[Tree], rng: Random) -> _Changed | None:
    """One of the donors instead of a step of its type, or joined to a step by an operator."""
    donors = [step for step in donors if step.operator != CONSTANT]
    if not donors:
        return None
    path, old = rng.choice(places(draft.trees[SCORE]))
    alike = [step for step in donors if step.type is old.type]
    if path and alike and rng.random() < 0.7:
        # Leaves say little of where they come from.
        new = rng.choices(alike, [9 if step.arguments else 1 for step in alike])[0]
        words = f"replaced {shown(old, SCORE)} by {shown(new, SCORE)} of the second program"
    else:
        donor = rng.choice(donors)
        if not (new := _joined(old, donor, rng)):
            return None
        words = f"joined {shown(donor, SCORE)} of the second program, as {shown(new, SCORE)}"
    if shown(new, SCORE) == shown(old, SCORE):
        return None
    return draft.with_tree(SCORE, put(draft.trees[SCORE], path, new)), words


def _joined(old: Tree, donor: Tree, rng: Random) -> Tree | None:
    pair = (old.type, donor.type)

    def fits(row: Production) -> bool:
        return row.arguments in (pair, pair[::-1]) and row.operator.name not in COMPARISONS

    production = drawn_production(SCORE, old.type, fits, rng)
    if not production:
        return None
    return applied(production, old.type, (old, donor) if production.arguments == pair else (donor, old))


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
