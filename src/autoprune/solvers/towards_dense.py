"""The weight that makes the unpruned model's outputs from the inputs a layer really receives.

Legend: R output rows, C input columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from autoprune.solvers.conditioning import UnsolvableError
from autoprune.statistics import DAMPING


def towards_dense(
    weight_RC: Tensor, gram_CC: Tensor, dense_CC: Tensor, *, damping: float = DAMPING, share: float = 1.0
) -> Tensor:
    """W + W (D - G) (G + d I)^-1 with D = X_d^T X / T, float32 (R, C): least squares for W X_d^T from X."""
    damped_CC = gram_CC.float().clone()
    damped_CC.diagonal().add_(damping * gram_CC.diagonal().mean())
    factor_CC, failed = torch.linalg.cholesky_ex(damped_CC)
    if failed:
        raise UnsolvableError("the Gram matrix cannot be factored")
    weight_RC = weight_RC.float()
    off_RC = weight_RC @ (dense_CC - gram_CC)
    return weight_RC + share * torch.cholesky_solve(off_RC.T, factor_CC).T
