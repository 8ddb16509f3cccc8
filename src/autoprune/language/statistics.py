"""The tables of statistics that a program may name as parameters, one table per function.

STATISTICS, for `score`: what one linear layer and its inputs offer. LAYER_STATISTICS, for `allocate`: one number per
layer that shares in the sparsity; a layer is a whole block or one linear layer, as `granularity` says.

Inputs x are what the layer really receives during the run, T tokens in all, padding excluded.
What a program does not name is not collected. `collects` lists what a statistic needs: for `score` the running
sums of `autoprune.statistics` or GRADIENTS, for `allocate` the measurements of `autoprune.layer_statistics`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from autoprune.language.types import Type


@dataclass(frozen=True, kw_only=True)
class Statistic:
    """One row of a table. What is not `searched` takes minutes to measure: programs of a search do not name it."""

    name: str
    type: Type
    doc: str
    collects: tuple[str, ...] = ()
    searched: bool = True


GRADIENT, OUTPUT_GRADIENT = "gradient", "output_gradient"
GRADIENTS = frozenset({GRADIENT, OUTPUT_GRADIENT})
"""What takes a backward pass through the unpruned model (`autoprune.gradients`), before any layer is visited."""

_ROWS = [
    Statistic(name="weight", type=Type.RC, doc="The weight matrix of the layer, y = weight @ x."),
    Statistic(name="depth", type=Type.SCALAR, doc="Position of the block: 0 for the first, 1 for the last."),
    Statistic(
        name="sparsity",
        type=Type.SCALAR,
        doc="The share of weights to remove from the layer: a program with a number in its place is about that share "
        "only.",
    ),
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
        doc="Diagonal of (G + 0.01 diag G)^-1, the OBS curvature, damped so that scales of inputs do not matter.",
        collects=("gram",),
    ),
    Statistic(
        name="gradient",
        type=Type.RC,
        doc="Root mean square over sequences of the gradient by the weight of the sequence's loss, the mean over its "
        "next tokens, in the unpruned model. Costs a backward pass.",
        collects=(GRADIENT,),
    ),
    Statistic(
        name="output_gradient",
        type=Type.R,
        doc="Root mean square over tokens of the gradient by each output of the sequence's loss, the mean over its "
        "next tokens, in the unpruned model: what an error of the output costs (K-FAC's factor). Costs a backward "
        "pass.",
        collects=(OUTPUT_GRADIENT,),
    ),
]

STATISTICS: dict[str, Statistic] = {statistic.name: statistic for statistic in _ROWS}

WEIGHTS, SALIENCY, SPECTRUM = "weights", "saliency", "spectrum"
SENSITIVITY, MARGINAL_DAMAGE = "sensitivity", "marginal_damage"
"""What the statistics of `allocate` are measured on: |w|; |w| times its input's norm, which needs a text; singular
values; the damage of pruning the layer alone, which needs a text and takes seconds a layer; the derivative of the
damage where all layers are pruned, which needs a text and one backward pass."""

_LAYER_ROWS = [
    Statistic(name="sparsity", type=Type.SCALAR, doc="The share of weights to remove from the whole model."),
    Statistic(name="temperature", type=Type.SCALAR, doc="The option `temperature`, for softmax(x / temperature)."),
    Statistic(name="depth", type=Type.L, doc="Position of the block: 0 for the first, 1 for the last."),
    Statistic(name="size", type=Type.L, doc="The layer's share of all prunable weights; sums to 1."),
    Statistic(
        name="skewness",
        type=Type.L,
        doc="Skewness of |w|, third central moment over std^3 (Fisher); 0.995 for normal weights.",
        collects=(WEIGHTS,),
    ),
    Statistic(
        name="l_skewness",
        type=Type.L,
        doc="L-skewness of |w| (Hosking, 1990), in (-1, 1), not ruled by single outliers; 0.198 for normal weights.",
        collects=(WEIGHTS,),
    ),
    Statistic(
        name="kurtosis",
        type=Type.L,
        doc="Kurtosis of |w|, fourth central moment over std^4 (not in excess of 3); 3.87 for normal weights.",
        collects=(WEIGHTS,),
    ),
    Statistic(
        name="wanda_skewness", type=Type.L, doc="Skewness of Wanda's score |w| times input norm.", collects=(SALIENCY,)
    ),
    Statistic(name="wanda_l_skewness", type=Type.L, doc="L-skewness of Wanda's score.", collects=(SALIENCY,)),
    Statistic(name="wanda_kurtosis", type=Type.L, doc="Kurtosis of Wanda's score.", collects=(SALIENCY,)),
    Statistic(
        name="wanda_mean",
        type=Type.L,
        doc="Mean of Wanda's score (DLP's released importance).",
        collects=(SALIENCY,),
    ),
    Statistic(name="wanda_median", type=Type.L, doc="Median of Wanda's score (DLP's paper).", collects=(SALIENCY,)),
    Statistic(
        name="outlier_ratio",
        type=Type.L,
        doc="Share of weights whose Wanda score is more than 5 times the layer's mean (OWL's with M = 5).",
        collects=(SALIENCY,),
    ),
    Statistic(
        name="spectral_alpha",
        type=Type.L,
        doc="Hill's estimate of the power-law exponent of the eigenvalues of W^T W, xmin at their median "
        "(AlphaPruning's xmin_mid), mean over the linear layers; smaller with a heavier tail.",
        collects=(SPECTRUM,),
    ),
    Statistic(
        name="sensitivity",
        type=Type.L,
        doc="KL divergence from the dense model, nats a token, when this layer alone is pruned to the sparsity.",
        collects=(SENSITIVITY,),
        searched=False,
    ),
    Statistic(
        name="marginal_damage",
        type=Type.L,
        doc="How fast the KL divergence grows with this layer's sparsity, per share of the weights, where all have the "
        "model's: what one more pruned weight costs beside the errors of all others. Noise may make it negative.",
        collects=(MARGINAL_DAMAGE,),
    ),
]

LAYER_STATISTICS: dict[str, Statistic] = {statistic.name: statistic for statistic in _LAYER_ROWS}


@dataclass(frozen=True, kw_only=True)
class Function:
    """A function that a program may define: which statistics its parameters name, and the type it returns."""

    name: str
    statistics: Mapping[str, Statistic]
    result: Type
    doc: str
    example: str


FUNCTIONS: dict[str, Function] = {
    "score": Function(
        name="score",
        statistics=STATISTICS,
        result=Type.RC,
        doc="one number per weight; the lowest are pruned",
        example="def score(weight, input_norm): return abs(weight) * input_norm",
    ),
    "allocate": Function(
        name="allocate",
        statistics=LAYER_STATISTICS,
        result=Type.L,
        doc="one number per layer, in units of sparsity once multiplied by `strength`; a larger one loses more",
        example="def allocate(skewness): return -minmax(skewness)",
    ),
}
