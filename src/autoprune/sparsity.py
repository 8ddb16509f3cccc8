"""How many weights go, and which: sparsity targets, and scores → keep masks with exact counts.

Legend: R output rows, C input columns of a linear layer; M the group length of an n:m pattern.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoprune.errors import AutopruneError


@dataclass(frozen=True)
class Target:
    """The share of weights to remove: a fraction anywhere, or `keep` of every `group` consecutive inputs."""

    fraction: Fraction
    keep: int = 0
    group: int = 0

    def __str__(self) -> str:
        return f"{self.keep}:{self.group}" if self.group else f"{float(self.fraction):.10g}"

    @classmethod
    def of(cls, sparsity: float | None = None, pattern: str | None = None) -> Target:
        """From a fraction in [0, 1) or a pattern such as "2:4" (2 kept of 4); exactly one of the two."""
        if (sparsity is None) == (pattern is None):
            raise AutopruneError(
                "give a sparsity or a pattern" if sparsity is None else "a sparsity and a pattern were given",
                remedy="use one of --sparsity 0.6 and --pattern 2:4",
            )
        if pattern is not None:
            return cls._of_pattern(pattern)
        if isinstance(sparsity, bool | str) or not 0 <= float(sparsity or 0) < 1:
            raise AutopruneError(
                f"sparsity {sparsity} is outside [0, 1)", remedy="give the share of weights to remove, as in 0.6"
            )
        # repr, so that 0.29 means 29/100 and not the binary fraction just below it
        return cls(Fraction(repr(float(sparsity or 0))))

    @classmethod
    def _of_pattern(cls, pattern: str) -> Target:
        match = re.fullmatch(r"\s*(\d{1,6})\s*:\s*(\d{1,6})\s*", pattern, re.ASCII)
        keep, group = (int(match[1]), int(match[2])) if match else (0, 0)
        if not 1 <= keep <= group:
            raise AutopruneError(
                f"pattern '{pattern}' is not n:m with 1 <= n <= m",
                remedy="n weights are kept of m consecutive inputs, as in 2:4",
            )
        return cls(1 - Fraction(keep, group), keep, group)

    def check_layer(self, name: str, columns: int) -> None:
        """Refuse a layer that an n:m pattern cannot tile."""
        if self.group and columns % self.group:
            raise AutopruneError(
                f"{columns} inputs do not divide into groups of {self.group}",
                where=name,
                remedy=f"choose another pattern than {self}, or --sparsity",
            )


_FEW = 16  # columns of a group up to which comparing all with all is faster than sorting
_AT_ONCE = 1 << 18  # elements that a CPU's caches hold


def some_rows(matrix_RC: Tensor, elements: int = _AT_ONCE) -> Iterator[slice]:
    """The rows of a matrix, as many at a time as have so many elements; not on a CPU, all at once."""
    R, C = matrix_RC.shape
    rows = max(1, elements // C) if matrix_RC.device.type == "cpu" else R
    return (slice(start, start + rows) for start in range(0, R, rows))


def keep_mask(score_RC: Tensor, target: Target, count: int, compare: str) -> Tensor:
    """Boolean (R, C): True where a weight stays. Exactly `count` are False, those with the lowest scores.

    `compare` "row" spreads the count evenly over the rows (they differ by one at most), "layer" takes the
    lowest of the matrix; an n:m target spreads it evenly over the groups of m, whatever `compare` says. Among
    equal scores the first columns go.
    """
    return keep_mask_by_rows([(slice(None), score_RC)], score_RC.shape, target, count, compare)


def keep_mask_by_rows(
    parts: Iterable[tuple[slice, Tensor]], shape: Sequence[int], target: Target, count: int, compare: str
) -> Tensor:
    """The same for scores (R, C) that come some rows at a time."""
    R, C = shape
    if compare == "layer" and not target.group:
        score = torch.cat([score_rC for _, score_rC in parts]).reshape(1, -1)
        return _keep(score, torch.tensor([count])).reshape(R, C)
    width = target.group or C  # of the lines in which scores compete
    keep_RC = None
    for rows, score_rC in parts:
        if keep_RC is None:
            keep_RC = torch.empty((R, C), dtype=torch.bool, device=score_rC.device)
        first, last, _ = rows.indices(R)
        keep_RC[rows] = _keep_lines(score_rC, width, count, R * C // width, first * C // width, last * C // width)
    assert keep_RC is not None
    return keep_RC


def _keep_lines(score_rC: Tensor, width: int, count: int, lines: int, first: int, last: int) -> Tensor:
    """Of `lines` lines that lose `count` weights together, those from `first` up to `last`."""
    removed, left = divmod(count, lines)
    if not left and width <= _FEW:
        return _keep_in_groups(score_rC, width, removed)
    index = torch.arange(first, last + 1)
    edges = index * removed + index * left // lines
    return _keep(score_rC.reshape(-1, width), edges.diff()).reshape(score_rC.shape)


def _keep_in_groups(score_RC: Tensor, group: int, removed: int) -> Tensor:
    """Drop as many of the lowest scores of each group of consecutive columns.

    A score's rank in its group is how many others come before it. Whole rows are compared with themselves, moved by 1,
    2, ... columns, which is several times faster than sorting millions of short lines.
    """
    C, device = score_RC.shape[1], score_RC.device
    place_C = torch.arange(C, device=device) % group
    within = [place_C[: C - by] + by < group for by in range(group)]
    start_C = (group - 1 - place_C).to(torch.int8)  # as if all to come were lower
    rank_rC = torch.empty_like(score_RC[next(some_rows(score_RC))], dtype=torch.int8)
    keep_RC = torch.empty(score_RC.shape, dtype=torch.bool, device=device)
    score, start, rank_rows, keep = map(_fast_array, (score_RC, start_C, rank_rC, keep_RC))
    within = [_fast_array(whether) for whether in within]
    for rows in some_rows(score_RC):
        part = score[rows]
        rank = rank_rows[: len(part)]
        rank[:] = start
        for by in range(1, group):
            not_higher = part[:, :-by] <= part[:, by:]
            not_higher &= within[by]
            later, earlier, more = rank[:, by:], rank[:, :-by], not_higher.view(rank.dtype)
            later += more
            earlier -= more
        keep[rows] = rank >= removed
    return keep_RC


def _fast_array(tensor: Tensor) -> Any:
    """What is the same to slice, compare and add: on a CPU NumPy's array, which compares four times faster."""
    return tensor.numpy() if tensor.device.type == "cpu" else tensor


