"""One linear layer: which weights go, and what becomes of those that stay.

Legend: R output rows, C input columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from autoprune.conditioning import DAMPING, TOWARDS_DENSE_DAMPING
from autoprune.errors import AutopruneError
from autoprune.language.program import CHOOSES_MASK, OPTIONS, Program, Tape
from autoprune.solvers import (
    UnsolvableError,
    admm,
    dsnot,
    least_squares,
    output_error,
    permute,
    sparsegpt,
    swaps,
    towards_dense,
)
from autoprune.sparsity import Target, keep_mask, keep_mask_by_rows
from autoprune.stream import DENSE_GRAM, Visit

_FEW = 4  # iterations of least squares that show what a mask is worth

_NEEDS = {"swaps": ("gram",), "dsnot": ("sum", "sum_of_squares"), "least_squares": ("gram",)}
_NEEDS |= dict.fromkeys(CHOOSES_MASK, ("gram",))


@dataclass(frozen=True, kw_only=True)
class Method:
    """How weights are scored, where they compete, and the header options that say what follows (`OPTIONS`)."""

    score: Tape
    compare: str = "row"
    refine: str = "none"
    max_swaps: float = 30
    protect: float = 0.0
    update: str = "none"
    towards_dense: float = 0.0

    @classmethod
    def of(cls, program: Program, **given: str | float | None) -> Method:
        """A program's, with other options where given; refused where they do not fit together."""
        method = cls(score=program.require("score"), **program.settings("score", **given))  # pyright: ignore[reportArgumentType]
        for name in ("max_swaps", "protect"):
            if given.get(name) is not None and method.refine != "swaps":
                raise AutopruneError(f"{name} is for refine=swaps, not {method.refine}", remedy="add refine swaps")
        if method.towards_dense and method.update == "none":
            raise AutopruneError(
                "towards_dense is for an update, not for none",
                remedy="add update least_squares, or use towards_dense 0",
            )
        if method.refine != "none" and method.update in CHOOSES_MASK:
            raise AutopruneError(
                f"update={method.update} chooses the mask itself, so refine={method.refine} has nothing to refine",
                remedy="use refine none, or update none or least_squares",
            )
        return method

    def check(self, target: Target) -> None:
        """Refuse what does not fit the target."""
        if self.refine == "permute" and not target.group:
            raise AutopruneError(
                "refine=permute is for n:m patterns: without groups the order of columns makes no difference",
                remedy="use --pattern 2:4, or --refine none or swaps",
            )

    @property
    def only_masks(self) -> bool:
        """Whether weights are chosen by the score alone, and those that stay keep their values."""
        return self.refine in ("none", "permute") and self.update == "none"

    @property
    def undamaged(self) -> Method:
        """The method where every layer has the unpruned model's inputs: there is nothing to make up for."""
        return replace(self, towards_dense=0.0)

    @property
    def options(self) -> dict[str, str | float]:
        """The header options by name."""
        return {name: getattr(self, name) for name, option in OPTIONS.items() if option.function == "score"}

    @property
    def collects(self) -> frozenset[str]:
        """The running sums that have to be kept."""
        twins = (DENSE_GRAM,) if self.towards_dense else ()
        return self.score.collects.union(_NEEDS.get(self.refine, ()), _NEEDS.get(self.update, ()), twins)


@dataclass(frozen=True)
class Solution:
    """The mask (R, C), the weights that go with it, and what could not be done, if anything. Where there is an
    `order_C`, the mask has the target's pattern once columns are put in that order."""

    keep_RC: Tensor
    weight_RC: Tensor
    fallback: str = ""
    order_C: Tensor | None = None


def solve(visit: Visit, method: Method, target: Target, count: int, *, any_order: bool = False) -> Solution:
    """Choose exactly `count` weights of a layer to go, and values for the others; `any_order` allows its columns to be
    put in another order afterwards."""
    visit = visit.at(count / visit.linear.size)
    try:
        if any_order and method.refine == "permute":
            return _permuted(visit, method, target, count)
        return _SOLVE.get(method.update, _score_first)(visit, method, target, count)
    except UnsolvableError as error:
        plain = Method(score=method.score, compare=method.compare)
        solution = _score_first(visit, plain, target, count)
        return Solution(solution.keep_RC, solution.weight_RC, f"{error.what}: pruned by score, weights as they were")


def _aim(visit: Visit, method: Method) -> tuple[Tensor, float]:
    """The weight (R, C) that an update stays close to, and its damping."""
    dense_CC = visit.inputs.dense_gram if method.towards_dense else None
    if dense_CC is None:
        return visit.linear.weight_RC, DAMPING
    lack_RC = visit.inputs.lack if visit.writes else None
    if lack_RC is not None:
        lack_RC = lack_RC / visit.writes
    aim_RC = towards_dense(visit.linear.weight_RC, visit.inputs.gram, dense_CC, method.towards_dense, lack_RC=lack_RC)
    if not torch.isfinite(aim_RC).all():
        raise UnsolvableError("what the unpruned model has there is not finite")
    return aim_RC, TOWARDS_DENSE_DAMPING


