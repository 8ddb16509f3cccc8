"""The 1-swap rule (SparseSwaps): a kept weight for a pruned one, as long as the output error falls.

For a row w with the removed part e = w outside the mask, the error is e G e^T. With c = e G, to prune u and take back p
changes it by 2 w_u c_u + w_u^2 G_uu - 2 w_p c_p + w_p^2 G_pp - 2 w_u w_p G_up; then c grows by w_u G_u - w_p G_p.

Legend: R output rows, C input columns, M the group length of an n:m pattern, K partners that are tried.
"""

from __future__ import annotations

import torch
from torch import Tensor

from autoprune.conditioning import SWAPS_DAMPING, UnsolvableError

_PARTNERS = 16
"""Pruned weights that are tried where the likeliest alone gave nothing, each with every kept weight of its row."""

_TILE = {"cpu": 1 << 17}
"""Weights of the rows that are worked on at once, or pairs within groups, by device type: what a core's cache holds."""
_TILE_ELSEWHERE = 1 << 25


def swaps(
    weight_RC: Tensor,
    keep_RC: Tensor,
    gram_CC: Tensor,
    *,
    most: int,
    fixed_RC: Tensor | None = None,
    group: int = 0,
    damping: float = SWAPS_DAMPING,
) -> Tensor:
    """A better mask (R, C) with as many kept weights in every row, or in every `group` consecutive columns.

    At most `most` swaps a row, each the best that is found: the pruned weight that is cheapest to take back, with the
    kept weight that is then cheapest to prune, correlated or not; where that is no gain, the 16 cheapest to take back.
    Within groups all pairs are looked at. The error with G + damping diag G never grows. Weights of
    `fixed_RC` are never pruned.
    """
    weight_RC, gram_CC = weight_RC.float(), gram_CC.float().clone()
    if not torch.isfinite(gram_CC).all():
        raise UnsolvableError("the Gram matrix is not finite")
    gram_CC.diagonal().mul_(1 + damping)
    fixed_RC = torch.zeros_like(keep_RC) if fixed_RC is None else fixed_RC
    keep_RC = keep_RC.clone()
    left_R = torch.full((len(weight_RC),), most, device=weight_RC.device)
    width = weight_RC.shape[1] * max(1, group)
    tile = max(1, _TILE.get(weight_RC.device.type, _TILE_ELSEWHERE) // width)
    for partners in (1,) if group else (1, _PARTNERS):
        for rows in left_R.nonzero()[:, 0].split(tile):
            search = _Search(weight_RC[rows], keep_RC[rows], fixed_RC[rows], gram_CC, group, partners)
            keep_RC[rows], left_R[rows] = search.run(left_R[rows])
    return keep_RC


class _Search:
    """Swaps in some rows. Infinity marks weights that cannot be pruned, or taken back."""

    def __init__(
        self, weight_RC: Tensor, keep_RC: Tensor, fixed_RC: Tensor, gram_CC: Tensor, group: int, partners: int
    ):
        self.gram_CC, self.group, self.partners = gram_CC, group, partners
        self.weight_RC, self.keep_RC = weight_RC, keep_RC
        self.change_RC = (weight_RC * ~keep_RC) @ gram_CC  # c
        own_RC = weight_RC.square() * gram_CC.diagonal()
        self.own_if_kept_RC = own_RC.masked_fill(~keep_RC | fixed_RC, torch.inf)
        self.own_if_pruned_RC = own_RC.masked_fill(keep_RC, torch.inf)
        self.signed_RC = torch.where(keep_RC, 2 * weight_RC, -2 * weight_RC)

    def run(self, left_R: Tensor) -> tuple[Tensor, Tensor]:
        """The mask, and how many more swaps each row may have, once no row has a gain or one left."""
        done_keep_RC, done_left_R = self.keep_RC.clone(), left_R.clone()
        rows = torch.arange(len(left_R), device=left_R.device)
        while len(rows):
            swap_R = self._swap(left_R)
            left_R = left_R - swap_R.int()
            if 2 * int(swap_R.sum()) < len(rows):  # go on with those rows only
                done_keep_RC[rows], done_left_R[rows] = self.keep_RC, left_R
                rows, left_R = rows[swap_R], left_R[swap_R]
                for name in (
                    "weight_RC",
                    "keep_RC",
                    "change_RC",
                    "own_if_kept_RC",
                    "own_if_pruned_RC",
                    "signed_RC",
                ):
                    setattr(self, name, getattr(self, name)[swap_R])
        return done_keep_RC, done_left_R

    def _swap(self, left_R: Tensor) -> Tensor:
        """One swap in each row that has one left, where it is a gain; which rows that are (R,)."""
        if self.group:
            gain_R, revive_R, prune_R = self._best_in_groups()
            self._add_to_change(revive_R, -1)
        else:
            cost_R, revive_R = self._cheapest()
            self._add_to_change(revive_R, -1)
            least_R, prune_R = torch.addcmul(self.own_if_kept_RC, self.signed_RC, self.change_RC).min(1)
            gain_R = cost_R + least_R
        swap_R = (gain_R < 0) & (left_R > 0)  # not where it is NaN
        self._add_to_change(torch.where(swap_R, prune_R, revive_R), 1)  # what was taken back for nothing goes again
        rows = swap_R.nonzero()[:, 0]
        for column_R, kept in ((prune_R, False), (revive_R, True)):
            at = (rows, column_R[rows])
            own_R = (self.own_if_pruned_RC if kept else self.own_if_kept_RC)[at]
            self.own_if_kept_RC[at] = own_R if kept else torch.inf
            self.own_if_pruned_RC[at] = torch.inf if kept else own_R
            self.signed_RC[at] *= -1
            self.keep_RC[at] = kept
        return swap_R

    def _add_to_change(self, column_R: Tensor, sign: int) -> None:
        """As if a weight of each row were pruned (1), or taken back (-1)."""
        weight_R1 = self.weight_RC.gather(1, column_R[:, None])
        self.change_RC.addcmul_(self.gram_CC[column_R], weight_R1, value=sign)

    def _cheapest(self) -> tuple[Tensor, Tensor]:
        """Change of the error (R,) by taking back the pruned weight (R,) that is cheapest to take back, or, of several
        partners, the one that is cheapest together with its best kept weight."""
        take_back_RC = torch.addcmul(self.own_if_pruned_RC, self.signed_RC, self.change_RC)
        if self.partners == 1:
            return take_back_RC.min(1)
        give_up_RC = torch.addcmul(self.own_if_kept_RC, self.signed_RC, self.change_RC)
        cost_RK, column_RK = take_back_RC.topk(min(self.partners, take_back_RC.shape[1]), dim=1, largest=False)
        pair_RK = torch.empty_like(cost_RK)
        for partner, column_R in enumerate(column_RK.unbind(1)):
            cross_RC = self.gram_CC[column_R] * self.weight_RC.gather(1, column_R[:, None])
            pair_RK[:, partner] = torch.addcmul(give_up_RC, self.weight_RC, cross_RC, value=-2).amin(1)
        best_R1 = pair_RK.add_(cost_RK).argmin(1, keepdim=True)
        return cost_RK.gather(1, best_R1)[:, 0], column_RK.gather(1, best_R1)[:, 0]

    def _best_in_groups(self) -> tuple[Tensor, Tensor, Tensor]:
        """Change of the error (R,) by the best of all swaps within groups, the column that comes back and the one that
        goes (R,)."""
        (R, C), M = self.weight_RC.shape, self.group
        blocks_GMM = self.gram_CC.reshape(C // M, M, C // M, M).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        weight_RGM = self.weight_RC.reshape(R, C // M, M)
        move_RGM = (self.signed_RC * self.change_RC).reshape(R, C // M, M)
        give_up_RGM = self.own_if_kept_RC.reshape(R, C // M, M) + move_RGM
        take_back_RGM = self.own_if_pruned_RC.reshape(R, C // M, M) + move_RGM
        pair_RGMM = give_up_RGM[..., :, None] + take_back_RGM[..., None, :]
        pair_RGMM.addcmul_(weight_RGM[..., :, None] * blocks_GMM, weight_RGM[..., None, :], value=-2)
        gain_R, pair_R = pair_RGMM.reshape(R, -1).min(1)
        start_R = pair_R // (M * M) * M
        return gain_R, start_R + pair_R % M, start_R + pair_R // M % M
