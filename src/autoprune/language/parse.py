"""Text → tapes. The text is read with `ast` as data and never run.

Accepted: a docstring, option assignments, and the functions `score(...)` and `allocate(...)`, one or both, whose
parameters name statistics, with assignments to local names and one final `return`. Everything else is refused with
place, reason and remedy.
"""

from __future__ import annotations

import ast
import warnings
from dataclasses import dataclass

from autoprune.errors import Place, ProgramError, nearest, one_line
from autoprune.language.operators import OPERATORS
from autoprune.language.program import CONSTANT, OPTIONS, STATISTIC, Node, Tape, TapeBuilder
from autoprune.language.statistics import FUNCTIONS
from autoprune.language.types import AXES

MAX_CHARACTERS = 20_000
MAX_NODES = 256
MAX_DEPTH = 64
MAX_CONSTANT = 1e6

_INFIX = {
    ast.Add: "add",
    ast.Sub: "subtract",
    ast.Mult: "multiply",
    ast.Div: "divide",
    ast.Pow: "power",
    ast.MatMult: "matmul",
    ast.Gt: "greater",
    ast.Lt: "less",
    ast.GtE: "greater_equal",
    ast.LtE: "less_equal",
    ast.Eq: "equal",
    ast.NotEq: "not_equal",
}

_INSTEAD = {
    ast.IfExp: "use where(condition, a, b)",
    ast.BoolOp: "use minimum(a, b) for 'and', maximum(a, b) for 'or'",
    ast.Not: "use 1 - x",
    ast.FloorDiv: "use /",
    ast.Attribute: 'call the operator by its plain name, as in sum(x, over="rows")',
    ast.Subscript: "reduce with sum, mean, max, ... and name the axis",
    ast.Lambda: "write the formula where it is used",
    ast.Import: "all operators are already there; see `autoprune check wanda --language`",
    ast.ImportFrom: "all operators are already there; see `autoprune check wanda --language`",
    ast.For: "operators work on whole matrices; no loop is needed",
    ast.While: "operators work on whole matrices; no loop is needed",
    ast.ListComp: "operators work on whole matrices; no loop is needed",
    ast.If: "use where(condition, a, b)",
    ast.AugAssign: "write x = x + y",
}


@dataclass(frozen=True)
class Parsed:
    """A program whose words are known, before its types are."""

    doc: str
    options: dict[str, str | float]
    tapes: tuple[Tape, ...]


def _place(node: ast.AST) -> Place:
    return Place(getattr(node, "lineno", 1), getattr(node, "col_offset", 0) + 1)


def _refuse(node: ast.AST, what: str | None = None, remedy: str | None = None) -> ProgramError:
    kind = type(node.op) if isinstance(node, ast.UnaryOp | ast.BinOp) else type(node)
    return ProgramError(
        what or f"'{kind.__name__}' is not part of the language",
        place=_place(node),
        remedy=remedy or _INSTEAD.get(kind, "use arithmetic and the operators of the table only"),
    )


def parse(text: str) -> Parsed:
    """Read a program text; raises ProgramError."""
    tree = _syntax_tree(text)
    doc, body = _docstring(tree.body)
    options = {name: option.default for name, option in OPTIONS.items()}
    given: dict[str, ast.Assign] = {}
    tapes: dict[str, Tape] = {}
    for statement in body:
        if isinstance(statement, ast.Assign):
            name, options[name] = _option(statement)
            given[name] = statement
        elif isinstance(statement, ast.FunctionDef):
            name = statement.name
            if name not in FUNCTIONS:
                raise _refuse(statement, f"unknown function '{name}'", "a program defines score(...) or allocate(...)")
            if name in tapes:
                raise _refuse(statement, f"{name} is defined twice", "keep one")
            tapes[name] = _FunctionReader(statement).read()
        else:
            raise _refuse(statement)
    if not tapes:
        raise ProgramError("the program defines no score", place=Place(), remedy=f"add {FUNCTIONS['score'].example}")
    for name, statement in given.items():
        if (function := OPTIONS[name].function) not in tapes:
            raise _refuse(statement, f"{name} goes with {function}, which is not defined", "remove it")
    return Parsed(doc, options, tuple(tapes[name] for name in FUNCTIONS if name in tapes))


