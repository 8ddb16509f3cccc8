"""A grammar of replies for llguidance: whatever text it derives holds a program that parses, type-checks and fits.

It is written from the tables of the language. A rule stands for the expressions of a type up to a depth, so that types
fit and every reply ends. The rules are parametric (llguidance's extension of Lark): what follows `::` is the set of
names that may be read, one bit a name, to which each parameter of a function and its local variable add theirs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, reduce
from itertools import product

from autoprune.errors import AutopruneError
from autoprune.language.canonical import _ATOM, _NEGATION, _POWER, _PRECEDENCE
from autoprune.language.operators import OPERATORS, Operator
from autoprune.language.productions import TYPES, Production, leaves, productions
from autoprune.language.program import OPTIONS, Option
from autoprune.language.space import ALLOCATE, Space
from autoprune.language.statistics import FUNCTIONS
from autoprune.language.types import Type

_DEPTH = {"score": 4, "allocate": 4}
_LOCAL_DEPTH = {"score": 2, "allocate": 3}
"""How deep an expression nests, by function: what is returned, and what the local variable is defined as. A name or a
number has depth 0, an operator one more than its deepest operand, or two more where it has three of them.

No more than MAX_LIVE matrices are ever alive. Take the moment before a step. A matrix that is alive is read by a step
that is still to come; mark one place in the expressions where it is. No mark is inside another's expression, all of
which has been computed. Count 1 for a marked operator and 1/2 for a marked name: an expression of depth d counts at
most 2^(d - 1), by induction, as twice that of depth d - 1 or three times that of depth d - 2 does not exceed it. For
operators and names of matrices in both expressions, n + m / 2 <= 2^3 + 2^1 = 10. The names are weight, gradient and
gram, so n + m <= 10 + 3 / 2. With the step's own result that is 12. Once the local variable has been computed it is
one more name, but no mark is left in its expression: n + m <= 8 + 4 / 2, and 11 with the result. Equal steps are one,
in whatever order they run, which changes none of this. Steps are at most 31 + 7 and the parameters, far from MAX_NODES.
"""

_MAX_PARAMETERS = 6
"""Statistics that one function names."""

MAX_CHARACTERS = 2048
"""No program is longer."""

_LOCAL = "t1"

_NUMBER = r"(0|[1-9][0-9]{0,2})(\.[0-9]{1,3})?|1e-[1-9]"
_EFFECT = r"-[0-9]\.[0-9]{1,3}"
"""Nobody proposes what will be worse; small models copy a parent's damage here unless held to it."""

_FIELD = r"[A-Za-z][A-Za-z0-9 .,;:()'+*\/=%_-]"
"""Prose: no character that begins a code fence, JSON, or a model's special token."""

_DECADES = {
    0.01: r"0\.0[1-9]",
    0.1: r"0\.[1-9][0-9]?",
    1: r"[1-9](\.[0-9])?",
    10: "[1-9][0-9]",
    100: "[1-9][0-9]0",
    1000: "[1-9][0-9]00",
}
"""Numbers of at most two digits that count, by the decade in which they are."""


def grammar(space: Space, *, max_field: int = 160) -> str:
    """Replies with programs of the space; diagnosis and hypothesis have up to `max_field` characters."""
    lines = [
        r'start: "diagnosis: " FIELD "\nhypothesis: " FIELD "\npredicted: " EFFECT "\nprogram:\n```python\n" '
        r'program "\n```"',
        f"FIELD: /{_FIELD}{{0,{max_field - 1}}}/",
        f"EFFECT: /{_EFFECT}/",
        f"NUMBER: /{_NUMBER}/",
        f"SIGNED: /-?({_NUMBER})/",
        *_program(space),
        *(f"{name}: {_either(map(json.dumps, spellings))}" for name, spellings in _terminals().items()),
    ]
    for function in space.functions:
        lines += _FunctionRules(function).lines()
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------------------------------------------------------------
# options


def _program(space: Space) -> list[str]:
    """Options, then the functions. Where an option of allocate is frozen at another value than its default, a program
    has to set it, and so to define allocate."""
    methods = [method for method in space.methods if method[1] != "none" or not space.frozen.get("towards_dense")]
    if not methods:
        raise AutopruneError("no program can have all of that", where="--freeze", remedy="freeze less")
    programs = [r'score_options "\n"? score']
    lines = [f"score_options: {_either(_score_options(space, *method) for method in methods)}"]
    if space.allocates:
        options = [option for option in OPTIONS.values() if option.function == ALLOCATE]
        both = r'score_options allocate_options "\n"? score "\n\n" allocate'
        needed = any(space.frozen.get(option.name, option.default) != option.default for option in options)
        programs = [both] if needed else [*programs, both]
        lines.append(f"allocate_options: {_sequence(_setting(space, option) for option in options)}")
    numbers = [option for option in OPTIONS.values() if not option.choices and option.function in space.functions]
    lines += [f"{option.name.upper()}: /{_numbers(option)}/" for option in numbers]
    return [f"program: {_either(programs)}", *lines]


