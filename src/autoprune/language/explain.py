"""A program in words: what it needs, what each step is, which options it sets."""

from __future__ import annotations

from autoprune.language.canonical import expressions
from autoprune.language.check import infer_types
from autoprune.language.operators import OPERATORS
from autoprune.language.program import OPTIONS, Program, Tape
from autoprune.language.statistics import FUNCTIONS, SPECTRUM, WEIGHTS
from autoprune.language.types import describe

_NEEDS_TEXT = {
    True: "calibration text, to collect {}",
    False: "no calibration text: {} reads the weights only",
}


def explain(program: Program) -> str:
    lines = [f"{program.name}: {program.doc or 'no description'}", f"hash     {program.digest}"]
    for tape in program.functions:
        lines += ["", f"{tape.function}: {FUNCTIONS[tape.function].doc}"]
        options = [option for option in OPTIONS.values() if option.function == tape.function]
        lines += [f"{option.name:<12} {_shown(program.options[option.name])}: {option.doc}" for option in options]
        lines += _function(tape)
    used = {node.operator for tape in program.functions for _, node in tape.steps()}
    guards = [f"  {name}: {OPERATORS[name].guard}" for name in OPERATORS if name in used and OPERATORS[name].guard]
    if guards:
        lines += ["", "guards", *guards]
    return "\n".join(lines)


def _shown(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _function(tape: Tape) -> list[str]:
    types, table = infer_types(tape), FUNCTIONS[tape.function].statistics
    needs_text = bool(tape.collects - {WEIGHTS, SPECTRUM})
    about = ", ".join(sorted(tape.collects)) if needs_text else tape.function
    lines = [f"{'needs':<12} {_NEEDS_TEXT[needs_text].format(about)}", "statistics"]
    lines += [f"  {name}: {describe(table[name].type)}. {table[name].doc}" for name in tape.statistics]
    lines.append("steps")
    for index, name, text in expressions(tape):
        lines.append(f"  {name or tape.function} = {text}    # {types[index]}")
    return lines


def reference() -> str:
    """The tables of the language, as text."""
    lines = []
    for function in FUNCTIONS.values():
        lines += [f"{function.name}: {function.doc}", f"statistics (name them as parameters of {function.name})"]
        lines += [f"  {row.name:<22} {row.type:<7} {row.doc}" for row in function.statistics.values()]
        lines.append(f"options of {function.name}")
        for option in OPTIONS.values():
            if option.function == function.name:
                lines.append(f"  {option.name:<22} {option.doc}; {option.allowed} (default {_shown(option.default)})")
        lines.append("")
    lines.append('operators (over is "rows", "columns" or "all")')
    for row in OPERATORS.values():
        guard = f" Guard: {row.guard}." if row.guard else ""
        lines.append(f"  {row.signature:<32} {row.doc}{guard}")
    return "\n".join(lines)
