"""SparseGPT (Frantar and Alistarh, 2023): columns from left to right, those still to come make up for what goes.

Legend: R output rows, C input columns.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from autoprune.conditioning import DAMPING, UnsolvableError, unit_diagonal

_BLOCK = 128  # columns whose mask is chosen together, and whose effect on later columns is applied at once
_PANEL = 32  # columns whose effect on each other is applied one by one
_MOST_DAMPING = 1e3


def sparsegpt(
    weight_RC: Tensor,
    gram_CC: Tensor,
    select: Callable[[Tensor, Tensor, slice], Tensor],
    *,
    group: int = 0,
    damping: float = DAMPING,
) -> tuple[Tensor, Tensor]:
    """A mask (R, C) and weights on it, float32, zero elsewhere.

    `select(weight, curvature, columns)` gives the mask (R, c) of the next columns: 128, or the `group` columns of an
    n:m pattern. It is told their weights (R, c) as earlier columns left them, and U_jj^2 (1, c) of each: what
    inverse_gram_diagonal is when the columns before it are settled.
    """
    factor_CC = inverse_factor(gram_CC, damping)
    curvature_1C = factor_CC.diagonal().square()[None, :]
    columns = len(gram_CC)
    step = group or _BLOCK
    panel = max(step, _PANEL // step * step) if group else _PANEL
    block = max(panel, _BLOCK // panel * panel)
    # Transposed, so that a column is contiguous; a copy, also of a weight that is stored so.
    weight_CR = weight_RC.T.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    keep_CR = torch.empty(weight_CR.shape, dtype=torch.bool, device=weight_CR.device)
    for start in range(0, columns, block):
        end = min(start + block, columns)
        error_CR = torch.empty_like(weight_CR[start:end])
        for left in range(start, end, panel):
            right = min(left + panel, end)
            for column in range(left, right):
                if (column - start) % step == 0:
                    chosen = slice(column, min(column + step, end))
                    selected_RC = select(weight_CR[chosen].T, curvature_1C[:, chosen], chosen)
                    keep_CR[chosen] = selected_RC.T
                gone_R = weight_CR[column].masked_fill(keep_CR[column], 0.0)
                error_R = error_CR[column - start] = gone_R.div_(factor_CC[column, column])
                weight_CR[column + 1 : right].addr_(factor_CC[column, column + 1 : right], error_R, alpha=-1)
            panel_CR = error_CR[left - start : right - start]
            weight_CR[right:end].addmm_(factor_CC[left:right, right:end].T, panel_CR, alpha=-1)
        weight_CR[end:].addmm_(factor_CC[start:end, end:].T, error_CR, alpha=-1)
    return keep_CR.T, weight_CR.mul_(keep_CR).T


def inverse_factor(gram_CC: Tensor, damping: float) -> Tensor:
    """The upper triangular U (C, C) with U^T U = (G + damping diag G)^-1.

    From the Cholesky factor of G with its columns in reverse order: G = K K^T with K upper triangular gives U = K^-1,
    and G need not be inverted first. `damping` is raised tenfold until G can be factored.
    """
    while damping < _MOST_DAMPING:
        scaled_CC, scale_C = unit_diagonal(gram_CC, damping)
        factor_CC, failed = torch.linalg.cholesky_ex(scaled_CC.flip(0, 1))
        if not failed and torch.isfinite(factor_CC).all():
            identity_CC = torch.eye(len(gram_CC), device=gram_CC.device)
            upper_CC = factor_CC.flip(0, 1)
            return torch.linalg.solve_triangular(upper_CC, identity_CC, upper=True) / scale_C
        damping *= 10
    raise UnsolvableError("the Gram matrix cannot be factored")
