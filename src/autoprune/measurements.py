"""What allocations are computed from, each measured once, and only if something asks for it.

Legend: B calibration sequences, L layers that share in the sparsity (blocks or single linear layers), N linear layers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache, cached_property

import numpy as np
from torch import Tensor

from autoprune.allocation import project
from autoprune.equal_harm import equal_harm, masks_only, needs
from autoprune.errors import AutopruneError
from autoprune.files import cache_folder, write_text, writing_to
from autoprune.gradients import loss_gradients
from autoprune.language.statistics import LAYER_STATISTICS, SALIENCY, SPECTRUM, WEIGHTS
from autoprune.language.types import Type
from autoprune.layer import Method
from autoprune.layer_statistics import group_sizes, grouped, measure
from autoprune.models import BlockSource, all_linears, config_text
from autoprune.progress import Progress, Silent
from autoprune.sparsity import Target
from autoprune.stream import Visit
from autoprune.trial import Dense, Trial, observe

LEVELS = (0.2, 0.4, 0.6, 0.8)
"""Sparsities at which layers are pruned alone; the same for every target, so that the cache serves all."""

_COMPARED = 3  # blocks in which a method is compared with masks alone

HELD_OUT = 8
"""One in so many calibration sequences, at least one, is kept apart to judge on."""


@dataclass(frozen=True)
class Curves:
    """Damage (L, levels) of pruning one layer alone, in nats a token, at the sparsities `levels`."""

    levels: list[float]
    damage: list[list[float]]

    def exponential(self, sparsity: float) -> tuple[np.ndarray, np.ndarray]:
        """Intercept and slope (L,) of log damage as a line through the two levels nearest to a sparsity.

        A slope that is not positive (noise at little damage) is taken as the median of the others, and none is more
        than ten times that or less than a tenth.
        """
        levels, logs = np.array(self.levels), np.log(np.maximum(np.array(self.damage), 1e-9))
        near = np.sort(np.argsort(np.abs(levels - sparsity), kind="stable")[:2])
        slope_L = (logs[:, near[-1]] - logs[:, near[0]]) / max(levels[near[-1]] - levels[near[0]], 1e-9)
        positive = slope_L > 0
        usual = np.median(slope_L[positive]) if positive.any() else 1.0
        slope_L = np.clip(np.where(positive, slope_L, usual), usual / 10, usual * 10)
        return logs[:, near].mean(axis=1) - slope_L * levels[near].mean(), slope_L

    def at(self, sparsity: float) -> np.ndarray:
        """Damage (L,) at a sparsity, by the fitted curves."""
        intercept_L, slope_L = self.exponential(sparsity)
        return np.exp(intercept_L + slope_L * sparsity)


@dataclass
class Unpruned:
    """What measurements have found of a model and a text that does not depend on how much is pruned: what others of the
    same model and text need not measure again."""

    statistics: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    """(L,) by name and granularity, where no sequences were kept apart."""
    passed: tuple[object, Dense] = (None, Dense())
    """The last pass over the model, and what it was for."""


class Measurements:
    """The unpruned model as allocations see it. With `judge`, sequences are kept apart and one-shot trials possible."""

    def __init__(
        self,
        source: BlockSource,
        method: Method,
        target: Target,
        tokens_BL: Tensor | None,
        *,
        judge: bool,
        progress: Progress | None = None,
        unpruned: Unpruned | None = None,
    ):
        self.source, self.method, self.target = source, method, target
        self.masks = masks_only(method)
        self._equal: list[float] = []  # sparsities at which masks alone do as much harm to a layer, of some layers
        self.progress = progress or Silent()
        self.linears = all_linears(source)
        self.size_N = np.array([linear.size for linear in self.linears], dtype=np.float64)
        self.weights = int(self.size_N.sum())
        self.judge = judge
        self.tokens_BL, self.held_BL = tokens_BL, tokens_BL
        if judge:
            if tokens_BL is None or len(tokens_BL) < 2:
                raise AutopruneError(
                    "one calibration sequence cannot be both measured and judged on",
                    remedy="give at least 2 --sequences, or another --allocation",
                )
            held = -(-len(tokens_BL) // HELD_OUT)
            self.tokens_BL, self.held_BL = tokens_BL[:-held], tokens_BL[-held:]
        self.unpruned = unpruned or Unpruned()
        self._known = {} if judge else self.unpruned.statistics
        self.groups = cache(lambda granularity: grouped(source, granularity))

    def at_target(self, sparsity_L: np.ndarray, granularity: str, max_shift: float, least_kept: float) -> np.ndarray:
        """Sparsities (L,) around that of `judged` taken to the target: all by the same, but for the bounds."""
        if self.judged == self.target:
            return sparsity_L
        return project(sparsity_L, group_sizes(self.groups(granularity)), self.target, max_shift, least_kept)

    @property
    def observed_tokens(self) -> int:
        """Tokens that went through the dense model."""
        return self.tokens_BL.numel() if self.tokens_BL is not None else 0

    @cached_property
    def dense(self) -> Dense:
        purpose = (self.masks, self.target.group) if self.judge else ()
        known, dense = self.unpruned.passed
        if known == purpose and not self._compared_blocks:
            return dense
        ranked = {}
        if self.judge:
            masks = self.masks
            gradients = loss_gradients(self.source, masks.score.collects, self.tokens_BL, self.progress)
            ranked = {"score": masks.score, "compare": masks.compare, "target": self.target, "gradients": gradients}
            ranked["more"] = dict.fromkeys(self._compared_blocks, needs(self.method))
        self.progress.stage("one pass over the unpruned model", self.weights)
        dense = observe(
            self.source,
            self.tokens_BL,
            norms=self.tokens_BL is not None,
            on_visit=self._see,
            **ranked,
        )
        if not self._compared_blocks:
            self.unpruned.passed = purpose, dense
        return dense

    @cached_property
    def _compared_blocks(self) -> list[int]:
        """Blocks, evenly spaced, where the method is compared with masks alone; none where it does no more."""
        if not self.judge or self.method.only_masks or self.target.group or not self.target.fraction:
            return []
        blocks = len(self.source.blocks)
        return [(2 * part + 1) * blocks // (2 * _COMPARED) for part in range(_COMPARED)]

    def _see(self, visit: Visit) -> None:
        if visit.linear.block in self._compared_blocks and visit.inputs.tokens:
            self._equal.append(equal_harm(visit, self.method, self.target))
        self.progress.advance(visit.linear.size)

    @cached_property
    def judged(self) -> Target:
        """Where one-shot masks, which judge, do as much harm to layers as the method does at its target: a model that
        is far worse than it will be says little about what matters. The target where masks are all the method does."""
        if not self._compared_blocks:
            return self.target
        _ = self.dense
        return Target.of(round(float(np.median(self._equal)), 3)) if self._equal else self.target

    @cached_property
    def trial(self) -> Trial:
        assert self.judge
        assert self.held_BL is not None
        return Trial(self.source, self.dense, self.held_BL, self.target, self.masks.compare)

    def per_linear(self, values_L: np.ndarray, granularity: str) -> np.ndarray:
        """One value per linear layer (N,) from one per layer of the allocation."""
        of = {
            linear: value for group, value in zip(self.groups(granularity), values_L, strict=True) for linear in group
        }
        return np.array([of[linear] for linear in self.linears])

    def statistics(self, names: Iterable[str], granularity: str) -> dict[str, np.ndarray]:
        """The named statistics (L,) of `LAYER_STATISTICS`; scalars are not among them."""
        names = [name for name in names if LAYER_STATISTICS[name].type == Type.L]
        self._measure([name for name in names if (name, granularity) not in self._known], granularity)
        return {name: self._known[name, granularity] for name in names}

    def _measure(self, names: list[str], granularity: str) -> None:
        needs = {need for name in names for need in LAYER_STATISTICS[name].collects}
        norms = self.dense.norms if SALIENCY in needs else {}
        if needs & {WEIGHTS, SALIENCY, SPECTRUM}:
            self.progress.stage("measuring weights", self.weights)
        values = measure(self.source, self.groups(granularity), names, norms, self.progress.advance) if names else {}
        if "sensitivity" in names:
            values["sensitivity"] = self.curves(granularity).at(float(self.judged.fraction))
        if "marginal_damage" in names:
            uniform_N = np.full(len(self.linears), float(self.judged.fraction))
            values["marginal_damage"] = self.marginal_damage(uniform_N, granularity)
        for name, value_L in values.items():
            self._known[name, granularity] = value_L

    def marginal_damage(self, sparsity_N: np.ndarray, granularity: str, batches: int | None = None) -> np.ndarray:
        """Derivative of the damage by the sparsity of each layer, over the layer's share of weights: (L,)."""
        slope = dict(zip(self.linears, self.trial.marginal_damage(sparsity_N, batches), strict=True))
        groups = self.groups(granularity)
        total_L = np.array([sum(slope[linear] for linear in group) for group in groups])
        return total_L / (group_sizes(groups) / self.weights)

    def curves(self, granularity: str) -> Curves:
        """Damage of pruning each layer alone at a few levels; kept in a cache."""
        group = self.target.group
        levels = [removed / group for removed in range(1, group)] if group else list(LEVELS)
        assert self.tokens_BL is not None
        assert self.held_BL is not None
        key = "\n".join(
            [
                self.source.fingerprint(),
                config_text(self.source.model),
                repr(self.masks.score.nodes) + str(self.masks.score.result),
                f"{self.masks.compare} {group} {granularity} {levels}",
                *(hashlib.sha256(part.numpy().tobytes()).hexdigest() for part in (self.tokens_BL, self.held_BL)),
            ]
        )
        file = cache_folder("sensitivity") / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
        groups = self.groups(granularity)
        try:
            damage = np.array(json.loads(file.read_text("utf-8"))["damage"], dtype=np.float64)
            if damage.shape == (len(groups), len(levels)) and np.isfinite(damage).all():
                return Curves(levels, damage.tolist())
        except (OSError, ValueError, KeyError, TypeError):
            pass  # not there, or damaged
        trial = self.trial
        self.progress.stage("sensitivity: pruning each layer alone", len(groups) * len(levels))
        damage = []
        for group in groups:
            members = {linear.name for linear in group}
            damage.append([])
            for level in levels:
                alone_N = [level if linear.name in members else 0.0 for linear in self.linears]
                damage[-1].append(trial.damage(alone_N))
                self.progress.advance(1)
        with writing_to(file):
            write_text(file, json.dumps({"levels": levels, "damage": damage}))
        return Curves(levels, damage)
