"""Where masks alone do as much harm to a layer as a method that also refines them, or solves for new weights.

Legend: R output rows, C input columns.
"""

from __future__ import annotations

from torch import Tensor

from autoprune.language.program import CHOOSES_MASK
from autoprune.layer import Method, solve
from autoprune.solvers import output_error
from autoprune.sparsity import Target, keep_mask
from autoprune.stream import Visit

_HALVINGS = 7  # to less than a hundredth of sparsity

_MOST_KEPT = 1.5
"""A method counts as if it kept at most so many times the weights it keeps: on the few tokens it was solved for it
looks better than it is, and judging too low is worse than a little too high (LOG.md)."""


def masks_only(method: Method) -> Method:
    """Masks of the method's score with weights as they are, to judge the method by. Where an update chooses the mask,
    rows compete within themselves: it can weigh them against each other, masks of one threshold do that badly."""
    compare = "row" if method.update in CHOOSES_MASK else method.compare
    return Method(score=method.score, compare=compare)


def needs(method: Method) -> frozenset[str]:
    """The running sums that `equal_harm` needs."""
    return method.undamaged.collects | {"gram"}


def equal_harm(visit: Visit, method: Method, target: Target) -> float:
    """The sparsity at which `masks_only` gives a layer of the unpruned model as much output error as the method does at
    the target; the target's where the method is no better."""
    weight_RC, gram_CC = visit.linear.weight_RC, visit.inputs.gram
    size, compare = visit.linear.size, masks_only(method).compare
    score_RC = visit.at(float(target.fraction)).score(method.score)

    def harm(pruned_RC: Tensor) -> float:
        return float(output_error(weight_RC, pruned_RC, gram_CC).sum())

    def mask_harm(sparsity: float) -> float:
        return harm(weight_RC * keep_mask(score_RC, target, int(sparsity * size), compare))

    solution = solve(visit, method.undamaged, target, int(target.fraction * size))
    own = harm(solution.weight_RC * solution.keep_RC)
    high = float(target.fraction)
    low = max(0.0, 1 - _MOST_KEPT * (1 - high))
    if not own < mask_harm(high):  # not finite, perhaps
        return high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if mask_harm(middle) < own else (low, middle)
    return high
