"""DSnoT (Zhang et al., 2024): swaps that bring the mean of each output back to what it was.

Legend: R output rows, C input columns, G groups of M columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

_CYCLES = 50
_NEAR = 0.1 / 2048
"""How near the mean of an output has to come: the released code stops at 0.1 for the sum over 2048 tokens."""


def dsnot(
    weight_RC: Tensor,
    keep_RC: Tensor,
    mean_1C: Tensor,
    std_1C: Tensor,
    score_RC: Tensor,
    *,
    group: int = 0,
    cycles: int = _CYCLES,
) -> Tensor:
    """A mask (R, C) with as many kept weights in every row, or in every `group` consecutive columns.

    `mean_1C` and `std_1C` are of the inputs. With D = w mean(x), a row lacks the sum of D over its pruned weights. In
    each cycle the pruned weight whose D / var(x) does most against that comes back, and of the kept weights whose D has
    the other sign the one with the lowest `score_RC` goes. Other than in the released code, which may overshoot, a
    cycle that does not bring a row nearer is its last and is not done; and no layer is left out.
    """
    weight_RC, keep_RC = weight_RC.float(), keep_RC.clone()
    contribution_RC = weight_RC * mean_1C
    worth_RC = torch.nan_to_num(contribution_RC / std_1C.square(), nan=0.0, posinf=0.0, neginf=0.0)
    lacking_R = (contribution_RC * ~keep_RC).sum(1)
    rows = torch.arange(len(weight_RC), device=weight_RC.device)
    for _ in range(cycles):
        rows = rows[lacking_R[rows].abs() > _NEAR]
        if not len(rows):
            break
        sign_R1 = lacking_R[rows].sign()[:, None]
        keep, contribution = keep_RC[rows], contribution_RC[rows]
        back_R1 = (worth_RC[rows] * sign_R1).masked_fill(keep, -torch.inf).argmax(1, keepdim=True)
        candidate = keep & (contribution * sign_R1 < 0)
        if group:
            candidate &= torch.arange(keep.shape[1], device=keep.device) // group == back_R1 // group
        cost_R1, gone_R1 = score_RC[rows].masked_fill(~candidate, torch.inf).min(1, keepdim=True)
        after_R1 = lacking_R[rows, None] - contribution.gather(1, back_R1) + contribution.gather(1, gone_R1)
        pruned_R1 = ~keep.gather(1, back_R1)  # false where a row has nothing to take back
        better_R = ((after_R1.abs() < lacking_R[rows, None].abs()) & torch.isfinite(cost_R1) & pruned_R1)[:, 0]
        rows = rows[better_R]
        keep_RC[rows, back_R1[better_R, 0]] = True
        keep_RC[rows, gone_R1[better_R, 0]] = False
        lacking_R[rows] = after_R1[better_R, 0]
    return keep_RC
