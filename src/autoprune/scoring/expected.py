"""What the layers' sparsities cost together, to first order: measured once, with Wanda's masks.

Legend: N linear layers, S levels of sparsity.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from autoprune.files import write_text, writing_to
from autoprune.layer import Method
from autoprune.measurements import Measurements
from autoprune.scoring.parts import Piece, part_of
from autoprune.scoring.store import Store
from autoprune.sparsity import Target, keep_mask

LEVELS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
_ROWS, _COLUMNS = 64, 1024
_STEP = 0.05  # in sparsity, on either side of the target, over which the growth of a layer's errors is taken
_LEAST = 0.1  # of the median price: noise makes some negative


class Expected:
    """Damage as a sum over layers: each one's error at a sparsity, times what it costs.

    A layer's errors (`curves`) alone do not say how much the whole model suffers. The derivative of the damage by its
    sparsity, where all layers have the target's, does (`Measurements.marginal_damage`): so the curve is scaled to have
    that derivative there.
    """

    def __init__(self, store: Store, measurements: Measurements, method: Method, target: Target, seed: int):
        self.store, self.measurements, self.method, self.target, self.seed = store, measurements, method, target, seed

    def damage(self, sparsity_N: Sequence[float] | np.ndarray) -> float:
        """Of these sparsities of the linear layers, in nats a token."""
        return float(sum(self._damage_N(np.asarray(sparsity_N, dtype=np.float64))))

    def _damage_N(self, sparsity_N: np.ndarray) -> np.ndarray:
        curve_NS, price_N = self._known
        return price_N * np.array([np.interp(s, LEVELS, curve) for s, curve in zip(sparsity_N, curve_NS, strict=True)])

    @cached_property
    def _known(self) -> tuple[np.ndarray, np.ndarray]:
        """Errors (N, S) at the levels, and prices (N,); kept in the store's folder."""
        held_BL = self.measurements.held_BL
        assert held_BL is not None
        key = hashlib.sha256(held_BL.numpy().tobytes())
        key.update(f"{self.target} {self.seed} {self.method.score.nodes}".encode())
        file = self.store.folder / f"expected-{key.hexdigest()[:16]}.json"
        try:
            known = json.loads(file.read_text("utf-8"))
            return np.array(known["curves"]), np.array(known["prices"])
        except (OSError, ValueError, KeyError):
            pass  # not there, or damaged
        curve_NS = np.array([self._curve(index) for index in range(len(self.store.linears))])
        price_N = self._prices(curve_NS)
        with writing_to(file):
            write_text(file, json.dumps({"curves": curve_NS.tolist(), "prices": price_N.tolist()}))
        return curve_NS, price_N

    def _curve(self, index: int) -> list[float]:
        linear = self.store.linears[index]
        piece = Piece(self.store, linear, part_of(linear, _ROWS, _COLUMNS, self.target.group, self.seed))
        visit = piece.visit(self.method).at(float(self.target.fraction))
        score_RC, weight_RC = visit.score(self.method.score), visit.linear.weight_RC
        plain = Target.of(0.5)
        return [
            piece.harm(visit, weight_RC * keep_mask(score_RC, plain, int(level * weight_RC.numel()), "row"))
            for level in LEVELS
        ]

    def _prices(self, curve_NS: np.ndarray) -> np.ndarray:
        sparsity, count = float(self.target.fraction), len(curve_NS)
        slope_N = self.measurements.trial.marginal_damage(np.full(count, sparsity))
        around = (max(0.0, sparsity - _STEP), min(1.0, sparsity + _STEP))
        growth_N = np.array([np.diff(np.interp(around, LEVELS, curve))[0] for curve in curve_NS]) / np.ptp(around)
        price_N = slope_N / np.maximum(growth_N, 1e-30)
        positive = price_N[(price_N > 0) & (growth_N > 0)]
        usual = float(np.median(positive)) if len(positive) else 1.0
        return np.where(growth_N > 0, np.maximum(price_N, _LEAST * usual), 0.0)
