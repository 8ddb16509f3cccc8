"""Allocations on tiny models: exact totals, sensible choices, and nothing that is not a number.

Legend: L layers that share in the sparsity, N linear layers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import autoprune
import tiny
from autoprune import algorithms, auto
from autoprune.allocate import preference, shares
from autoprune.allocation import NOT_PROGRAMS, Allocation, bounds, counts, project
from autoprune.auto import choose
from autoprune.errors import AutopruneError
from autoprune.language import read_program
from autoprune.layer import Method
from autoprune.layer_statistics import group_sizes
from autoprune.measurements import LEVELS, Curves, Measurements
from autoprune.models import InMemoryBlocks, all_linears, fingerprint
from autoprune.sparsity import Target

PROGRAMS = algorithms.names("allocate")
ALL = [*NOT_PROGRAMS, *PROGRAMS]
WANDA = Method.of(algorithms.load("wanda"))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(tiny.text(6000), "utf-8")
    return f"file:{path}"


def pruned(model: Any, text: str, **options: Any) -> autoprune.PruneReport:
    settings = {"tokenizer": tiny.tokenizer(), "calibration": text, "sequences": 8, "length": 24}
    return autoprune.prune(model, **settings | options)


def measured(model: Any, target: Target, *, judge: bool = True) -> Measurements:
    return Measurements(InMemoryBlocks(model), WANDA, target, tiny.tokens(8, 24), judge=judge)


# ---------------------------------------------------------------- exact totals


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.7, 0.95])
@pytest.mark.parametrize("allocation", ALL)
def test_the_whole_model_has_the_sparsity_that_was_asked_for(allocation: str, sparsity: float, text: str):
    report = pruned(tiny.model(num_hidden_layers=3), text, allocation=allocation, sparsity=sparsity)
    assert report.zeros == report.requested == int(Target.of(sparsity).fraction * report.weights)
    for layer in report.layers:
        assert layer.zeros == layer.requested
        assert layer.requested < layer.shape[0] * layer.shape[1]
    assert report.allocation["name"] == allocation


@pytest.mark.parametrize("pattern", ["2:4", "4:8", "1:4", "1:2", "1:1"])
@pytest.mark.parametrize("allocation", [name for name in ALL if name != "uniform"])
def test_patterns_are_shared_out_too(allocation: str, pattern: str, text: str):
    model = tiny.model(num_hidden_layers=3)
    report = pruned(model, text, allocation=allocation, pattern=pattern, max_shift=0.3)
    target = Target.of(pattern=pattern)
    assert report.zeros == report.requested == int(target.fraction * report.weights)
    mixed = 0
    for linear in all_linears(InMemoryBlocks(model)):
        kept_G = (linear.weight_RC != 0).reshape(-1, target.group).sum(1)
        assert kept_G.min() >= 1
        assert kept_G.max() - kept_G.min() <= 1
        mixed += bool(kept_G.max() != kept_G.min())
    assert mixed <= 1


@pytest.mark.parametrize("granularity", ["block", "linear"])
def test_granularity(granularity: str, text: str):
    report = pruned(tiny.model(), text, allocation="sdsa", sparsity=0.5, granularity=granularity)
    shares_of = {layer.name: layer.requested / (layer.shape[0] * layer.shape[1]) for layer in report.layers}
    first = [share for name, share in shares_of.items() if name.startswith("model.layers.0")]
    assert (max(first) - min(first) < 0.01) == (granularity == "block")
    assert len(report.allocation["layers"]) == (tiny.BLOCKS if granularity == "block" else len(report.layers))


# ---------------------------------------------------------------- hard models


def hostile(kind: str) -> Any:
    model = tiny.model(num_hidden_layers=1 if kind == "one block" else 3)
    for index, linear in enumerate(all_linears(InMemoryBlocks(model))):
        if kind == "zero block" and linear.block == 0:
            linear.weight_RC.zero_()
        if kind == "equal block" and linear.block == 1:
            linear.weight_RC.fill_(0.02)
        if kind == "all equal":
            linear.weight_RC.fill_(0.02)
        if kind == "all zero":
            linear.weight_RC.zero_()
        if kind == "one huge weight" and index == 4:
            linear.weight_RC[0, 0] = 1e4
    return model


@pytest.mark.parametrize("kind", ["one block", "zero block", "equal block", "all equal", "all zero", "one huge weight"])
@pytest.mark.parametrize("allocation", ALL)
def test_hard_models_are_shared_out_all_the_same(allocation: str, kind: str, text: str):
    model = hostile(kind)
    report = pruned(model, text, allocation=allocation, sparsity=0.6)
    assert report.requested == int(Target.of(0.6).fraction * report.weights)
    assert report.zeros >= report.requested
    record = json.dumps(report.to_dict(), allow_nan=False)
    assert "NaN" not in record
    if (
        kind in ("one block", "all equal", "all zero")
        and Allocation.named(allocation)
        and allocation in ("sdsa", "owl")
    ):
        assert {round(layer.requested / layer.shape[0] / layer.shape[1], 2) for layer in report.layers} == {0.6}


def test_no_shift_is_uniform(text: str):
    shifted, uniform = tiny.model(), tiny.model()
    pruned(shifted, text, allocation="sdsa", sparsity=0.5, max_shift=0.0)
    pruned(uniform, text, allocation="uniform", sparsity=0.5)
    assert fingerprint(shifted) == fingerprint(uniform)


# ---------------------------------------------------------------- which allocation is meant

BOTH = """
strength = 0.3
def score(weight, input_norm):
    return abs(weight) * input_norm
