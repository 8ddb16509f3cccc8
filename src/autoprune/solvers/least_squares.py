"""Least squares on the kept set by conjugate gradients.

Legend: R output rows, C input columns.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from autoprune.conditioning import DAMPING, UnsolvableError, unit_diagonal

_ITERATIONS = 12  # leave less than 1 % of the least error, at 50 and 70 % sparsity (LOG.md)
_TOLERANCE = 1e-5  # of the first residual: so little that where it is met makes no difference
_POWERS = 12  # iterations for the eigenvector, which need not be exact


def least_squares(
    weight_RC: Tensor,
    keep_RC: Tensor,
    gram_CC: Tensor,
    *,
    start_RC: Tensor | None = None,
    damping: float = DAMPING,
    iterations: int = _ITERATIONS,
    tolerance: float = _TOLERANCE,
) -> Tensor:
    """The weights on the kept set that minimise the output error, float32 (R, C), zero elsewhere.

    `damping` times G's diagonal is added to it, which pulls v towards w; an input that was never active leaves its
    weights as they are. Solved by conjugate gradients on columns scaled to a unit diagonal, each iteration one matrix
    product; the error never grows from one to the next. Inputs have one direction with far more variance than others,
    which the preconditioner takes out. They start from the dense values, or from `start_RC`. Refused where a result is
    not finite.
    """
    scaled_CC, scale_C = unit_diagonal(gram_CC, damping)
    dense_RC = weight_RC.float() * scale_C
    v_RC = (dense_RC if start_RC is None else start_RC.float() * scale_C) * keep_RC
    residual_RC = ((dense_RC - v_RC) @ scaled_CC).mul_(keep_RC)
    solve = _preconditioner(scaled_CC, keep_RC)
    solved_RC = solve(residual_RC)
    direction_RC = solved_RC.clone()
    square_R = (residual_RC * solved_RC).sum(1)
    enough_R = square_R * tolerance**2
    for _ in range(iterations):
        if not (square_R > enough_R).any():
            break
        image_RC = (direction_RC @ scaled_CC).mul_(keep_RC)
        curvature_R = (direction_RC * image_RC).sum(1)
        step_R = torch.where((curvature_R > 0) & (square_R > enough_R), square_R / curvature_R, 0.0)
        v_RC.addcmul_(direction_RC, step_R[:, None])
        residual_RC.addcmul_(image_RC, step_R[:, None], value=-1)
        solved_RC = solve(residual_RC)
        before_R, square_R = square_R, (residual_RC * solved_RC).sum(1)
        direction_RC.mul_(torch.where(before_R > 0, square_R / before_R, 0.0)[:, None]).add_(solved_RC)
    if not torch.isfinite(v_RC).all():
        raise UnsolvableError("least squares has no finite solution")
    return v_RC / scale_C


def _preconditioner(scaled_CC: Tensor, keep_RC: Tensor) -> Callable[[Tensor], Tensor]:
    """(I + (value - 1) u u^T)^-1 on the kept set of each row, with the largest eigenvalue and its vector u."""
    u_C = scaled_CC.abs().sum(1) - 1  # 0, and so for ever, where an input has nothing to do with any other
    for _ in range(_POWERS):
        u_C = scaled_CC @ u_C
        u_C = u_C / u_C.norm().clamp(min=torch.finfo(u_C.dtype).tiny)
    excess = (u_C @ (scaled_CC @ u_C) - 1).clamp(min=0)
    u_RC = keep_RC * u_C
    share_R = excess / (1 + excess * u_RC.square().sum(1))

    def solve(residual_RC: Tensor) -> Tensor:
        return torch.addcmul(residual_RC, u_RC, ((residual_RC @ u_C) * -share_R)[:, None])

    return solve
