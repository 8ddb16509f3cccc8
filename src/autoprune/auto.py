"""The best allocation for this model, algorithm and sparsity, found by measurement on held-out calibration tokens.

First a few known allocations are tried with one-shot masks, the better ones again on more tokens (successive halving).
Then the best is improved step by step: one backward pass tells for every layer what one more pruned weight costs the
whole pruned model, and sparsity moves from where it is dear to where it is cheap, as long as trials show a gain.
Uniform sparsity is among the candidates, so what is chosen is never worse than it on the tokens it was judged on.

What may be spent is counted in forwards of a token, not in seconds, so that the choice does not depend on the clock.
With few calibration tokens (about 10,000 on a CPU) fixed costs leave no step downhill, and may exceed the budget.

Legend: L layers that share in the sparsity, N linear layers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from autoprune import algorithms
from autoprune.allocate import preference, shares
from autoprune.allocation import UNIFORM, Allocation, counts, project
from autoprune.language.statistics import SENSITIVITY
from autoprune.measurements import Measurements
from autoprune.models import head_shape

CANDIDATES: tuple[tuple[str, dict[str, float]], ...] = (
    ("sdsa", {}),
    ("atp", {}),
    ("dlp", {"strength": 0.15}),
    ("owl", {}),
    ("sdsa", {"strength": 0.4, "temperature": 2.0}),
    ("atp", {"strength": 0.1}),
    ("atp", {"strength": 0.3}),
    ("sdsa", {"strength": 0.1}),
    ("dlp", {}),
)
"""Library allocations that cost next to nothing to compute, some with other options than their own, in the order tried:
as many as the budget allows."""

FIRST_STEP = 0.06
"""Sparsity a layer gives up in the first step for each factor e by which its marginal damage is above the median: where
damage grows by e with every 6 % of sparsity, that makes the marginal damage of all layers equal."""

_SHORTENING = 0.7  # the next step after one that was better
_RETRY = 0.4  # the second step from a place, where the first was not better

# Costs in forwards of one token through the blocks. Of a prune: the forward of its tokens, by propagation; scoring and
# selecting weights. Of a trial: a forward in smaller batches, masking, and the head with its softmax, which reads each
# logit several times (as long as it takes to multiply by a thousand weights). Of a step: a backward pass that computes
# the blocks again.
_PRUNE = {"one_pass": 1.3, "block": 2.05, "dense": 1.3}
_SELECTION, _RANKING, _MASKING = 3000, 7000, 700
_TRIAL, _BACKWARD, _SOFTMAX_WEIGHTS = 1.2, 6.0, 1000
BUDGET = 2.3
"""Prunes that the choice may cost; the rest of the three that are promised is for slower machines."""
_SHARE_OF_CANDIDATES = 0.2  # of what is left after the dense pass


@dataclass(frozen=True)
class Choice:
    """The sparsities (N,) that were chosen, around that of `judged`; what they came from; and a table of all that was
    tried, in order."""

    name: str
    sparsity_N: np.ndarray
    damage: float
    tried: list[dict[str, Any]]


@dataclass(frozen=True)
class _Candidate:
    name: str
    sparsity_N: np.ndarray
    damage: float = np.inf  # on all held-out tokens


def choose(measurements: Measurements, auto: Allocation, own: Allocation | None, propagation: str) -> Choice:
    """The best of uniform, the program's `own` allocation, library allocations, and steps downhill from the best.

    `auto` says which layers share (`granularity`) and how far from the mean (`max_shift`) steps may take one.
    """
    return _Search(measurements, auto, own, propagation).run()


class _Search:
    def __init__(self, measurements: Measurements, auto: Allocation, own: Allocation | None, propagation: str):
        self.measurements, self.auto, self.own, self.trial = measurements, auto, own, measurements.trial
        self.half = max(1, len(self.trial.batches) // 2)
        self.tried: list[dict[str, Any]] = []
        vocabulary, width = head_shape(measurements.source.model)
        self.head = vocabulary * (width + _SOFTMAX_WEIGHTS) / measurements.weights
        seen, held = measurements.observed_tokens, self._tokens(None)
        budget = BUDGET * (_PRUNE[propagation] * (seen + held) + _SELECTION)
        self.left = budget - seen - _RANKING - self._cost(None)
        measurements.progress.stage("choosing an allocation", max(self.left, 1))

    def run(self) -> Choice:
        best, step = self._best_known(), FIRST_STEP
        while step and self.left >= self._downhill_cost():
            best, step = self._downhill(best, step)
            step *= _SHORTENING
        self.measurements.progress.advance(max(self.left, 0))
        return Choice(best.name, best.sparsity_N, best.damage, self.tried)

    def _best_known(self) -> _Candidate:
        """Successive halving: all on half of the tokens, the better half of them on all, and uniform."""
        measurements = self.measurements
        uniform = _Candidate(UNIFORM, np.full(len(measurements.linears), float(measurements.judged.fraction)))
        known: list[_Candidate] = []
        affordable = self._affordable()
        for allocation in self._known():
            if len(known) == affordable:
                break
            candidate = self._candidate(allocation)
            if not any(np.array_equal(candidate.sparsity_N, other.sparsity_N) for other in known):
                known.append(candidate)
        ranked = sorted(known, key=lambda candidate: self._damage(candidate, self.half))
        return min(
            (self._judged(candidate) for candidate in (uniform, *ranked[: (len(ranked) + 1) // 2])),
            key=lambda candidate: candidate.damage,
        )

    def _affordable(self) -> int:
        """How many known allocations to try: a step downhill is worth more than two of them, so where only one of both
        can be had it comes first; where not even that, they cost least."""
        each = self._cost(self.half) + self._cost(None) / 2
        left = self.left - self._cost(None)  # for uniform
        if left < self._downhill_cost():
            return 2
        if left < self._downhill_cost() + 2 * each:
            return 1 if self.own else 0
        return max(2, int(_SHARE_OF_CANDIDATES * left / each))

    def _known(self) -> list[Allocation]:
        """The program's own allocation, unless it is too dear to compute, and those of the library."""
        own = [self.own] if self.own and not (self.own.tape and SENSITIVITY in self.own.tape.collects) else []
        listed = [Allocation.of(algorithms.load(name)).with_options(**options) for name, options in CANDIDATES]
        forced = "block" if self.auto.granularity == "block" else None
        return [
            allocation.with_options(max_shift=min(allocation.max_shift, self.auto.max_shift), granularity=forced)
            for allocation in (*own, *listed)
        ]

    def _candidate(self, allocation: Allocation) -> _Candidate:
        found = shares(allocation, self.measurements)
        sparsity_N = self.measurements.per_linear(found.sparsity_L, found.granularity)
        options = f"strength {allocation.strength:g}"
        if allocation.temperature != 1:
            options += f", temperature {allocation.temperature:g}"
        return _Candidate(f"{allocation.name}, {options}, by {allocation.granularity}", self._executed(sparsity_N))

    def _executed(self, sparsity_N: np.ndarray) -> np.ndarray:
        """The sparsities as the prune will round them, which with n:m is far."""
        size_N = self.measurements.size_N
        return np.array(counts(self.measurements.judged, list(sparsity_N), [int(size) for size in size_N])) / size_N

    def _downhill(self, start: _Candidate, step: float) -> tuple[_Candidate, float]:
        """A step from `start` that is better, and how long it was; `start` and 0 where neither of two was."""
        measurements, granularity = self.measurements, self.auto.granularity
        slope_L = measurements.marginal_damage(start.sparsity_N, granularity, self.half)
        self._spend(self._backward_cost())
        program = Allocation.of(algorithms.load("marginal"))
        direction_L = preference(program, {"marginal_damage": slope_L}, float(measurements.judged.fraction))
        direction_N = measurements.per_linear(direction_L, granularity)
        name = start.name if start.name.endswith("downhill") else f"{start.name}, then downhill"
        for length in (step, _RETRY * step):
            if self.left < self._cost(None):
                break
            wanted_N = start.sparsity_N + length * direction_N
            moved_N = project(wanted_N, measurements.size_N, measurements.judged, self.auto.max_shift)
            candidate = self._judged(_Candidate(name, self._executed(moved_N)), step=round(length, 4))
            if candidate.damage < start.damage:
                return candidate, length
        return start, 0.0

    def _judged(self, candidate: _Candidate, **note: float) -> _Candidate:
        return replace(candidate, damage=self._damage(candidate, None, **note))

    def _damage(self, candidate: _Candidate, batches: int | None, **note: float) -> float:
        damage = self.trial.damage(candidate.sparsity_N, batches)
        self._spend(self._cost(batches))
        tokens = self._tokens(batches)
        self.tried.append({"allocation": candidate.name, **note, "tokens": tokens, "kl_nats_per_token": damage})
        return damage

    def _spend(self, cost: float) -> None:
        self.left -= cost
        self.measurements.progress.advance(cost)

    def _tokens(self, batches: int | None) -> int:
        return sum(tokens_BL.numel() for tokens_BL in self.trial.batches[:batches])

    def _cost(self, batches: int | None) -> float:
        return (_TRIAL + self.head) * self._tokens(batches) + _MASKING

    def _backward_cost(self) -> float:
        return (_BACKWARD + 2 * self.head) * self._tokens(self.half) + _MASKING

    def _downhill_cost(self) -> float:
        """Of a backward pass and one trial at least."""
        return self._backward_cost() + self._cost(None)
