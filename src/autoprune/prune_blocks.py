"""The main loop: visit each layer once, score its weights, keep the best, go on through what is left."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from autoprune.allocation import counts
from autoprune.channels import Channels, fold_
from autoprune.damage import Unpruned
from autoprune.layer import Method, Solution, solve
from autoprune.models import BlockSource, Linear, all_linears, input_device
from autoprune.ranks import ALONE, Ranks
from autoprune.sparsity import Target, zero_pruned_
from autoprune.spill import Spill
from autoprune.statistics import Gradient
from autoprune.stream import NO_GRADIENTS, Visit, micro_batches, walk

Orders = dict[str, list[int]]
"""New orders of columns, by name of the layer."""

NONE_FREE = Channels()
NO_GAIN = "no order was found that retains more of its score"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to do: how a layer is pruned, how many weights go, and which inputs it is judged by (stream.PROPAGATION).

    `sparsity_N` is the share of its weights each linear layer loses, in the order of `all_linears`; None gives all the
    target's.
    """

    method: Method
    target: Target
    propagation: str = "one_pass"
    sparsity_N: Sequence[float] | None = None
    micro_batch_tokens: int | None = None

    def __post_init__(self) -> None:
        self.method.check(self.target)

    def counts(self, linears: Sequence[Linear]) -> dict[Linear, int]:
        """How many weights each of all linear layers loses."""
        sparsity_N = self.sparsity_N or [self.target.fraction] * len(linears)
        return dict(zip(linears, counts(self.target, sparsity_N, [linear.size for linear in linears]), strict=True))


@dataclass(frozen=True, kw_only=True)
class PrunedLayer:
    """What became of one layer; `zeros` counts all zeros of the weight, also those it had before; `skewness` is that of
    |w| before; `error` is the share of its outputs' mean square that is lost, on the calibration tokens, as far as the
    statistic `error_by` tells; `fallback` says what could not be done, `own_order` why refine=permute left its columns
    in their order."""

    name: str
    shape: tuple[int, int]
    requested: int
    zeros: int
    calibration_tokens: int
    skewness: float | None = None
    error: float | None = None
    error_by: str = ""
    fallback: str = ""
    own_order: str = ""


def put_(weight_RC: Tensor, solution: Solution, stored: torch.dtype) -> int:
    """Give a layer the weights that were found for it, in place, rounded to the dtype it is stored in. Gives the number
    of zeros."""
    if solution.weight_RC.data_ptr() != weight_RC.data_ptr():
        weight_RC.copy_(solution.weight_RC.to(stored))  # as it will be written, so also here
    return zero_pruned_(weight_RC, solution.keep_RC)


def prune_blocks(
    source: BlockSource,
    recipe: Recipe,
    tokens_BL: Tensor | None,
    on_layer: Callable[[PrunedLayer], None],
    gradients: Mapping[str, Gradient] = NO_GRADIENTS,
    channels: Channels = NONE_FREE,
    finished: int = 0,
    on_block: Callable[[int, Orders], None] = lambda index, orders: None,
    folded: Mapping[int, Orders] = MappingProxyType({}),
    spill: Spill | None = None,
    ranks: Ranks = ALONE,
) -> list[PrunedLayer]:
    """Prune the model's weights in place; `tokens_BL` may be None for a program that needs no text, `gradients` empty
    for one that names none; `channels` says which layers refine=permute may permute. The first `finished` blocks are
    pruned already; `on_block` is told of each other one when it is, with the orders of columns that were folded into
    it, and `folded` are those of the first. Of the tokens each of the `ranks` takes its part; layers that are ready at
    once are solved by different ones."""
    count_of = recipe.counts(all_linears(source))
    batches = []
    if tokens_BL is not None:
        batches = micro_batches(ranks.own(tokens_BL), input_device(source.model), recipe.micro_batch_tokens)

    pruned = []
    orders: dict[Linear, Tensor] = {}

    def block_done(index: int) -> None:
        for linear, order_C in orders.items():
            fold_(linear, order_C, channels.before[linear])
        on_block(index, {linear.name: order_C.tolist() for linear, order_C in orders.items()})
        orders.clear()

    def unfold(index: int) -> None:
        """Tokens went through a block before its columns were put in order; sums in another order round otherwise."""
        for linear in source.linears(index):
            if order := folded.get(index, {}).get(linear.name):
                fold_(linear, torch.tensor(order).argsort().to(linear.weight_RC.device), channels.before[linear])

    def prune_layer(visit: Visit) -> tuple[PrunedLayer, Tensor | None]:
        linear, weight_RC = visit.linear, visit.linear.weight_RC
        unpruned = Unpruned.of(weight_RC)
        solution = solve(visit, recipe.method, recipe.target, count_of[linear], any_order=linear in channels.before)
        own_order = ""
        if recipe.method.refine == "permute" and solution.order_C is None:
            own_order = channels.refused.get(linear, solution.fallback or NO_GAIN)
        zeros = put_(weight_RC, solution, source.stored(linear))
        layer = PrunedLayer(
            name=linear.name,
            shape=linear.shape,
            requested=count_of[linear],
            zeros=zeros,
            calibration_tokens=visit.tokens,
            skewness=unpruned.skewness,
            error=unpruned.relative_error(weight_RC, visit.inputs),
            error_by=visit.inputs.error_known_by,
            fallback=solution.fallback,
            own_order=own_order,
        )
        return layer, solution.order_C

    ready: list[Visit] = []
    for visit in walk(
        source,
        batches,
        collects=recipe.method.collects,
        propagation=recipe.propagation,
        gradients=gradients,
        finished=finished,
        on_block=block_done,
        on_pass=unfold,
        spill=spill,
        ranks=ranks,
    ):
        ready.append(visit)
        if visit.more and ranks.world > 1:
            continue
        owners = [(len(pruned) + turn) % ranks.world for turn in range(len(ready))]
        done = [prune_layer(visit) if owner == ranks.rank else None for owner, visit in zip(owners, ready, strict=True)]
        for owner, visit, own in zip(owners, ready, done, strict=True):
            found = ranks.tell(own, owner)
            assert found
            layer, order_C = found
            ranks.send_(visit.linear.weight_RC, owner)
            if order_C is not None:
                orders[visit.linear] = order_C
            pruned.append(layer)
            on_layer(layer)
        ready.clear()
    return pruned
