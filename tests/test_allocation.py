"""Preferences → sparsities with an exact mean → counts with an exact sum.

Legend: L layers that share in the sparsity, N linear layers.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoprune import algorithms
from autoprune.allocation import Allocation, bounds, counts, equal_marginal_damage, project
from autoprune.errors import AutopruneError
from autoprune.sparsity import Target, keep_mask

PATTERNS = ["1:2", "2:4", "3:4", "1:4", "4:8", "1:1", "5:16"]
TARGETS = st.one_of(
    st.integers(0, 99).map(lambda percent: Target.of(percent / 100)),
    st.floats(0, 1, exclude_max=True).map(Target.of),
    st.sampled_from(PATTERNS).map(lambda pattern: Target.of(pattern=pattern)),
)
SHIFTS = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.05, 0.15, 1.0]))
LAYERS = st.lists(
    st.tuples(st.one_of(st.floats(-1, 1), st.floats(-1e31, 1e31)), st.integers(1, 10**6)), min_size=1, max_size=40
)


def mean(sparsity_L: np.ndarray, size_L: np.ndarray) -> float:
    return float(sparsity_L @ size_L / size_L.sum())


@given(LAYERS, TARGETS, SHIFTS)
def test_projected_sparsities_have_the_targets_mean(layers: list, target: Target, max_shift: float):
    preference_L, size_L = (np.array(column, dtype=np.float64) for column in zip(*layers, strict=True))
    sparsity_L = project(preference_L, size_L, target, max_shift)
    low, high = bounds(target, max_shift)
    assert mean(sparsity_L, size_L) == pytest.approx(float(target.fraction), abs=1e-9)
    assert (sparsity_L >= low - 1e-12).all()
    assert (sparsity_L <= high + 1e-12).all()
    order = np.argsort(preference_L, kind="stable")
    assert (np.diff(sparsity_L[order]) >= -1e-9).all()


@given(LAYERS, TARGETS, st.floats(-100, 100))
def test_a_common_shift_of_preferences_changes_nothing(layers: list, target: Target, shift: float):
    preference_L, size_L = (np.array(column, dtype=np.float64) for column in zip(*layers, strict=True))
    plain = project(preference_L, size_L, target, 0.15)
    np.testing.assert_allclose(project(preference_L + shift, size_L, target, 0.15), plain, atol=1e-9)


@given(TARGETS, SHIFTS, st.integers(1, 20))
def test_equal_preferences_are_uniform(target: Target, max_shift: float, layers: int):
    sparsity_L = project(np.full(layers, 3.0), np.arange(1.0, layers + 1), target, max_shift)
    np.testing.assert_allclose(sparsity_L, float(target.fraction), atol=1e-9)


@given(TARGETS, SHIFTS)
def test_bounds_hold_the_target_and_empty_no_layer(target: Target, max_shift: float):
    low, high = bounds(target, max_shift)
    assert 0 <= low <= float(target.fraction) <= high
    assert 1 - high >= 0.5 * (1 - float(target.fraction)) - 1e-12
    if target.group > 1:
        assert high <= max(1 - 1 / target.group, float(target.fraction)) + 1e-12


def test_preferences_in_units_of_sparsity_are_taken_as_they_are():
    sparsity_L = project(np.array([-0.05, 0.0, 0.05]), np.ones(3), Target.of(0.5), 0.15)
    np.testing.assert_allclose(sparsity_L, [0.45, 0.5, 0.55], atol=1e-12)


@settings(max_examples=50)
@given(st.data())
def test_equal_marginal_damage_cannot_be_improved(data: st.DataObject):
    count = data.draw(st.integers(2, 8))
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    log_damage_L, slope_L = generator.normal(-3, 2, count), generator.uniform(2, 12, count)
    size_L = generator.integers(1, 50, count).astype(np.float64)
    target = Target.of(data.draw(st.sampled_from([0.3, 0.5, 0.7])))
    max_shift = data.draw(st.sampled_from([0.1, 0.15, 1.0]))

    def damage(sparsity_L: np.ndarray) -> float:
        return float(np.exp(log_damage_L + slope_L * sparsity_L).sum())

    best_L = equal_marginal_damage(log_damage_L, slope_L, size_L, target, max_shift)
    low, high = bounds(target, max_shift)
    assert mean(best_L, size_L) == pytest.approx(float(target.fraction), abs=1e-9)
    for _ in range(100):
        give, take = generator.choice(count, 2, replace=False)
        other_L = best_L.copy()
        amount = generator.uniform(0, 0.05)
        other_L[give] -= amount / size_L[give]
        other_L[take] += amount / size_L[take]
        if low <= other_L.min() and other_L.max() <= high:
            assert damage(other_L) >= damage(best_L) * (1 - 1e-9)


@given(LAYERS, TARGETS, SHIFTS)
def test_counts_are_exact(layers: list, target: Target, max_shift: float):
    preference_L, sizes = zip(*layers, strict=True)
    group = target.group or 1
    size_N = [size * group for size in sizes]
    sparsity_N = project(np.array(preference_L), np.array(size_N, dtype=np.float64), target, max_shift)
    count_N = counts(target, list(sparsity_N), size_N)
    assert sum(count_N) == target.fraction * sum(size_N) // 1
    mixed = 0
    for count, size, share in zip(count_N, size_N, sparsity_N, strict=True):
        assert 0 <= count <= (size if not target.group else size // group * (group - 1))
        if target.group:
            assert abs(count / size - share) <= 1 / group + 1e-9
            mixed += count % (size // group) != 0
        else:
            assert abs(count - share * size) <= 1 + 1e-6 * size
    assert mixed <= 1


@given(TARGETS, st.lists(st.integers(1, 1000), min_size=1, max_size=30))
def test_uniform_counts_are_each_layers_share(target: Target, sizes: list[int]):
    size_N = [size * (target.group or 1) for size in sizes]
    count_N = counts(target, [target.fraction] * len(size_N), size_N)
    assert sum(count_N) == target.fraction * sum(size_N) // 1
    for count, size in zip(count_N, size_N, strict=True):
        assert abs(count - target.fraction * size) < 1


def test_29_percent_of_100_is_29():
    assert counts(Target.of(0.29), [Fraction(29, 100)], [100]) == [29]  # 0.29 * 100 is 28.999999999999996 in floats


@pytest.mark.parametrize("pattern", ["2:4", "4:8"])
def test_masks_of_a_shared_pattern_keep_some_of_each_group(pattern: str):
    target = Target.of(pattern=pattern)
    generator = torch.Generator().manual_seed(0)
    scores = [torch.randn(16, 32, generator=generator) for _ in range(6)]
    sparsity_N = project(np.linspace(-0.3, 0.3, 6), np.ones(6), target, 0.25)
    removed = 0
    for score_RC, count in zip(scores, counts(target, list(sparsity_N), [512] * 6), strict=True):
        kept_G = keep_mask(score_RC, target, count, "row").reshape(-1, target.group).sum(1)
        assert kept_G.min() >= 1
        assert kept_G.max() - kept_G.min() <= 1
        removed += 512 - int(kept_G.sum())
    assert removed == 6 * 256


# ---------------------------------------------------------------- options


def test_options_override_the_programs():
    sdsa = Allocation.of(algorithms.load("sdsa"))
    assert (sdsa.granularity, sdsa.strength, sdsa.max_shift, sdsa.temperature) == ("block", 0.2, 0.15, 1.0)
    changed = sdsa.with_options(strength=0.4, granularity="linear", max_shift=None)
    assert (changed.granularity, changed.strength, changed.max_shift) == ("linear", 0.4, 0.15)


@pytest.mark.parametrize(
    "options",
    [
        {"strength": float("nan")},
        {"strength": 1e9},
        {"max_shift": -0.1},
        {"max_shift": 2},
        {"temperature": 0.0},
        {"granularity": "row"},
    ],
)
def test_options_out_of_range_are_refused(options: dict):
    with pytest.raises(AutopruneError, match=f"{next(iter(options))} cannot be") as caught:
        Allocation.of(algorithms.load("sdsa")).with_options(**options)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("name", "judge", "text"),
    [
        ("sdsa", False, False),
        ("alpha", False, False),
        ("atp", False, False),
        ("owl", False, True),
        ("dlp", False, True),
        ("marginal", True, True),
    ],
)
def test_what_the_library_needs(name: str, judge: bool, text: bool):
    allocation = Allocation.of(algorithms.load(name))
    assert (allocation.needs_judge, allocation.needs_text) == (judge, text)


@pytest.mark.parametrize(("name", "needs"), [("uniform", False), ("sensitivity", True), ("auto", True)])
def test_what_other_allocations_need(name: str, needs: bool):
    assert Allocation.named(name).needs_judge is needs
    assert Allocation.named(name).needs_text is needs
