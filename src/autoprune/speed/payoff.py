"""The figures of a dense model and a pruned one, side by side."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

SAME = 0.01
"""Ratios no further than this from 1 are called the same."""

_SURE = 0.95


@dataclass(frozen=True, kw_only=True)
class Files:
    """The files of a model's weights. `bytes_per_weight` is that of the matrices in them, None where it differs or is
    not known; `compressed` are the bytes that zstd makes of the files, one after another."""

    format: str
    files: int
    bytes: int
    bytes_per_weight: int | None
    compressed: int


@dataclass(frozen=True, kw_only=True)
class Zeros:
    """Zeros of the prunable weights (the linear layers of the decoder blocks, experts included), as they were opened.

    `two_of_four` counts the matrices in which at least 2 of every 4 consecutive inputs of every output are zero.
    """

    weights: int
    zeros: int
    matrices: int
    two_of_four: int

    @property
    def share(self) -> float:
        return self.zeros / self.weights


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What opening a model tells. `capability` is that of a CUDA device, None elsewhere."""

    dtype: str
    device: str
    device_name: str
    capability: tuple[int, int] | None
    threads: int
    parameters: int
    parameter_bytes: int
    zeros: Zeros


@dataclass(frozen=True, kw_only=True)
class Model:
    """What is known of a model before it computes."""

    name: str
    files: Files
    facts: Facts


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A figure of both models, measured in turns: medians over the rounds.

    `ratio` is the median of pruned to dense in each round, `low` and `high` the bounds of its 95 % interval; `verdict`
    is "more" or "less" where the interval leaves out 1, "same" where all of it is within 1 % of 1, "noise" where it is
    neither, "unknown" where there are too few rounds to tell.
    """

    dense: float
    pruned: float
    ratio: float
    low: float
    high: float
    verdict: str

    @classmethod
    def of(cls, dense: Sequence[float], pruned: Sequence[float]) -> Pair:
        ratios = sorted(one / other for one, other in zip(pruned, dense, strict=True))
        cut = _left_out(len(ratios))
        low, high = ratios[cut or 0], ratios[-1 - (cut or 0)]
        if max(high - 1, 1 - low) <= SAME and cut is not None:
            verdict = "same"
        else:
            verdict = "unknown" if cut is None else "more" if low > 1 else "less" if high < 1 else "noise"
        median = statistics.median
        return cls(
            dense=median(dense), pruned=median(pruned), ratio=median(ratios), low=low, high=high, verdict=verdict
        )


def _left_out(rounds: int) -> int | None:
    """How many of the lowest and of the highest values a 95 % interval of the median leaves out; None where even from
    the lowest to the highest it would not be one. It supposes nothing about the noise (bootstrapping few rounds gives
    intervals that are too narrow): each value is below the median as often as a coin shows heads."""
    outside, cut = 0.0, None
    for lowest in range(rounds // 2):
        outside += 2 * math.comb(rounds, lowest) / 2**rounds
        if outside > 1 - _SURE:
            break
        cut = lowest
    return cut


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Both models at work; the dense one always in transformers, the pruned one in `runtime`.

    Speeds are tokens/s over the whole batch. Memory is in bytes: `resident` what the process holds more than before it
    opened the model, its code included, once that has computed (weights that nobody has looked at yet may still be on
    disk only), `peak` the most the whole process held, `device` the most tensors took on a CUDA device; None where the
    system does not tell.
    """

    runtime: str
    prefill: Pair
    decode: Pair
    resident: Pair | None
    peak: Pair | None
    device: Pair | None


@dataclass(frozen=True, kw_only=True)
class Payoff:
    """What pruning buys. `not_measured` says why, by runtime; `words` say what the figures mean."""

    dense: Model
    pruned: Model
    measured: list[Measured]
    not_measured: dict[str, str]
    settings: dict[str, Any]
    cpu_flags: list[str]
    words: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, with the share of zeros."""
        record = asdict(self)
        for role, model in (("dense", self.dense), ("pruned", self.pruned)):
            record[role]["facts"]["zeros"]["share"] = model.facts.zeros.share
        return record
