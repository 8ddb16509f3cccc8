"""What makes the layers of a model different, before anything is pruned: skewness, sensitivity, and an allocation."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from autoprune.allocate import shares
from autoprune.allocation import Allocation
from autoprune.layer_statistics import group_name
from autoprune.measurements import Measurements


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """Figures by linear layer and by block, in the model's order.

    `damage` holds, for each block, KL(dense ‖ pruned) in nats a token with that block alone pruned to each of `levels`;
    `sparsity` what `allocation` gives each block at the model's sparsity `target`.
    """

    model: str
    algorithm: str
    target: float
    linears: list[str]
    linear_skewness: list[float]
    linear_l_skewness: list[float]
    blocks: list[str]
    block_of: list[int]
    skewness: list[float]
    l_skewness: list[float]
    levels: list[float]
    damage: list[list[float]]
    allocation: str
    sparsity: list[float]

    @property
    def mean_skewness(self) -> list[float]:
        """Mean over the linear layers of each block."""
        values, block_of = np.array(self.linear_skewness), np.array(self.block_of)
        return [float(values[block_of == index].mean()) for index in range(len(self.blocks))]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"mean_skewness": self.mean_skewness}


def diagnose_model(
    measurements: Measurements,
    allocation: Allocation,
    *,
    model: str,
    algorithm: str,
) -> Diagnosis:
    """Measure it all; the model is left as it is. An allocation by linear layer is shown as the mean of each block."""
    names = ("skewness", "l_skewness")
    by_linear, by_block = (measurements.statistics(names, granularity) for granularity in ("linear", "block"))
    curves = measurements.curves("block")
    found = shares(allocation, measurements)
    blocks = measurements.groups("block")
    sparsity_L = measurements.at_target(
        found.sparsity_L, found.granularity, allocation.max_shift, allocation.least_kept
    )
    sparsity_N = measurements.per_linear(sparsity_L, found.granularity)
    position = {linear: index for index, linear in enumerate(measurements.linears)}
    members = [[position[linear] for linear in block] for block in blocks]
    block_of = {linear: index for index, block in enumerate(blocks) for linear in block}
    return Diagnosis(
        model=model,
        algorithm=algorithm,
        target=float(measurements.target.fraction),
        linears=[linear.name for linear in measurements.linears],
        linear_skewness=by_linear["skewness"].tolist(),
        linear_l_skewness=by_linear["l_skewness"].tolist(),
        blocks=[group_name(block) for block in blocks],
        block_of=[block_of[linear] for linear in measurements.linears],
        skewness=by_block["skewness"].tolist(),
        l_skewness=by_block["l_skewness"].tolist(),
        levels=curves.levels,
        damage=curves.damage,
        allocation=allocation.name,
        sparsity=[float(np.average(sparsity_N[index], weights=measurements.size_N[index])) for index in members],
    )
