"""Exact counts, exact masks, and zeros that are zeros.

Legend: R output rows, C input columns; M the group length of an n:m pattern.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from autoprune import sparsity
from autoprune.errors import AutopruneError
from autoprune.sparsity import Target, keep_mask, keep_mask_by_rows, zero_pruned_

ANY = Target.of(0.5)  # masks follow the given count, not the fraction


# ---------------------------------------------------------------- targets


@pytest.mark.parametrize("sparsity", [1.0, 1, 1.5, -0.1, -1e-300, float("nan"), float("inf"), True, False])
def test_impossible_sparsities_are_refused(sparsity: float):
    with pytest.raises(AutopruneError, match=r"outside \[0, 1\)") as caught:
        Target.of(sparsity)
    assert caught.value.remedy


@pytest.mark.parametrize("pattern", ["5:4", "0:4", "0:0", "a:b", "", "2", "2:", ":4", "2:4:8", "-2:4", "2.0:4", "²:4"])
def test_impossible_patterns_are_refused(pattern: str):
    with pytest.raises(AutopruneError, match="is not n:m") as caught:
        Target.of(pattern=pattern)
    assert caught.value.remedy


@pytest.mark.parametrize("arguments", [{}, {"sparsity": 0.5, "pattern": "2:4"}, {"sparsity": 0.0, "pattern": "2:4"}])
def test_exactly_one_of_sparsity_and_pattern_is_needed(arguments: dict):
    with pytest.raises(AutopruneError, match="sparsity") as caught:
        Target.of(**arguments)
    assert caught.value.remedy


@pytest.mark.parametrize(("sparsity", "fraction"), [(0.29, (29, 100)), (0.1, (1, 10)), (0, (0, 1)), (1e-7, (1, 10**7))])
def test_fractions_are_decimal(sparsity: float, fraction: tuple[int, int]):
    assert Target.of(sparsity).fraction == Fraction(*fraction)


def test_a_pattern_is_its_share():
    target = Target.of(pattern=" 2 : 8 ")
    assert (target.keep, target.group, target.fraction) == (2, 8, Fraction(3, 4))


@pytest.mark.parametrize("pattern", ["2:4", "4:4", "1:1", "1:16"])
def test_a_pattern_is_shown_as_written(pattern: str):
    assert str(Target.of(pattern=pattern)) == pattern


def test_layers_that_a_pattern_cannot_tile_are_refused():
    with pytest.raises(AutopruneError, match="6 inputs do not divide into groups of 4") as caught:
        Target.of(pattern="2:4").check_layer("model.proj", 6)
    assert caught.value.where == "model.proj"
    assert caught.value.remedy


def test_other_layers_are_not():
    Target.of(pattern="2:4").check_layer("model.proj", 8)
    Target.of(0.5).check_layer("model.proj", 7)


# ---------------------------------------------------------------- masks


def stable_oracle(score_RC: Tensor, removed: list[int]) -> Tensor:
    """True where a weight stays: the first `removed` of each row in a stable sort go."""
    keep_RC = np.ones(score_RC.shape, dtype=bool)
    for row, (line, count) in enumerate(zip(score_RC.numpy(), removed, strict=True)):
        keep_RC[row, np.argsort(line, kind="stable")[:count]] = False
    return torch.from_numpy(keep_RC)


@st.composite
def scores(draw: st.DrawFn, group: int = 1) -> Tensor:
    """Scores with anything between no ties and ties only, both signs, short and long rows."""
    R = draw(st.sampled_from([1, 2, 3, 7, 20]))
    C = group * draw(st.sampled_from([1, 2, 5, 64 // group, 64 // group + 1, 130 // group]))
    levels = draw(st.sampled_from([1, 2, 3, 10, 10**6]))
    lowest = draw(st.sampled_from([-levels, -levels // 2, 0]))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    scale = draw(st.sampled_from([1.0, 1e24, 1e-40]))
    return torch.from_numpy(generator.integers(lowest, lowest + levels, (R, C)).astype(np.float32) * np.float32(scale))


def counts_of(score_RC: Tensor) -> st.SearchStrategy[int]:
    total = score_RC.numel()
    return st.one_of(st.integers(0, total), st.sampled_from([0, 1, total // 2, total - 1, total]))


def assert_lowest_go(score_RC: Tensor, keep_RC: Tensor) -> None:
    """Within a row nothing that stays is lower than anything that goes."""
    lowest_kept = torch.where(keep_RC, score_RC, torch.inf).amin(1)
    highest_removed = torch.where(keep_RC, -torch.inf, score_RC).amax(1)
    assert (lowest_kept >= highest_removed).all()


@given(st.data())
def test_layer_masks(data: st.DataObject):
    score_RC = data.draw(scores())
    count = data.draw(counts_of(score_RC))
    keep_RC = keep_mask(score_RC, ANY, count, "layer")
    assert (keep_RC.shape, keep_RC.dtype) == (score_RC.shape, torch.bool)
    assert (~keep_RC).sum() == count
    assert_lowest_go(score_RC.reshape(1, -1), keep_RC.reshape(1, -1))
    assert torch.equal(keep_RC.reshape(1, -1), stable_oracle(score_RC.reshape(1, -1), [count]))


@given(st.data())
def test_row_masks(data: st.DataObject):
    score_RC = data.draw(scores())
    count = data.draw(counts_of(score_RC))
    keep_RC = keep_mask(score_RC, ANY, count, "row")
    assert (keep_RC.shape, keep_RC.dtype) == (score_RC.shape, torch.bool)
    removed_R = (~keep_RC).sum(1)
    assert removed_R.sum() == count
    assert removed_R.max() - removed_R.min() <= 1
    assert_lowest_go(score_RC, keep_RC)
    assert torch.equal(keep_RC, stable_oracle(score_RC, removed_R.tolist()))


@given(st.data())
def test_pattern_masks(data: st.DataObject):
    group = data.draw(st.sampled_from([1, 2, 4, 8]))
    keep = data.draw(st.integers(1, group))
    score_RC = data.draw(scores(group))
    target = Target.of(pattern=f"{keep}:{group}")
    count = score_RC.numel() // group * (group - keep)
    keep_RC = keep_mask(score_RC, target, count, data.draw(st.sampled_from(["row", "layer"])))
    grouped_GM, kept_GM = score_RC.reshape(-1, group), keep_RC.reshape(-1, group)
    assert (kept_GM.sum(1) == keep).all()
    assert_lowest_go(grouped_GM, kept_GM)
    assert torch.equal(kept_GM, stable_oracle(grouped_GM, [group - keep] * len(grouped_GM)))


def test_pattern_masks_of_torch_are_those_of_numpy(monkeypatch: pytest.MonkeyPatch):
    """What a GPU computes, which no NumPy array can see."""
    score_RC = torch.randint(0, 5, (300, 1000), generator=torch.Generator().manual_seed(0)).float()
    target = Target.of(pattern="2:4")
    keep_RC = keep_mask(score_RC, target, score_RC.numel() // 2, "row")
    monkeypatch.setattr(sparsity, "_fast_array", lambda tensor: tensor)
    assert torch.equal(keep_RC, keep_mask(score_RC, target, score_RC.numel() // 2, "row"))


@given(st.data())
def test_a_pattern_takes_any_count(data: st.DataObject):
    """A layer that loses more or less than n:m says has groups that differ by one at most."""
    group = data.draw(st.sampled_from([2, 4, 8]))
    score_RC = data.draw(scores(group))
    count = data.draw(counts_of(score_RC))
    removed_GM = ~keep_mask(score_RC, Target.of(pattern=f"1:{group}"), count, "row").reshape(-1, group)
    assert removed_GM.sum() == count
    assert removed_GM.sum(1).max() - removed_GM.sum(1).min() <= 1
    assert_lowest_go(score_RC.reshape(-1, group), ~removed_GM)


@pytest.mark.parametrize("columns", [5, 100])
@pytest.mark.parametrize("value", [0.0, -1.0, 1e30, -1e30])
def test_of_equal_scores_the_first_columns_go(columns: int, value: float):
    keep_RC = keep_mask(torch.full((3, columns), value), ANY, 3 * 2, "row")
    assert torch.equal(keep_RC, (torch.arange(columns) >= 2).expand(3, -1))
    keep_RC = keep_mask(torch.full((3, columns), value), ANY, columns + 1, "layer")
    assert torch.equal(keep_RC.flatten(), torch.arange(3 * columns) > columns)


def test_the_two_zeros_are_equal_scores():
    assert keep_mask(torch.tensor([[0.0, -0.0, 0.0, -0.0]]), ANY, 2, "row").tolist() == [[False, False, True, True]]


@pytest.mark.parametrize("compare", ["row", "layer"])
def test_a_transposed_score_gives_the_mask_of_its_copy(compare: str):
    score_RC = torch.randint(0, 5, (90, 70), generator=torch.Generator().manual_seed(0)).float().T
    expected = keep_mask(score_RC.contiguous(), ANY, 3001, compare)
    assert torch.equal(keep_mask(score_RC, ANY, 3001, compare), expected)


@pytest.mark.parametrize("compare", ["row", "layer"])
def test_the_score_is_not_changed(compare: str):
    score_RC = torch.randn(9, 80, generator=torch.Generator().manual_seed(0))
    before = score_RC.clone()
    keep_mask(score_RC, ANY, 100, compare)
    assert torch.equal(score_RC, before)


# ---------------------------------------------------------------- zeros

FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.mark.parametrize("dtype", FLOATS)
def test_pruned_weights_become_positive_zero(dtype: torch.dtype):
    weight = torch.tensor([[torch.nan, -torch.nan, -0.0, torch.inf, -torch.inf, -1.5, 1e-7, 0.0]], dtype=dtype)
    zero_pruned_(weight, torch.zeros(1, 8, dtype=torch.bool))
    assert (weight == 0).all()
    assert not weight.signbit().any()


@pytest.mark.parametrize("dtype", FLOATS)
def test_kept_weights_keep_their_bits(dtype: torch.dtype):
    weight = torch.tensor([[torch.nan, -0.0, torch.inf, -1.5, 1e-7, 3.0]], dtype=dtype)
    before = weight.clone()
    zero_pruned_(weight, torch.ones(1, 6, dtype=torch.bool))
    assert torch.equal(weight.view(torch.uint8), before.view(torch.uint8))


@pytest.mark.parametrize("dtype", FLOATS)
def test_zeroing_works_on_a_transposed_view(dtype: torch.dtype):
    generator = torch.Generator().manual_seed(0)
    stored = torch.randn(6, 4, generator=generator).to(dtype)
    keep = torch.rand(4, 6, generator=generator) > 0.5
    expected = torch.where(keep, stored.T, 0)
    zero_pruned_(stored.T, keep)
    assert torch.equal(stored.T, expected)


def test_zeroing_works_on_a_slice():
    stored = torch.ones(4, 6)
    zero_pruned_(stored[:, 2:4], torch.zeros(4, 2, dtype=torch.bool))
    assert stored.sum(0).tolist() == [4, 4, 0, 0, 4, 4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_both_zeros_are_counted_and_no_nan(dtype: torch.dtype):
    weight_RC = torch.tensor([[0.0, -0.0, torch.nan, 1.0], [1e-3, torch.inf, 0.0, -1.0]], dtype=dtype)
    assert zero_pruned_(weight_RC, torch.ones(2, 4, dtype=torch.bool)) == 3


@given(st.data())
def test_from_target_to_zeros(data: st.DataObject):
    """A layer without zeros ends with exactly the zeros that its count says."""
    weight_RC = data.draw(scores()).abs() + 1
    count = data.draw(counts_of(weight_RC))
    keep_RC = keep_mask(weight_RC.clone(), ANY, count, data.draw(st.sampled_from(["row", "layer"])))
    assert zero_pruned_(weight_RC, keep_RC) == count == weight_RC.numel() - weight_RC.count_nonzero()


@pytest.mark.parametrize("shape", [(6, 16), (7, 48), (1, 16), (16, 32)])
@pytest.mark.parametrize("pattern", [None, "2:4", "1:4", "4:8", "5:16"])
@pytest.mark.parametrize("compare", ["row", "layer"])
@pytest.mark.parametrize("rows", [1, 3, 100])
def test_scores_that_come_some_rows_at_a_time_give_the_same_mask(
    shape: tuple[int, int], pattern: str | None, compare: str, rows: int
):
    score_RC = torch.randint(0, 5, shape, generator=torch.Generator().manual_seed(0)).float()  # many equal ones
    target = Target.of(None if pattern else 0.4, pattern)
    for count in {int(score_RC.numel() * target.fraction), int(score_RC.numel() * target.fraction) - 3, 0}:
        if count < 0:
            continue
        parts = [(slice(start, start + rows), score_RC[start : start + rows]) for start in range(0, shape[0], rows)]
        whole = keep_mask(score_RC, target, count, compare)
        assert torch.equal(keep_mask_by_rows(parts, shape, target, count, compare), whole)
        assert int((~whole).sum()) == count
