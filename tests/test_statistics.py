"""Streamed statistics against direct formulas in float64.

Legend: T tokens, R output rows, C input columns.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from autoprune.conditioning import DAMPING
from autoprune.errors import AutopruneError
from autoprune.language import STATISTICS as ALL_STATISTICS
from autoprune.language.statistics import GRADIENTS
from autoprune.language.types import Type
from autoprune.statistics import InputStatistics, damped_inverse_diagonal

NOT_OF_INPUTS = GRADIENTS | {"sparsity"}  # see test_gradients and test_scoring
STATISTICS = {name: row for name, row in ALL_STATISTICS.items() if name not in NOT_OF_INPUTS}
EVERYTHING = ("sum", "sum_of_squares", "max", "gram")
CPU = torch.device("cpu")
DEPTH = 0.25


def stream(*batches: Tensor, collects: tuple[str, ...] = EVERYTHING) -> InputStatistics:
    statistics = InputStatistics(collects, batches[0].shape[-1], CPU)
    for batch in batches:
        statistics.add(batch)
    return statistics


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def damped_inverse_oracle(gram_CC: Tensor) -> Tensor:
    gram_CC = gram_CC.double()
    return torch.linalg.inv(gram_CC + DAMPING * gram_CC.diag().diag()).diag()


def direct(input_TC: Tensor, weight_RC: Tensor) -> dict[str, Tensor]:
    """Every statistic of the table from its definition, in float64."""
    x, w = input_TC.reshape(-1, input_TC.shape[-1]).double(), weight_RC.double()
    gram_CC = x.T @ x / len(x)
    return {
        "weight": w,
        "depth": torch.tensor([[DEPTH]], dtype=torch.float64),
        "input_norm": x.square().mean(0, keepdim=True).sqrt(),
        "input_mean": x.mean(0, keepdim=True),
        "input_std": x.std(0, unbiased=False, keepdim=True),
        "input_max": x.abs().amax(0, keepdim=True),
        "output_norm": (x @ w.T).square().mean(0).sqrt()[:, None],
        "gram": gram_CC,
        "inverse_gram_diagonal": damped_inverse_oracle(gram_CC)[None, :],
    }


def assert_all_equal_the_formulas(statistics: InputStatistics, input_TC: Tensor) -> None:
    weight_RC = gaussian(3, input_TC.shape[-1], seed=9)
    formulas = direct(input_TC, weight_RC)
    for name, expected in formulas.items():
        value, atol = statistics.statistic(name, weight_RC, DEPTH), 1e-5 * float(expected.abs().max())
        if name == "input_std":  # a difference of squares: as precise as these
            value, expected = value.square(), expected.square()
            atol = 1e-6 * float(formulas["input_norm"].square().max())
        torch.testing.assert_close(
            value, expected.float(), rtol=1e-4, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_every_statistic_of_the_table_has_a_formula():
    assert direct(gaussian(4, 2), gaussian(3, 2)).keys() == STATISTICS.keys()


@given(
    shape=st.tuples(st.integers(1, 60), st.integers(1, 9)),
    seed=st.integers(0, 2**32),
    scale=st.sampled_from([1e-3, 1.0, 1e4]),
    offset=st.sampled_from([0.0, 1.0, -3.0]),
)
def test_statistics_equal_their_formulas(shape: tuple[int, int], seed: int, scale: float, offset: float):
    input_TC = (gaussian(*shape, seed=seed) + offset) * scale
    assert_all_equal_the_formulas(stream(input_TC), input_TC)


def test_batches_of_any_shape_are_tokens():
    batches = [gaussian(2, 5, 6, seed=1), gaussian(7, 6, seed=2), gaussian(6, seed=3), gaussian(1, 1, 1, 6, seed=4)]
    statistics = stream(*batches)
    assert statistics.tokens == 2 * 5 + 7 + 1 + 1
    assert_all_equal_the_formulas(statistics, torch.cat([batch.reshape(-1, 6) for batch in batches]))


def test_batches_larger_than_a_chunk():
    input_TC = gaussian(700, 1000) + 0.5  # 262 rows are converted at a time
    statistics = stream(input_TC)
    expected = direct(input_TC, torch.ones(1, 1000))
    for name in ("input_norm", "input_mean", "input_std", "input_max", "gram"):
        torch.testing.assert_close(getattr(statistics, name), expected[name].float(), rtol=1e-5, atol=1e-5)


def test_rows_wider_than_a_chunk():
    input_TC = gaussian(2, (1 << 18) + 1)
    statistics = stream(input_TC, collects=("sum", "max"))
    torch.testing.assert_close(statistics.input_max[0], input_TC.abs().amax(0))
    torch.testing.assert_close(statistics.input_mean[0], input_TC.mean(0))


@given(cuts=st.lists(st.integers(1, 199), max_size=6, unique=True), seed=st.integers(0, 99))
def test_splitting_batches_changes_nothing(cuts: list[int], seed: int):
    input_TC = gaussian(200, 7, seed=seed).abs() + 0.1
    whole, split = stream(input_TC), stream(*input_TC.tensor_split(sorted(cuts)))
    assert whole.tokens == split.tokens == 200
    weight_RC = gaussian(3, 7).abs()
    for name in STATISTICS:
        first, second = (statistics.statistic(name, weight_RC, DEPTH) for statistics in (whole, split))
        rtol = 2e-5 if name == "inverse_gram_diagonal" else 1e-6  # an inverse amplifies the last digit of the Gram
        torch.testing.assert_close(first, second, rtol=rtol, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_inputs_of_other_dtypes_are_summed_exactly(dtype: torch.dtype):
    input_TC = gaussian(500, 5).to(dtype)
    assert_all_equal_the_formulas(stream(input_TC), input_TC)


def test_bfloat16_sums_do_not_stall():
    """A sum kept in bfloat16 would stop growing at 256."""
    assert stream(*[torch.ones(100, 2, dtype=torch.bfloat16)] * 50, collects=("sum",)).input_mean.eq(1).all()


def test_non_contiguous_inputs():
    input_TC = gaussian(6, 40).T
    assert_all_equal_the_formulas(stream(input_TC), input_TC)


def test_inputs_and_weights_are_not_changed():
    input_TC, weight_RC = gaussian(10, 4), gaussian(3, 4, seed=1)
    before = input_TC.clone(), weight_RC.clone()
    statistics = stream(input_TC)
    for name in STATISTICS:
        statistics.statistic(name, weight_RC, DEPTH)
    assert torch.equal(input_TC, before[0])
    assert torch.equal(weight_RC, before[1])


@pytest.mark.parametrize("name", STATISTICS)
def test_what_the_table_lists_is_all_that_is_needed(name: str):
    statistics = stream(gaussian(20, 5), collects=STATISTICS[name].collects)
    value = statistics.statistic(name, gaussian(3, 5), DEPTH)
    shapes = {Type.SCALAR: (1, 1), Type.R: (3, 1), Type.C: (1, 5), Type.RC: (3, 5), Type.CC: (5, 5)}
    assert (value.shape, value.dtype) == (shapes[STATISTICS[name].type], torch.float32)


@pytest.mark.parametrize("name", [name for name in STATISTICS if STATISTICS[name].collects])
def test_nothing_that_the_table_lists_is_spare(name: str):
    for missing in STATISTICS[name].collects:
        rest = tuple(set(EVERYTHING) - {missing})
        with pytest.raises(AssertionError):
            stream(gaussian(20, 5), collects=rest).statistic(name, gaussian(3, 5), DEPTH)


NEUTRAL = {
    "input_norm": torch.ones(1, 4),
    "input_mean": torch.zeros(1, 4),
    "input_std": torch.ones(1, 4),
    "input_max": torch.ones(1, 4),
    "gram": torch.eye(4),
}


@pytest.mark.parametrize("name", NEUTRAL)
def test_without_tokens_statistics_are_neutral(name: str):
    statistics = InputStatistics(EVERYTHING, 4, CPU)
    assert torch.equal(statistics.statistic(name, torch.ones(2, 4), DEPTH), NEUTRAL[name])


def test_without_tokens_outputs_are_as_long_as_their_rows():
    statistics = InputStatistics(EVERYTHING, 4, CPU)
    weight_RC = gaussian(3, 4)
    torch.testing.assert_close(statistics.statistic("output_norm", weight_RC, 0), weight_RC.norm(dim=1, keepdim=True))


def test_without_tokens_all_inputs_have_the_same_curvature():
    statistics = InputStatistics(EVERYTHING, 4, CPU)
    torch.testing.assert_close(statistics.inverse_gram_diagonal, torch.full((1, 4), 1 / 1.01))


@pytest.mark.parametrize("columns", [255, 256, 257, 700, 2100])
def test_the_gram_matrix_of_a_wide_input_is_whole(columns: int):
    """It is computed in panels on one side of the diagonal."""
    input_TC = torch.randn(30, columns, generator=torch.Generator().manual_seed(0))
    statistics = InputStatistics(("gram",), columns, torch.device("cpu"))
    for part_TC in input_TC.split(20):
        statistics.add(part_TC)
    torch.testing.assert_close(statistics.gram, input_TC.T @ input_TC / 30, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("collects", ["sum", "sum_of_squares", "gram"])
def test_an_empty_batch_counts_no_tokens(collects: str):
    statistics = stream(torch.zeros(0, 4), torch.zeros(2, 0, 4), collects=(collects,))
    assert statistics.tokens == 0


def test_an_empty_batch_counts_no_tokens_in_the_maximum():
    assert stream(gaussian(3, 4), torch.zeros(0, 4), collects=("max",)).tokens == 3


def test_std_of_inputs_far_from_zero():
    input_TC = gaussian(4096, 4) + 1000
    expected = direct(input_TC, torch.ones(1, 4))["input_std"].float()
    torch.testing.assert_close(stream(input_TC).input_std, expected, rtol=1e-3, atol=0)


# ---------------------------------------------------------------- the inverse of the Gram matrix


@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 12)),
    seed=st.integers(0, 2**32),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
)
def test_inverse_diagonal_equals_the_dense_inverse(shape: tuple[int, int], seed: int, scale: float):
    """Also with fewer tokens than columns, where the Gram matrix is singular."""
    input_TC = gaussian(*shape, seed=seed) * scale
    gram_CC = input_TC.T @ input_TC / len(input_TC)
    torch.testing.assert_close(
        damped_inverse_diagonal(gram_CC), damped_inverse_oracle(gram_CC).float(), rtol=1e-3, atol=0
    )


def test_inverse_diagonal_of_rank_one():
    gram_CC = torch.ones(50, 50)
    torch.testing.assert_close(
        damped_inverse_diagonal(gram_CC), damped_inverse_oracle(gram_CC).float(), rtol=1e-3, atol=0
    )


def test_inverse_diagonal_of_zeros_is_neutral():
    assert torch.equal(damped_inverse_diagonal(torch.zeros(5, 5)), torch.ones(5))


def test_pruning_a_dead_input_costs_next_to_nothing():
    input_TC = gaussian(100, 6)
    input_TC[:, 3] = 0
    cost_C = 1 / stream(input_TC).inverse_gram_diagonal[0]
    assert 0 < cost_C[3] < 1e-5 * cost_C[[0, 1, 2, 4, 5]].min()


def test_the_scale_of_an_input_does_not_change_what_others_are_worth():
    input_TC = gaussian(100, 6)
    scale_C = torch.tensor([30.0, 1.0, 1.0, 0.1, 1.0, 1.0])
    found_C, scaled_C = (stream(x).inverse_gram_diagonal[0] for x in (input_TC, input_TC * scale_C))
    torch.testing.assert_close(scaled_C * scale_C.square(), found_C, rtol=1e-3, atol=0)


def test_an_indefinite_matrix_is_damped_until_it_can_be_inverted():
    gram_CC = torch.tensor([[1.0, 2.0], [2.0, 1.0]])  # eigenvalues 3 and -1
    assert damped_inverse_diagonal(gram_CC).gt(0).all()


def test_the_gram_matrix_is_not_changed_by_its_inverse():
    gram_CC = torch.eye(4) * 3
    damped_inverse_diagonal(gram_CC)
    assert torch.equal(gram_CC, torch.eye(4) * 3)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_inputs_that_are_not_finite_end(value: float, monkeypatch: pytest.MonkeyPatch):
    attempts, factor = iter(range(100)), torch.linalg.cholesky_ex

    def limited(matrix: Tensor) -> tuple[Tensor, Tensor]:
        if next(attempts, None) is None:
            raise TimeoutError("Cholesky was tried 100 times")
        return factor(matrix)

    monkeypatch.setattr(torch.linalg, "cholesky_ex", limited)
    input_TC = gaussian(10, 3)
    input_TC[0, 0] = value
    try:
        stream(input_TC).inverse_gram_diagonal  # noqa: B018
    except AutopruneError as error:
        assert error.remedy  # noqa: PT017


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_gram_matrix_sums_in_float32_whatever_its_inputs(dtype: torch.dtype):
    generator = torch.Generator().manual_seed(0)
    input_TC = (torch.randn(9000, 40, generator=generator) + 0.5).to(dtype)
    statistics = InputStatistics({"gram"}, 40, torch.device("cpu"))
    precision = torch.get_float32_matmul_precision()
    for part_TC in input_TC.split(5000):
        statistics.add(part_TC)
    assert torch.get_float32_matmul_precision() == precision
    x = input_TC.double()
    torch.testing.assert_close(statistics.gram.double(), x.T @ x / len(x), rtol=1e-5, atol=1e-5)
