"""The zeros of a model's prunable weights, and whether hardware could skip them.

Legend: R output rows, C input columns of a linear layer.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from autoprune.models import Linear
from autoprune.sparsity import some_rows
from autoprune.speed.payoff import Zeros


def count_zeros(linears: Sequence[Linear]) -> Zeros:
    """Over all prunable layers; a weight that several share counts once."""
    by_weight = {linear.key: linear for linear in linears}.values()
    zeros = [count(linear.weight_RC) for linear in by_weight]
    return Zeros(
        weights=sum(linear.size for linear in by_weight),
        zeros=sum(number for number, _ in zeros),
        matrices=len(zeros),
        two_of_four=sum(pattern for _, pattern in zeros),
    )


def count(weight_RC: Tensor) -> tuple[int, bool]:
    """Zeros, and whether at least 2 of every 4 consecutive columns of every row are."""
    zeros, pattern = 0, weight_RC.shape[1] % 4 == 0
    for rows in some_rows(weight_RC):
        is_zero_rC = weight_RC[rows] == 0
        zeros += int(is_zero_rC.sum())
        if pattern:
            first, second, third, fourth = is_zero_rC.byte().unflatten(1, (-1, 4)).unbind(-1)
            pattern = int((first + second + third + fourth).min()) >= 2
    return zeros, pattern
