"""One-shot masks at any sparsity, judged by how far they take the model from the dense one: the quick judge.

The dense model is run once: every layer's scores become ranks, one byte a weight. After that a trial of any sparsity
per layer costs one forward of a held-out text (`judge`).

Legend: B sequences, L tokens per sequence, N linear layers, R output rows, C input columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from autoprune.backward import backward, recomputing
from autoprune.errors import AutopruneError
from autoprune.judge import WORST, Judge
from autoprune.language.program import Tape
from autoprune.models import BlockSource, Linear, all_linears, input_device, users
from autoprune.sparsity import Target, zero_pruned_
from autoprune.statistics import Gradient
from autoprune.stream import NO_GRADIENTS, NOTHING_MORE, Visit, micro_batches, walk

_LEVELS = 255  # ranks and thresholds both fit one byte
_BAND = 0.1  # width, in sparsity, of the band of weights on either side of the threshold whose worth is measured


@dataclass(frozen=True)
class Dense:
    """What one run of the unpruned model leaves, by name of the linear layer: norms of the inputs (1, C), where a token
    reached it, and ranks of the scores as bytes (R, C)."""

    norms: dict[str, Tensor] = field(default_factory=dict)
    ranks: dict[str, Tensor] = field(default_factory=dict)


def observe(
    source: BlockSource,
    tokens_BL: Tensor | None,
    *,
    norms: bool,
    score: Tape | None = None,
    compare: str = "row",
    target: Target | None = None,
    gradients: Mapping[str, Gradient] = NO_GRADIENTS,
    more: Mapping[int, frozenset[str]] = NOTHING_MORE,
    on_visit: Callable[[Visit], None] = lambda visit: None,
) -> Dense:
    """Run the dense model over the tokens once, for the norms of inputs, for the ranks of `score`, or for both.

    `gradients` are those of the model on the tokens, for a `score` that names them. `on_visit` sees each layer, with
    `more` running sums in some blocks.
    """
    collects = (score.collects if score else frozenset()) | (frozenset(["sum_of_squares"]) if norms else frozenset())
    batches = [] if tokens_BL is None else micro_batches(tokens_BL, input_device(source.model))
    dense = Dense()
    for visit in walk(source, batches, collects=collects, propagation="dense", gradients=gradients, more=more):
        linear = visit.linear
        if norms and visit.inputs.tokens:  # what no token reached has no norm
            dense.norms[linear.name] = visit.inputs.input_norm.clone()
        if score and target:
            dense.ranks[linear.name] = _ranks(visit.at(float(target.fraction)).score(score), target, compare)
        on_visit(visit)
    return dense


def _lines(shape: tuple[int, int], target: Target, compare: str) -> tuple[int, int]:
    """Shape of a weight whose rows are what competes: groups of n:m, the whole matrix, or output rows."""
    if target.group:
        return shape[0] * shape[1] // target.group, target.group
    return (1, shape[0] * shape[1]) if compare == "layer" else shape


def _ranks(score_RC: Tensor, target: Target, compare: str) -> Tensor:
    """Rank of each weight among those it competes with, in `_LEVELS` steps at most: uint8 (R, C), 0 goes first."""
    shape = score_RC.shape
    score = score_RC.reshape(_lines((shape[0], shape[1]), target, compare))
    length = score.shape[1]
    # numpy's argsort is several times faster than torch's on a CPU
    order = torch.from_numpy(np.argsort(score.numpy(), axis=1)) if score.device.type == "cpu" else score.argsort(dim=1)
    level = (torch.arange(length, device=score.device) * min(length, _LEVELS) // length).to(torch.uint8)
    ranks = torch.empty(score.shape, dtype=torch.uint8, device=score.device)
    ranks.scatter_(1, order, level.expand_as(ranks))
    return ranks.reshape(shape)


class Trial:
    """Judges sparsities of the linear layers, in the order of `all_linears`, by the divergence from the dense model."""

    def __init__(self, source: BlockSource, dense: Dense, held_BL: Tensor, target: Target, compare: str):
        self.source, self.ranks = source, dense.ranks
        self.judge = Judge(source, held_BL)
        self.linears = all_linears(source)
        self.size_N = np.array([linear.size for linear in self.linears], dtype=np.float64)
        self.levels_N = [min(_lines(linear.shape, target, compare)[1], _LEVELS) for linear in self.linears]

    @property
    def batches(self) -> list[Tensor]:
        """The micro-batches of the held-out text."""
        return self.judge.batches

    def damage(self, sparsity_N: np.ndarray | Sequence[float], batches: int | None = None) -> float:
        """KL divergence from the dense model, nats a token, with one-shot masks of these sparsities.

        `batches` uses the first few micro-batches only.
        """
        threshold = dict(zip(self.linears, self._thresholds(sparsity_N), strict=True))

        def masked(linear: Linear) -> Tensor | None:
            if not threshold[linear]:
                return None
            weight_RC = linear.weight_RC.clone()
            zero_pruned_(weight_RC, self.ranks[linear.name] >= threshold[linear])
            return weight_RC

        damage = float(self.judge.divergence(masked, batches).mean())
        return min(damage, WORST) if np.isfinite(damage) else WORST

    def marginal_damage(self, sparsity_N: np.ndarray | Sequence[float], batches: int | None = None) -> np.ndarray:
        """Derivative of `damage` by the sparsity of each linear layer: float64 (N,), by one backward pass.

        The weights next in line on either side of a layer's threshold form a band. If the layer's output were
        y + g * band @ x, then damage' = -d damage / d g / width of the band at g = 0: the product of what reaches the
        output in the backward pass with what the band would add to it.
        """
        thresholds, device = self._thresholds(sparsity_N), self.judge.device
        gates = [torch.zeros((), requires_grad=True, device=device) for _ in self.linears]
        widths, used_by = [], users(self.source.model)
        with recomputing(self.source) as stack:
            for linear, gate, threshold, levels in zip(self.linears, gates, thresholds, self.levels_N, strict=True):
                half = max(1, round(_BAND * levels))
                low, high = max(threshold - half, 0), min(threshold + half, levels)
                widths.append((high - low) / levels)
                for same in used_by[linear.key]:  # each with its own bias, if the weight is shared
                    gated = _Gated(same, self.ranks[linear.name], threshold, low, high, gate)
                    stack.enter_context(same.replaced(gated))
            for index, tokens_BL in enumerate(self.batches[:batches]):
                backward(self.source.model, tokens_BL, partial(self.judge.gradient, index))
        slopes = [0.0 if gate.grad is None else float(gate.grad) for gate in gates]
        if not np.isfinite(slopes).all():
            raise AutopruneError(
                "the backward pass is not finite", where=type(self.source.model).__name__, remedy="try --dtype float32"
            )
        return -np.array(slopes) / np.array(widths) / self.judge.scored(batches)

    def _thresholds(self, sparsity_N: np.ndarray | Sequence[float]) -> list[int]:
        """Ranks below which weights go. What rounding takes from one layer it gives to the next, so that the whole
        has the sparsity that was asked for."""
        thresholds, owed = [], 0.0
        for share, size, levels in zip(sparsity_N, self.size_N, self.levels_N, strict=True):
            wanted = float(share) * levels
            nearest = round(wanted + owed * levels / size)
            threshold = min(max(nearest, int(np.floor(wanted)), 0), int(np.ceil(wanted)), levels)
            owed += (wanted - threshold) * size / levels
            thresholds.append(threshold)
        return thresholds


class _Gated:
    """Forward of a linear layer with its weights masked, and a gate for the weights in a band of ranks."""

    def __init__(self, linear: Linear, ranks_RC: Tensor, threshold: int, low: int, high: int, gate: Tensor):
        self.linear, self.ranks_RC, self.gate = linear, ranks_RC, gate
        self.threshold, self.low, self.high = threshold, low, high

    def __call__(self, x: Tensor) -> Tensor:
        weight_RC, ranks_RC = self.linear.weight_RC, self.ranks_RC
        kept_RC = weight_RC * (ranks_RC >= self.threshold)
        y = self.linear.compute(x, kept_RC)
        with torch.no_grad():
            band_RC = weight_RC * ((ranks_RC >= self.low) & (ranks_RC < self.high))
            band = self.linear.compute(x, band_RC, bias=False)
        # In float32, since the gate's gradient sums over all tokens.
        return y + (self.gate * band.float()).to(y.dtype)
