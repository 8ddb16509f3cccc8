"""What a program is made of, in words that can be counted over many programs."""

from __future__ import annotations

from autoprune.language.program import CONSTANT, OPTIONS, STATISTIC, Program


def traits(program: Program) -> tuple[str, ...]:
    """Statistics and operators it uses (with the axis they go over), options that are not the default; sorted."""
    found = set()
    for tape in program.functions:
        prefix = "" if tape.function == "score" else f"{tape.function}: "
        for _, node in tape.steps():
            if node.operator == STATISTIC:
                found.add(f"{prefix}{node.value}")
            elif node.operator != CONSTANT:
                found.add(f"{prefix}{node.operator}" + (f" over {node.over}" if node.over else ""))
    for name, value in program.options.items():
        if value != OPTIONS[name].default:
            # A number says little by itself, that it was set may.
            found.add(f"{name}={value}" if OPTIONS[name].choices else name)
    return tuple(sorted(found))
