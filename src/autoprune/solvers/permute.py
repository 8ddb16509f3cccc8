"""Which input columns should share a group of an n:m pattern, so that the score of what stays is highest: the channel
permutation of RIA (Zhang et al., 2024).

The columns are dealt out by their summed score in snake order, so that each group gets some of the best. Then, for one
position of the groups after another, the columns at that position are assigned to the groups anew: with the other
M - 1 members of group h given, column i adds to row r what its score s_ri has above the n-th best of those, t_rh. The
sum of max(0, s - t) over rows is (sum s - sum t + sum |s - t|) / 2, so the best assignment is the one with the largest
sum of L1 distances between columns of s and t. RIA takes scipy's solver; here it is an auction (Bertsekas, 1988), which
works on all bidders at once, on any device, and in the end retains as much (see LOG.md).

Legend: R output rows, C input columns, G groups, M columns of a group.
"""

from __future__ import annotations

import torch
from torch import Tensor

_FIRST_STEP, _LAST_STEP, _SHRINK = 0.1, 1e-3, 0.2
"""What a bid is raised by at first and at last, in standard deviations of a row, and the factor in between."""

_MOST_BIDS = 5
"""Rounds of bids at one step, in multiples of the number of groups: beyond lies what rounding alone can cause."""


def permute(score_RC: Tensor, keep: int, group: int) -> Tensor:
    """An order (C,), int64, such that `score_RC[:, order]` retains much where `keep` of every `group` columns stay:
    no less than in the order that is given, nor in snake order. The same scores always give the same order."""
    C = score_RC.shape[1]
    own_C = torch.arange(C, device=score_RC.device)
    if not 0 < keep < group < C:  # all orders are as good
        return own_C
    score_CR = (score_RC.float() / score_RC.abs().max().clamp(min=1e-30)).T.contiguous()
    snake_C = _snake(score_CR, group)
    orders = [own_C, snake_C, _assign(score_CR, snake_C, keep, group)]
    return max(orders, key=lambda order_C: _retained(score_CR, order_C, keep, group))


def _retained(score_CR: Tensor, order_C: Tensor, keep: int, group: int) -> float:
    """Sum of the scores that stay."""
    best = score_CR[order_C].reshape(-1, group, score_CR.shape[1]).topk(keep, dim=1).values
    return best.sum((0, 1)).cpu().double().sum().item()  # some devices have no float64


def _snake(score_CR: Tensor, group: int) -> Tensor:
    """The columns from the best to the worst, dealt to the groups there and back."""
    ranked_MG = score_CR.sum(1).argsort(descending=True, stable=True).reshape(group, -1)
    ranked_MG[1::2] = ranked_MG[1::2].flip(1)
    return ranked_MG.T.reshape(-1)


def _assign(score_CR: Tensor, order_C: Tensor, keep: int, group: int) -> Tensor:
    """Assign the columns at each position of the groups anew, one position after the other."""
    order_GM = order_C.reshape(-1, group).clone()
    for position in range(group):
        column_G = order_GM[:, position].clone()
        others_GM = torch.cat([order_GM[:, :position], order_GM[:, position + 1 :]], dim=1)
        threshold_GR = score_CR[others_GM].topk(keep, dim=1).values[:, -1]
        order_GM[:, position] = column_G[_auction(torch.cdist(score_CR[column_G], threshold_GR, p=1.0))]
    return order_GM.reshape(-1)


def _auction(value_GG: Tensor) -> Tensor:
    """The row that gets each column of `value_GG`, one each, for a high sum of values: never below the diagonal's.

    Rows bid for columns, all that have none at once: the price of the one they like best goes up to where the second
    best is as good, and by one step more. The smaller the step, the nearer to the optimum; prices are kept from one
    step to the next.
    """
    G, device = len(value_GG), value_GG.device
    index_G = torch.arange(G, device=device)
    rounding = 1e-6 * float(value_GG.abs().max())
    # The mean of a column is a good first price; without means, rows that differ by rounding only are seen as such.
    value_GG = value_GG - value_GG.mean(0) - (value_GG.mean(1, keepdim=True) - value_GG.mean())
    spread = float(value_GG.std(1).mean())
    if spread <= rounding:
        return index_G
    price_G = torch.zeros(G, device=device)
    owner_G = index_G
    step = _FIRST_STEP * spread
    while step >= max(_LAST_STEP * spread, rounding):
        owner_G = _bids(value_GG, price_G, step)
        step *= _SHRINK
    gain = (value_GG[owner_G, index_G] - value_GG.diagonal()).sum()
    return owner_G if float(gain) > rounding else index_G


def _bids(value_GG: Tensor, price_G: Tensor, step: float) -> Tensor:
    """One auction: the owner (G,) of each column. Raises `price_G` in place."""
    G, device = len(value_GG), value_GG.device
    owner_G, owned_G = (torch.full((G,), -1, device=device) for _ in range(2))
    for _ in range(_MOST_BIDS * G):
        bidder_F = (owned_G < 0).nonzero()[:, 0]
        if not len(bidder_F):
            break
        best_F2, column_F2 = (value_GG[bidder_F] - price_G).topk(2, dim=1)
        column_F = column_F2[:, 0]
        bid_F = price_G[column_F] + best_F2[:, 0] - best_F2[:, 1] + step
        highest_G = torch.full_like(price_G, -torch.inf).scatter_reduce_(0, column_F, bid_F, "amax")
        # Among equal bids the first bidder wins, on any device.
        contender_F = torch.where(bid_F == highest_G[column_F], bidder_F, G)
        winner_G = torch.full_like(owner_G, G).scatter_reduce_(0, column_F, contender_F, "amin")
        sold = (winner_G < G).nonzero()[:, 0]
        before = owner_G[sold]
        owned_G[before[before >= 0]] = -1
        owner_G[sold], owned_G[winner_G[sold]] = winner_G[sold], sold
        price_G[sold] = highest_G[sold]
    owner_G[(owner_G < 0).nonzero()[:, 0]] = (owned_G < 0).nonzero()[:, 0]  # whoever is left takes what is left
    return owner_G
