"""The small mistakes: those of mutmut and cosmic-ray, on Python's syntax trees.

mutmut 3 mutates functions only, and half of this checker is tables and limits beside them; cosmic-ray starts the tests
anew for each mutant, which takes seconds here: so the edits are our own.

Left alone is what only words errors and help: docstrings, annotations, arguments of errors, functions in WORDS.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

WORDS = frozenset(
    {"_refuse", "_place", "_unknown", "_shown", "_mismatch", "describe", "allowed", "signature"}
    | {"_INSTEAD", "_RESULT_REMEDY", "_MEANING", "_ARGUMENTS"}
)
"""Functions and tables that only say what is wrong, and what to do."""

ERRORS = frozenset({"_refuse", "_mismatch", "ProgramError", "AutopruneError", "nearest"})
WORDED = frozenset({"doc", "guard", "example", "remedy", "reason", "where", "place"})

Path = tuple[tuple[str, int | None], ...]
"""Fields, and places in lists, from the root of a syntax tree on."""

_COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}
_FUNCTIONS = {"any": "all", "all": "any", "min": "max", "max": "min"}


@dataclass(frozen=True)
class Edit:
    """One mistake: what stands at a path of a module's syntax tree instead."""

    line: int
    what: str
    path: Path
    new: ast.AST

    def applied(self, tree: ast.Module) -> ast.Module:
        """The tree, which is changed, with the mistake in it."""
        node: ast.AST = tree
        for field, position in self.path[:-1]:
            node = getattr(node, field) if position is None else getattr(node, field)[position]
        field, position = self.path[-1]
        if position is None:
            setattr(node, field, self.new)
        else:
            getattr(node, field)[position] = self.new
        return ast.fix_missing_locations(tree)


def edits(tree: ast.Module, without: frozenset[str] = frozenset()) -> list[Edit]:
    """All mistakes, in the order of the text; none in definitions and constants of the module that are named."""
    return [
        Edit(node.lineno, f"{what}: {_short(node)}", path, ast.copy_location(new, node))
        for path, node in _places(tree, (), WORDS | without)
        if isinstance(node, ast.stmt | ast.expr | ast.pattern)
        for what, new in _instead(node)
    ]


def _short(node: ast.AST) -> str:
    text = ast.unparse(node).splitlines()
    return text[0][:90]


def _places(node: ast.AST, path: Path, without: frozenset[str]) -> Iterator[tuple[Path, ast.AST]]:
    if _is_left(node, without):
        return
    yield path, node
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "targets", "func") and not isinstance(value, ast.Attribute):
            continue
        if field == "args" and isinstance(node, ast.Call) and _name(node.func) in ERRORS:
            continue
        if isinstance(value, list):
            for position, child in enumerate(value):
                if isinstance(child, ast.AST):
                    yield from _places(child, (*path, (field, position)), without)
        elif isinstance(value, ast.AST):
            yield from _places(value, (*path, (field, None)), without)


def _is_left(node: ast.AST, without: frozenset[str]) -> bool:
    match node:
        case ast.Expr(value=ast.Constant(value=str())) | ast.Import() | ast.ImportFrom() | ast.Lambda():
            return True
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            return name in without
        case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
            return name in without
        case ast.keyword(arg=str(name)):
            return name in WORDED
        case ast.Constant(value=str(text)):
            return " " in text  # prose
    return False


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else ""


def _instead(node: ast.stmt | ast.expr | ast.pattern) -> Iterator[tuple[str, ast.AST]]:
    if isinstance(node, ast.stmt):
        yield from _statements(node)
    elif isinstance(node, ast.expr):
        yield from _expressions(node)
    else:
        yield from _patterns(node)


def _with(node: ast.AST, **fields: object) -> ast.AST:
    """A copy of one node, its children shared, with other fields."""
    return type(node)(**{**dict(ast.iter_fields(node)), **fields})


def _fewer(items: list) -> Iterator[list]:
    """The list without each of its items, and, where it has several, without all."""
    for position in range(len(items)):
        yield items[:position] + items[position + 1 :]
    if len(items) > 1:
        yield []


