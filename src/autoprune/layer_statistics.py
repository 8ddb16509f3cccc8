"""What `allocate` may name, measured on the unpruned model: one number per layer that shares in the sparsity.

Legend: L layers (blocks, or single linear layers), R output rows, C input columns of a linear layer.
A figure that is not defined for a layer (the skewness of equal weights, the spectrum of zeros) is taken as the mean
of the others, or 0 where it is defined for none: such a layer is treated as an ordinary one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from autoprune.distribution import Distribution
from autoprune.errors import AutopruneError
from autoprune.language.statistics import LAYER_STATISTICS, SALIENCY, SPECTRUM, WEIGHTS
from autoprune.models import BlockSource, Linear

OUTLIER_FACTOR = 5
"""A Wanda score beyond this many means of its layer is an outlier (OWL's M)."""

Group = Sequence[Linear]


def grouped(source: BlockSource, granularity: str) -> list[list[Linear]]:
    """The linear layers of each layer that shares in the sparsity; blocks without any are left out."""
    blocks = [source.linears(index) for index in range(len(source.blocks))]
    if granularity == "linear":
        return [[linear] for block in blocks for linear in block]
    return [block for block in blocks if block]


def group_name(group: Group) -> str:
    """The name of a layer: of its linear layer, or what the names of a block's have in common."""
    first, *rest = [linear.name.split(".") for linear in group]
    common = [
        part for index, part in enumerate(first) if all(other[: index + 1] == first[: index + 1] for other in rest)
    ]
    return ".".join(common)


def group_sizes(groups: Sequence[Group]) -> np.ndarray:
    """Number of prunable weights of each layer: float64 (L,)."""
    return np.array([sum(linear.size for linear in group) for group in groups], dtype=np.float64)


def measure(
    source: BlockSource,
    groups: Sequence[Group],
    names: Iterable[str],
    norms: Mapping[str, Tensor],
    on_weights: Callable[[int], None] = lambda weights: None,
) -> dict[str, np.ndarray]:
    """The named statistics of the unpruned model, float64 (L,) each; all but the scalars and `sensitivity`.

    `norms` holds the root mean square of each input (1, C) by name of the linear layer, where a statistic of Wanda's
    score is among the names. A linear layer without one, which no token reached, is left out of those.
    """
    names = list(names)
    needs = {need for name in names for need in LAYER_STATISTICS[name].collects}
    total = group_sizes(groups).sum()
    last = max(len(source.blocks) - 1, 1)
    rows = []
    for group in groups:
        weights, saliency, alphas = Distribution(), Distribution(), []
        source.load(group[0].block)
        for linear in group:
            if WEIGHTS in needs:
                weights.add(linear.weight_RC.abs())
            if SALIENCY in needs and linear.name in norms:
                if not torch.isfinite(norms[linear.name]).all():
                    raise AutopruneError(
                        "the inputs are not finite", where=linear.name, remedy="try --dtype float32, and check the text"
                    )
                saliency.add(linear.weight_RC.float().abs() * norms[linear.name])
            if SPECTRUM in needs:
                alphas.append(spectral_alpha(linear.weight_RC))
            on_weights(linear.size)
        source.release(group[0].block)
        size = group_sizes([group]).sum()
        rows.append(
            {
                "depth": group[0].block / last,
                "size": size / total,
                "skewness": weights.skewness,
                "l_skewness": weights.l_skewness,
                "kurtosis": weights.kurtosis,
                "wanda_skewness": saliency.skewness,
                "wanda_l_skewness": saliency.l_skewness,
                "wanda_kurtosis": saliency.kurtosis,
                "wanda_mean": saliency.mean,
                "wanda_median": saliency.median,
                "outlier_ratio": saliency.share_above(OUTLIER_FACTOR * saliency.mean),
                "spectral_alpha": float(np.nanmean(alphas)) if not np.isnan(alphas).all() else np.nan,
            }
        )
    return {name: _defined(np.array([row[name] for row in rows])) for name in names if name in rows[0]}


def _defined(values_L: np.ndarray) -> np.ndarray:
    known = np.isfinite(values_L)
    return np.where(known, values_L, values_L[known].mean() if known.any() else 0.0)


def spectral_alpha(weight_RC: Tensor) -> float:
    """Power-law exponent of the eigenvalues of W^T W by Hill's estimator, 1 + n / sum(ln(e_k / e_min)).

    The tail is the upper half of the eigenvalues, n of them, and e_min the smallest of it (AlphaPruning's xmin_mid,
    Lu et al., 2024). NaN where all of the tail is equal or zero.
    """
    largest = weight_RC.abs().amax().float()
    weight_RC = weight_RC.float() / largest if largest > 0 else weight_RC.float()  # squares neither overflow nor vanish
    gram = weight_RC @ weight_RC.T if weight_RC.shape[0] < weight_RC.shape[1] else weight_RC.T @ weight_RC
    eigenvalues = np.sort(torch.linalg.eigvalsh(gram).double().cpu().numpy())
    tail = eigenvalues[len(eigenvalues) // 2 :]
    floor = np.finfo(np.float32).eps * tail[-1]  # below it, rounding is all there is
    if tail[-1] <= 0:
        return np.nan
    logs = np.log(np.maximum(tail, floor) / max(tail[0], floor)).sum()
    return 1 + len(tail) / logs if logs > 0 else np.nan
