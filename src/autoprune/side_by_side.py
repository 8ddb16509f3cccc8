"""Several prunings of one model from a single walk over it. Where every layer is judged by the unpruned model
(propagation dense), none of them changes what another one sees; each result waits in a file until it is put in place.

A file holds the layers in the order of `all_linears`: one bit a weight where weights that stay keep their values, else
the weights in the dtype they are stored in.

Legend: R output rows, C input columns.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from autoprune.errors import AutopruneError
from autoprune.files import writing_to
from autoprune.layer import Method, solve
from autoprune.models import BlockSource, Linear, all_linears, input_device
from autoprune.prune_blocks import Recipe, put_
from autoprune.sparsity import zero_pruned_
from autoprune.spill import Spill
from autoprune.statistics import Gradient
from autoprune.stream import NO_GRADIENTS, Visit, micro_batches, walk


@dataclass(kw_only=True)
class Pruning:
    """One of them, the file for its result, and how it goes: seconds of its own, layers of which a part of the method
    had to be left out, and what made an end of it, if anything did."""

    recipe: Recipe
    file: Path
    seconds: float = 0.0
    fallbacks: int = 0
    error: AutopruneError | None = None


def can_share(method: Method, propagation: str) -> bool:
    """Whether a method can be one of several. Folding permuted columns would change the model that all walk over."""
    return propagation == "dense" and method.refine != "permute"


def file_bytes(source: BlockSource, method: Method) -> int:
    """Size of the file of a result."""
    return sum(_bytes(source, linear, method) for linear in all_linears(source))


def solve_side_by_side(
    source: BlockSource,
    prunings: Sequence[Pruning],
    tokens_BL: Tensor | None,
    gradients: Mapping[str, Gradient] = NO_GRADIENTS,
    spill: Spill | None = None,
    on_weights: Callable[[int], None] = lambda weights: None,
) -> None:
    """Solve every layer for each pruning, as `prune_blocks` would; the model stays as it is. A file is there when it is
    whole. A pruning that fails, as with a score that is not finite, notes its error and has none; others go on.
    `on_weights` is told of weights that were solved, those of each pruning."""
    linears = all_linears(source)
    offsets = {id(pruning): _offsets(source, linears, pruning.recipe.method) for pruning in prunings}
    counts = {id(pruning): pruning.recipe.counts(linears) for pruning in prunings}
    batches = [] if tokens_BL is None else micro_batches(tokens_BL, input_device(source.model))
    for pruning in prunings:
        with writing_to(pruning.file):
            pruning.file.parent.mkdir(parents=True, exist_ok=True)
            _partial(pruning).write_bytes(b"")
    for group in _groups(prunings):
        collects = frozenset[str]().union(*(pruning.recipe.method.collects for pruning in group))
        for visit in walk(source, batches, collects=collects, propagation="dense", gradients=gradients, spill=spill):
            for pruning in group:
                if not pruning.error:
                    count, offset = (table[id(pruning)][visit.linear] for table in (counts, offsets))
                    _solve(source, pruning, visit, count, offset)
                on_weights(visit.linear.size)
    for pruning in prunings:
        _finish(pruning)


def put_in_place(source: BlockSource, pruning: Pruning) -> int:
    """Give an unpruned model, in place, the weights that a file holds. Gives the number of zeros."""
    zeros, method = 0, pruning.recipe.method
    with pruning.file.open("rb") as file:
        for linear in all_linears(source):
            content = bytearray(file.read(_bytes(source, linear, method)))
            if _only_bits(method):
                bits = np.unpackbits(np.frombuffer(content, np.uint8), count=linear.size).astype(bool)
                keep_RC = torch.from_numpy(bits).view(linear.shape)
                zeros += zero_pruned_(linear.weight_RC, keep_RC.to(linear.weight_RC.device))
            else:
                linear.weight_RC.copy_(torch.frombuffer(content, dtype=source.stored(linear)).view(linear.shape))
                zeros += linear.size - int(linear.weight_RC.count_nonzero())
    return zeros


def _groups(prunings: Sequence[Pruning]) -> list[list[Pruning]]:
    """Prunings that may share their running sums: sums and sums of squares are more exact where both are kept, and a
    pruning must have those that it would have alone."""
    groups: dict[frozenset[str], list[Pruning]] = {}
    for pruning in prunings:
        sums = pruning.recipe.method.collects & {"sum", "sum_of_squares"}
        groups.setdefault(sums if "sum" in sums else frozenset(), []).append(pruning)
    return list(groups.values())


def _solve(source: BlockSource, pruning: Pruning, visit: Visit, count: int, offset: int) -> None:
    begun = time.perf_counter()
    linear, method = visit.linear, pruning.recipe.method
    try:
        solution = solve(visit, method, pruning.recipe.target, count)
    except AutopruneError as error:
        pruning.error = error
        return
    pruning.fallbacks += bool(solution.fallback)
    if _only_bits(method):
        content = np.packbits(solution.keep_RC.cpu().numpy())
    else:
        weight_RC, stored = linear.weight_RC.clone(), source.stored(linear)
        put_(weight_RC, solution, stored)
        content = weight_RC.to(stored).contiguous().cpu().view(torch.uint8).numpy()
    with writing_to(pruning.file), _partial(pruning).open("r+b") as file:
        file.seek(offset)
        file.write(content.data)
    pruning.seconds += time.perf_counter() - begun


def _finish(pruning: Pruning) -> None:
    partial = _partial(pruning)
    if pruning.error:
        partial.unlink()
        return
    with writing_to(pruning.file), partial.open("r+b") as file:
        os.fsync(file.fileno())
        partial.replace(pruning.file)


def _partial(pruning: Pruning) -> Path:
    return pruning.file.with_name(f"{pruning.file.name}.partial")


def _offsets(source: BlockSource, linears: Sequence[Linear], method: Method) -> dict[Linear, int]:
    """Where in its file each layer begins."""
    ends = np.cumsum([0, *(_bytes(source, linear, method) for linear in linears)]).tolist()
    return dict(zip(linears, ends, strict=False))


def _bytes(source: BlockSource, linear: Linear, method: Method) -> int:
    return -(-linear.size // 8) if _only_bits(method) else linear.size * source.stored(linear).itemsize


def _only_bits(method: Method) -> bool:
    """Whether weights that stay keep their values, so that a mask is all there is to keep."""
    return method.update == "none"
