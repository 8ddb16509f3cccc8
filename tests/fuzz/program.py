"""Target: a program text → parser, checker, canonical form, description."""

from __future__ import annotations

from random import Random

from autoprune.errors import ProgramError
from autoprune.language import Program, explain, read_program
from autoprune.language.canonical import print_program
from autoprune.language.draw import random_tree
from autoprune.language.program import OPTIONS
from autoprune.language.trees import tape_of
from fuzz import texts
from fuzz.oracle import check_accepted
from fuzz.outcome import ACCEPTED, REFUSED, refused
from test_hostile_replies import EXPRESSIONS, PROGRAMS, SCORE


def seeds() -> list[bytes]:
    """The library, and the programs of hostile replies."""
    hostile = [f"def score(weight, gram):\n    return {text}\n" for text in EXPRESSIONS.values()]
    hostile += [text.replace("{score}", SCORE) for text in PROGRAMS.values()]
    return [texts.encoded(text) for text in (*texts.library(), *hostile)]


def drawn(rng: Random) -> str:
    """A program of the language's own generator, which is well-typed by construction; it may be too large."""
    functions = rng.choice((["score"], ["score"], ["allocate"], ["score", "allocate"]))
    tapes = [tape_of(random_tree(name, rng.choice((1, 2, 3, 4, 6)), rng), name) for name in functions]
    options = {name: option.default for name, option in OPTIONS.items()}
    for option in OPTIONS.values():
        if option.function in functions and rng.random() < 0.1:
            options[option.name] = (
                rng.choice(option.choices) if option.choices else rng.uniform(option.low, option.high)
            )
    return print_program(options, tapes)


def mutated(data: bytes, rng: Random) -> bytes:
    """Of two in five a fresh program, half of these as they were drawn."""
    if rng.random() < 0.4:
        text = drawn(rng)
        return texts.encoded(text if rng.random() < 0.5 else texts.mutated(text, rng))
    return texts.encoded(texts.mutated(texts.decoded(data), rng))


def read(text: str) -> Program | None:
    """What a text is; None where it is refused."""
    try:
        return read_program(text)
    except ProgramError as error:
        refused(error)
        _check_place(error)
        return None


def _check_place(error: ProgramError) -> None:
    assert error.place.line >= 1
    assert error.place.column >= 1


def check(data: bytes) -> str:
    text = texts.decoded(data)
    program = read(text)
    if program is None:
        return REFUSED
    check_accepted(text, program)
    again = read_program(program.canonical)
    assert (again.canonical, again.digest) == (program.canonical, program.digest)
    assert (again.functions, again.options) == (program.functions, program.options)
    assert explain(program).replace("\n", "").isprintable()
    return ACCEPTED
