"""The Gram matrix made fit to be solved with: damped, its columns scaled to a unit diagonal.

Legend: R output rows, C input columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from autoprune.errors import AutopruneError


class UnsolvableError(AutopruneError):
    """A Gram matrix that no amount of damping makes fit: it is not finite, or zero."""


def unit_diagonal(gram_CC: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """D (G + damping mean(diag G) I) D with a unit diagonal, float32 (C, C), and the diagonal (C,) of D^-1.

    The damping pulls kept weights towards their dense values; a column that was never active has nothing but it.
    """
    gram_CC = gram_CC.float()
    diagonal_C = gram_CC.diagonal().clamp(min=0)
    diagonal_C = diagonal_C + damping * diagonal_C.mean()
    if not (diagonal_C.min() > 0 and torch.isfinite(gram_CC).all()):
        raise UnsolvableError("the Gram matrix is zero or not finite")
    scale_C = diagonal_C.sqrt()
    scaled_CC = gram_CC / scale_C / scale_C[:, None]
    scaled_CC.diagonal().fill_(1.0)
    return scaled_CC, scale_C


def output_error(weight_RC: Tensor, pruned_RC: Tensor, gram_CC: Tensor) -> Tensor:
    """Mean squared error (R,) of each output, float32."""
    difference_RC = weight_RC.float() - pruned_RC.float()
    return (difference_RC @ gram_CC.float() * difference_RC).sum(1)
