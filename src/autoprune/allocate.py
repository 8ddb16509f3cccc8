"""From an allocation to the sparsity of every layer: measure what it names, ask it, make the mean exact.

Legend: L layers that share in the sparsity (blocks or single linear layers), N linear layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from autoprune.allocation import SENSITIVITY, UNIFORM, Allocation, equal_marginal_damage, project
from autoprune.errors import AutopruneError
from autoprune.language import interpret
from autoprune.layer_statistics import group_sizes
from autoprune.measurements import Measurements


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Sparsities (L,) of the layers of a granularity, and the statistics they were computed from."""

    granularity: str
    sparsity_L: np.ndarray
    statistics: Mapping[str, np.ndarray]


def shares(allocation: Allocation, measurements: Measurements) -> Shares:
    """What an allocation gives each of its layers; the mean, weighted by size, is the sparsity of `judged`, from where
    `Measurements.at_target` takes it to the target."""
    target, granularity = measurements.judged, allocation.granularity
    size_L = group_sizes(measurements.groups(granularity))
    if allocation.is_named(UNIFORM):
        return Shares(granularity=granularity, sparsity_L=np.full(len(size_L), float(target.fraction)), statistics={})
    if allocation.is_named(SENSITIVITY):
        curves = measurements.curves(granularity)
        log_damage_L, slope_L = curves.exponential(float(target.fraction))
        sparsity_L = equal_marginal_damage(log_damage_L, slope_L, size_L, target, allocation.max_shift)
        damage = {f"damage_at_{level:g}": np.array(curves.damage)[:, i] for i, level in enumerate(curves.levels)}
        return Shares(granularity=granularity, sparsity_L=sparsity_L, statistics=damage)
    assert allocation.tape
    values = measurements.statistics(allocation.tape.statistics, granularity)
    preference_L = allocation.strength * preference(allocation, values, float(target.fraction))
    sparsity_L = project(preference_L, size_L, target, allocation.max_shift, allocation.least_kept)
    return Shares(granularity=granularity, sparsity_L=sparsity_L, statistics=values)


def preference(allocation: Allocation, statistics: Mapping[str, np.ndarray], sparsity: float) -> np.ndarray:
    """What the allocation's program returns for these statistics: float64 (L,)."""
    assert allocation.tape
    values = {
        "sparsity": torch.tensor([[sparsity]]),
        "temperature": torch.tensor([[allocation.temperature]]),
        **{name: torch.tensor(value, dtype=torch.float32)[None, :] for name, value in statistics.items()},
    }
    preference_L = interpret(allocation.tape, values)[0].double().numpy()
    if not np.isfinite(preference_L).all():
        raise AutopruneError("the preference is not finite", where=allocation.name, remedy="check the program")
    return preference_L
