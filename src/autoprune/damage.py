"""What pruning does to a layer, in two figures that cost little beside the pruning.

Legend: R output rows, r some of them, C input columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from autoprune.sparsity import some_rows
from autoprune.statistics import InputStatistics

_ROWS = 256
"""Output rows that stand for all of a layer: the ratio of two sums over so many differs by a percent or two."""

_WEIGHTS = 1 << 22
"""Weights that tell the skewness of a layer: all of a small model's, a tenth of a large one's, where all would add a
tenth to the time of a prune with few tokens."""


@dataclass(frozen=True)
class Unpruned:
    """What has to be known of a layer before its weights change: the skewness of |w| (None where all are equal), and
    some rows (r, C) in float32."""

    skewness: float | None
    some_rC: Tensor

    @classmethod
    def of(cls, weight_RC: Tensor) -> Unpruned:
        return cls(skewness(weight_RC), _some(weight_RC))

    def relative_error(self, pruned_RC: Tensor, inputs: InputStatistics) -> float | None:
        """Mean squared error of the layer's outputs over their mean square, by evenly spaced outputs, from the most
        telling statistic of `inputs` there is (`InputStatistics.output_energy`); None where outputs are zero anyway."""
        lost = float(inputs.output_energy(self.some_rC - _some(pruned_RC)).sum())
        whole = float(inputs.output_energy(self.some_rC).sum())
        return lost / whole if whole > 0 and math.isfinite(lost / whole) else None


def skewness(weight_RC: Tensor) -> float | None:
    """Of |w|: third central moment over the cube of the standard deviation; None where all are equal, to about one in a
    hundred. From raw moments, good to four digits; of a layer with more than four million weights from evenly spaced
    rows with so many."""
    weight_RC = weight_RC[:: -(-weight_RC.numel() // _WEIGHTS)]
    sums = torch.zeros(3, dtype=torch.float64)
    least, most = (float(value) for value in weight_RC.aminmax())
    scale = max(-least, most) or 1.0  # so that no cube overflows
    for rows in some_rows(weight_RC):
        a_rC = weight_RC[rows].abs().float() / scale
        square_rC = a_rC.square()
        sums += torch.stack((a_rC.sum(), square_rC.sum(), (square_rC * a_rC).sum())).cpu()
    m1, m2, m3 = (sums / weight_RC.numel()).tolist()
    variance = m2 - m1**2
    if not variance > 1e-4 * m2:
        return None
    return (m3 - 3 * m1 * m2 + 2 * m1**3) / variance**1.5


def _some(weight_RC: Tensor) -> Tensor:
    """Evenly spaced rows, as float32, in memory of their own."""
    step = -(-len(weight_RC) // _ROWS)
    return weight_RC[::step].to(torch.float32, copy=True)
