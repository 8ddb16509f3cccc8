"""The rungs of the scorer, from the cheapest to the real thing. Each gives a program's damage in nats a token.

- probe: what its masks and weights do to parts of a few layers, against what Wanda's do there.
- quick: the whole model with one-shot masks, on a short text. A method that refines masks or updates weights is judged
  where masks alone do as much harm to parts of layers as it does (`autoprune.equal_harm`).
- full: the real prune, calibrated on several draws of text.

Legend: B sequences, L tokens per sequence, N linear layers, R rows, C columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from autoprune.algorithms import load
from autoprune.allocate import shares
from autoprune.allocation import Allocation, counts
from autoprune.channels import free_channels
from autoprune.equal_harm import equal_harm, masks_only
from autoprune.judge import Judge
from autoprune.language import Program
from autoprune.language.statistics import GRADIENTS
from autoprune.layer import Method, solve
from autoprune.measurements import Measurements
from autoprune.models import BlockSource, Linear
from autoprune.progress import Silent
from autoprune.prune_blocks import NONE_FREE, Recipe, prune_blocks
from autoprune.scoring.expected import Expected
from autoprune.scoring.parts import Piece, part_of, spread
from autoprune.scoring.signature import signature
from autoprune.scoring.store import Store
from autoprune.share_out import share_out
from autoprune.sparsity import Target, keep_mask

REFERENCE = "wanda"
"""The program that others are measured against where a figure by itself says little."""

_PROBES, _PROBE_ROWS, _PROBE_COLUMNS = 8, 128, 384
_EQUALS, _EQUAL_ROWS, _EQUAL_COLUMNS = 7, 128, 1024


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all rungs share: the unpruned model, the target, calibration tokens (B, L), what is known of the model."""

    source: BlockSource
    target: Target
    tokens_BL: Tensor
    propagation: str
    seed: int
    store: Store

    @cached_property
    def reference(self) -> Method:
        return Method.of(load(REFERENCE))

    @cached_property
    def measurements(self) -> Measurements:
        """What allocations are computed from, with the reference's masks: the same for all programs."""
        return Measurements(self.source, self.reference, self.target, self.tokens_BL, judge=True, progress=Silent())

    @cached_property
    def expected(self) -> Expected:
        return Expected(self.store, self.measurements, self.reference, self.target, self.seed)

    def pieces(self, count: int, rows: int, columns: int) -> list[Piece]:
        """Parts of so many layers."""
        linears = [self.store.linears[index] for index in spread(self.store.linears, count)]
        return [
            Piece(self.store, linear, part_of(linear, rows, columns, self.target.group, self.seed))
            for linear in linears
        ]

    def sparsity_N(self, program: Program) -> np.ndarray:
        """What each linear layer loses by the program's allocation, as a prune would count it: with an n:m target that
        is whole steps of n."""
        if program.allocate is None:
            return np.full(len(self.store.linears), float(self.target.fraction))
        allocation = Allocation.of(program)
        found = shares(allocation, self.measurements)
        wanted_N = self.measurements.per_linear(found.sparsity_L, allocation.granularity)
        size_N = [linear.size for linear in self.store.linears]
        return np.divide(counts(self.target, wanted_N.tolist(), size_N), size_N)


class Probe:
    """Harm to parts of a few layers, over what the reference does there, times what the allocation is expected to
    change."""

    def __init__(self, bench: Bench):
        self.bench = bench

    def __call__(self, program: Program) -> tuple[np.ndarray, str, dict[str, float]]:
        """Damage by part, the signature, and the harm by name of the layer, where the reference's is 1."""
        bench, method = self.bench, Method.of(program)
        sparsity_N = bench.sparsity_N(program)
        expected = bench.expected.damage(sparsity_N)
        found, kept = [], []
        for piece, reference in zip(self._pieces, self._reference, strict=True):
            harm, keep_RC = _tried(piece, method.undamaged, bench.target)
            found.append(harm / reference if reference > 0 else 1.0)
            kept.append(keep_RC)
        harm = {piece.linear.name: round(ratio, 3) for piece, ratio in zip(self._pieces, found, strict=True)}
        return expected * np.array(found), signature(method, kept, sparsity_N.tolist()), harm

    @cached_property
    def _pieces(self) -> list[Piece]:
        return self.bench.pieces(_PROBES, _PROBE_ROWS, _PROBE_COLUMNS)

    @cached_property
    def _reference(self) -> list[float]:
        return [_tried(piece, self.bench.reference, self.bench.target)[0] for piece in self._pieces]


