"""Target: an accepted program → interpreter, on layers of all shapes and values.

Legend: R output rows, C input columns, L layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from random import Random

import torch
from torch import Tensor

from autoprune.language import FUNCTIONS, interpret
from autoprune.language.operators import LIMIT
from autoprune.language.parse import parse
from autoprune.language.types import Type
from fuzz import program, texts
from fuzz.outcome import ACCEPTED, REFUSED

seeds = program.seeds

_SIZES = ((1, 1, 1), (1, 5, 2), (4, 1, 3), (3, 5, 4))
_VALUES = (0.0, -0.0, 1.0, -1.0, 0.5, 3.0, 1e-45, -1e-45, 1e-38, 1e-6, -0.9999999, 80.0, 1e15, LIMIT, -LIMIT)
_BEYOND = (*_VALUES, 1e38, -3e38, float("inf"), float("-inf"), float("nan"))


def mutated(data: bytes, rng: Random) -> bytes:
    """Mostly fresh programs, since most changes of one make none."""
    return texts.encoded(program.drawn(rng)) if rng.random() < 0.6 else program.mutated(data, rng)


@cache
def worlds(function: str) -> tuple[tuple[bool, Mapping[str, Tensor]], ...]:
    """Statistics, and whether all are within the limit that operators are made for."""
    return tuple(_worlds(function))


def _worlds(function: str) -> Iterator[tuple[bool, Mapping[str, Tensor]]]:
    generator = torch.Generator().manual_seed(0)
    for rows, columns, layers in _SIZES:
        shapes = {Type.SCALAR: (1, 1), Type.R: (rows, 1), Type.C: (1, columns), Type.L: (1, layers)}
        shapes |= {Type.RC: (rows, columns), Type.CC: (columns, columns)}
        named = {name: shapes[row.type] for name, row in FUNCTIONS[function].statistics.items()}
        yield True, {name: torch.randn(shape, generator=generator) for name, shape in named.items()}
        for value in (0.0, LIMIT, 1e-45, -1.0):
            yield True, {name: torch.full(shape, value) for name, shape in named.items()}
        for within, values in ((True, _VALUES), (False, _BEYOND)):
            every = torch.tensor(values)
            yield (
                within,
                {name: every[torch.randint(len(values), shape, generator=generator)] for name, shape in named.items()},
            )


def check(data: bytes) -> str:
    """Accepted: one finite number per weight or layer, the same again, as the text says; nothing is written to."""
    text = texts.decoded(data)
    read = program.read(text)
    if read is None:
        return REFUSED
    raw = {tape.function: tape for tape in parse(text).tapes}
    for tape in read.functions:
        for within, world in worlds(tape.function):
            before = {name: value.clone() for name, value in world.items()}
            result = interpret(tape, world)
            shape = world["weight"].shape if tape.function == "score" else world["depth"].shape
            assert result.shape == shape
            assert result.dtype == torch.float32
            assert all(torch.equal(torch.nan_to_num(world[name]), torch.nan_to_num(before[name])) for name in world)
            as_written = interpret(raw[tape.function], world)
            assert as_written.shape == shape
            if within:
                assert result.isfinite().all(), (world, result)
                assert result.abs().max() <= LIMIT
                assert torch.equal(result, interpret(tape, world))
    return ACCEPTED
