"""Measures programs on one model: opens it, knows its rungs, turns what a program does into an outcome.

Legend: B sequences, L tokens per sequence.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoprune.algorithms import load
from autoprune.errors import AutopruneError
from autoprune.judge import WORST, Judge
from autoprune.language import Program, read_program
from autoprune.models import InMemoryBlocks, OpenModel, open_model
from autoprune.progress import Progress, Silent
from autoprune.scoring.rungs import REFERENCE, Bench, Full, Probe, Quick, Weights
from autoprune.scoring.store import Store, kept_judge
from autoprune.search.protocol import Outcome, Task
from autoprune.sparsity import Target

PROBE, QUICK, FULL, FRESH = "probe", "quick", "full", "fresh"
RUNGS = (PROBE, QUICK, FULL)
"""From the cheapest on. FRESH is FULL once more, for the last word.

FULL and FRESH calibrate on draws of their own, more than one each: what wins on one draw only because it fits that draw
would win at every rung that has it, and from one draw to another differences between programs change by as much as they
are (LOG.md)."""


@dataclass(frozen=True, kw_only=True)
class ModelRecipe:
    """How to make a scorer, on any machine that can open the model. Tokens are int64 (B, L) each: the draws that
    programs are calibrated on, one for QUICK, one or more for FULL and FRESH, and those they are judged on, by rung;
    all different. PROBE has QUICK's."""

    model: str
    dtype: str
    device: str
    target: Target
    propagation: str
    seed: int
    calibrated_on: Mapping[str, Sequence[np.ndarray]]
    judged_on: Mapping[str, np.ndarray]
    timeout_s: Mapping[str, float]
    threads: int | None = None

    def make(self) -> ModelScorer:
        return self.scorer(self.opened())

    def opened(self) -> OpenModel:
        return open_model(self.model, dtype=self.dtype, device=self.device)

    def scorer(self, opened: OpenModel) -> ModelScorer:
        """A scorer on the model, which is open already."""
        if self.threads:
            torch.set_num_threads(self.threads)
        return ModelScorer(self, opened, Silent())


class ModelScorer:
    """Scores programs on an open model. Whatever a program does, the model is as it was afterwards."""

    def __init__(self, recipe: ModelRecipe, opened: OpenModel, progress: Progress):
        self.recipe, self.source, self.progress = recipe, InMemoryBlocks(opened.model), progress
        opened.model.eval()
        (self.bench,) = self._benches(QUICK)
        self._weights = Weights(self.source)

    def _benches(self, rung: str) -> list[Bench]:
        return [self._bench(torch.from_numpy(draw)) for draw in self.recipe.calibrated_on[rung]]

    def _bench(self, tokens_BL: Tensor) -> Bench:
        return Bench(
            source=self.source,
            target=self.recipe.target,
            tokens_BL=tokens_BL,
            propagation=self.recipe.propagation,
            seed=self.recipe.seed,
            store=Store(self.source, tokens_BL, self.progress),
        )

    def prepare(self) -> None:
        """Measure now what every program needs, instead of with the first one."""
        reference = load(REFERENCE)
        for rung in (PROBE, QUICK):
            self._measure(rung, reference)

    def score(self, task: Task) -> Outcome:
        start = time.perf_counter()
        try:
            outcome = self._measure(task.rung, read_program(task.program))
        except AutopruneError as error:
            outcome = Outcome(error=str(error))
        except MemoryError:
            outcome = Outcome(error="out of memory")
        except RuntimeError as error:
            if "memory" not in str(error):  # torch's word for an allocation that failed, whatever the device
                raise
            outcome = Outcome(error=f"out of memory: {str(error).splitlines()[0][:200]}")
        return replace(outcome, seconds=time.perf_counter() - start)

    def _measure(self, rung: str, program: Program) -> Outcome:
        match rung:
            case "probe":
                parts, signature, harm = self._probe(program)
                return _outcome(parts, signature=signature, harm=harm)
            case "quick":
                parts, judged_at = self._quick(program)
                return _outcome(parts, judged_at=judged_at)
            case "full":
                return _outcome(self._full(program))
        return _outcome(self._fresh(program))

    @cached_property
    def _probe(self) -> Probe:
        return Probe(self.bench)

    @cached_property
    def _quick(self) -> Quick:
        return Quick(self.bench, self._judge(QUICK))

    @cached_property
    def _full(self) -> Full:
        return Full(self._benches(FULL), self._judge(FULL), self._weights)

    @cached_property
    def _fresh(self) -> Full:
        return Full(self._benches(FRESH), self._judge(FRESH), self._weights)

    def _judge(self, rung: str) -> Judge:
        """The judge of a rung; what the unpruned model says is kept in the store's folder."""
        tokens_BL = torch.from_numpy(self.recipe.judged_on[rung])
        digest = hashlib.sha256(tokens_BL.numpy().tobytes()).hexdigest()[:16]
        return kept_judge(self.source, tokens_BL, self.bench.store.folder / f"judge-{digest}")


def _outcome(parts_B: np.ndarray, *, signature: str = "", **figures: Any) -> Outcome:
    """The mean of the parts; what is not finite counts as the worst."""
    parts_B = np.minimum(np.nan_to_num(parts_B, nan=WORST, posinf=WORST), WORST)
    damage = float(parts_B.mean())
    return Outcome(damage=damage, parts=tuple(map(float, parts_B)), signature=signature, figures=figures)