def allocate(depth):
    return depth
"""


def test_a_program_may_bring_its_own_allocation(text: str):
    program = read_program(BOTH, name="both")
    report = pruned(tiny.model(), text, algorithm=program, sparsity=0.5)
    assert report.allocation["name"] == "both"
    first, last = report.allocation["layers"]
    assert (first["sparsity"], last["sparsity"]) == pytest.approx((0.35, 0.65))
    assert first["depth"] == 0


def test_the_one_that_is_given_comes_first(text: str):
    program = read_program(BOTH, name="both")
    report = pruned(tiny.model(), text, algorithm=program, sparsity=0.5, allocation="uniform")
    assert report.allocation == {"name": "uniform"}


@pytest.mark.parametrize("name", NOT_PROGRAMS)
def test_a_file_may_have_the_name_of_what_is_not_a_program(name: str, text: str, tmp_path: Path):
    file = tmp_path / f"{name}.prune"
    file.write_text("strength = 0.2\n\ndef allocate(depth):\n    return depth\n")
    report = pruned(tiny.model(), text, allocation=file, sparsity=0.5, strength=0.1)
    first, last = (report.layers[index].zeros / np.prod(report.layers[index].shape) for index in (0, -1))
    assert first < 0.5 < last


def test_an_allocation_may_be_a_file(text: str, tmp_path: Path):
    file = tmp_path / "mine.prune"
    file.write_text("strength = -0.2\ndef allocate(depth):\n    return depth\n")
    report = pruned(tiny.model(), text, allocation=file, sparsity=0.5)
    assert [layer["sparsity"] for layer in report.allocation["layers"]] == pytest.approx([0.6, 0.4])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"allocation": "sdas"}, "unknown allocation 'sdas'; did you mean 'sdsa'"),
        ({"allocation": "unifrom"}, "did you mean 'uniform'"),
        ({"allocation": "wanda"}, "wanda: the program defines no allocate"),
        ({"algorithm": "sdsa"}, "sdsa: the program defines no score"),
        ({"allocation": "sdsa", "strength": 99.0}, "strength cannot be 99"),
        ({"allocation": "sdsa", "max_shift": -1.0}, "max_shift cannot be -1"),
        ({"allocation": "sdsa", "temperature": 0.0}, "temperature cannot be 0"),
        ({"allocation": "sdsa", "granularity": "row"}, "granularity cannot be 'row'; use block, linear"),
        ({"strength": 0.5}, "the allocation 'uniform' has no strength"),
        ({"allocation": "auto", "temperature": 0.5}, "the allocation 'auto' has no temperature"),
        ({"allocation": "owl", "temperature": 0.5}, "the allocation 'owl' has no temperature"),
        ({"allocation": "auto", "sequences": 1}, "one calibration sequence cannot be both measured and judged on"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], match: str, text: str):
    model = tiny.model()
    before = fingerprint(model)
    with pytest.raises(AutopruneError, match=match) as caught:
        pruned(model, text, sparsity=0.5, **options)
    assert caught.value.remedy
    assert fingerprint(model) == before


def test_weights_alone_need_no_text():
    report = autoprune.prune(tiny.model(), algorithm="magnitude", allocation="sdsa", sparsity=0.5)
    assert report.zeros == report.requested


def test_magnitude_can_be_judged_too(text: str):
    report = pruned(tiny.model(), text, algorithm="magnitude", allocation="auto", sparsity=0.5)
    assert report.zeros == report.requested


# ---------------------------------------------------------------- sensitivity


def test_sensitivity_curves_are_damages_of_layers_alone():
    measurements = measured(tiny.model(), Target.of(0.5))
    curves = measurements.curves("block")
    assert curves.levels == list(LEVELS)
    for block, row in enumerate(curves.damage):
        for level, damage in zip(curves.levels, row, strict=True):
            alone_N = [level * (linear.block == block) for linear in measurements.linears]
            assert damage == measurements.trial.damage(alone_N)


def test_sensitivity_is_measured_once(monkeypatch: pytest.MonkeyPatch):
    model = tiny.model(seed=5)
    first = measured(model, Target.of(0.5)).curves("block")
    again = measured(model, Target.of(0.6))
    monkeypatch.setattr(Measurements, "trial", property(lambda self: pytest.fail("measured again")))
    assert again.curves("block") == first


def test_another_model_is_measured_anew():
    first = measured(tiny.model(seed=6), Target.of(0.5)).curves("block")
    assert measured(tiny.model(seed=7), Target.of(0.5)).curves("block") != first


@pytest.mark.parametrize("content", ["{", "null", '{"damage": []}', '{"damage": [[NaN]]}', '{"damage": "x"}', "[1]"])
def test_a_damaged_cache_is_measured_anew(cache_root: Path, content: str):
    model = tiny.model(seed=8)
    first = measured(model, Target.of(0.5)).curves("block")
    for file in (cache_root / "sensitivity").glob("*.json"):
        file.write_text(content)
    assert measured(model, Target.of(0.5)).curves("block") == first


def test_another_configuration_is_measured_anew():
    model = tiny.model(seed=6)
    first = measured(model, Target.of(0.5)).curves("block")
    model.config.rms_norm_eps = 0.5
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = 0.5
    assert measured(model, Target.of(0.5)).curves("block") != first


def test_exponential_curves_are_found_again():
    levels = [0.2, 0.4, 0.6, 0.8]
    intercept_L, slope_L = np.array([-6.0, -3.0]), np.array([8.0, 4.0])
    curves = Curves(levels, np.exp(intercept_L[:, None] + slope_L[:, None] * levels).tolist())
    for found, expected in zip(curves.exponential(0.7), (intercept_L, slope_L), strict=True):
        np.testing.assert_allclose(found, expected)
    np.testing.assert_allclose(curves.at(0.5), np.exp(intercept_L + slope_L * 0.5))


def test_a_falling_curve_takes_the_slope_of_the_others():
    curves = Curves([0.4, 0.6], [[0.1, 0.2], [0.2, 0.1], [0.0, 0.0]])
    assert (curves.exponential(0.5)[1] > 0).all()
    assert np.isfinite(curves.at(0.5)).all()


def test_the_layer_that_suffers_most_loses_least():
    model = tiny.model(num_hidden_layers=3)
    for linear in all_linears(InMemoryBlocks(model)):
        if linear.block != 1:
            linear.weight_RC.mul_(0.05)  # next to nothing is lost with these
    measurements = measured(model, Target.of(0.5))
    for name in ("sensitivity", "marginal"):
        allocation = Allocation.named(name) if name in NOT_PROGRAMS else Allocation.of(algorithms.load(name))
        found = shares(allocation.with_options(granularity="block", max_shift=0.15), measurements)
        assert found.sparsity_L.argmin() == 1
        size_L = group_sizes(measurements.groups("block"))
        assert found.sparsity_L @ size_L / size_L.sum() == pytest.approx(0.5)


# ---------------------------------------------------------------- the library against the papers' formulas

SIZES = np.array([1.0, 1.0, 1.0, 1.0, 1.0])


def owl(outlier_ratio: np.ndarray, sparsity: float) -> np.ndarray:
    """Yin et al. (2024), their code: densities in a range of 2 lambda, centred on 1 - S."""
    density = 2 * 0.08 * (outlier_ratio - outlier_ratio.min()) / np.ptp(outlier_ratio)
    return 1 - (density + (1 - sparsity) - density.mean())


def dlp(wanda_mean: np.ndarray, sparsity: float) -> np.ndarray:
    """Its released code: importance 1 - share of the sum, densities in a range of 2 alpha, centred."""
    importance = 1 - wanda_mean / wanda_mean.sum()
    density = 2 * 0.15 * (importance - importance.min()) / np.ptp(importance)
    return 1 - (density + (1 - sparsity) - density.mean())


def alpha(spectral_alpha: np.ndarray, sparsity: float) -> np.ndarray:
    """Lu et al. (2024): a linear map to [1 - eps, 1 + eps], scaled so that the weighted mean is S."""
    spread = 0.7 + 0.6 * (spectral_alpha - spectral_alpha.min()) / np.ptp(spectral_alpha)
    return sparsity * spread / spread.mean()


def atp(depth: np.ndarray, sparsity: float) -> np.ndarray:
    """Huang et al. (2025): S - beta (L - 1) / 2 + beta i, with beta (L - 1) = 0.2."""
    return sparsity - 0.1 + 0.2 * np.arange(len(depth)) / (len(depth) - 1)


def sdsa(l_skewness: np.ndarray, sparsity: float) -> np.ndarray:
    """The design's density (1 - S) (1 - lambda + lambda G p), p a softmax of standardised skewness."""
    z = (l_skewness - l_skewness.mean()) / l_skewness.std()
    p = np.exp(z) / np.exp(z).sum()
    return 1 - (1 - sparsity) * (0.8 + 0.2 * len(p) * p)


