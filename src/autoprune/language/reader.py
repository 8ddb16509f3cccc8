"""Text → Program: parse, check, canonicalise."""

from __future__ import annotations

from types import MappingProxyType

from autoprune.errors import Place, ProgramError
from autoprune.language.canonical import canonical_tape, digest, print_program
from autoprune.language.check import check_memory, infer_types
from autoprune.language.parse import MAX_CHARACTERS, parse
from autoprune.language.program import Program, Tape


def read_program(text: str, *, name: str = "program") -> Program:
    """A checked program; raises ProgramError with place, reason and remedy."""
    parsed = parse(text)
    tapes = {tape.function: _checked(tape) for tape in parsed.tapes}
    canonical = print_program(parsed.options, list(tapes.values()))
    if len(canonical) > MAX_CHARACTERS:  # short local names for long ones can hide it; it could not be read again
        raise ProgramError(
            f"written out, the program has {len(canonical):,} characters, more than {MAX_CHARACTERS:,}",
            place=Place(),
            remedy="shorten it",
        )
    return Program(
        name=name,
        doc=parsed.doc,
        text=text,
        options=MappingProxyType(parsed.options),
        score=tapes.get("score"),
        allocate=tapes.get("allocate"),
        canonical=canonical,
        digest=digest(canonical),
    )


def _checked(tape: Tape) -> Tape:
    infer_types(tape)
    tape = canonical_tape(tape)
    check_memory(tape, infer_types(tape))
    return tape
