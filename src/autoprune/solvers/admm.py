"""ADMM with the schedule of ALPS (Meng et al., 2024): the mask and the weights together.

Legend: R output rows, C input columns.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from autoprune.conditioning import DAMPING, UnsolvableError, unit_diagonal
from autoprune.statistics import bfloat16_products

_PENALTY = 0.1  # the first rho
_EVERY = 3  # iterations between changes of rho
_FACTORS = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))  # rho grows by this where more than this share of the support changed
_SETTLED = 3e-4  # share of the support that changes in three iterations when it is as good as final
_SOONEST = 30  # iterations before that counts
_ITERATIONS = 60
_DAMPINGS = 5


def admm(
    weight_RC: Tensor,
    gram_CC: Tensor,
    select: Callable[[Tensor], Tensor],
    *,
    damping: float = DAMPING,
    iterations: int = _ITERATIONS,
) -> tuple[Tensor, Tensor]:
    """A mask (R, C) and weights on it, float32, zero elsewhere, that bring the output error down together.

    `select` gives the mask for weights (R, C); it is asked in every iteration for what the weights would be. Eq. 5 to 8
    of ALPS on columns scaled to a unit diagonal: with one eigendecomposition, every rho needs one product of C x C
    matrices, every iteration one of R x C by C x C. Their factors are rounded to bfloat16: each iteration starts from
    what the last one's rounding left. The released code's stopping rule, with 60 iterations at most where it has 300,
    and without its fresh start with a smaller rho where nothing changes. Ends at D, so least squares on its support is
    still to come.
    """
    scaled_CC, scale_C = unit_diagonal(gram_CC, damping)
    value_C, vector_CC = _eigen(scaled_CC)
    dense_RC = weight_RC.float() * scale_C

    def pull(rho: float) -> Tensor:
        """-rho (G + rho I)^-1."""
        with bfloat16_products():
            return (vector_CC * (-rho / (value_C + rho))) @ vector_CC.T

    keep_RC = select(dense_RC / scale_C)
    support, before_RC = max(int(keep_RC.sum()), 1), keep_RC
    sparse_RC, dual_RC = dense_RC * keep_RC, torch.zeros_like(dense_RC)  # D, and V / rho
    rho = _PENALTY
    pull_CC = pull(rho)
    for iteration in range(1, iterations + 1):
        # W + V / rho, with W = (G + rho I)^-1 (G w - V + rho D) and G w = (G + rho I) w - rho w
        shifted_RC = dense_RC + dual_RC
        with bfloat16_products():
            proposed_RC = torch.addmm(shifted_RC, shifted_RC - sparse_RC, pull_CC)
        keep_RC = select(proposed_RC / scale_C)
        sparse_RC = proposed_RC * keep_RC
        dual_RC = proposed_RC.sub_(sparse_RC)
        if iteration % _EVERY:
            continue
        changed = int((keep_RC != before_RC).sum()) / support
        if changed == 0 or (changed < _SETTLED and iteration >= _SOONEST):
            break
        before_RC = keep_RC
        factor = next(factor for share, factor in _FACTORS if changed >= share)
        rho *= factor
        dual_RC.div_(factor)
        pull_CC = pull(rho)
    return keep_RC, sparse_RC / scale_C


def _eigen(scaled_CC: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (C,), none negative, and eigenvectors (C, C); where LAPACK does not converge, of a matrix nearer to
    the identity."""
    for attempt in range(_DAMPINGS):
        try:
            value_C, vector_CC = torch.linalg.eigh(scaled_CC)
        except torch.linalg.LinAlgError:  # pyright: ignore[reportPrivateImportUsage]
            value_C, vector_CC = torch.full((1,), torch.nan), scaled_CC
        if torch.isfinite(value_C).all():
            return value_C.clamp(min=0), vector_CC
        scaled_CC = scaled_CC.clone()
        scaled_CC.diagonal().add_(DAMPING * 10**attempt)
    raise UnsolvableError("the eigenvalues of the Gram matrix cannot be found")
