"""Better kept weights from the Gram matrix of a layer's inputs: pure functions on tensors, all rows at once.

Legend: R output rows, C input columns. With w a row of the dense weight, v of the pruned one and G = X^T X / T, the
mean squared error of the layer's output is (w - v) G (w - v)^T. Rows are independent of each other.
"""

from __future__ import annotations

import torch
from torch import Tensor

from autoprune.statistics import DAMPING

UPDATES = ("none", "least_squares")
"""What may happen to kept weights: nothing, or the least squares solution on the kept set."""

_ITERATIONS = 20
_TOLERANCE = 1e-3  # of the first residual; what remains moves weights by less than their rounding to 16 bits


def least_squares(
    weight_RC: Tensor,
    keep_RC: Tensor,
    gram_CC: Tensor,
    *,
    damping: float = DAMPING,
    iterations: int = _ITERATIONS,
    tolerance: float = _TOLERANCE,
) -> Tensor:
    """The weights on the kept set that minimise the output error, float32 (R, C), zero elsewhere.

    `damping` times the mean of G's diagonal is added to the diagonal: it pulls v towards w, so an input that was never
    active leaves its weights as they are. Solved by conjugate gradients on columns scaled to a unit diagonal, each
    iteration one matrix product; the error never grows from one to the next. A row whose residual is not
    finite keeps its dense values.
    """
    weight_RC, gram_CC = weight_RC.float(), gram_CC.float()
    diagonal_C = gram_CC.diagonal().clamp(min=0)
    diagonal_C = diagonal_C + damping * diagonal_C.mean()
    if not diagonal_C.min() > 0:  # no input was ever active, or they are not finite
        return weight_RC * keep_RC
    scale_C = diagonal_C.rsqrt()
    scaled_CC = gram_CC * scale_C * scale_C[:, None]
    scaled_CC.diagonal().fill_(1.0)

    dense_RC = weight_RC / scale_C
    v_RC = dense_RC * keep_RC
    residual_RC = ((dense_RC - v_RC) @ scaled_CC).mul_(keep_RC)
    direction_RC = residual_RC.clone()
    square_R = residual_RC.square().sum(1)
    enough_R = square_R * tolerance**2
    for _ in range(iterations):
        if not (square_R > enough_R).any():
            break
        image_RC = (direction_RC @ scaled_CC).mul_(keep_RC)
        curvature_R = (direction_RC * image_RC).sum(1)
        step_R = torch.where((curvature_R > 0) & (square_R > enough_R), square_R / curvature_R, 0.0)
        v_RC.addcmul_(direction_RC, step_R[:, None])
        residual_RC.addcmul_(image_RC, step_R[:, None], value=-1)
        before_R, square_R = square_R, residual_RC.square().sum(1)
        direction_RC.mul_(torch.where(before_R > 0, square_R / before_R, 0.0)[:, None]).add_(residual_RC)
    solved_R = torch.isfinite(v_RC).all(1)
    return torch.where(solved_R[:, None], v_RC * scale_C, weight_RC * keep_RC)


def output_error(weight_RC: Tensor, pruned_RC: Tensor, gram_CC: Tensor) -> Tensor:
    """Mean squared error (R,) of each output, float32."""
    difference_RC = weight_RC.float() - pruned_RC.float()
    return (difference_RC @ gram_CC.float() * difference_RC).sum(1)
