"""Text → Program: parse, check, canonicalise."""

from __future__ import annotations

from types import MappingProxyType

from autoprune.language.canonical import canonical_tape, digest, print_program
from autoprune.language.check import check_memory, infer_types
from autoprune.language.parse import parse
from autoprune.language.program import Program


def read_program(text: str, *, name: str = "program") -> Program:
    """A checked program; raises ProgramError with place, reason and remedy."""
    parsed = parse(text)
    infer_types(parsed.score)
    score = canonical_tape(parsed.score)
    check_memory(score, infer_types(score))
    canonical = print_program(parsed.options, score)
    return Program(
        name=name,
        doc=parsed.doc,
        text=text,
        options=MappingProxyType(parsed.options),
        score=score,
        canonical=canonical,
        digest=digest(canonical),
    )
