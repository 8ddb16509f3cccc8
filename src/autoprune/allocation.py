"""How much of the whole each layer loses: preferences → sparsities whose weighted mean is exact → counts.

Legend: L layers that share out the sparsity (blocks, or single linear layers), N linear layers.
Pure functions on numbers; what they are computed from is measured in `layer_statistics`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from autoprune.errors import AutopruneError
from autoprune.language import statistics
from autoprune.language.program import OPTIONS, Program, Tape, accepted
from autoprune.sparsity import Target

UNIFORM, SENSITIVITY, AUTO = "uniform", "sensitivity", "auto"
NOT_PROGRAMS = (UNIFORM, SENSITIVITY, AUTO)
"""Allocations that are not programs: all the same; equal marginal damage; the best by measurement."""


_SHARED = ("granularity", "max_shift")  # options of allocations that are not programs


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """How to share out the sparsity. `tape` is the program's `allocate`, None for those that are not programs."""

    name: str
    tape: Tape | None = None
    digest: str = ""
    text: str = ""
    granularity: str = "block"
    strength: float = 1.0
    max_shift: float = 0.15
    least_kept: float = 0.5
    temperature: float = 1.0

    @classmethod
    def named(cls, name: str) -> Allocation:
        """One of those that are not programs."""
        options = {AUTO: {"granularity": "linear", "max_shift": 0.25}}.get(name, {})
        return cls(name=name, **options)  # pyright: ignore[reportArgumentType]

    @classmethod
    def of(cls, program: Program) -> Allocation:
        """The allocation that a program defines."""
        tape = program.require("allocate")
        options = program.settings("allocate")
        return cls(name=program.name, tape=tape, digest=program.digest, text=program.text, **options)  # pyright: ignore[reportArgumentType]

    @classmethod
    def own(cls, program: Program) -> Allocation:
        """A program's own, uniform where it defines none."""
        return cls.of(program) if program.allocate else cls.named(UNIFORM)

    def with_options(self, **options: str | float | None) -> Allocation:
        """The same with other options; None leaves one as it is."""
        given = accepted(**options)
        used = () if self.is_named(UNIFORM) else _SHARED
        if self.tape:
            named = "temperature" in self.tape.statistics
            used = tuple(name for name, option in OPTIONS.items()
                         if option.function == "allocate" and (name != "temperature" or named))  # fmt: skip
        for name in given:
            if name not in used:
                raise AutopruneError(
                    f"the allocation '{self.name}' has no {name}",
                    remedy="leave it out, or use an allocation that has, as sdsa",
                )
        return replace(self, **given)  # pyright: ignore[reportArgumentType]

    def is_named(self, *names: str) -> bool:
        """Whether it is one of these that are not programs; a program file may have the same name."""
        return self.tape is None and self.name in names

    @property
    def needs_judge(self) -> bool:
        """Whether pruned models have to be compared with the dense one, on held-out text."""
        collects = self.tape.collects if self.tape else frozenset()
        return self.is_named(SENSITIVITY, AUTO) or bool(collects & {statistics.SENSITIVITY, statistics.MARGINAL_DAMAGE})

    @property
    def needs_text(self) -> bool:
        """Whether a text has to pass through the model."""
        return self.needs_judge or bool(self.tape and statistics.SALIENCY in self.tape.collects)


def bounds(target: Target, max_shift: float, least_kept: float = 0.5) -> tuple[float, float]:
    """Least and greatest sparsity of a layer: `max_shift` around the model's; none keeps less than `least_kept` of its
    fair share; and an n:m target keeps at least one of each group."""
    sparsity = float(target.fraction)
    fair = 1 - least_kept * (1 - sparsity)
    most = 1 - 1 / target.group if target.group else 1.0
    return max(0.0, sparsity - max_shift), max(sparsity, min(sparsity + max_shift, fair, most))


def project(
    preference_L: np.ndarray, size_L: np.ndarray, target: Target, max_shift: float, least_kept: float = 0.5
) -> np.ndarray:
    """Sparsities (L,), float64: the preferences shifted by one constant and clipped to `bounds`, with the target's
    sparsity as their mean, weighted by `size_L`."""
    preference_L = np.asarray(preference_L, dtype=np.float64)
    # Gaps wider than the whole range of sparsities make no difference, and would cost digits.
    order = np.argsort(preference_L, kind="stable")
    wanted_L = np.zeros(len(order))
    wanted_L[order[1:]] = np.minimum(np.diff(preference_L[order]), 2.0).cumsum()
    return _balanced(wanted_L, np.ones(len(order)), size_L, target, bounds(target, max_shift, least_kept))


def equal_marginal_damage(
    log_damage_L: np.ndarray, slope_L: np.ndarray, size_L: np.ndarray, target: Target, max_shift: float
) -> np.ndarray:
    """Sparsities (L,) that minimise the sum of exp(log_damage + slope * s) at the target's weighted mean.

    Where the damage of each layer grows exponentially with its sparsity, all layers have the same marginal damage per
    weight at s = (log(size) - log(slope) - log_damage + c) / slope: Lagrange's condition, clipped to `bounds`.
    """
    wanted_L = (np.log(size_L / np.mean(size_L)) - np.log(slope_L) - log_damage_L) / slope_L
    return _balanced(wanted_L, 1 / slope_L, size_L, target, bounds(target, max_shift))


def _balanced(
    wanted_L: np.ndarray, step_L: np.ndarray, size_L: np.ndarray, target: Target, within: tuple[float, float]
) -> np.ndarray:
    """`wanted + c * step` clipped to the bounds `within`, with the c that makes the weighted mean exact.

    The mean grows with c from the lower to the upper bound, and the target lies between them, so bisection finds c.
    """
    assert np.isfinite(wanted_L).all()
    low, high = within
    share_L = np.asarray(size_L, dtype=np.float64) / np.sum(size_L)
    below, above = float(((low - wanted_L) / step_L).min()), float(((high - wanted_L) / step_L).max())
    while (middle := (below + above) / 2) not in (below, above):
        if share_L @ np.clip(wanted_L + middle * step_L, low, high) < target.fraction:
            below = middle
        else:
            above = middle
    return np.clip(wanted_L + above * step_L, low, high)


def counts(target: Target, sparsity_N: Sequence[Fraction | float], size_N: Sequence[int]) -> list[int]:
    """How many weights each linear layer loses: in all exactly what `target` says of the sum of sizes, rounded down.

    A fraction gives each layer its own share to within one weight. An n:m target gives each layer one n, the
    nearest below or above its share; one layer at most has groups of both, so that the total is exact.
    """
    group = target.group or 1
    step_N = [size // group if target.group else 1 for size in size_N]
    most_N = [size // group * (group - 1) if target.group else size for size in size_N]
    share_N = [Fraction(share) * size for share, size in zip(sparsity_N, size_N, strict=True)]
    count_N = [int(share / step) * step for share, step in zip(share_N, step_N, strict=True)]
    # The largest remainders are rounded up, as long as a whole step fits; what is left goes to one more layer.
    left = int(target.fraction * sum(size_N)) - sum(count_N)
    order = sorted(range(len(size_N)), key=lambda index: (count_N[index] - share_N[index]) / step_N[index])
    while left > 0:
        for index in order:
            raised = min(step_N[index], most_N[index] - count_N[index], left)
            count_N[index] += raised
            left -= raised
    for index in reversed(order):  # a sum of rounded shares may be beyond the total by a weight
        lowered = min(count_N[index], max(-left, 0))
        count_N[index] -= lowered
        left += lowered
    return count_N
