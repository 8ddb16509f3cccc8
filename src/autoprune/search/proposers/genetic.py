"""Two proposers without a language model, baselines for those with one: genetic programming, and random programs.

They answer in the form that models are asked for, and read nothing of a request but its parents, operator and seed.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from autoprune.language import Program, read_program
from autoprune.language.sample import Variant, crossed, grafted, mutated, random_program, simplified
from autoprune.language.space import Space
from autoprune.search.protocol import Answer, Request

_TRIES = 8
"""Draws for an answer, until one is a program that is not known."""

TWICE = 0.15
"""How often a mutation is followed by another: some improvements take two steps, of which neither helps alone."""


class Genetic:
    """Changes the first parent, or mixes it with the second, as the operator of the request says."""

    repairs = False

    def __init__(self, space: Space):
        self.space = space

    def propose(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Answer]]:
        return _answers("genetic", self._variant, requests)

    def close(self) -> None:
        pass

    def _variant(self, request: Request, rng: random.Random) -> Variant:
        if not request.parents:
            return _random_variant(rng, self.space)
        program, *others = (read_program(text) for text in request.parents)
        variant = self._made(request.operator, program, others, rng)
        return variant if variant.change else self._mutated(program, rng)

    def _made(self, operator: str, program: Program, others: list[Program], rng: random.Random) -> Variant:
        match operator, others:
            case "simplify", _:
                return simplified(program, rng, self.space)
            case "combine", [other, *_]:
                return crossed(program, other, rng, self.space)
            case "transfer", [other, *_]:
                return grafted(program, other, rng, self.space)
        return self._mutated(program, rng)

    def _mutated(self, program: Program, rng: random.Random) -> Variant:
        first = mutated(program, rng, self.space)
        if rng.random() >= TWICE:
            return first
        second = mutated(read_program(first.text), rng, self.space)
        undone = second.text == program.canonical
        return first if undone else Variant(second.text, f"{first.change}; then {second.change}")


class Random:
    """Draws programs as if there were no parents: what a search has to be better than."""

    repairs = False

    def __init__(self, space: Space):
        self.space = space

    def propose(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Answer]]:
        return _answers("random", lambda request, rng: _random_variant(rng, self.space), requests)

    def close(self) -> None:
        pass


def _random_variant(rng: random.Random, space: Space) -> Variant:
    return Variant(random_program(rng, space), "drew a random program")


def _answers(
    model: str, make: Callable[[Request, random.Random], Variant], requests: Sequence[Request]
) -> Iterator[tuple[Request, Answer]]:
    for request in requests:
        started, rng = time.perf_counter(), random.Random(request.seed)
        otherwise = replace(request, operator="mutate")  # there are few ways to simplify
        variant = make(request, rng)
        for attempt in range(1, _TRIES):
            if not _is_known(variant, request):
                break
            variant = make(request if attempt < _TRIES // 2 else otherwise, rng)
        yield request, Answer(text=_reply(variant), model=model, seconds=time.perf_counter() - started)


def _is_known(variant: Variant, request: Request) -> bool:
    return bool(request.known) and read_program(variant.text).digest in request.known


def _reply(variant: Variant) -> str:
    change = variant.change or "nothing could be changed"
    return f"diagnosis: {change}\nprogram:\n```python\n{variant.text}```\n"
