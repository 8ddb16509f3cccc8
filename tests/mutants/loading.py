"""A mutant in the place of its module, in a process of its own."""

from __future__ import annotations

import ast
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType

from mutants.edits import Edit


class _Loader(SourceFileLoader):
    """Gives code that was not read from the file."""

    def __init__(self, name: str, path: str, code: CodeType):
        super().__init__(name, path)
        self._code = code

    def get_code(self, fullname: str) -> CodeType:
        return self._code


class _Finder(MetaPathFinder):
    def __init__(self, name: str, code: CodeType):
        self._name, self._code = name, code

    def find_spec(self, fullname, path, target=None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target) if fullname == self._name else None
        if spec and spec.origin:
            spec.loader = _Loader(fullname, spec.origin, self._code)
        return spec


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


def put_in_place(name: str, path: Path, edit: Edit | None, *forgotten: str) -> None:
    """From now on the module is the mutant. What begins with a forgotten name is imported again when it is needed."""
    code = compile(edit.applied(tree_of(path)) if edit else tree_of(path), str(path), "exec", dont_inherit=True)
    sys.meta_path.insert(0, _Finder(name, code))
    for module in [module for module in sys.modules if module.startswith(forgotten)]:
        del sys.modules[module]
