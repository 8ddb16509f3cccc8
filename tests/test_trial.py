"""One-shot masks judged by divergence, and its derivative: against masks made by hand and finite differences.

Legend: N linear layers, R output rows, C input columns, V vocabulary, K likeliest tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from autoprune import algorithms, trial
from autoprune.errors import AutopruneError
from autoprune.models import InMemoryBlocks, all_linears, fingerprint
from autoprune.sparsity import Target, keep_mask
from autoprune.trial import Trial, observe

WANDA = algorithms.load("wanda").require("score")
MAGNITUDE = algorithms.load("magnitude").require("score")
HELD = tiny.tokens(4, 16, seed=9)


def judged(model: Any, *, target: Target | None = None, compare: str = "row") -> Trial:
    source = InMemoryBlocks(model)
    target = target or Target.of(0.5)
    dense = observe(source, tiny.tokens(), norms=True, score=WANDA, compare=compare, target=target)
    return Trial(source, dense, HELD, target, compare)


def coarse_divergence(dense_TV: Tensor, own_TV: Tensor, top: int = 256) -> float:
    """Mean KL over the likeliest tokens of the dense model and one outcome for all others."""
    p, q = dense_TV.double().softmax(-1), own_TV.double().softmax(-1)
    token_TK = p.topk(top, dim=-1).indices
    p_TK, q_TK = p.gather(1, token_TK), q.gather(1, token_TK)
    p_rest, q_rest = 1 - p_TK.sum(-1), 1 - q_TK.sum(-1)
    return ((p_TK * (p_TK / q_TK).log()).sum(-1) + p_rest * (p_rest / q_rest).log()).mean().item()


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=HELD, use_cache=False).logits[:, :-1].flatten(0, 1)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3_text", "bloom", "opt"])
def test_damage_is_the_divergence_of_the_masked_model(architecture: str):
    model = tiny.model(architecture)
    dense_TV, before = logits(model), fingerprint(model)
    judge = judged(model)
    sparsity_N = np.where(np.arange(len(judge.linears)) % 2, 0.75, 0.25)
    found = judge.damage(sparsity_N)
    assert fingerprint(model) == before
    for linear, share in zip(judge.linears, sparsity_N, strict=True):
        R, C = linear.shape
        assert 4 * (C * share // 4) == C * share  # an exact number a row
        weight_RC = linear.weight_RC
        level = judge.ranks[linear.name].float()
        weight_RC *= keep_mask(level, Target.of(0.5), int(R * C * share), "row")
    assert found == pytest.approx(coarse_divergence(dense_TV, logits(model)), rel=1e-3)


def test_ranks_are_those_of_the_score():
    model = tiny.model()
    judge = judged(model)
    seen: dict[str, Tensor] = {}
    for linear in judge.linears:
        linear.module.register_forward_pre_hook(
            lambda module, args, name=linear.name: seen.update({name: args[0].flatten(0, -2)})
        )
    with torch.no_grad():
        model(input_ids=tiny.tokens(), use_cache=False)
    for linear in judge.linears:
        score_RC = linear.weight_RC.abs() * seen[linear.name].square().mean(0).sqrt()
        assert torch.equal(judge.ranks[linear.name].long(), score_RC.argsort(1).argsort(1)), linear.name


@pytest.mark.parametrize(("target", "compare"), [(Target.of(pattern="2:4"), "row"), (Target.of(0.5), "layer")])
def test_ranks_are_among_what_competes(target: Target, compare: str):
    judge = judged(tiny.model(), target=target, compare=compare)
    for linear in judge.linears:
        ranks_RC = judge.ranks[linear.name]
        if target.group:
            assert (ranks_RC.reshape(-1, 4).sort(1).values == torch.arange(4)).all()
        else:
            share = (ranks_RC < 128).float().mean().item()
            assert share == pytest.approx(0.5, abs=0.02)


def test_nothing_pruned_is_no_damage():
    judge = judged(tiny.model())
    assert judge.damage([0.0] * len(judge.linears)) == pytest.approx(0, abs=1e-6)


def test_more_sparsity_is_more_damage():
    judge = judged(tiny.model())
    damage = [judge.damage([share] * len(judge.linears)) for share in (0.1, 0.5, 0.9)]
    assert damage == sorted(damage)


def test_rounding_of_ranks_keeps_the_whole_exact():
    judge = judged(tiny.model())
    generator = np.random.default_rng(0)
    for _ in range(20):
        sparsity_N = generator.uniform(0, 1, len(judge.linears))
        thresholds = judge._thresholds(sparsity_N)
        achieved = [threshold / levels for threshold, levels in zip(thresholds, judge.levels_N, strict=True)]
        assert abs(np.subtract(achieved, sparsity_N) @ judge.size_N) <= (judge.size_N / judge.levels_N).max()
        assert (np.abs(np.subtract(achieved, sparsity_N)) <= 1 / np.array(judge.levels_N)).all()


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "opt", "falcon"])
@pytest.mark.parametrize(("compare", "sparsity"), [("row", 0.5), ("layer", 0.5), ("layer", 0.95)])
def test_marginal_damage_is_the_derivative(architecture: str, compare: str, sparsity: float):
    """Against finite differences: a small multiple of the weights of the band is added to the masked weights."""
    model = tiny.model(architecture)
    judge = judged(model, compare=compare)
    sparsity_N = [sparsity] * len(judge.linears)
    found_N = judge.marginal_damage(sparsity_N)
    assert np.abs(found_N).min() > 0
    dense_TV, kept, bands = logits(model), {}, {}
    for linear, levels, threshold in zip(judge.linears, judge.levels_N, judge._thresholds(sparsity_N), strict=True):
        ranks_RC, half = judge.ranks[linear.name].long(), round(0.1 * levels)
        low, high = max(threshold - half, 0), min(threshold + half, levels)
        bands[linear.name] = (linear.weight_RC * ((ranks_RC >= low) & (ranks_RC < high)), (high - low) / levels)
        kept[linear.name] = linear.weight_RC * (ranks_RC >= threshold)
    for linear in judge.linears:
        linear.weight_RC.copy_(kept[linear.name])
    for index in range(0, len(judge.linears), 3):
        linear = judge.linears[index]
        band_RC, width = bands[linear.name]
        damage = []
        for step in (-1e-2, 1e-2):
            linear.weight_RC.copy_(kept[linear.name] + step * band_RC)
            damage.append(coarse_divergence(dense_TV, logits(model)))
        linear.weight_RC.copy_(kept[linear.name])
        expected = -(damage[1] - damage[0]) / 2e-2 / width
        assert found_N[index] == pytest.approx(expected, rel=0.02, abs=2e-3 * np.abs(found_N).max()), linear.name


def test_a_linear_layer_with_a_forward_of_its_own():
    class Doubled(torch.nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    model = tiny.model("opt")
    linear = next(linear for linear in all_linears(InMemoryBlocks(model)) if linear.name.endswith("fc1"))
    linear.module.__class__ = Doubled
    judge = judged(model)
    index = [known.name for known in judge.linears].index(linear.name)
    sparsity_N = [0.0] * len(judge.linears)
    found_N = judge.marginal_damage(sparsity_N)
    model_without_it = judge.marginal_damage(sparsity_N)
    np.testing.assert_array_equal(found_N, model_without_it)
    x = torch.randn(5, linear.shape[1], generator=torch.Generator().manual_seed(0))
    bias = linear.module.bias
    assert isinstance(bias, Tensor)
    torch.testing.assert_close(linear.compute(x, linear.weight_RC), 2 * (x @ linear.weight_RC.T + bias))
    torch.testing.assert_close(linear.compute(x, linear.weight_RC, bias=False), 2 * (x @ linear.weight_RC.T))
    assert np.isfinite(found_N[index])


@pytest.mark.parametrize("sparsity", [0.9, 0.95, 0.996])
def test_ranks_do_not_wrap_where_nearly_all_goes(sparsity: float):
    model = tiny.model(hidden_size=256, intermediate_size=256, num_hidden_layers=1)
    judge = judged(model)
    uniform_N = [sparsity] * len(judge.linears)
    assert judge.damage(uniform_N) >= 0.9 * judge.damage([0.85] * len(judge.linears))
    assert np.abs(judge.marginal_damage(uniform_N)).min() > 0
    assert judge.damage([1.0] * len(judge.linears)) >= judge.damage(uniform_N)


def by_hand(model: Any, sparsity: float) -> float:
    """Damage of masks that are really written into the model."""
    judge = judged(model)
    dense_TV = logits(model)
    for linear, threshold in zip(judge.linears, judge._thresholds([sparsity] * len(judge.linears)), strict=True):
        linear.weight_RC.mul_(judge.ranks[linear.name] >= threshold)
    return coarse_divergence(dense_TV, logits(model))


@pytest.mark.parametrize("how", ["tied weights", "same block twice"])
def test_weights_that_blocks_share_are_masked_in_all(how: str):
    def made() -> Any:
        model = tiny.model(num_hidden_layers=3)
        if how == "same block twice":
            model.model.layers[2] = model.model.layers[0]
        else:
            first, last = model.model.layers[0].mlp, model.model.layers[2].mlp
            last.up_proj.weight = first.up_proj.weight
            last.down_proj.weight = first.down_proj.weight
        return model

    judge = judged(made())
    uniform_N = [0.5] * len(judge.linears)
    assert judge.damage(uniform_N) == pytest.approx(by_hand(made(), 0.5), rel=1e-3)
    assert np.isfinite(judge.marginal_damage(uniform_N)).all()
    assert judge.damage(uniform_N) == pytest.approx(by_hand(made(), 0.5), rel=1e-3)


@pytest.mark.parametrize("how", ["skipped", "twice"])
def test_blocks_that_are_not_run_once_each_are_refused(how: str):
    model = tiny.model(num_hidden_layers=3)
    block, own = model.model.layers[1], model.model.layers[0].forward
    if how == "skipped":
        model.model.layers[0].forward = lambda x, **options: own(x, **options)
        inner = model.model.forward
        layers = model.model.layers

        def without(*args: Any, **options: Any) -> Any:
            model.model.layers = torch.nn.ModuleList([layers[0], layers[2]])
            try:
                return inner(*args, **options)
            finally:
                model.model.layers = layers

        model.model.forward = without
    else:
        model.model.layers[0].forward = lambda x, **options: block(own(x, **options), **options)
    with pytest.raises(AutopruneError, match="the blocks are not run once each"):
        judged(model)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_half_precision_gradients_do_not_overflow():
    model = tiny.model(dtype=torch.float16)
    with torch.no_grad():
        model.lm_head.weight *= 8
    source, target = InMemoryBlocks(model), Target.of(0.5)
    dense = observe(source, tiny.tokens(8, 96), norms=True, score=WANDA, target=target)
    judge = Trial(source, dense, tiny.tokens(96, 96, seed=3), target, "row")
    assert np.isfinite(judge.marginal_damage([0.6] * len(judge.linears))).all()


def test_logits_that_are_not_finite_are_named():
    model = tiny.model()
    model.lm_head.weight.data[5] = torch.inf
    with pytest.raises(AutopruneError, match="the logits of the unpruned model are not finite; try --dtype float32"):
        judged(model)


def test_a_backward_pass_leaves_the_model_as_it_was():
    model = tiny.model()
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(index % 2 == 0)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    before, expected = fingerprint(model), logits(model)
    judge = judged(model)
    judge.marginal_damage([0.5] * len(judge.linears))
    assert fingerprint(model) == before
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(logits(model), expected)


def test_a_forward_that_was_replaced_already_stays_so():
    model = tiny.model()
    linear = all_linears(InMemoryBlocks(model))[0].module
    own = linear.forward
    linear.forward = lambda x: own(x)
    mine = linear.forward
    judge = judged(model)
    judge.marginal_damage([0.5] * len(judge.linears))
    assert linear.forward is mine


def test_an_interrupted_trial_restores_the_weights(monkeypatch: pytest.MonkeyPatch):
    model = tiny.model()
    before, judge = fingerprint(model), judged(model)

    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trial, "zero_pruned_", interrupt)
    with pytest.raises(KeyboardInterrupt):
        judge.damage([0.5] * len(judge.linears))
    assert fingerprint(model) == before
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_half_of_the_text_can_be_had():
    judge = judged(tiny.model())
    assert len(judge.batches) >= 2
    uniform_N = [0.5] * len(judge.linears)
    half, whole = judge.damage(uniform_N, 1), judge.damage(uniform_N)
    assert half != whole
    assert half == pytest.approx(whole, rel=0.5)


def test_micro_batches_change_no_damage():
    model = tiny.model()
    trial = judged(model)
    found = trial.damage([0.5] * len(trial.linears))
    trial.judge.batches[:] = [HELD]
    trial.judge.likely[:] = [tuple(map(torch.cat, zip(*trial.judge.likely, strict=True)))]
    assert trial.damage([0.5] * len(trial.linears)) == pytest.approx(found, rel=1e-5)