def _tried(piece: Piece, method: Method, target: Target) -> tuple[float, Tensor]:
    """Harm and mask of a method on a part."""
    visit = piece.visit(method)
    solution = solve(visit, method, target, int(target.fraction * visit.linear.size))
    return piece.harm(visit, solution.weight_RC * solution.keep_RC), solution.keep_RC


class Quick:
    """Divergence of the model with one-shot masks."""

    def __init__(self, bench: Bench, judge: Judge):
        self.bench, self.judge = bench, judge

    def __call__(self, program: Program) -> tuple[np.ndarray, float]:
        """Divergence (B,) of each sequence, and the sparsity at which the program was judged."""
        bench, method = self.bench, Method.of(program).undamaged
        equal, masks = self._equal(method), masks_only(method)
        shift = equal - float(bench.target.fraction)
        lost = dict(zip(bench.store.linears, bench.sparsity_N(program), strict=True))
        gradients = GRADIENTS & masks.collects

        def masked(linear: Linear) -> Tensor:
            visit = bench.store.visit(linear, gradients)
            count = int(min(max(lost[linear] + shift, 0.0), 1.0) * linear.size)
            score_RC = visit.at(float(lost[linear])).score(masks.score)  # as `equal_harm` asks it
            return linear.weight_RC * keep_mask(score_RC, bench.target, count, masks.compare)

        return self.judge.divergence(masked), equal

    def _equal(self, method: Method) -> float:
        """The sparsity at which masks alone do as much harm."""
        target = self.bench.target
        if method.only_masks or not target.fraction:
            return float(target.fraction)
        return float(np.median([equal_harm(piece.visit(method), method, target) for piece in self._pieces]))

    @cached_property
    def _pieces(self) -> list[Piece]:
        return self.bench.pieces(_EQUALS, _EQUAL_ROWS, _EQUAL_COLUMNS)


class Weights:
    """A copy of all that a prune may change, made when it is first needed."""

    def __init__(self, source: BlockSource):
        self._source = source

    @contextmanager
    def put_back(self) -> Iterator[None]:
        """What is changed within the block is as it was afterwards."""
        unpruned = self._unpruned
        try:
            yield
        finally:
            for parameter, weight in unpruned.items():
                parameter.data.copy_(weight)

    @cached_property
    def _unpruned(self) -> dict[torch.nn.Parameter, Tensor]:
        return {parameter: parameter.data.clone() for block in self._source.blocks for parameter in block.parameters()}


class Full:
    """Divergence of the model after the real prune, the mean over draws of calibration text. What a prune changed is
    put back afterwards."""

    def __init__(self, draws: Sequence[Bench], judge: Judge, weights: Weights):
        self.draws, self.judge, self.weights = draws, judge, weights

    def __call__(self, program: Program) -> np.ndarray:
        """Divergence (B,) of each sequence."""
        return np.mean([self._pruned(program, bench) for bench in self.draws], axis=0)

    def _pruned(self, program: Program, bench: Bench) -> np.ndarray:
        method = Method.of(program)
        source, tokens_BL = bench.source, bench.tokens_BL
        allocation = Allocation.own(program)
        sparsity_N, _ = share_out(
            source, program, method, bench.target, allocation, tokens_BL, bench.propagation, Silent()
        )
        recipe = Recipe(method=method, target=bench.target, propagation=bench.propagation, sparsity_N=sparsity_N)
        channels = free_channels(source) if method.refine == "permute" else NONE_FREE
        gradients = bench.store.gradients(GRADIENTS & method.collects)
        with self.weights.put_back():
            prune_blocks(source, recipe, tokens_BL, lambda layer: None, gradients, channels)
            return self.judge.divergence(lambda linear: None)
