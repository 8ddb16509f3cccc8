"""The weight that makes what the unpruned model has from the inputs a layer really receives: its outputs there, and,
where they are added to the residual stream, the stream.

Legend: R output rows, C input columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from autoprune.conditioning import UnsolvableError

_DAMPING = 0.3
"""Share of the mean diagonal: only directions with much variance are corrected. From 0.1 to 1 held-out KL is the same,
on text like the calibration text and on other text; at 0.01 it is worse on both (LOG.md)."""


def towards_dense(
    weight_RC: Tensor,
    gram_CC: Tensor,
    dense_CC: Tensor,
    share: float,
    *,
    lack_RC: Tensor | None = None,
    damping: float = _DAMPING,
) -> Tensor:
    """W + share * (W (D - G) + K) (G + d I)^-1 with D = X_d^T X / T, float32 (R, C).

    K = L^T X / T, if given, with L what is missing where the outputs are added, in their unit: so the errors of the
    layers before do not add up from block to block. With a share of 1 that is least squares for W X_d^T + L^T from X,
    d = `damping` times the mean of G's diagonal. The whole way is worse than half of it: what cannot be known from
    damaged inputs is answered with the mean, so outputs shrink, and more so after every layer.
    """
    damped_CC = gram_CC.float().clone()
    damped_CC.diagonal().add_(damping * gram_CC.diagonal().mean())
    factor_CC, failed = torch.linalg.cholesky_ex(damped_CC)
    if failed:
        raise UnsolvableError("the Gram matrix cannot be factored")
    weight_RC = weight_RC.float()
    off_RC = weight_RC @ (dense_CC - gram_CC)
    if lack_RC is not None:
        off_RC += lack_RC
    return weight_RC + share * torch.cholesky_solve(off_RC.T, factor_CC).T
