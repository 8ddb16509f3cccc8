"""Every program of the table is refused for its reason, or taken; mutants of the checker are judged by it, too."""

from __future__ import annotations

import ast
import json

import pytest

from autoprune.errors import ProgramError
from autoprune.language import OPERATORS, read_program
from autoprune.language.parse import _FunctionReader
from autoprune.language.program import OPTIONS
from mutants.verdicts import DIGESTS, table, verdict
from unsafe_programs import ACCEPTED, ARGUMENTS, CHOICES, NUMBERS, PLAIN, WITH_AXIS

if __name__ == "__main__":  # to write the digests anew, where that is meant
    found = {name: read_program(text).digest for name, text in ACCEPTED.items()}
    DIGESTS.write_text(json.dumps(found, indent=0, sort_keys=True) + "\n", "utf-8")

TABLE = table()


@pytest.mark.parametrize("kind", sorted({name.partition(":")[0] for name in TABLE}))
def test_each_gate_says_what_the_table_says(kind: str):
    said = {name: verdict(row.case) for name, row in TABLE.items() if name.startswith(f"{kind}:")}
    assert len(said) > 5
    assert {name: found for name, found in said.items() if not TABLE[name].holds(found)} == {}


def test_what_is_exactly_allowed_can_be_read_again():
    for name, text in ACCEPTED.items():
        program = read_program(text)
        assert read_program(program.canonical).digest == program.digest, name


def test_the_table_is_large():
    assert sum(not row.passed for row in TABLE.values()) > 2000


def test_the_table_has_all_operators_and_options():
    assert set(ARGUMENTS) == set(OPERATORS)
    assert {name for name, row in OPERATORS.items() if row.takes_axis} == WITH_AXIS
    assert {*NUMBERS, *CHOICES} == set(OPTIONS)
    assert set(json.loads(DIGESTS.read_text("utf-8"))) == set(ACCEPTED)


def test_type_parameters_are_refused_by_a_python_that_knows_them():
    (definition,) = ast.parse(PLAIN).body
    assert isinstance(definition, ast.FunctionDef)
    assert _FunctionReader(definition).read()
    definition.type_params = [ast.Name("T")]  # as of Python 3.12, pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ProgramError, match="plain names of statistics"):
        _FunctionReader(definition).read()