FORMULAS = {
    "owl": (owl, "outlier_ratio"),
    "dlp": (dlp, "wanda_mean"),
    "alpha": (alpha, "spectral_alpha"),
    "atp": (atp, "depth"),
    "sdsa": (sdsa, "l_skewness"),
    "best": (sdsa, "l_skewness"),
    "sdsa-fisher": (sdsa, "skewness"),
    "sdsa-reversed": (lambda x, sparsity: sdsa(-x, sparsity), "l_skewness"),
}


def test_every_allocation_of_the_library_has_a_formula():
    assert {*FORMULAS, "marginal"} == set(PROGRAMS)


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("sparsity", [0.5, 0.7])
def test_the_library_follows_the_papers(name: str, sparsity: float):
    formula, statistic = FORMULAS[name]
    values_L = np.array([0.0, 0.25, 0.5, 0.75, 1.0]) if name == "atp" else np.array([2.0, 2.1, 2.4, 2.2, 2.45])
    values = {statistic: values_L, "size": SIZES / SIZES.sum()}
    allocation = Allocation.of(algorithms.load(name))
    assert allocation.tape
    named = {key: value for key, value in values.items() if key in allocation.tape.statistics}
    wanted_L = allocation.strength * preference(allocation, named, sparsity)
    found_L = project(wanted_L, SIZES, Target.of(sparsity), allocation.max_shift, allocation.least_kept)
    expected_L = formula(values_L, sparsity)
    low, high = bounds(Target.of(sparsity), allocation.max_shift, allocation.least_kept)
    assert low <= expected_L.min()
    assert expected_L.max() <= high
    np.testing.assert_allclose(found_L, expected_L, atol=1e-6)