def _syntax_tree(text: str) -> ast.Module:
    if len(text) > MAX_CHARACTERS:
        raise ProgramError(
            f"the text has {len(text):,} characters, more than {MAX_CHARACTERS:,}",
            place=Place(),
            remedy="shorten it",
        )
    try:
        text.encode()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ast warns of odd escapes; they are refused or harmless here
            return ast.parse(text)
    except SyntaxError as error:
        place = Place(error.lineno or 1, error.offset or 1)
        raise ProgramError(
            f"not valid syntax ({error.msg})", place=place, remedy="write it as Python would be written"
        ) from None
    except (ValueError, RecursionError, MemoryError) as error:
        reason = "unreadable characters" if isinstance(error, ValueError) else "nested too deeply"
        raise ProgramError(reason, place=Place(), remedy="write plain, short expressions") from None


def _docstring(body: list[ast.stmt]) -> tuple[str, list[ast.stmt]]:
    match body:
        case [ast.Expr(value=ast.Constant(value=str(doc))), *rest]:
            return one_line(doc), rest
    return "", body


def _option(statement: ast.Assign) -> tuple[str, str | float]:
    value: object
    match statement:
        case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=value)):
            pass
        case ast.Assign(
            targets=[ast.Name(id=name)],
            value=ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)),
        ) if not isinstance(number, bool):
            value = -number
        case _:
            raise _refuse(
                statement, "an option is a name and a plain value", 'as in compare = "layer" or strength = 0.2'
            )
    if name not in OPTIONS:
        raise _refuse(statement, f"unknown option '{name}'", nearest(name, OPTIONS))
    option = OPTIONS[name]
    if not option.accepts(value):
        choices = " or ".join(f'"{choice}"' for choice in option.choices) or option.allowed
        given = repr(value[:40]) if isinstance(value, str) else _shown(value)
        raise _refuse(statement, f"{name} cannot be {given}", f"use {choices}")
    return name, value if isinstance(value, str) else float(value)  # pyright: ignore[reportArgumentType]


def _shown(value: object) -> str:
    """A value that is no string, for an error: a number that is not too long to print, else what kind it is."""
    short = isinstance(value, float) or (isinstance(value, int) and abs(value) < 10**15)
    return str(value) if short else type(value).__name__


