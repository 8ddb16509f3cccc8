"""A program in words: what it needs, what each step is, how it compares weights."""

from __future__ import annotations

from autoprune.language.canonical import expressions
from autoprune.language.check import infer_types
from autoprune.language.operators import OPERATORS
from autoprune.language.program import Program
from autoprune.language.statistics import STATISTICS
from autoprune.language.types import describe

_COMPARE = {
    "row": "every output row loses the same share of its weights",
    "layer": "one threshold per weight matrix",
}


def explain(program: Program) -> str:
    types = infer_types(program.score)
    lines = [f"{program.name}: {program.doc or 'no description'}", f"hash     {program.digest}"]
    lines.append(f"compare  {program.compare}: {_COMPARE[program.compare]}")
    if program.collects:
        lines.append(f"needs    calibration text, to collect {', '.join(sorted(program.collects))} per input")
    else:
        lines.append("needs    no calibration text: it reads the weights only")
    lines.append("statistics")
    for name in program.statistics:
        statistic = STATISTICS[name]
        lines.append(f"  {name}: {describe(statistic.type)}. {statistic.doc}")
    lines.append("steps")
    for index, name, text in expressions(program.score):
        lines.append(f"  {name or 'score'} = {text}    # {types[index]}")
    used = {node.operator for _, node in program.score.steps()}
    guards = [f"  {name}: {OPERATORS[name].guard}" for name in OPERATORS if name in used and OPERATORS[name].guard]
    if guards:
        lines += ["guards", *guards]
    return "\n".join(lines)


def reference() -> str:
    """The tables of the language, as text."""
    lines = ["statistics (name them as parameters of score)"]
    lines += [f"  {row.name:<22} {row.type:<7} {row.doc}" for row in STATISTICS.values()]
    lines.append('operators (over is "rows", "columns" or "all")')
    for row in OPERATORS.values():
        guard = f" Guard: {row.guard}." if row.guard else ""
        lines.append(f"  {row.signature:<32} {row.doc}{guard}")
    return "\n".join(lines)
