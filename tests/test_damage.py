"""Skewness and output error of a layer, against their definitions.

Legend: T tokens, R output rows, C input columns.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import autoprune
import tiny
from autoprune.damage import Unpruned, skewness
from autoprune.distribution import Distribution
from autoprune.statistics import InputStatistics


def made(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(700, 900), (1, 1000), (3000, 2)])
def test_skewness_is_that_of_the_whole_distribution(shape: tuple[int, int], dtype: torch.dtype):
    weight_RC = made(*shape, dtype=dtype)
    weight_RC[0, 0] = 40.0  # an outlier, which makes most of it
    whole = Distribution()
    whole.add(weight_RC.abs())
    assert skewness(weight_RC) == pytest.approx(whole.skewness, rel=1e-3)


@pytest.mark.parametrize("value", [0.0, -3.0])
def test_equal_weights_have_no_skewness(value: float):
    assert skewness(torch.full((20, 30), value)) is None


@pytest.mark.parametrize("collects", [{"gram"}, {"gram", "sum_of_squares"}])
def test_the_error_is_exact_where_the_gram_matrix_is_known(collects: set[str]):
    x_TC, weight_RC = made(500, 30) @ made(30, 30), made(200, 30)
    inputs = InputStatistics(collects, 30, weight_RC.device)
    inputs.add(x_TC)
    pruned_RC = weight_RC * (weight_RC.abs() > 0.5) * 1.1
    unpruned = Unpruned.of(weight_RC)
    outputs, lost = x_TC @ weight_RC.T, x_TC @ (weight_RC - pruned_RC).T
    expected = float(lost.square().mean() / outputs.square().mean())
    assert unpruned.relative_error(pruned_RC, inputs) == pytest.approx(expected, rel=1e-4)
    assert inputs.error_known_by == "gram"


def test_norms_tell_the_error_of_uncorrelated_inputs():
    x_TC = torch.from_numpy(np.linalg.qr(made(500, 30).numpy())[0]) * torch.arange(1, 31)
    weight_RC = made(200, 30)
    exact, by_norm = (InputStatistics({name}, 30, weight_RC.device) for name in ("gram", "sum_of_squares"))
    for inputs in (exact, by_norm):
        inputs.add(x_TC)
    pruned_RC = weight_RC * (weight_RC.abs() > 0.5)
    errors = [Unpruned.of(weight_RC).relative_error(pruned_RC, inputs) for inputs in (exact, by_norm)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-4)
    assert by_norm.error_known_by == "input_norm"


def test_without_statistics_or_tokens_the_weights_tell():
    weight_RC = made(20, 30)
    pruned_RC = weight_RC * (weight_RC > 0)
    share = float((weight_RC - pruned_RC).square().sum() / weight_RC.square().sum())
    for inputs in (InputStatistics(set(), 30, weight_RC.device), InputStatistics({"gram"}, 30, weight_RC.device)):
        assert Unpruned.of(weight_RC).relative_error(pruned_RC, inputs) == pytest.approx(share, rel=1e-5)
        assert inputs.error_known_by == "weight"


def test_rows_of_a_tall_layer_stand_for_all():
    weight_RC = made(5000, 400)
    inputs = InputStatistics({"sum_of_squares"}, 400, weight_RC.device)
    inputs.add(made(100, 400))
    pruned_RC = weight_RC * (weight_RC.abs() > 0.7)
    unpruned = Unpruned.of(weight_RC)
    assert len(unpruned.some_rC) <= 256
    lost, whole = (float(inputs.output_energy(rows).sum()) for rows in (weight_RC - pruned_RC, weight_RC))
    assert unpruned.relative_error(pruned_RC, inputs) == pytest.approx(lost / whole, rel=0.05)


def test_a_layer_that_gives_zero_has_no_error():
    weight_RC = torch.zeros(5, 8)
    assert Unpruned.of(weight_RC).relative_error(weight_RC, InputStatistics(set(), 8, weight_RC.device)) is None


@pytest.mark.parametrize(("algorithm", "by"), [("wanda", "input_norm"), ("sparsegpt", "gram"), ("magnitude", "weight")])
def test_a_report_has_the_cost_of_blocks_and_the_damage_to_layers(algorithm: str, by: str, text: Path, tmp_path: Path):
    source = tiny.save(tmp_path / "dense", "llama")
    report = autoprune.prune(
        source, algorithm=algorithm, sparsity=0.5, calibration=f"file:{text}", sequences=4, length=16
    )
    assert len(report.blocks) == len({layer.name.split(".")[2] for layer in report.layers})
    assert all(block.seconds > 0 and (block.peak_bytes or 1) > 0 for block in report.blocks)
    for layer in report.layers:
        assert layer.error_by == by
        assert layer.error is not None
        assert 0 < layer.error < 1
        assert layer.skewness is not None
