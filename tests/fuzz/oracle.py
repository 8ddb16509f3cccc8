"""What an accepted program may consist of: a second, independent reading that knows the tables only.

It shares no code with the parser: it walks over Python's own syntax tree with a list of what is allowed, so that
whatever the parser lets through by mistake is found here.
"""

from __future__ import annotations

import ast
import re

from autoprune.language.operators import OPERATORS
from autoprune.language.program import OPTIONS, Program
from autoprune.language.statistics import FUNCTIONS
from autoprune.language.types import AXES

_SIGNS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow, ast.MatMult)
_COMPARISONS = (ast.Gt, ast.Lt, ast.GtE, ast.LtE, ast.Eq, ast.NotEq)
_PLACES = {"lineno", "col_offset", "end_lineno", "end_col_offset", "type_ignores"}

CHARACTERS, STEPS, NESTED, LARGEST = 20_000, 256, 64, 1e6
"""The bounds that docs and errors promise; written down again here, so that raising one by mistake is noticed."""


def check_accepted(text: str, program: Program) -> None:
    """All that holds for the text of a program that was accepted, and for its canonical text."""
    assert len(text) <= CHARACTERS
    assert len(program.canonical) <= CHARACTERS
    assert program.canonical.isascii()
    assert program.doc.isprintable()
    assert re.fullmatch("[0-9a-f]{16}", program.digest)
    check_module(ast.parse(text))
    check_module(ast.parse(program.canonical), locals_like=r"t\d+")
    assert '"""' not in program.canonical
    for tape in program.functions:
        assert len(tape.nodes) <= STEPS
        for index, node in enumerate(tape.nodes):
            assert all(argument < index for argument in node.arguments)
            assert node.over in (None, *AXES)
            if node.operator == "constant":
                assert isinstance(node.value, float)
                assert abs(node.value) <= LARGEST
            elif node.operator == "statistic":
                assert node.value in FUNCTIONS[tape.function].statistics
            else:
                assert node.operator in OPERATORS


def check_module(module: ast.Module, locals_like: str = r"\w+") -> None:
    body = module.body
    if isinstance(body[0], ast.Expr):
        _check_docstring(body[0])
        body = body[1:]
    defined = [statement.name for statement in body if isinstance(statement, ast.FunctionDef)]
    assert defined
    assert len(set(defined)) == len(defined)
    for statement in body:
        if isinstance(statement, ast.FunctionDef):
            _check_function(statement, locals_like)
        else:
            assert isinstance(statement, ast.Assign), ast.dump(statement)
            _check_option(statement, defined)


def _check_docstring(statement: ast.Expr) -> None:
    assert isinstance(statement.value, ast.Constant)
    assert type(statement.value.value) is str


def _number(node: ast.expr) -> float:
    """The value of a plain number, perhaps with a sign."""
    sign = 1
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        sign, node = -1, node.operand
    assert isinstance(node, ast.Constant), ast.dump(node)
    assert type(node.value) in (int, float)
    return sign * node.value  # pyright: ignore[reportOperatorIssue,reportReturnType]


def _check_option(statement: ast.Assign, defined: list[str]) -> None:
    (target,) = statement.targets
    assert isinstance(target, ast.Name)
    option = OPTIONS[target.id]
    assert option.function in defined
    if option.choices:
        assert isinstance(statement.value, ast.Constant)
        assert statement.value.value in option.choices
    else:
        assert option.low <= _number(statement.value) <= option.high


def _check_function(function: ast.FunctionDef, locals_like: str) -> None:
    table = FUNCTIONS[function.name].statistics
    others = {
        name: value for name, value in ast.iter_fields(function) if name not in (*_PLACES, "name", "args", "body")
    }
    assert not any(others.values()), others  # decorators, annotations, type comments, type parameters
    others = {name: value for name, value in ast.iter_fields(function.args) if name != "args"}
    assert not any(others.values()), others  # defaults, stars, keyword-only and positional-only ones
    known: set[str] = set()
    for argument in function.args.args:
        assert argument.annotation is None
        assert argument.arg in table
        assert argument.arg not in known
        known.add(argument.arg)
    body = function.body
    if isinstance(body[0], ast.Expr):
        _check_docstring(body[0])
        body = body[1:]
    for statement in body[:-1]:
        assert isinstance(statement, ast.Assign), ast.dump(statement)
        (target,) = statement.targets
        assert isinstance(target, ast.Name)
        assert re.fullmatch(locals_like, target.id, re.ASCII)
        _check_expression(statement.value, known, 1)
        known.add(target.id)
    last = body[-1]
    assert isinstance(last, ast.Return)
    assert last.value is not None
    _check_expression(last.value, known, 1)


def _check_expression(node: ast.expr, known: set[str], depth: int) -> None:
    assert depth <= NESTED
    match node:
        case ast.Constant():
            assert abs(_number(node)) <= LARGEST
        case ast.Name(id=name, ctx=ast.Load()):
            assert name in known, name
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
            _check_expression(operand, known, depth + 1 - isinstance(operand, ast.Constant))
        case ast.BinOp(left=left, op=op, right=right):
            assert isinstance(op, _SIGNS), op
            _check_expression(left, known, depth + 1)
            _check_expression(right, known, depth + 1)
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            assert isinstance(op, _COMPARISONS), op
            _check_expression(left, known, depth + 1)
            _check_expression(right, known, depth + 1)
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=keywords):
            operator = OPERATORS[name]
            assert len(arguments) == operator.arity
            assert len(keywords) <= operator.takes_axis
            for keyword in keywords:
                assert keyword.arg == "over"
                assert isinstance(keyword.value, ast.Constant)
                assert keyword.value.value in AXES
            for argument in arguments:
                _check_expression(argument, known, depth + 1)
        case _:
            raise AssertionError(ast.dump(node))