def test_marginal_evens_out_what_weights_cost():
    slope_L = np.array([1.0, np.e, np.e**2, -5.0, 0.01])
    allocation = Allocation.of(algorithms.load("marginal"))
    found_L = preference(allocation, {"marginal_damage": slope_L}, 0.5)
    usual = np.median(np.abs(slope_L))
    np.testing.assert_allclose(found_L, -np.log(np.maximum(slope_L / usual, 0.1)), rtol=1e-5)


# ---------------------------------------------------------------- auto


@pytest.mark.parametrize("propagation", ["one_pass", "block"])
@pytest.mark.parametrize("tokens", [(8, 24), (64, 96), (512, 96)])
def test_auto_tries_more_the_more_text_there_is(
    propagation: str, tokens: tuple[int, int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(auto, "BUDGET", 40.0)  # the head of a tiny model costs many times its blocks
    source = InMemoryBlocks(tiny.model())
    measurements = Measurements(source, WANDA, Target.of(0.6), tiny.tokens(*tokens), judge=True)
    choice = choose(measurements, Allocation.named("auto"), None, propagation)
    names = {row["allocation"] for row in choice.tried}
    assert "uniform" in names
    assert len(names) > 1
    if tokens[0] == 512:
        assert {"sdsa, strength 0.2, by block", "atp, strength 0.2, by block"} <= names
        assert any(name.endswith("downhill") for name in names)


def test_auto_keeps_to_the_shift_and_granularity_it_was_given():
    measurements = measured(tiny.model(), Target.of(0.6))
    narrow = Allocation.named("auto").with_options(max_shift=0.01, granularity="block")
    choice = choose(measurements, narrow, None, "block")
    assert np.abs(choice.sparsity_N - 0.6).max() < 0.02
    assert all("by linear" not in row["allocation"] for row in choice.tried)


@pytest.mark.parametrize("pattern", ["2:4", "4:8"])
def test_auto_judges_the_masks_that_are_made(pattern: str):
    measurements = measured(tiny.model(num_hidden_layers=3), Target.of(pattern=pattern))
    choice = choose(measurements, Allocation.named("auto"), None, "block")
    sizes = [int(size) for size in measurements.size_N]
    made = np.array(counts(measurements.target, list(choice.sparsity_N), sizes)) / measurements.size_N
    np.testing.assert_allclose(choice.sparsity_N, made, atol=1e-12)


def test_an_allocation_that_would_be_too_dear_is_not_among_those_tried():
    own = Allocation.of(read_program("def allocate(sensitivity):\n    return -sensitivity\n", name="dear"))
    choice = choose(measured(tiny.model(), Target.of(0.6)), Allocation.named("auto"), own, "block")
    assert not any(row["allocation"].startswith("dear") for row in choice.tried)


def test_auto_is_not_worse_than_uniform_on_what_it_judges_by():
    measurements = measured(tiny.model(num_hidden_layers=3), Target.of(0.6))
    choice = choose(measurements, Allocation.named("auto"), None, "one_pass")
    uniform = [row for row in choice.tried if row["allocation"] == "uniform"]
    held = measurements.held_BL
    assert held is not None
    assert uniform[-1]["tokens"] == held.numel()
    assert choice.damage <= uniform[-1]["kl_nats_per_token"]
    assert choice.damage == pytest.approx(measurements.trial.damage(choice.sparsity_N))


def test_auto_is_deterministic_and_leaves_the_model_alone():
    model = tiny.model()
    before = fingerprint(model)
    first, second = (choose(measured(model, Target.of(0.6)), Allocation.named("auto"), None, "block") for _ in range(2))
    assert fingerprint(model) == before
    np.testing.assert_array_equal(first.sparsity_N, second.sparsity_N)
    assert first.tried == second.tried


def test_auto_goes_downhill_where_one_layer_matters(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(auto, "BUDGET", 12.0)
    model = tiny.model(num_hidden_layers=3)
    for linear in all_linears(InMemoryBlocks(model)):
        if linear.block != 1:
            linear.weight_RC.mul_(0.05)
    tokens_BL = tiny.tokens(256, 96)  # enough to pay for a few steps
    measurements = Measurements(InMemoryBlocks(model), WANDA, Target.of(0.6), tokens_BL, judge=True)
    choice = choose(measurements, Allocation.named("auto"), None, "block")
    uniform = next(row for row in reversed(choice.tried) if row["allocation"] == "uniform")
    assert choice.name.endswith("downhill")
    assert choice.damage < 0.9 * uniform["kl_nats_per_token"]
    by_block = [choice.sparsity_N[[linear.block == block for linear in measurements.linears]] for block in range(3)]
    assert by_block[1].mean() < min(by_block[0].mean(), by_block[2].mean())


def test_auto_tries_the_programs_own_allocation_first():
    own = Allocation.of(read_program(BOTH, name="both"))
    for tokens in ((8, 24), (64, 96), (512, 96)):
        source = InMemoryBlocks(tiny.model())
        measurements = Measurements(source, WANDA, Target.of(0.5), tiny.tokens(*tokens), judge=True)
        choice = choose(measurements, Allocation.named("auto"), own, "one_pass")
        assert choice.tried[0]["allocation"] == "both, strength 0.3, by block"


def test_auto_tries_no_allocation_twice(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(auto, "BUDGET", 40.0)
    own = Allocation.of(algorithms.load("best"))  # sdsa's, under another name
    measurements = measured(tiny.model(num_hidden_layers=3), Target.of(0.6))
    choice = choose(measurements, Allocation.named("auto"), own, "block")
    first = [row for row in choice.tried if row["tokens"] == choice.tried[0]["tokens"]]
    names = [row["allocation"] for row in first if "strength 0.2, by block" in row["allocation"]]
    assert any(name.startswith("best") for name in names)
    assert not any(name.startswith("sdsa") for name in names)


def test_what_auto_tried_is_written_beside_the_model(text: str, tmp_path: Path):
    report = pruned(tiny.model(), text, allocation="auto", sparsity=0.5, out=tmp_path / "out")
    record = json.loads((tmp_path / "out" / "autoprune.json").read_text())["allocation"]
    assert record["chosen"] == report.allocation["chosen"]
    assert record["granularity"] == "linear"
    assert any(row["allocation"] == "uniform" for row in record["tried"])
    assert all(row["kl_nats_per_token"] >= 0 and row["tokens"] > 0 for row in record["tried"])