def _score_options(space: Space, refine: str, update: str) -> str:
    """The lines that set options of score, for a pair of methods. What does nothing there is left out."""
    method = {"refine": refine, "update": update}
    idle = {"max_swaps": refine != "swaps", "protect": refine != "swaps", "towards_dense": update == "none"}
    parts = []
    for option in OPTIONS.values():
        if option.name in method:
            parts.append(_set_to(option, method[option.name]))
        elif option.function == "score" and (option.name in space.frozen or not idle.get(option.name)):
            parts.append(_setting(space, option))
    return _sequence(parts)


def _sequence(parts: Iterable[str]) -> str:
    return " ".join(filter(None, parts)) or '""'


def _setting(space: Space, option: Option) -> str:
    """The line that sets an option, which a program may leave out unless it is frozen."""
    if option.name in space.frozen:
        return _set_to(option, space.frozen[option.name])
    if option.choices:
        return f"({_either(_set_to(option, choice) for choice in option.choices[1:])})?"
    return rf'("{option.name} = " {option.name.upper()} "\n")?'


def _set_to(option: Option, value: str | float) -> str:
    """The line that sets an option to a value; none for the default."""
    return json.dumps(f"{option.name} = {json.dumps(value)}\n") if value != option.default else ""


def _numbers(option: Option) -> str:
    """Numbers that an option takes: its bounds, 0, and two digits in each of the upper decades."""
    low, high = option.low, option.high
    spelled = [text for decade, text in _DECADES.items() if low <= decade and high / 1000 <= decade <= high / 10]
    bounds = [f"{bound:g}".replace(".", r"\.") for bound in (max(low, 0.0), high)]
    return f"{'-?' if low < 0 else ''}({'|'.join([*bounds, *spelled])})"


# ---------------------------------------------------------------------------------------------------------------------
# expressions


def _binding(operator: Operator) -> int:
    """How tightly an operator's spelling binds, as the printer has it."""
    if not operator.symbol:
        return _ATOM
    return _NEGATION if operator.arity == 1 else _PRECEDENCE.get(operator.symbol, _POWER)


def _terminal(operator: Operator) -> str:
    """Operators of one terminal may stand for each other: they have type rule, arity and place in a formula alike."""
    return f"{operator.kind}_{operator.arity}_{_binding(operator)}".upper()


def _terminals() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for operator in OPERATORS.values():
        infix = f" {operator.symbol} " if operator.arity == 2 else operator.symbol
        found.setdefault(_terminal(operator), []).append(infix if operator.symbol else f"{operator.name}(")
    return found


def _either(alternatives: Iterable[str]) -> str:
    return " | ".join(dict.fromkeys(alternatives))


@dataclass(frozen=True)
class _Form:
    """A production where a scalar argument may be a number (None) instead."""

    production: Production
    arguments: tuple[Type | None, ...]

    def below(self, depth: int) -> int:
        """How deep the operands may be; below 0 there is no such expression."""
        return depth - max(1, len(self.arguments) - 1)


@cache
def _forms(function: str, kind: Type, depth: int) -> tuple[_Form, ...]:
    """All that the grammar has up to a depth. What it leaves out is what small models ramble into:

    A matrix is made of a matrix, never of a row and a column alone: so a score depends on weights or gradients.
    An operator of numbers alone is a number; one may as well write it.
    An exponent is a scalar: else a formula that lacks a matrix has one tacked on there, as in 2 ** weight.
    """
    found = []
    for production in productions(function, kind):
        lacks_matrix = kind is Type.RC and Type.RC not in production.arguments
        if lacks_matrix or (production.operator.symbol == "**" and production.arguments[1] is not Type.SCALAR):
            continue
        choices = [(argument, None) if argument is Type.SCALAR else (argument,) for argument in production.arguments]
        found += [_Form(production, arguments) for arguments in product(*choices) if any(arguments)]
    return tuple(form for form in found if form.below(depth) >= 0)


@cache
def _always(function: str, depth: int) -> frozenset[Type | None]:
    """Types that have an expression up to a depth whatever a function's parameters are: one of the type of its result
    there always is."""
    found: set[Type | None] = {None, FUNCTIONS[function].result}
    for kind in TYPES[function]:
        forms = _forms(function, kind, depth)
        if any(_always(function, form.below(depth)).issuperset(form.arguments) for form in forms):
            found.add(kind)
    return frozenset(found)


