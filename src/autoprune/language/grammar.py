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

_DEPTH = {"score": 4, "allocate": 5}
_LOCAL_DEPTH = {"score": 2, "allocate": 3}
"""How deep an expression nests, by function: what is returned, and what the local variable is defined as. Names and
numbers have depth 0.

So no more than MAX_LIVE matrices are ever alive. Take the moment before a step of a score. A matrix that is alive is
read by a step still to come: mark one place in the two expressions where that reads it. No mark is within a marked
expression, for all of that has been computed. Count 1 for a marked operator and 1/2 for a marked name. An expression
of depth d counts 2^(d - 1) at most, by induction with _SHALLOWER: two operands count 2^(d - 2) each, three 2^(d - 2)
and twice 2^(d - 3). So n operators and m names that are matrices have n + m / 2 <= 2^3 + 2^1, and as the names are
weight, gradient and gram, n + m <= 10 + 3 / 2. With the step's own result that is 12. Once the local variable has been
computed it is one more name, but its expression has no marks: n + m <= 8 + 4 / 2. Nothing of that depends on the order
of the steps, or on equal ones being one. Steps are at most 31 + 7 and the parameters, far from MAX_NODES.
"""

_SHALLOWER = {1: ((1,),), 2: ((1, 1),), 3: ((1, 2, 2), (2, 1, 2), (2, 2, 1))}
"""By how much the operands of an operator are less deep than it is at least, by their number: any of these."""

_MAX_PARAMETERS = 6
"""Statistics that one function names."""

MAX_CHARACTERS = 4096
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


_Operand = tuple[Type | None, int]
"""A type, or None for a number, and a depth."""


@dataclass(frozen=True)
class _Form:
    """A production whose operands have depths, and where a number may stand for a scalar."""

    production: Production
    operands: tuple[_Operand, ...]


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
        for shallower in _SHALLOWER[production.operator.arity]:
            depths = [depth - less for less in shallower]
            if min(depths) >= 0:
                found += [
                    _Form(production, tuple(zip(kinds, depths, strict=True)))
                    for kinds in product(*choices)
                    if any(kinds)
                ]
    return tuple(found)


@cache
def _always(function: str, depth: int) -> frozenset[Type | None]:
    """Types that have an expression up to a depth whatever a function's parameters are: one of the type of its result
    there always is."""
    found: set[Type | None] = {None, FUNCTIONS[function].result}
    for kind in TYPES[function]:
        for form in _forms(function, kind, depth):
            if all(operand in _always(function, below) for operand, below in form.operands):
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
            bodies.append(local + self._where([(kind, depth)]))
        yield f"{self.function}_body::_: {_either(bodies)}"

    def _expressions(self, kind: Type, depth: int) -> Iterator[str]:
        name = self._name(kind, depth)
        by_binding: dict[int, list[str]] = {_ATOM: self._names(kind)}
        for form in _forms(self.function, kind, depth):
            by_binding.setdefault(_binding(form.production.operator), []).append(self._application(form))
        for binding, alternatives in by_binding.items():
            yield f"{name}_is{binding}::_: {_either(alternatives)}"
        yield f"{name}::_: {_either(f'{name}_is{binding}::_' for binding in by_binding)}"
        loose = [f"{name}_is{binding}::_" for binding in by_binding if binding < _ATOM]
        for least in range(2, _ATOM + 1):
            operands = [f"{name}_is{binding}::_" for binding in by_binding if binding >= least]
            if loose:  # what is in parentheses may be bound tightly enough without: models like to write it so
                operands.append(f'"(" ({_either(loose)}) ")"' + self._where([(kind, depth - 1)]))
            yield f"{name}_from{least}::_: {_either(operands)}"

    def _names(self, kind: Type) -> list[str]:
        bits = {name: self.bit[name] for name in leaves(self.function, kind)} | {_LOCAL: self.local[kind]}
        return [f'"{name}" %if bit_set({bit})' for name, bit in bits.items()]

    def _application(self, form: _Form) -> str:
        operator, over = form.production.operator, form.production.over
        terminal, binding = _terminal(operator), _binding(operator)
        if not operator.symbol:
            operands = ' ", " '.join(self._operand(operand) for operand in form.operands)
            end = f', over="{over}")' if over not in (None, "all") else ")"
            text = f"{terminal} {operands} {json.dumps(end)}"
        elif operator.arity == 1:
            text = f"{terminal} {self._operand(form.operands[0], _POWER)}"
        else:
            # As in Python: ** binds its right side first, all others their left, and comparisons do not chain.
            left, right = (_ATOM, _NEGATION) if binding == _POWER else (max(binding, 2), binding + 1)
            text = f"{self._operand(form.operands[0], left)} {terminal} {self._operand(form.operands[1], right)}"
        return text + self._where(form.operands)

    def _operand(self, operand: _Operand, least: int = 0) -> str:
        """What stands for an operand that has to bind so tightly at least."""
        kind, depth = operand
        if kind is None:
            return "SIGNED" if least <= _NEGATION else "NUMBER"
        return f"{self._name(kind, depth)}_from{least}::_" if least else f"{self._name(kind, depth)}::_"

    def _where(self, operands: Iterable[_Operand]) -> str:
        """The condition that operands are to be had, so that nothing begun has no end."""
        lacking = dict.fromkeys(kind for kind, depth in operands if kind not in _always(self.function, depth))
        conditions = [self.known[kind] for kind in lacking if kind]
        if not conditions:
            return ""
        return f" %if {reduce(lambda one, other: f'and({one}, {other})', conditions)}"

    def _name(self, kind: Type, depth: int) -> str:
        return f"{self.function}_{kind.lower()}_{depth}"