def _statements(node: ast.stmt) -> Iterator[tuple[str, ast.AST]]:
    match node:
        case ast.Raise():
            yield "no raise", ast.Pass()
        case ast.If(test=test):
            yield "never", _with(node, test=ast.Constant(False))
            yield "always", _with(node, test=ast.Constant(True))
            yield "negated", _with(node, test=ast.UnaryOp(ast.Not(), test))
        case ast.Assign() | ast.AugAssign() | ast.Expr() | ast.For() | ast.While() | ast.Assert() | ast.Return():
            yield "removed", ast.Pass()
        case ast.With(body=body):
            yield "without its context", ast.If(ast.Constant(True), body, [])
        case ast.Continue():
            yield "break", ast.Break()
        case ast.Break():
            yield "continue", ast.Continue()
        case ast.Try(body=body, handlers=handlers):
            for fewer in _fewer(handlers):
                rest = ast.If(ast.Constant(True), body, [])
                yield "fewer handlers", _with(node, handlers=fewer) if fewer else rest
        case ast.Match(cases=cases):
            for fewer in _fewer(cases):
                if fewer:
                    yield "fewer cases", _with(node, cases=fewer)
            for position, case in enumerate(cases):
                if case.guard:
                    free = _with(case, guard=None)
                    yield "no guard", _with(node, cases=[*cases[:position], free, *cases[position + 1 :]])
        case ast.FunctionDef() | ast.ClassDef():
            for fewer in _fewer(node.decorator_list):
                yield "fewer decorators", _with(node, decorator_list=fewer)
            if isinstance(node, ast.FunctionDef):
                yield "returns at once", _with(node, body=[ast.Return(None), *node.body])


def _expressions(node: ast.expr) -> Iterator[tuple[str, ast.AST]]:
    match node:
        case ast.Compare(ops=ops):
            for position, op in enumerate(ops):
                for other in _COMPARISONS[type(op)]:
                    yield other.__name__, _with(node, ops=[*ops[:position], other(), *ops[position + 1 :]])
        case ast.BoolOp(op=op, values=values):
            yield "and/or", _with(node, op=ast.Or() if isinstance(op, ast.And) else ast.And())
            for fewer in _fewer(values):
                if fewer:
                    yield "fewer conditions", _with(node, values=fewer) if len(fewer) > 1 else fewer[0]
        case ast.UnaryOp(operand=operand):
            yield "no sign", operand
        case ast.IfExp(body=body, orelse=orelse):
            yield "always", body
            yield "never", orelse
        case ast.BinOp(op=op, left=left, right=right):
            if type(op) in _ARITHMETIC:
                yield "arithmetic", _with(node, op=_ARITHMETIC[type(op)]())
            if isinstance(op, ast.BitOr):
                yield "left only", left
                yield "right only", right
        case (
            ast.ListComp(generators=generators)
            | ast.GeneratorExp(generators=generators)
            | ast.DictComp(generators=generators)
        ):
            for position, loop in enumerate(generators):
                for fewer in _fewer(loop.ifs):
                    free = _with(loop, ifs=fewer)
                    new = [*generators[:position], free, *generators[position + 1 :]]
                    yield "no filter", _with(node, generators=new)
        case ast.Constant(value=value):
            for other in _values(value):
                yield f"{other!r}", ast.Constant(other)
        case ast.Tuple(elts=elements) | ast.List(elts=elements) | ast.Set(elts=elements):
            for fewer in _fewer(elements):
                yield "fewer", _with(node, elts=fewer) if fewer or not isinstance(node, ast.Set) else _empty_set()
        case ast.Dict(keys=keys, values=values):
            for fewer in _fewer(list(zip(keys, values, strict=True))):
                yield "fewer", ast.Dict([key for key, _ in fewer], [value for _, value in fewer])
        case ast.Call(func=function, keywords=keywords):
            if (name := _name(function)) in _FUNCTIONS:
                yield _FUNCTIONS[name], _with(node, func=ast.Name(_FUNCTIONS[name], ast.Load()))
            if name not in ERRORS:
                for position, keyword in enumerate(keywords):
                    if keyword.arg not in WORDED:
                        yield f"no {keyword.arg}", _with(node, keywords=keywords[:position] + keywords[position + 1 :])


def _patterns(node: ast.pattern) -> Iterator[tuple[str, ast.AST]]:
    match node:
        case ast.MatchOr(patterns=patterns):
            for fewer in _fewer(patterns):
                if fewer:
                    yield "fewer patterns", _with(node, patterns=fewer) if len(fewer) > 1 else fewer[0]
        case ast.MatchAs(pattern=ast.pattern()):
            yield "anything", _with(node, pattern=None)
        case ast.MatchClass(kwd_attrs=names, kwd_patterns=patterns):
            for position in range(len(names)):
                rest = range(len(names))
                kept = [other for other in rest if other != position]
                fewer = {"kwd_attrs": [names[k] for k in kept], "kwd_patterns": [patterns[k] for k in kept]}
                yield f"any {names[position]}", _with(node, **fewer)


def _values(value: object) -> Iterator[object]:
    """Constants near a constant: whole numbers off by one, others by a hundredth."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value + 1, value - 1)
    elif isinstance(value, float):
        yield from (value * 1.01, value * 0.99) if value else (0.01, -0.01)
    elif isinstance(value, str):
        yield value + "x"


def _empty_set() -> ast.expr:
    return ast.Call(ast.Name("set", ast.Load()), [], [])
