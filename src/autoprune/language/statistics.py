"""The table of statistics a program may name as parameters: what a linear layer and its inputs offer.

Inputs x are what the layer really receives during the run, T tokens in all, padding excluded.
What a program does not name is not collected; `collects` lists the running sums a statistic needs
(the names `autoprune.statistics` accumulates), and is empty where no text has to pass through the model.
"""

from __future__ import annotations

from dataclasses import dataclass

from autoprune.language.types import Type


@dataclass(frozen=True, kw_only=True)
class Statistic:
    name: str
    type: Type
    doc: str
    collects: tuple[str, ...] = ()


_ROWS = [
    Statistic(name="weight", type=Type.RC, doc="The weight matrix of the layer, y = weight @ x."),
    Statistic(name="depth", type=Type.SCALAR, doc="Position of the block: 0 for the first, 1 for the last."),
    Statistic(
        name="input_norm",
        type=Type.C,
        doc="Root mean square of each input, sqrt(mean of x^2). Wanda's norm divided by sqrt(T).",
        collects=("sum_of_squares",),
    ),
    Statistic(name="input_mean", type=Type.C, doc="Mean of each input.", collects=("sum",)),
    Statistic(
        name="input_std",
        type=Type.C,
        doc="Standard deviation of each input (population).",
        collects=("sum", "sum_of_squares"),
    ),
    Statistic(name="input_max", type=Type.C, doc="Largest absolute value of each input.", collects=("max",)),
    Statistic(
        name="output_norm",
        type=Type.R,
        doc="Root mean square of each output of the unpruned weight, bias left out: sqrt(diag(W G W^T)).",
        collects=("gram",),
    ),
    Statistic(name="gram", type=Type.CC, doc="G = X^T X / T, mean over tokens.", collects=("gram",)),
    Statistic(
        name="inverse_gram_diagonal",
        type=Type.C,
        doc="Diagonal of (G + 0.01 mean(diag G) I)^-1, the OBS curvature with SparseGPT's damping.",
        collects=("gram",),
    ),
    # `gradient` (RC, root mean square over sequences of the loss gradient) joins here with its collector.
]

STATISTICS: dict[str, Statistic] = {statistic.name: statistic for statistic in _ROWS}
