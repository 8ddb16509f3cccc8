"""How sure a mean is: resampling."""

from __future__ import annotations

import numpy as np

_RESAMPLES = 10_000


def bootstrap_interval(difference_B: np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of the mean, resampling sequences (10,000 times, fixed seed)."""
    rng = np.random.default_rng(0)
    count = len(difference_B)
    means = [difference_B[rng.integers(0, count, size=count)].mean() for _ in range(_RESAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
