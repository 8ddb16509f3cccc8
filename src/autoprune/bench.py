"""Points of a sweep: a copy of a model is pruned, as `prune` would prune it, and measured against the unpruned one,
again and again. What depends on the unpruned model alone is computed once.

Legend: B sequences, L tokens per sequence.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from autoprune.allocation import Allocation
from autoprune.budget import estimate, fit
from autoprune.channels import Channels, free_channels
from autoprune.evaluation import Evaluation, evaluate_tokens
from autoprune.files import check_space
from autoprune.gradients import loss_gradients
from autoprune.language import Program
from autoprune.language.statistics import GRADIENTS
from autoprune.layer import Method
from autoprune.measurements import Unpruned
from autoprune.models import InMemoryBlocks, OpenModel, all_linears
from autoprune.progress import Progress
from autoprune.prune_blocks import NONE_FREE, Recipe, prune_blocks
from autoprune.share_out import share_out
from autoprune.side_by_side import Pruning, file_bytes, put_in_place, solve_side_by_side
from autoprune.sparsity import Target
from autoprune.spill import Spill
from autoprune.statistics import Gradient
from autoprune.stream import NO_GRADIENTS


@dataclass(frozen=True)
class Cell:
    """A program at a target, with its method and how layers share out the sparsity."""

    program: Program
    method: Method
    target: Target
    sharing: Allocation

    @property
    def key(self) -> tuple[str, str]:
        """What tells it from others."""
        return self.program.digest, str(self.target)

    def __str__(self) -> str:
        return f"{self.program.name} to {self.target}"


@dataclass(frozen=True)
class Measured:
    """A pruned copy: its figures against the unpruned model, its zeros, layers of which a part of the method had to be
    left out, and the seconds of its own."""

    evaluation: Evaluation
    zeros: int
    fallbacks: int
    seconds: float


class Bench:
    """A model in evaluation mode, which stays as it is, and a copy of it that is pruned. Of `cells`, those that may
    come, the methods say what has to be collected and how much memory is needed. What does not fit it waits in files in
    `folder`."""

    def __init__(
        self,
        opened: OpenModel,
        tokens_BL: Tensor,
        eval_BL: Tensor,
        propagation: str,
        cells: Sequence[Cell],
        folder: Path,
        progress: Progress,
    ):
        self.model, self.stored_dtype = opened.model, opened.stored_dtype
        self.source = InMemoryBlocks(opened.model, opened.stored_dtype)
        self.tokens_BL, self.eval_BL, self.propagation = tokens_BL, eval_BL, propagation
        self.cells, self.folder, self.progress = cells, folder, progress
        self.weights = sum(linear.size for linear in all_linears(self.source))
        self._known = Unpruned()

    @cached_property
    def _copy(self) -> InMemoryBlocks:
        return InMemoryBlocks(copy.deepcopy(self.model), self.stored_dtype)

    @cached_property
    def _channels(self) -> Channels:
        channels = free_channels(self._copy)
        channels.require_any()
        return channels

    @cached_property
    def _gradients(self) -> dict[str, Gradient]:
        collects = frozenset[str]().union(*(cell.method.score.collects for cell in self.cells))
        return loss_gradients(self.source, collects, self.tokens_BL, self.progress)

    @cached_property
    def _room(self) -> int | None:
        """Bytes that activations may take in memory; None: any."""
        tokens = self.tokens_BL.numel()
        needed = [estimate(self.source, cell.method, self.propagation, tokens) for cell in self.cells]
        return fit(max(needed, key=lambda each: each.fixed + each.activations), None, self.source)

    def dense(self) -> Evaluation:
        """The unpruned model's own figures."""
        self.progress.stage("measuring the unpruned model", len(self.eval_BL))
        return self._evaluate(self.model)

    def recipe(self, cell: Cell) -> Recipe:
        """How a point is pruned; an error where it cannot be."""
        cell.method.check(cell.target)
        for linear in all_linears(self.source):
            cell.target.check_layer(linear.name, linear.shape[1])
        sparsity_N, _ = share_out(
            self.source,
            cell.program,
            cell.method,
            cell.target,
            cell.sharing,
            self.tokens_BL,
            self.propagation,
            self.progress,
            self._known,
        )
        return Recipe(method=cell.method, target=cell.target, propagation=self.propagation, sparsity_N=sparsity_N)

    def measure(self, cell: Cell, name: str) -> Measured:
        """Prune the copy and measure it; `name` is for the progress."""
        gradients, spill = self._wanted([cell]), self._spill()
        self._restore()
        begun = time.perf_counter()
        recipe = self.recipe(cell)
        channels = self._channels if cell.method.refine == "permute" else NONE_FREE
        self.progress.stage(name, self.weights)
        layers = prune_blocks(
            self._copy,
            recipe,
            self.tokens_BL,
            lambda layer: self.progress.advance(layer.shape[0] * layer.shape[1]),
            gradients,
            channels,
            spill=spill,
        )
        zeros, fallbacks = sum(layer.zeros for layer in layers), sum(bool(layer.fallback) for layer in layers)
        return self._measured(name, zeros, fallbacks, begun)

    def solve(self, prunings: Sequence[Pruning], cells: Sequence[Cell]) -> None:
        """Solve several points into files, with one walk over the unpruned model."""
        check_space(self.folder / "solved", sum(file_bytes(self.source, cell.method) for cell in cells))
        gradients, spill = self._wanted(cells), self._spill()
        self.progress.stage(f"one walk for {len(cells)} prunings", self.weights * len(cells))
        solve_side_by_side(self.source, prunings, self.tokens_BL, gradients, spill, self.progress.advance)

    def measure_solved(self, pruning: Pruning, name: str) -> Measured:
        """Measure one that `solve` has put into a file; an error where it could not be solved."""
        if pruning.error:
            raise pruning.error
        self._restore()
        begun = time.perf_counter() - pruning.seconds
        return self._measured(name, put_in_place(self._copy, pruning), pruning.fallbacks, begun)

    def _wanted(self, cells: Sequence[Cell]) -> dict[str, Gradient]:
        """Gradients, where a program names them."""
        return self._gradients if any(GRADIENTS & cell.method.score.collects for cell in cells) else dict(NO_GRADIENTS)

    def _spill(self) -> Spill | None:
        _ = self._copy  # takes its memory before the rest is shared out
        return Spill(self._room, str(self.folder)) if self._room is not None else None

    def _restore(self) -> None:
        """Make the copy one of the unpruned model again."""
        for own, unpruned in zip(self._copy.model.parameters(), self.model.parameters(), strict=True):
            own.data.copy_(unpruned.data)

    def _measured(self, name: str, zeros: int, fallbacks: int, begun: float) -> Measured:
        self.progress.stage(f"{name}, measured", len(self.eval_BL))
        evaluation = self._evaluate(self._copy.model, against=self.model)
        return Measured(evaluation, zeros, fallbacks, round(time.perf_counter() - begun, 3))

    def _evaluate(self, model: Any, against: Any = None) -> Evaluation:
        return evaluate_tokens(model, self.eval_BL, against=against, on_sequence=lambda: self.progress.advance(1))