class _FunctionRules:
    """The rules of one function.

    Names of rules: `score_rc_3` are the expressions of a type up to a depth; with `_is4` those that bind just so
    tightly, with `_from4` those that can be an operand where a looser one is put in parentheses.
    """

    def __init__(self, function: str):
        self.function, self.result = function, FUNCTIONS[function].result
        self.bit: dict[str, int] = {}
        self.local: dict[Type, int] = {}  # the bit that the local variable has where it is of a type
        self.known: dict[Type, str] = {}  # the condition that a name of a type may be read: any bit in a range
        size = 0
        for kind in TYPES[function]:
            start, names = size, leaves(function, kind)
            self.bit |= {name: start + position for position, name in enumerate(names)}
            self.local[kind] = start + len(names)
            size = start + len(names) + 1
            self.known[kind] = f"ne([{start}:{size}], 0)"

    def lines(self) -> Iterator[str]:
        yield from self._signature()
        yield from self._body()
        for kind in TYPES[self.function]:
            for depth in range(_DEPTH[self.function] + 1):
                yield from self._expressions(kind, depth)

    def _signature(self) -> Iterator[str]:
        """Parameters in any order, each once; one at least has the type of the result, for which there is always
        room."""
        first, rest = [], []
        vital = leaves(self.function, self.result)
        for name, bit in self.bit.items():
            most = _MAX_PARAMETERS - (name not in vital)
            first.append(f'"{name}" {self.function}_rest::set_bit({bit})')
            rest.append(
                f'", {name}" {self.function}_rest::set_bit({bit}) %if and(bit_clear({bit}), bit_count_lt(_, {most}))'
            )
        rest.append(rf'"):\n    " {self.function}_body::_ %if {self.known[self.result]}')
        yield f'{self.function}: "def {self.function}(" {self.function}_first::0'
        yield f"{self.function}_first::_: {_either(first)}"
        yield f"{self.function}_rest::_: {_either(rest)}"

    def _body(self) -> Iterator[str]:
        result = self._name(self.result, _DEPTH[self.function])
        bodies = [f'"return " {result}::_']
        for kind, bit in self.local.items():
            depth = _LOCAL_DEPTH[self.function]
            local = rf'"{_LOCAL} = " {self._name(kind, depth)}::_ "\n    return " {result}::set_bit({bit})'
            bodies.append(local + self._where([kind], depth))
        yield f"{self.function}_body::_: {_either(bodies)}"

    def _expressions(self, kind: Type, depth: int) -> Iterator[str]:
        name = self._name(kind, depth)
        by_binding: dict[int, list[str]] = {_ATOM: self._names(kind)}
        for form in _forms(self.function, kind, depth):
            by_binding.setdefault(_binding(form.production.operator), []).append(self._application(form, depth))
        for binding, alternatives in by_binding.items():
            yield f"{name}_is{binding}::_: {_either(alternatives)}"
        yield f"{name}::_: {_either(f'{name}_is{binding}::_' for binding in by_binding)}"
        loose = [f"{name}_is{binding}::_" for binding in by_binding if binding < _ATOM]
        for least in range(2, _ATOM + 1):
            operands = [f"{name}_is{binding}::_" for binding in by_binding if binding >= least]
            if loose:  # what is in parentheses may be bound tightly enough without: models like to write it so
                operands.append(f'"(" ({_either(loose)}) ")"' + self._where([kind], depth - 1))
            yield f"{name}_from{least}::_: {_either(operands)}"

    def _names(self, kind: Type) -> list[str]:
        bits = {name: self.bit[name] for name in leaves(self.function, kind)} | {_LOCAL: self.local[kind]}
        return [f'"{name}" %if bit_set({bit})' for name, bit in bits.items()]

    def _application(self, form: _Form, depth: int) -> str:
        operator, over, below = form.production.operator, form.production.over, form.below(depth)
        terminal, binding = _terminal(operator), _binding(operator)
        if not operator.symbol:
            operands = ' ", " '.join(self._operand(kind, below) for kind in form.arguments)
            end = f', over="{over}")' if over not in (None, "all") else ")"
            text = f"{terminal} {operands} {json.dumps(end)}"
        elif operator.arity == 1:
            text = f"{terminal} {self._operand(form.arguments[0], below, _POWER)}"
        else:
            # As in Python: ** binds its right side first, all others their left, and comparisons do not chain.
            least = (_ATOM, _NEGATION) if binding == _POWER else (max(binding, 2), binding + 1)
            left, right = (
                self._operand(*operand) for operand in zip(form.arguments, (below, below), least, strict=True)
            )
            text = f"{left} {terminal} {right}"
        return text + self._where(form.arguments, below)

    def _operand(self, kind: Type | None, depth: int, least: int = 0) -> str:
        """What stands for an operand that has to bind so tightly at least."""
        if kind is None:
            return "SIGNED" if least <= _NEGATION else "NUMBER"
        return f"{self._name(kind, depth)}_from{least}::_" if least else f"{self._name(kind, depth)}::_"

    def _where(self, kinds: Iterable[Type | None], depth: int) -> str:
        """The condition that there are expressions of some types up to a depth, so that nothing begun has no end."""
        lacking = [kind for kind in dict.fromkeys(kinds) if kind not in _always(self.function, depth)]
        conditions = [self.known[kind] for kind in lacking if kind]
        if not conditions:
            return ""
        return f" %if {reduce(lambda one, other: f'and({one}, {other})', conditions)}"

    def _name(self, kind: Type, depth: int) -> str:
        return f"{self.function}_{kind.lower()}_{depth}"
