"""Canonical form: one text, and so one digest, for all spellings of the same program.

Local names are gone (the tape has none), constants are folded with the operators' own functions,
operands of commutative operators are sorted, and unused parameters and steps are dropped.
`parse` of the printed text gives the same canonical form again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from autoprune.language.operators import OPERATORS
from autoprune.language.parse import MAX_CONSTANT
from autoprune.language.program import CONSTANT, OPTIONS, STATISTIC, Node, Tape, TapeBuilder

PRECEDENCE = {">": 1, "<": 1, ">=": 1, "<=": 1, "==": 1, "!=": 1, "+": 2, "-": 2, "*": 3, "/": 3, "@": 3}
NEGATION, POWER, ATOM = 4, 5, 6


def canonical_tape(tape: Tape) -> Tape:
    """The same function with folded constants and sorted operands, in the order a reader meets its steps."""
    builder = TapeBuilder()
    keys: list[tuple[int, int, str]] = []  # per new node: what operands are sorted by
    renamed: dict[int, int] = {}
    for index, node in tape.steps():
        arguments = tuple(renamed[argument] for argument in node.arguments)
        operator = OPERATORS.get(node.operator)
        if operator and operator.commutative:
            arguments = tuple(sorted(arguments, key=keys.__getitem__))
        value = _round32(node.value) if isinstance(node.value, float) else node.value
        new = Node(node.operator, arguments, value, node.over, node.place)
        folded = _folded(new, builder.nodes) if operator else None
        new_index = builder.add(folded or new)
        if new_index == len(keys):
            keys.append(_sort_key(folded or new, keys))
        renamed[index] = new_index
    return _ordered(Tape(builder.nodes, renamed[tape.result], tape.function, tape.place))


def _round32(value: float) -> float:
    """Constants are float32, as everything that is computed with them, written in the fewest digits."""
    return float(str(np.float32(value))) + 0.0  # -0.0 becomes 0.0


def _folded(node: Node, nodes: tuple[Node, ...]) -> Node | None:
    operands = [nodes[argument] for argument in node.arguments]
    if any(operand.operator != CONSTANT for operand in operands):
        return None
    tensors = [torch.tensor([[operand.value]], dtype=torch.float32) for operand in operands]
    value = float(OPERATORS[node.operator](*tensors))
    if abs(value) > MAX_CONSTANT:
        return None  # the folded constant could not be written in a program
    return Node(CONSTANT, value=_round32(value), place=node.place)


def _sort_key(node: Node, keys: list[tuple[int, int, str]]) -> tuple[int, int, str]:
    """Larger expressions first, then statistics, then constants; among equals any fixed order."""
    inner = [keys[argument] for argument in node.arguments]
    text = "|".join([node.operator, str(node.value), str(node.over), *(key[2] for key in inner)])
    kind = {STATISTIC: 1, CONSTANT: 2}.get(node.operator, 0)
    size = -1 - sum(-key[1] for key in inner)
    return kind, max(size, -1_000_000), hashlib.sha256(text.encode()).hexdigest()


def _ordered(tape: Tape) -> Tape:
    """Depth-first order from the result, deepest operand first: one order for equal functions, with few live values."""
    depth: list[int] = []
    for node in tape.nodes:
        depth.append(1 + max((depth[argument] for argument in node.arguments), default=0))
    builder = TapeBuilder()
    renamed: dict[int, int] = {}
    stack = [tape.result]
    while stack:
        index = stack[-1]
        missing = [argument for argument in tape.nodes[index].arguments if argument not in renamed]
        if missing:
            stack.extend(sorted(missing, key=depth.__getitem__))
            continue
        stack.pop()
        node = tape.nodes[index]
        arguments = tuple(renamed[argument] for argument in node.arguments)
        renamed[index] = builder.add(Node(node.operator, arguments, node.value, node.over, node.place))
    return Tape(builder.nodes, renamed[tape.result], tape.function, tape.place)


def print_program(options: Mapping[str, str | float], tapes: Sequence[Tape]) -> str:
    """A text that parses to the given options and tapes; default options are left out."""
    lines = [f"{name} = {_value(value)}" for name, value in options.items() if value != OPTIONS[name].default]
    for tape in tapes:
        lines += [""] * bool(lines)
        lines.append(f"def {tape.function}({', '.join(tape.statistics)}):")
        lines += [f"    {line}" for line in _body(tape)]
    return "\n".join(lines) + "\n"


def _value(value: str | float) -> str:
    return f'"{value}"' if isinstance(value, str) else _number(value)


def digest(canonical_text: str) -> str:
    """Identity of a program: 16 hexadecimal digits of the SHA-256 of its canonical text."""
    return hashlib.sha256(canonical_text.encode()).hexdigest()[:16]


def expressions(tape: Tape) -> list[tuple[int, str | None, str]]:
    """(index, local name or None, expression) of the steps that deserve a line: shared ones and the result."""
    uses: dict[int, int] = {}
    for _, node in tape.steps():
        for argument in node.arguments:
            uses[argument] = uses.get(argument, 0) + 1
    depth: dict[int, int] = {}
    printed: dict[int, tuple[str, int]] = {}
    lines: list[tuple[int, str | None, str]] = []
    for index, node in tape.steps():
        text, precedence = _expression(node, printed)
        depth[index] = 1 + max((depth[argument] for argument in node.arguments), default=0)
        shared = uses.get(index, 0) > 1 and node.operator not in (CONSTANT, STATISTIC)
        if index == tape.result:
            lines.append((index, None, text))
        elif shared or depth[index] >= 16:  # long chains are cut, far below the parser's limit on nesting
            name = f"t{sum(1 for line in lines if line[1]) + 1}"
            lines.append((index, name, text))
            text, precedence, depth[index] = name, ATOM, 1
        printed[index] = (text, precedence)
    return lines


def _body(tape: Tape) -> list[str]:
    return [f"{name} = {text}" if name else f"return {text}" for _, name, text in expressions(tape)]


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


def _expression(node: Node, printed: Mapping[int, tuple[str, int]]) -> tuple[str, int]:
    """Text of a step and how tightly it binds."""
    if node.operator == CONSTANT:
        assert isinstance(node.value, float)
        return _number(node.value), ATOM if node.value >= 0 else NEGATION
    if node.operator == STATISTIC:
        return str(node.value), ATOM

    def operand(position: int, least: int) -> str:
        text, precedence = printed[node.arguments[position]]
        return text if precedence >= least else f"({text})"

    operator = OPERATORS[node.operator]
    symbol = operator.symbol
    if symbol == "**":
        return f"{operand(0, ATOM)} ** {operand(1, NEGATION)}", POWER
    if symbol and operator.arity == 1:
        return f"{symbol}{operand(0, NEGATION + 1)}", NEGATION
    if symbol:
        precedence = PRECEDENCE[symbol]
        left = precedence + 1 if precedence == 1 else precedence  # comparisons do not chain
        return f"{operand(0, left)} {symbol} {operand(1, precedence + 1)}", precedence
    arguments = [printed[argument][0] for argument in node.arguments]
    if node.over and node.over != "all":
        arguments.append(f'over="{node.over}"')
    return f"{operator.name}({', '.join(arguments)})", ATOM
