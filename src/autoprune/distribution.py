"""The shape of a stream of non-negative numbers, such as all |w| of a block: moments, and what needs an order.

Moments are sums in float64, about the first number that came. Order statistics come from a histogram over the leading
bits of a float32, whose bins are never wider than 1/4096 of the values in them; so nothing is sorted, and a block of
any size takes 8 MB.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_DROPPED_BITS = 11  # of the 23 of the mantissa; 12 stay, so a bin is 1/4096 of its lower edge wide
_BINS = (0x7F800000 >> _DROPPED_BITS) + 1
_CHUNK = 1 << 20


class Distribution:
    """Sums and counts of what was added. A figure that is not defined, such as the skewness of equal values, is NaN."""

    def __init__(self) -> None:
        self.count = 0
        self._shift = 0.0
        self._sums = np.zeros(4)  # of the powers 1 to 4 of x - shift: what is nearly constant loses no digits
        self._counts = np.zeros(_BINS, dtype=np.int64)
        self._low, self._high = np.inf, -np.inf

    def add(self, values: Tensor) -> None:
        """Count finite non-negative numbers: any shape, any floating dtype."""
        for part in values.reshape(-1).split(_CHUNK) if values.numel() else ():
            x = part.to(torch.float32)
            if not self.count:
                self._shift = float(x[0])
            bins = x.contiguous().view(torch.int32) >> _DROPPED_BITS
            self._counts += torch.bincount(bins, minlength=_BINS).cpu().numpy()
            wide = (x.to(torch.float64) if x.device.type != "mps" else x) - self._shift
            square = wide.square()
            sums = (wide.sum(), square.sum(), (square * wide).sum(), square.square().sum())
            self._sums += [float(value) for value in sums]
            self._low, self._high = min(self._low, float(x.min())), max(self._high, float(x.max()))
            self.count += x.numel()

    @property
    def constant(self) -> bool:
        """Whether all numbers are equal, or there are none."""
        return self._low >= self._high

    @property
    def mean(self) -> float:
        return self._shift + float(self._sums[0]) / self.count if self.count else np.nan

    @property
    def skewness(self) -> float:
        """Fisher's: third central moment over the cube of the population's standard deviation."""
        return self._standardized(3)

    @property
    def kurtosis(self) -> float:
        """Fourth central moment over the fourth power of the standard deviation (3 for a normal distribution)."""
        return self._standardized(4)

    @property
    def l_skewness(self) -> float:
        """Ratio of the third L-moment to the second (Hosking, 1990): in (-1, 1), without cubes of outliers."""
        if self.constant:
            return np.nan
        value, here, below = self._ordered()
        n = float(self.count)
        # Sums of i and of i (i - 1) over the ranks i of the values in a bin, in closed form.
        ranks = here * (2 * below + here - 1) / 2
        upto = below + here
        pairs = (upto * (upto - 1) * (upto - 2) - below * (below - 1) * (below - 2)) / 3
        b0 = (here * value).sum() / n
        b1 = (ranks * value).sum() / n / max(n - 1, 1)
        b2 = (pairs * value).sum() / n / max(n - 1, 1) / max(n - 2, 1)
        second = 2 * b1 - b0
        return float((6 * b2 - 6 * b1 + b0) / second) if second > 0 else np.nan

    @property
    def median(self) -> float:
        """To one part in 4096."""
        if not self.count:
            return np.nan
        value, here, below = self._ordered()
        middle = (self.count - 1) / 2
        return float(value[np.searchsorted(below + here, [np.floor(middle), np.ceil(middle)], side="right")].mean())

    def share_above(self, threshold: float) -> float:
        """Share of the numbers that are larger, up to those in the threshold's own bin."""
        if not self.count:
            return np.nan
        value, here, _ = self._ordered()
        return float(here[value > threshold].sum()) / self.count

    def _standardized(self, order: int) -> float:
        if self.constant:
            return np.nan
        m1, m2, m3, m4 = self._sums / self.count
        variance = m2 - m1**2
        if not variance > 0:
            return np.nan
        if order == 3:
            return float((m3 - 3 * m1 * m2 + 2 * m1**3) / variance**1.5)
        return float((m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4) / variance**2)

    def _ordered(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Middle, count and number of smaller values of every occupied bin, in ascending order."""
        occupied = np.flatnonzero(self._counts)
        edges = (occupied.astype(np.int64) << _DROPPED_BITS) + (1 << (_DROPPED_BITS - 1))
        value = edges.astype(np.int32).view(np.float32).astype(np.float64)
        value[occupied == 0] = 0.0
        here = self._counts[occupied].astype(np.float64)
        return np.clip(value, self._low, self._high), here, here.cumsum() - here
