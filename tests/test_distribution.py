"""Streamed shapes of sets of numbers, against direct formulas on all of them at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autoprune.distribution import Distribution


def streamed(values: np.ndarray, parts: int = 1) -> Distribution:
    distribution = Distribution()
    for part in np.array_split(values, parts):
        distribution.add(torch.from_numpy(part))
    return distribution


def l_skewness(values: np.ndarray) -> float:
    """By the definition with sorted values (Hosking's unbiased probability weighted moments)."""
    x, n = np.sort(values.astype(np.float64)), len(values)
    i = np.arange(n)
    b0, b1 = x.mean(), (i * x).mean() / (n - 1)
    b2 = (i * (i - 1) * x).mean() / (n - 1) / (n - 2)
    return (6 * b2 - 6 * b1 + b0) / (2 * b1 - b0)


SAMPLES = {
    "half-normal": np.abs(np.random.default_rng(0).standard_normal(20_001)).astype(np.float32),
    "exponential": np.random.default_rng(1).exponential(size=5000).astype(np.float32),
    "uniform": np.random.default_rng(2).random(4000, dtype=np.float32),
    "heavy": np.abs(np.random.default_rng(3).standard_t(3, 9000)).astype(np.float32),
    "tiny": (np.random.default_rng(4).exponential(size=999) * 1e-20).astype(np.float32),
    "huge": (np.random.default_rng(5).exponential(size=999) * 1e20).astype(np.float32),
    "half zeros": np.concatenate([np.zeros(500), np.random.default_rng(6).random(501)]).astype(np.float32),
    "three": np.array([1, 2, 9], dtype=np.float32),
}


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("parts", [1, 7])
def test_shapes_equal_the_formulas(name: str, parts: int):
    x = SAMPLES[name]
    found = streamed(x, parts)
    wide = x.astype(np.float64)
    centred = wide - wide.mean()
    assert found.count == len(x)
    assert found.mean == pytest.approx(wide.mean(), rel=1e-12)
    assert found.skewness == pytest.approx((centred**3).mean() / centred.std() ** 3, rel=1e-8)
    assert found.kurtosis == pytest.approx((centred**4).mean() / centred.std() ** 4, rel=1e-8)
    assert found.l_skewness == pytest.approx(l_skewness(x), abs=2e-4)
    assert found.median == pytest.approx(np.median(wide), rel=1 / 4096)
    threshold = 2 * wide.mean()
    assert found.share_above(threshold) == pytest.approx((wide > threshold).mean(), abs=2e-3)


def test_known_values():
    exponential = np.random.default_rng(0).exponential(size=400_000).astype(np.float32)
    assert streamed(exponential).l_skewness == pytest.approx(1 / 3, abs=3e-3)
    assert streamed(SAMPLES["half-normal"]).skewness == pytest.approx(0.9953, abs=0.05)


@given(st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=50), st.floats(0.125, 1024, width=32))
def test_scale_changes_no_shape(values: list[float], scale: float):
    x = np.array(values, dtype=np.float32)
    plain, scaled = streamed(x), streamed((x * np.float32(scale)).astype(np.float32))
    if not plain.constant and x.max() > 1e-3:
        assert scaled.skewness == pytest.approx(plain.skewness, abs=1e-3)
        assert scaled.l_skewness == pytest.approx(plain.l_skewness, abs=5e-3)
        assert abs(plain.l_skewness) <= 1 + 1e-9 or len(values) < 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype: torch.dtype):
    x = torch.from_numpy(SAMPLES["half-normal"]).to(dtype)
    distribution = Distribution()
    distribution.add(x)
    assert distribution.skewness == pytest.approx(streamed(x.float().numpy()).skewness, rel=1e-6)


@pytest.mark.parametrize("values", [[], [3.0], [2.5] * 100, [0.0] * 5])
def test_what_is_not_defined_is_nan(values: list[float]):
    found = streamed(np.array(values, dtype=np.float32))
    assert found.constant
    assert all(np.isnan([found.skewness, found.kurtosis, found.l_skewness]))


def test_a_transposed_matrix_is_counted_whole():
    matrix = torch.rand(30, 20, generator=torch.Generator().manual_seed(0))
    plain, turned = Distribution(), Distribution()
    plain.add(matrix)
    turned.add(matrix.T)
    assert turned.l_skewness == plain.l_skewness
    assert turned.count == 600


@pytest.mark.parametrize("spread", [1e-5, 1e-6])
def test_nearly_equal_numbers_keep_their_shape(spread: float):
    x = (1 + spread * np.random.default_rng(0).exponential(size=20_000)).astype(np.float32)
    centred = x.astype(np.float64) - x.astype(np.float64).mean()
    found = streamed(x)
    assert found.skewness == pytest.approx((centred**3).mean() / centred.std() ** 3, rel=1e-6)
    assert found.kurtosis == pytest.approx((centred**4).mean() / centred.std() ** 4, rel=1e-6)
