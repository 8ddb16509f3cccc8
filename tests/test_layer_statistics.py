"""The statistics of `allocate` against direct formulas on tiny models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from autoprune.errors import AutopruneError
from autoprune.language import LAYER_STATISTICS
from autoprune.layer_statistics import group_name, group_sizes, grouped, measure, spectral_alpha
from autoprune.models import InMemoryBlocks
from autoprune.trial import observe

MEASURED = [
    name for name, row in LAYER_STATISTICS.items() if row.type == "L" and name not in ("sensitivity", "marginal_damage")
]


def hill(weight_RC: Tensor) -> float:
    values = np.sort(np.linalg.svd(weight_RC.double().numpy(), compute_uv=False) ** 2)
    tail = values[len(values) // 2 :]
    return 1 + len(tail) / np.log(tail / tail[0]).sum()


@pytest.mark.parametrize("granularity", ["block", "linear"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_statistics_equal_the_formulas(architecture: str, granularity: str):
    source = InMemoryBlocks(tiny.model(architecture))
    norms = observe(source, tiny.tokens(), norms=True).norms
    groups = grouped(source, granularity)
    found = measure(source, groups, MEASURED, norms)
    assert set(found) == set(MEASURED)
    total = sum(linear.weight_RC.numel() for group in groups for linear in group)
    for index, group in enumerate(groups):
        weights = np.concatenate([linear.weight_RC.abs().double().numpy().ravel() for linear in group])
        saliency = np.concatenate(
            [(linear.weight_RC.abs() * norms[linear.name]).double().numpy().ravel() for linear in group]
        )
        for prefix, x in (("", weights), ("wanda_", saliency)):
            centred = x - x.mean()
            assert found[f"{prefix}skewness"][index] == pytest.approx((centred**3).mean() / x.std() ** 3, rel=1e-5)
            assert found[f"{prefix}kurtosis"][index] == pytest.approx((centred**4).mean() / x.std() ** 4, rel=1e-5)
        assert found["wanda_mean"][index] == pytest.approx(saliency.mean(), rel=1e-6)
        assert found["wanda_median"][index] == pytest.approx(np.median(saliency), rel=1e-3)
        assert found["outlier_ratio"][index] == pytest.approx((saliency > 5 * saliency.mean()).mean(), abs=1e-3)
        assert found["spectral_alpha"][index] == pytest.approx(
            np.mean([hill(linear.weight_RC) for linear in group]), rel=1e-2
        )
        assert found["size"][index] == pytest.approx(weights.size / total)
        assert found["depth"][index] == group[0].block / (tiny.BLOCKS - 1)


def test_norms_are_root_mean_squares():
    model = tiny.model()
    source = InMemoryBlocks(model)
    norms = observe(source, tiny.tokens(), norms=True).norms
    linear = grouped(source, "linear")[0][0]
    seen: list[Tensor] = []
    linear.module.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        model(input_ids=tiny.tokens(), use_cache=False)
    expected = seen[0].flatten(0, 1).square().mean(0).sqrt()
    torch.testing.assert_close(norms[linear.name][0], expected, rtol=1e-5, atol=0)


def test_groups_are_blocks_or_linear_layers():
    source = InMemoryBlocks(tiny.model())
    blocks, linears = grouped(source, "block"), grouped(source, "linear")
    assert len(blocks) == tiny.BLOCKS
    assert [linear for block in blocks for linear in block] == [linear for (linear,) in linears]
    assert group_sizes(blocks).sum() == group_sizes(linears).sum()
    assert group_name(blocks[1]) == "model.layers.1"
    assert group_name(linears[0]) == "model.layers.0.self_attn.q_proj"


def test_what_a_layer_does_not_have_is_the_mean_of_the_others():
    model = tiny.model()
    source = InMemoryBlocks(model)
    groups = grouped(source, "linear")
    plain = measure(source, groups, MEASURED, observe(source, tiny.tokens(), norms=True).norms)
    groups[0][0].weight_RC.zero_()
    groups[3][0].weight_RC.fill_(0.25)
    found = measure(source, groups, MEASURED, observe(source, tiny.tokens(), norms=True).norms)
    assert all(np.isfinite(values).all() for values in found.values())
    others = [index for index in range(len(groups)) if index not in (0, 3)]
    for name in ("skewness", "l_skewness", "kurtosis"):
        np.testing.assert_allclose(found[name][[0, 3]], plain[name][others].mean(), rtol=1e-12)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_model_of_equal_weights_has_finite_statistics(value: float):
    model = tiny.model()
    source = InMemoryBlocks(model)
    groups = grouped(source, "block")
    for group in groups:
        for linear in group:
            linear.weight_RC.fill_(value)
    found = measure(source, groups, MEASURED, observe(source, tiny.tokens(), norms=True).norms)
    assert all(np.isfinite(values).all() for values in found.values())


@pytest.mark.parametrize("shape", [(40, 40), (60, 20), (20, 60), (1, 8), (8, 1)])
def test_spectral_alpha(shape: tuple[int, int]):
    weight_RC = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = spectral_alpha(weight_RC)
    if min(shape) == 1:
        assert np.isnan(found)  # one eigenvalue has no tail
    else:
        assert found == pytest.approx(hill(weight_RC), rel=1e-2)


def test_a_heavier_tail_has_a_smaller_alpha():
    values = torch.arange(1, 65).float()
    light, heavy = torch.diag(values.sqrt()), torch.diag(values.square())
    assert spectral_alpha(heavy) < spectral_alpha(light)


def test_huge_weights_have_a_spectrum_too():
    weight_RC = torch.randn(30, 20, generator=torch.Generator().manual_seed(0))
    assert spectral_alpha(weight_RC * 1e20) == pytest.approx(spectral_alpha(weight_RC), rel=1e-4)


def test_a_layer_that_no_token_reached_is_left_out():
    source = InMemoryBlocks(tiny.model())
    norms = observe(source, tiny.tokens(), norms=True).norms
    groups = grouped(source, "linear")
    full = measure(source, groups, ["wanda_mean"], norms)["wanda_mean"]
    norms.pop(groups[2][0].name)
    part = measure(source, groups, ["wanda_mean"], norms)["wanda_mean"]
    assert part[2] == pytest.approx(np.delete(full, 2).mean())
    np.testing.assert_array_equal(np.delete(part, 2), np.delete(full, 2))


def test_inputs_that_are_not_finite_are_named():
    source = InMemoryBlocks(tiny.model())
    norms = observe(source, tiny.tokens(), norms=True).norms
    groups = grouped(source, "block")
    norms[groups[0][3].name][0, 0] = torch.inf
    with pytest.raises(AutopruneError, match="the inputs are not finite") as caught:
        measure(source, groups, ["wanda_mean"], norms)
    assert caught.value.where == groups[0][3].name
