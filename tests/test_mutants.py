"""What judges the tests of the checker: the mistakes that it makes, and that it sees what a mistake lets through."""

from __future__ import annotations

import ast
from functools import partial

import pytest

from mutants.__main__ import MODULES, _mutants
from mutants.edits import edits
from mutants.judge import DANGEROUS, Found, Mutant, by_verdicts
from mutants.verdicts import Case, Verdict
from mutants.workers import each


def mistakes(source: str) -> set[str]:
    """The texts of all mutants of a text, each compiled."""
    found = set()
    for number in range(len(edits(ast.parse(source)))):
        tree = ast.parse(source)
        changed = edits(tree)[number].applied(tree)
        compile(changed, "<mutant>", "exec")
        found.add(ast.unparse(changed))
    return found


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("LIMIT = 12", {"LIMIT = 13", "LIMIT = 11", "pass"}),
        ("x = a < b", {"x = a <= b", "x = a >= b", "pass"}),
        ("x = a in (b, c)", {"x = a not in (b, c)", "x = a in (b,)", "x = a in (c,)", "x = a in ()", "pass"}),
        ("x = a and b", {"x = a or b", "x = a", "x = b", "pass"}),
        ("x = not a", {"x = a", "pass"}),
        ("x = {'a': True}", {"x = {'ax': True}", "x = {'a': False}", "x = {}", "pass"}),
        (
            "def f():\n    raise E('no ' + str(3))",
            {"def f():\n    pass", "def f():\n    return\n    raise E('no ' + str(3))"},
        ),
        (
            "if a:\n    refuse()",
            {"if False:\n    refuse()", "if True:\n    refuse()", "if not a:\n    refuse()", "if a:\n    pass"},
        ),
        (
            "match a:\n    case B(c=1) if d:\n        pass\n    case _:\n        pass",
            {
                "match a:\n    case _:\n        pass",
                "match a:\n    case B(c=1) if d:\n        pass",
                "match a:\n    case B(c=1):\n        pass\n    case _:\n        pass",
                "match a:\n    case B() if d:\n        pass\n    case _:\n        pass",
            },
        ),
        ("@a\n@b\ndef f(): pass", {"@a\ndef f():\n    pass", "@b\ndef f():\n    pass", "def f():\n    pass"}),
        ('"""Text."""', set()),
        ("raise _refuse(node, 'words' if a else 'more words')", {"pass"}),
    ],
)
def test_mistakes_are_the_usual_ones(source: str, expected: set[str]):
    found = mistakes(source)
    assert found >= expected
    assert ast.unparse(ast.parse(source)) not in found


def test_every_module_has_mutants_with_names_of_their_own():
    mutants = [mutant for name in MODULES for mutant in _mutants(name)]
    assert len(mutants) > 2000
    assert len({str(mutant) for mutant in mutants}) == len(mutants)


@pytest.mark.filterwarnings("ignore:This process .*fork:DeprecationWarning")
def test_a_mutant_that_lets_through_is_seen_and_the_checker_as_it_is_is_not():
    """By the table; and by a drawn program alone, where the table says nothing."""
    limits = [one for one in _mutants("parse") if one.edit and one.edit.what.startswith("257:")]
    (limit,) = limits
    control = Mutant(limit.module, limit.path, -1, None)
    drawn = [(Case("language", "def score(weight):\n    return weight.T\n"), Verdict(True, "as if it were"))]
    jobs = {"limit": partial(by_verdicts, limit, []), "control": partial(by_verdicts, control, [])}
    found = dict(each(jobs | {"drawn": partial(by_verdicts, control, drawn)}, 2))
    assert found["limit"] == Found("table: refused: one step too many", DANGEROUS)
    assert found["control"] == Found("")
    assert isinstance(found["drawn"], Found)
    assert found["drawn"].kind == "refuses"
