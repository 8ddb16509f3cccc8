"""Types of every step of a tape, inferred before anything runs."""

from __future__ import annotations

from autoprune.errors import ProgramError
from autoprune.language.operators import OPERATORS, Operator
from autoprune.language.program import CONSTANT, STATISTIC, Node, Tape
from autoprune.language.statistics import FUNCTIONS
from autoprune.language.types import Type, describe

_RESULT_REMEDY = {
    **{("score", kind): "combine it with abs(weight)" for kind in (Type.SCALAR, Type.R, Type.C)},
    ("score", Type.CC): "use weight @ it",
    ("allocate", Type.SCALAR): "combine it with a statistic of the layers, such as depth or skewness",
}

MAX_LIVE = 12
"""Matrices (RC or CC) that may be alive at once: bounds the memory of a score."""


def infer_types(tape: Tape) -> dict[int, Type]:
    """Type of every used step; raises ProgramError where one has none or the result is not the function's."""
    function = FUNCTIONS[tape.function]
    types: dict[int, Type] = {}
    for index, node in tape.steps():
        if node.operator == CONSTANT:
            types[index] = Type.SCALAR
        elif node.operator == STATISTIC:
            types[index] = function.statistics[str(node.value)].type
        else:
            arguments = tuple(types[argument] for argument in node.arguments)
            kind = OPERATORS[node.operator].result_type(arguments, node.over)
            if kind is None:
                raise _mismatch(node, OPERATORS[node.operator], arguments)
            types[index] = kind
    result = types[tape.result]
    if result is not function.result:
        raise ProgramError(
            f"{function.name} is {describe(result)}, not {describe(function.result)}",
            place=tape.place,
            remedy=_RESULT_REMEDY.get((function.name, result), f"as in {function.example}"),
        )
    return types


def check_memory(tape: Tape, types: dict[int, Type]) -> None:
    """Refuse a tape that would keep too many matrices at once, in the order in which it runs."""
    if (live := _most_live(tape, types)) > MAX_LIVE:
        raise ProgramError(
            f"{live} matrices are alive at once, more than {MAX_LIVE}",
            place=tape.place,
            remedy="use intermediate results sooner",
        )


def _mismatch(node: Node, operator: Operator, arguments: tuple[Type, ...]) -> ProgramError:
    have = " and ".join(str(kind) for kind in arguments)
    match operator.kind:
        case "matmul":
            remedy = "the right side must be a CC such as gram, the left an RC, C or CC"
        case "diagonal":
            remedy = "give it a CC such as gram"
        case "reduce" | "normalize":
            if any(kind is not Type.SCALAR for kind in arguments[1:]):
                remedy = f"all arguments after the first are scalars: {operator.signature}"
            elif arguments[0] is Type.SCALAR:
                remedy = "a scalar has nothing to go over; remove the call"
            elif arguments[0] is Type.L:
                remedy = f'{describe(Type.L)} takes over="all" only'
            else:
                axis = "columns" if arguments[0] is Type.C else "rows"
                remedy = f'{describe(arguments[0])} takes over="{axis}" or over="all"'
        case _:
            remedy = "reduce the CC first, as in diagonal(gram), or multiply by it: x @ gram"
    over = f' over "{node.over}"' if node.over else ""
    return ProgramError(f"{operator.name}{over} does not take {have}", place=node.place, remedy=remedy)


def last_uses(tape: Tape) -> dict[int, int]:
    """Index of the last step that reads each step's value (the result is read at the end)."""
    last = {argument: index for index, node in tape.steps() for argument in node.arguments}
    last[tape.result] = len(tape.nodes)
    return last


def _most_live(tape: Tape, types: dict[int, Type]) -> int:
    last, live, most = last_uses(tape), set(), 0
    for index, node in tape.steps():
        if types[index] in (Type.RC, Type.CC):
            live.add(index)
        most = max(most, len(live))
        live -= {argument for argument in node.arguments if last[argument] == index}
    return most
