"""The main loop: visit each layer once, score its weights, keep the best, go on through what is left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from autoprune.errors import AutopruneError
from autoprune.language import Program, interpret
from autoprune.models import BlockSource, Linear, input_device
from autoprune.sparsity import Target, count_zeros, keep_mask, zero_pruned_
from autoprune.stream import micro_batches, walk


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to do: the algorithm, how much goes, and which inputs a layer is judged by (see stream.PROPAGATION)."""

    program: Program
    target: Target
    compare: str
    propagation: str = "one_pass"
    micro_batch_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class PrunedLayer:
    """What became of one layer; `zeros` counts all zeros of the weight, also those it had before."""

    name: str
    shape: tuple[int, int]
    requested: int
    zeros: int
    calibration_tokens: int


def all_linears(source: BlockSource) -> list[Linear]:
    """Every prunable layer of the model, block by block."""
    return [linear for index in range(len(source.blocks)) for linear in source.linears(index)]


def prune_blocks(
    source: BlockSource, recipe: Recipe, tokens_BL: Tensor | None, on_layer: Callable[[PrunedLayer], None]
) -> list[PrunedLayer]:
    """Prune the model's weights in place; `tokens_BL` may be None for a program that needs no text."""
    program, target = recipe.program, recipe.target
    linears = all_linears(source)
    counts = target.counts([linear.shape[0] * linear.shape[1] for linear in linears])
    count_of = dict(zip(linears, counts, strict=True))
    batches = []
    if tokens_BL is not None:
        batches = micro_batches(tokens_BL, input_device(source.model), recipe.micro_batch_tokens)

    pruned = []
    for visit in walk(source, batches, collects=program.collects, propagation=recipe.propagation):
        linear, weight_RC = visit.linear, visit.linear.weight_RC
        score_RC = interpret(program.score, visit.statistics(program.statistics))
        if not torch.isfinite(torch.stack(score_RC.aminmax())).all():
            raise AutopruneError("the score is not finite", where=linear.name, remedy="check the program and the text")
        keep_RC = keep_mask(score_RC, target, count_of[linear], recipe.compare)
        zero_pruned_(weight_RC, keep_RC)
        pruned.append(
            PrunedLayer(
                name=linear.name,
                shape=linear.shape,
                requested=count_of[linear],
                zeros=count_zeros(weight_RC),
                calibration_tokens=visit.inputs.tokens,
            )
        )
        on_layer(pruned[-1])
    return pruned
