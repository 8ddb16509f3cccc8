"""Writes docs/language.md from the tables of the language: python docs/make_language.py (a test compares)."""

from pathlib import Path

from autoprune.language import OPERATORS, STATISTICS
from autoprune.language.program import OPTIONS
from autoprune.language.types import Type, describe

INTRODUCTION = """# The language

A program is a docstring, options, and `def score(...)`: parameters name statistics, assignments name intermediate
results, the last line returns one number per weight. The lowest scores are pruned. The syntax is a subset of
Python's, but nothing is run as Python: no imports, attributes, subscripts, loops or strings exist here.
`autoprune check FILE` explains a program or says what is wrong with it. This page is written by
`docs/make_language.py` from the tables that the checker and the interpreter read.
"""

TYPING = """
An elementwise operator broadcasts by type: scalar with anything; R, C and RC give RC; CC only with CC or scalar.
A reduction `over="rows"` of an RC leaves a C, `over="columns"` an R, `over="all"` (the default) a scalar; of a CC,
`over="rows"` leaves a C. Normalisers work along that axis and keep the type. `x @ gram` takes an RC, C or CC on the
left. Results are held within ±1e30. The same program always gives the same score: every case outside an operator's
domain has the value stated as its guard.
"""


def language_page() -> str:
    lines = [INTRODUCTION, "## Types", ""]
    lines += [f"- {describe(kind)}" for kind in Type]
    lines += [TYPING, "## Options", "", "The first value is the default.", ""]
    lines += [f"- `{name}`: {', '.join(f'`{value}`' for value in values)}" for name, values in OPTIONS.items()]
    lines += ["", "## Statistics", "", "| name | type | meaning |", "|---|---|---|"]
    lines += [f"| `{row.name}` | {row.type} | {row.doc} |" for row in STATISTICS.values()]
    lines += ["", "## Operators", "", "| operator | gives | guard |", "|---|---|---|"]
    lines += [f"| `{row.signature}` | {row.doc} | {row.guard} |" for row in OPERATORS.values()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("language.md").write_text(language_page(), "utf-8")