class _FunctionReader:
    """Reads one function definition into a tape."""

    def __init__(self, definition: ast.FunctionDef):
        self.definition = definition
        self.function = FUNCTIONS[definition.name]
        self.statistics = self.function.statistics
        self.builder = TapeBuilder()
        self.names: dict[str, int] = {}

    def read(self) -> Tape:
        self._parameters()
        _, body = _docstring(self.definition.body)
        for position, statement in enumerate(body):
            match statement:
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    if name in OPERATORS and not OPERATORS[name].symbol:  # `power` is only ever written **
                        raise _refuse(statement, f"'{name}' is an operator", "choose another name")
                    if not name.isascii():  # places count bytes, and look-alike letters mislead
                        raise _refuse(statement, "a name with letters beyond ASCII", "choose another name")
                    self.names[name] = self._expression(value, 1)
                case ast.Return(value=ast.expr() as value):
                    result = self._expression(value, 1)
                    if position < len(body) - 1:
                        raise _refuse(body[position + 1], "nothing may follow return", "remove it")
                    return Tape(self.builder.nodes, result, self.function.name, _place(value))
                case _:
                    raise _refuse(statement)
        name, result = self.function.name, self.function.result
        raise _refuse(self.definition, f"{name} returns nothing", f"end it with return and an {result} expression")

    def _parameters(self) -> None:
        definition, arguments = self.definition, self.definition.args
        plain = not (
            definition.decorator_list
            or definition.returns
            or arguments.vararg
            or arguments.kwarg
            or arguments.kwonlyargs
            or arguments.posonlyargs
            or arguments.defaults
            or getattr(definition, "type_params", None)
            or any(argument.annotation for argument in arguments.args)
        )
        if not plain:
            raise _refuse(definition, "parameters are plain names of statistics", "as in score(weight, gram)")
        for argument in arguments.args:
            if argument.arg not in self.statistics:
                raise _refuse(argument, self._unknown(argument.arg), nearest(argument.arg, self.statistics))
            if argument.arg in self.names:
                raise _refuse(argument, f"'{argument.arg}' is named twice", "name it once")
            node = Node(STATISTIC, value=argument.arg, place=_place(argument))
            self.names[argument.arg] = self.builder.add(node)

    def _unknown(self, name: str) -> str:
        others = [function.name for function in FUNCTIONS.values() if name in function.statistics]
        return f"'{name}' is a statistic of {others[0]}" if others else f"unknown statistic '{name}'"

    def _expression(self, node: ast.expr, depth: int) -> int:
        if depth > MAX_DEPTH:
            raise _refuse(node, f"nested more than {MAX_DEPTH} deep", "name parts with assignments")
        place = _place(node)

        def apply(operator: str, *arguments: ast.expr, over: str | None = None) -> int:
            indices = tuple(self._expression(argument, depth + 1) for argument in arguments)
            return self._add(Node(operator, indices, over=over, place=place))

        match node:
            case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
                return self._constant(node, value)
            case ast.Name(id=name):
                return self._name(node, name)
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)) if not isinstance(
                value, bool
            ):
                return self._constant(node, -value)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return apply("negate", operand)
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return self._expression(operand, depth + 1)
            case ast.BinOp(op=op, left=left, right=right) if type(op) in _INFIX:
                return apply(_INFIX[type(op)], left, right)
            case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _INFIX:
                return apply(_INFIX[type(op)], left, right)
            case ast.Compare(ops=[ast.Is() | ast.IsNot() | ast.In() | ast.NotIn() as op]):
                raise _refuse(node, f"'{type(op).__name__}' is not part of the language", "compare with ==, <, > ...")
            case ast.Compare():
                raise _refuse(node, "comparisons cannot be chained", "use minimum(a < b, b < c)")
            case ast.Call(func=ast.Name(id=name)):
                operator, over = self._call(node, name)
                return apply(operator, *node.args, over=over)
            case ast.Call(func=function):
                raise _refuse(function)
        raise _refuse(node)

    def _add(self, node: Node) -> int:
        index = self.builder.add(node)
        if len(self.builder) > MAX_NODES:
            raise ProgramError(f"more than {MAX_NODES} steps", place=node.place, remedy="simplify it")
        return index

    def _constant(self, node: ast.expr, value: float) -> int:
        if abs(value) > MAX_CONSTANT:
            raise _refuse(node, f"the constant is beyond ±{MAX_CONSTANT:g}", "use a smaller one")
        return self._add(Node(CONSTANT, value=float(value), place=_place(node)))

    def _name(self, node: ast.expr, name: str) -> int:
        if name in self.names:
            return self.names[name]
        if name in self.statistics:
            raise _refuse(node, f"'{name}' is not a parameter", f"add it: def {self.function.name}(..., {name})")
        if name in OPERATORS:
            raise _refuse(node, f"'{name}' is an operator", f"call it: {OPERATORS[name].signature}")
        raise _refuse(node, f"unknown name '{name}'", nearest(name, [*self.names, *self.statistics]))

    def _call(self, node: ast.Call, name: str) -> tuple[str, str | None]:
        operator = OPERATORS.get(name)
        if operator is None:
            raise _refuse(node, f"unknown operator '{name}'", nearest(name, OPERATORS))
        over = "all" if operator.takes_axis else None
        if len(node.keywords) > 1:
            raise _refuse(node, "more than one option", f"write {operator.signature}")
        for keyword in node.keywords:
            if keyword.arg != "over" or not operator.takes_axis:
                raise _refuse(node, f"{name} has no option '{keyword.arg or '**'}'", f"write {operator.signature}")
            match keyword.value:
                case ast.Constant(value=str(axis)) if axis in AXES:
                    over = axis
                case _:
                    choices = ", ".join(f'"{axis}"' for axis in AXES)
                    raise _refuse(keyword.value, "over names an axis", f"use one of {choices}")
        if len(node.args) != operator.arity:
            raise _refuse(
                node,
                f"{name} takes {operator.arity} argument{'s' * (operator.arity > 1)}, not {len(node.args)}",
                f"write {operator.signature}",
            )
        return operator.name, over
