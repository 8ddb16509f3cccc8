"""The Gram matrix made fit to be solved with: damped, its columns scaled to a unit diagonal.

Legend: R output rows, C input columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from autoprune.errors import AutopruneError

DAMPING, TOWARDS_DENSE_DAMPING = 0.01, 0.1
"""Share of its own variance that is added to each input's: where the aim is the dense weight, and where it is what the
unpruned model has, which is known from these tokens only and with their noise (held-out divergence, LOG.md)."""

SWAPS_DAMPING = 0.5
"""Share of its own variance that is added to each input's. More than least squares has: what a mask alone gains on some
tokens by errors that cancel, it loses on others. Of 0.1 to 4 held-out divergence is least there (LOG.md)."""

_DEAD = 1e-7
"""Share of the mean variance below which an input counts as never active."""


class UnsolvableError(AutopruneError):
    """A Gram matrix that no amount of damping makes fit: it is not finite, or zero."""


def unit_diagonal(gram_CC: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """D (G + damping diag G) D with a unit diagonal, float32 (C, C), and the diagonal (C,) of D^-1.

    The damping pulls kept weights towards their dense values, as if inputs were less correlated than they seem; scales
    of inputs make no difference to it. A column that was never active has nothing else.
    """
    gram_CC = gram_CC.float()
    diagonal_C = gram_CC.diagonal()
    least = _DEAD * diagonal_C.mean()
    if not (least > 0 and torch.isfinite(gram_CC).all()):
        raise UnsolvableError("the Gram matrix is zero or not finite")
    scale_C = (diagonal_C.clamp(min=least) * (1 + damping)).sqrt()
    scaled_CC = gram_CC / scale_C / scale_C[:, None]
    scaled_CC.clamp_(-1 / (1 + damping), 1 / (1 + damping))  # no correlation is beyond 1, but for rounding
    scaled_CC.diagonal().fill_(1.0)
    return scaled_CC, scale_C


def output_error(weight_RC: Tensor, pruned_RC: Tensor, gram_CC: Tensor) -> Tensor:
    """Mean squared error (R,) of each output, float32."""
    difference_RC = weight_RC.float() - pruned_RC.float()
    return (difference_RC @ gram_CC.float() * difference_RC).sum(1)