def _score_first(visit: Visit, method: Method, target: Target, count: int) -> Solution:
    weight_RC, inputs = visit.linear.weight_RC, visit.inputs
    if method.refine == "none":
        parts = visit.score_by_rows(method.score)
        keep_RC = keep_mask_by_rows(parts, weight_RC.shape, target, count, method.compare)
        return Solution(keep_RC, _updated(visit, method, keep_RC))
    score_RC = visit.score(method.score)
    keep_RC = keep_mask(score_RC, target, count, method.compare)
    match method.refine:
        case "swaps":
            fixed_RC = _highest(score_RC, keep_RC, method.protect) if method.protect else None
            keep_RC = swaps(
                weight_RC, keep_RC, inputs.gram, most=int(method.max_swaps), fixed_RC=fixed_RC, group=target.group
            )
        case "dsnot":
            keep_RC = dsnot(weight_RC, keep_RC, inputs.input_mean, inputs.input_std, score_RC, group=target.group)
    return Solution(keep_RC, _updated(visit, method, keep_RC))


def _updated(visit: Visit, method: Method, keep_RC: Tensor) -> Tensor:
    if method.update == "least_squares":
        weight_RC, damping = _aim(visit, method)
        return least_squares(weight_RC, keep_RC, visit.inputs.gram, damping=damping)
    return visit.linear.weight_RC


def _permuted(visit: Visit, method: Method, target: Target, count: int) -> Solution:
    """The order only says which columns share a group: weights stay where they are, since tokens have passed the
    layers before, and are folded when no token is under way."""
    score_RC = visit.score(method.score)
    R, C = score_RC.shape
    keep = target.group - round(count * target.group / (R * C))  # the target's, or what the allocation leaves
    order_C = permute(score_RC, keep, target.group)
    keep_RC = keep_mask(score_RC, target, count, method.compare)
    other_RC = torch.empty_like(keep_RC)
    other_RC[:, order_C] = keep_mask(score_RC[:, order_C], target, count, method.compare)
    own, other = (float((score_RC * mask_RC).sum(1).cpu().double().sum()) for mask_RC in (keep_RC, other_RC))
    if other <= own:
        return Solution(keep_RC, _updated(visit, method, keep_RC))
    return Solution(other_RC, _updated(visit, method, other_RC), order_C=order_C)


def _highest(score_RC: Tensor, keep_RC: Tensor, share: float) -> Tensor:
    """The kept weights (R, C) with the highest scores of their row, `share` of those it keeps."""
    kept_R = keep_RC.sum(1)
    order_RC = score_RC.masked_fill(~keep_RC, -torch.inf).argsort(dim=1, descending=True)
    rank_RC = torch.empty_like(order_RC)
    rank_RC.scatter_(1, order_RC, torch.arange(keep_RC.shape[1], device=order_RC.device).expand_as(order_RC))
    return rank_RC < (share * kept_R)[:, None]


def _admm(visit: Visit, method: Method, target: Target, count: int) -> Solution:
    (weight_RC, damping), gram_CC = _aim(visit, method), visit.inputs.gram
    score = visit.scorer(method.score)

    def select(weight_RC: Tensor) -> Tensor:
        return keep_mask(score(weight_RC), target, count, method.compare)

    keep_RC, start_RC = admm(weight_RC, gram_CC, select, damping=damping)
    solved_RC = least_squares(weight_RC, keep_RC, gram_CC, start_RC=start_RC, damping=damping)
    # A score that has little to do with the error may lead ADMM astray.
    first_RC = select(weight_RC.float())
    plain_RC = least_squares(weight_RC, first_RC, gram_CC, damping=damping, iterations=_FEW)
    own, plain = (float(output_error(weight_RC, pruned_RC, gram_CC).sum()) for pruned_RC in (solved_RC, plain_RC))
    if plain < own:
        return Solution(first_RC, least_squares(weight_RC, first_RC, gram_CC, start_RC=plain_RC, damping=damping))
    return Solution(keep_RC, solved_RC)


def _sparsegpt(visit: Visit, method: Method, target: Target, count: int) -> Solution:
    (weight_RC, _), score = _aim(visit, method), visit.scorer(method.score)
    columns = weight_RC.shape[1]

    def select(part_Rc: Tensor, curvature_1c: Tensor, chosen: slice) -> Tensor:
        """As many of these columns' weights go as is their share; what rows cannot share falls to others each time."""
        part = count * chosen.stop // columns - count * chosen.start // columns
        turn = chosen.start // (chosen.stop - chosen.start)
        score_Rc = score(part_Rc, curvature_1c, chosen).roll(turn, 0)
        return keep_mask(score_Rc, target, part, method.compare).roll(-turn, 0)

    return Solution(*sparsegpt(weight_RC, visit.inputs.gram, select, group=target.group))


_SOLVE: dict[str, Callable[[Visit, Method, Target, int], Solution]] = {"sparsegpt": _sparsegpt, "admm": _admm}