def _keep(score_RC: Tensor, removed_R: Tensor) -> Tensor:
    """Drop the `removed_R[r]` lowest scores of each row; ties are broken by position."""
    low, high = int(removed_R.min()), int(removed_R.max())
    ordered_RC = _lowest_first(score_RC, low)
    threshold_R1 = ordered_RC[:, low - 1 : low] if low else torch.full_like(score_RC[:, :1], -torch.inf)
    if high > low:  # rows of one mask differ by one at most: theirs is the next larger score
        rows = (removed_R == high).to(score_RC.device)
        threshold_R1 = torch.where(rows[:, None], ordered_RC[:, low:].amin(1, keepdim=True), threshold_R1)
    keep_RC = score_RC > threshold_R1
    # Rows where equal scores sit on the threshold lost too many: the last of the equals come back.
    surplus_R = score_RC.shape[1] - keep_RC.sum(1) - removed_R.to(score_RC.device)
    rows = surplus_R.nonzero()[:, 0]
    if len(rows):
        tied_row, tied_column = (score_RC[rows] == threshold_R1[rows]).nonzero(as_tuple=True)
        ties_per_row = tied_row.bincount(minlength=len(rows))
        last_of_row = ties_per_row.cumsum(0)
        from_end = last_of_row[tied_row] - torch.arange(len(tied_row), device=rows.device)
        back = from_end <= surplus_R[rows][tied_row]
        keep_RC[rows[tied_row[back]], tied_column[back]] = True
    return keep_RC


def _lowest_first(score_RC: Tensor, k: int) -> Tensor:
    """Each row rearranged so that its k lowest scores come first, the k-th of them at position k - 1."""
    if k == 0:
        return score_RC
    if score_RC.device.type == "cpu" and score_RC.shape[1] > 64:
        # numpy's selection is several times faster than torch's sort, except for the short rows of n:m groups
        return torch.from_numpy(np.partition(score_RC.numpy(), k - 1, axis=1))
    return score_RC.sort(dim=1).values


def zero_pruned_(weight_RC: Tensor, keep_RC: Tensor) -> int:
    """Set the weights that are not kept to +0.0, in place, whatever they were (NaN too). Gives the number of zeros."""
    # On the bits, since this is many times faster than masked_fill_ on 16-bit floats.
    bits_RC = weight_RC.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[weight_RC.element_size()])
    zeros = 0
    for rows in some_rows(weight_RC):
        part_rC = bits_RC[rows].mul_(keep_RC[rows])
        zeros += part_rC.numel() - int((part_rC << 1).count_nonzero())  # without the sign: -0.0 is zero as well
    return zeros
