"""Writes docs/language.md from the tables of the language: python docs/make_language.py (a test compares)."""

from pathlib import Path

from autoprune.language import FUNCTIONS, OPERATORS
from autoprune.language.program import OPTIONS
from autoprune.language.types import Type, describe

INTRODUCTION = """# The language

A program is a docstring, options, and one or both of two functions. `def score(...)` returns one number per weight,
and the lowest are pruned; `def allocate(...)` returns one number per layer, and where it is larger more is pruned.
Parameters name statistics, assignments name intermediate results, the last line returns the result. The syntax is a
subset of Python's, but nothing is run as Python: no imports, attributes, subscripts, loops or strings exist here.
`autoprune check FILE` explains a program or says what is wrong with it. This page is written by
`docs/make_language.py` from the tables that the checker and the interpreter read.
"""

TYPING = """
An elementwise operator broadcasts by type: scalar with anything; R, C and RC give RC; CC only with CC or scalar, L only
with L or scalar. A reduction `over="rows"` of an RC leaves a C, `over="columns"` an R, `over="all"` (the default) a
scalar; of a CC, `over="rows"` leaves a C; an L is reduced over all of its layers. Normalisers work along that axis and
keep the type. `x @ gram` takes an RC, C or CC on the left. Results are held within ±1e30. The same program always gives
the same result: every case outside an operator's domain has the value stated as its guard.
"""

ALLOCATING = """What `allocate` returns is multiplied by `strength` and shifted by one constant for all layers, found
such that after clipping to the model's sparsity ± `max_shift` (and to what `least_kept` and n:m leave) the mean,
weighted by size, is exactly the sparsity that was asked for. A statistic that a layer does not have (the skewness of
equal weights, the spectrum of zeros) is taken as the mean of the others.
"""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def language_page() -> str:
    lines = [INTRODUCTION, "## Types", ""]
    lines += [f"- {describe(kind)}" for kind in Type]
    lines.append(TYPING)
    for function in FUNCTIONS.values():
        lines += [f"## `{function.name}`", "", f"Returns {function.result}: {function.doc}.", ""]
        lines += ["| option | values | default | meaning |", "|---|---|---|---|"]
        for option in OPTIONS.values():
            if option.function == function.name:
                default = option.default if isinstance(option.default, str) else f"{option.default:g}"
                lines.append(f"| `{option.name}` | {option.allowed} | {default} | {option.doc} |")
        lines += ["", "| statistic | type | meaning |", "|---|---|---|"]
        lines += [f"| `{row.name}` | {row.type} | {_cell(row.doc)} |" for row in function.statistics.values()]
        lines.append("")
    lines += [ALLOCATING, "## Operators", "", "| operator | gives | guard |", "|---|---|---|"]
    lines += [f"| `{row.signature}` | {row.doc} | {row.guard} |" for row in OPERATORS.values()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("language.md").write_text(language_page(), "utf-8")
