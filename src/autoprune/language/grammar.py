"""A grammar of replies for llguidance: whatever text it derives holds a program that parses, type-checks and fits.

It is written from the tables of the language. A rule stands for the expressions of a type up to a depth, so that types
fit and every reply ends. The rules are parametric (llguidance's extension of Lark): what follows `::` is the set of
names that may be read, one bit a name, to which each parameter of a function and its local variable add theirs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from functools import cache, reduce
from itertools import product

from autoprune.language.canonical import ATOM, NEGATION, POWER, PRECEDENCE
from autoprune.language.operators import OPERATORS, Operator
from autoprune.language.productions import TYPES, leaves, productions
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
    programs = [r'score_options "\n"? score']
    lines = [f"score_options: {_either(_score_options(space, *method) for method in space.methods)}"]
    if space.allocates:
        options = [option for option in OPTIONS.values() if option.function == ALLOCATE]
        both = r'score_options allocate_options "\n"? score "\n\n" allocate'
        programs = [both] if space.needs_allocate else [*programs, both]
        lines.append(f"allocate_options: {_sequence(_setting(space, option) for option in options)}")
    numbers = [option for option in OPTIONS.values() if not option.choices and option.function in space.functions]
    lines += [f"{option.name.upper()}: /{_numbers(option)}/" for option in numbers]
    return [f"program: {_either(programs)}", *lines]


def _score_options(space: Space, refine: str, update: str) -> str:
    """The lines that set options of score, for a pair of methods. What does nothing there is left out."""
    method = {"refine": refine, "update": update}
    idle = space.idle(refine, update)
    parts = []
    for option in OPTIONS.values():
        if option.name in method:
            parts.append(_set_to(option, method[option.name]))
        elif option.function == "score" and (option.name in space.frozen or option.name not in idle):
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
        return ATOM
    return NEGATION if operator.arity == 1 else PRECEDENCE.get(operator.symbol, POWER)


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


_Kind = Type | None
"""Of an operand; None is a number."""


@dataclass(frozen=True)
class _Form:
    """An application of an operator, or of another of its terminal, to operands each of any of some kinds."""

    operator: Operator
    over: str | None
    operands: tuple[frozenset[_Kind], ...]


@cache
def _forms(function: str, kind: Type) -> tuple[_Form, ...]:
    """All that make a value of a type. What is left out is what small models ramble into:

    A matrix is made of a matrix, never of a row and a column alone: so a score depends on weights or gradients.
    An operator of numbers alone is a number; one may as well write it.
    An exponent is a scalar: else a formula that lacks a matrix has one tacked on there, as in 2 ** weight.
    """
    rows: dict[tuple[str, str | None], tuple[Operator, set[tuple[_Kind, ...]]]] = {}
    for production in productions(function, kind):
        operator, arguments = production.operator, production.arguments
        lacks_matrix = kind is Type.RC and Type.RC not in arguments
        if lacks_matrix or (operator.symbol == "**" and arguments[1] is not Type.SCALAR):
            continue
        choices = [(argument, None) if argument is Type.SCALAR else (argument,) for argument in arguments]
        _, found = rows.setdefault((_terminal(operator), production.over), (operator, set()))
        found.update(kinds for kinds in product(*choices) if any(kinds))
    return tuple(
        _Form(operator, over, operands)
        for (_, over), (operator, found) in rows.items()
        for operands in _factored(sorted(found, key=str))
    )


def _factored(rows: Sequence[tuple[_Kind, ...]]) -> list[tuple[frozenset[_Kind], ...]]:
    """Disjoint products of sets whose union the rows (sorted) are: few, as parsing takes time and memory for each."""
    if not rows[0]:
        return [()]
    tails: dict[_Kind, list[tuple[_Kind, ...]]] = {}
    for head, *tail in rows:
        tails.setdefault(head, []).append(tuple(tail))
    heads: dict[tuple[tuple[_Kind, ...], ...], list[_Kind]] = {}
    for head, rest in tails.items():
        heads.setdefault(tuple(rest), []).append(head)
    return [(frozenset(head), *others) for rest, head in heads.items() for others in _factored(rest)]


def _depths(operator: Operator, depth: int) -> Iterator[tuple[int, ...]]:
    """How deep the operands of an operator may be in an expression up to a depth."""
    for shallower in _SHALLOWER[operator.arity]:
        if depth >= max(shallower):
            yield tuple(depth - less for less in shallower)


@cache
def _always(function: str, depth: int) -> frozenset[_Kind]:
    """Kinds that have an expression up to a depth whatever a function's parameters are: one of the type of its result
    there always is."""
    found: set[_Kind] = {None, FUNCTIONS[function].result}
    for kind in TYPES[function]:
        for form in _forms(function, kind):
            for depths in _depths(form.operator, depth):
                if all(kinds & _always(function, below) for kinds, below in zip(form.operands, depths, strict=True)):
                    found.add(kind)
    return frozenset(found)


class _FunctionRules:
    """The rules of one function, by name.

    `score_rc_3_from1` are the expressions of a type up to a depth; with `_from4`, as an operand where what binds less
    tightly needs parentheses; with `_is4`, those that bind just so tightly.
    """

    def __init__(self, function: str):
        self.function, self.result = function, FUNCTIONS[function].result
        self.rules: dict[str, str] = {}
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
        self._signature()
        self._body()
        for kind in TYPES[function]:
            self._names(kind)
            for depth in range(1, _DEPTH[function] + 1):
                self._expressions(kind, depth)

    def lines(self) -> list[str]:
        head = f'{self.function}: "def {self.function}(" {self.function}_first::0'
        return [head, *(f"{name}::_: {text}" for name, text in self.rules.items())]

    def _signature(self) -> None:
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
        self.rules[f"{self.function}_first"] = _either(first)
        self.rules[f"{self.function}_rest"] = _either(rest)

    def _body(self) -> None:
        result = self._name(self.result, _DEPTH[self.function], 1)
        bodies = [f'"return " {result}::_']
        for kind, bit in self.local.items():
            depth = _LOCAL_DEPTH[self.function]
            local = rf'"{_LOCAL} = " {self._name(kind, depth, 1)}::_ "\n    return " {result}::set_bit({bit})'
            bodies.append(local + self._where([{kind}], [depth]))
        self.rules[f"{self.function}_body"] = _either(bodies)

    def _names(self, kind: Type) -> None:
        bits = {name: self.bit[name] for name in leaves(self.function, kind)} | {_LOCAL: self.local[kind]}
        self.rules[self._name(kind, 0)] = _either(f'"{name}" %if bit_set({bit})' for name, bit in bits.items())

    def _expressions(self, kind: Type, depth: int) -> None:
        by_binding: dict[int, list[str]] = {ATOM: [f"{self._name(kind, 0)}::_"]}
        for form in _forms(self.function, kind):
            alternatives = by_binding.setdefault(_binding(form.operator), [])
            alternatives += [self._application(form, depths) for depths in _depths(form.operator, depth)]
        name = self._name(kind, depth)
        exact = {binding: f"{name}_is{binding}::_" for binding in sorted(by_binding)}
        for binding, alternatives in by_binding.items():
            self.rules[f"{name}_is{binding}"] = _either(alternatives)
        self.rules[f"{name}_from1"] = _either(exact.values())
        for least in range(2, ATOM):
            self.rules[f"{name}_from{least}"] = _either(
                [exact[least]] * (least in exact) + [f"{name}_from{least + 1}::_"]
            )
        # Operands may be in parentheses that they do not need, as models like to write them, but only in one pair.
        loose = _either(rule for binding, rule in exact.items() if binding < ATOM)
        in_parentheses = f'"(" ({loose}) ")"' + self._where([{kind}], [depth - 1])
        self.rules[f"{name}_from{ATOM}"] = _either([exact[ATOM], in_parentheses])

    def _application(self, form: _Form, depths: tuple[int, ...]) -> str:
        operator, binding = form.operator, _binding(form.operator)
        if not operator.symbol:
            least = (1,) * operator.arity
        elif operator.arity == 1:
            least = (POWER,)
        else:  # as in Python: ** binds its right side first, all others their left, and comparisons do not chain
            least = (ATOM, NEGATION) if binding == POWER else (max(binding, 2), binding + 1)
        operands = [self._operand(*operand) for operand in zip(form.operands, depths, least, strict=True)]
        if not operator.symbol:
            end = f', over="{form.over}")' if form.over not in (None, "all") else ")"
            text = " ".join([_terminal(operator), ' ", " '.join(operands), json.dumps(end)])
        else:
            *left, right = operands
            text = " ".join([*left, _terminal(operator), right])
        return text + self._where(form.operands, depths)

    def _operand(self, kinds: frozenset[_Kind], depth: int, least: int) -> str:
        """What stands for an operand of any of some kinds that has to bind so tightly at least."""
        present = [kind for kind in TYPES[self.function] if kinds >= {kind}]
        names = [f"{self._name(kind, depth, least)}::_" for kind in present]
        if None in kinds:
            names.append("SIGNED" if least <= NEGATION else "NUMBER")
        if len(names) == 1:
            return names[0]
        union = "_or_".join([*(kind.lower() for kind in present), *["number"] * (None in kinds)])
        rule = f"{self.function}_{union}_{depth}_from{least}"
        self.rules[rule] = _either(names)
        return f"{rule}::_"

    def _where(self, operands: Iterable[Set[_Kind]], depths: Iterable[int]) -> str:
        """The condition that operands are to be had, so that nothing begun has no end."""
        conditions = []
        for kinds, depth in zip(operands, depths, strict=True):
            if not kinds & _always(self.function, depth):
                conditions.append(_nested("or", [self.known[kind] for kind in kinds if kind]))
        return f" %if {_nested('and', conditions)}" if conditions else ""

    def _name(self, kind: Type, depth: int, least: int = 0) -> str:
        return f"{self.function}_{kind.lower()}_{depth}" + (f"_from{least}" if least and depth else "")


def _nested(function: str, conditions: Iterable[str]) -> str:
    return reduce(lambda one, other: f"{function}({one}, {other})", sorted(set(conditions)))
