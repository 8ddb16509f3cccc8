"""Which layers of a block write into the residual stream: found by arithmetic, not by names of architectures.

Legend: T tokens, R output rows of a layer, which are as many as the stream is wide.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_TOKENS = 64  # that are looked at
_ROUNDINGS = 1  # of the dtype: what a sum of few terms may be off by, on average; real models are off by an eighth
_SHARE = 0.1  # of what a block adds: more than that must not be left unexplained, however coarse the dtype
_NEARLY = 0.01  # factors as near as this to 0 or 1 are 0 or 1


def some_tokens(output: Tensor) -> Tensor:
    """A copy (T, R) of what is at a few tokens, far apart."""
    output_TR = output.reshape(-1, output.shape[-1])
    return output_TR[:: max(1, len(output_TR) // _TOKENS)].clone()


def factors(entering_TR: Tensor, outputs: Sequence[Tensor], leaving_TR: Tensor) -> list[float]:
    """By what factor each output (T, R) is added to what enters a block, so that the sum is what leaves it; zeros where
    there are no such factors, as where a norm or experts stand between."""
    none = [0.0] * len(outputs)
    if not outputs or entering_TR.shape != leaving_TR.shape:
        return none
    entering, leaving, *added = (some.double().cpu().flatten() for some in (entering_TR, leaving_TR, *outputs))
    # Each number counts as much as it is exact: some channels are a thousand times the others.
    weight = entering.abs() + leaving.abs() + sum(some.abs() for some in added)
    weight = torch.where(weight > 0, 1 / weight, 0.0)
    goal = (leaving - entering) * weight
    columns = torch.stack([some * weight for some in added])
    found = torch.linalg.lstsq(columns @ columns.T, columns @ goal, driver="gelsd").solution
    found = torch.where(found.abs() < _NEARLY, 0.0, torch.where((found - 1).abs() < _NEARLY, 1.0, found))
    left, whole = ((part.square().mean().sqrt()) for part in (goal - found @ columns, goal))
    explained = left <= _ROUNDINGS * torch.finfo(leaving_TR.dtype).eps and left <= _SHARE * whole
    return found.tolist() if explained else none
