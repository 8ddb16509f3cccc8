"""Channel permutation: the search against brute force, where it is free against models made by hand, and folded models
against unfolded ones.

Legend: R output rows, C input columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import autoprune
import tiny
from autoprune import algorithms
from autoprune.channels import MIXED, NOT_PLAIN, READ_ELSEWHERE, Channels, fold_, free_channels
from autoprune.errors import AutopruneError
from autoprune.layer import Method
from autoprune.models import InMemoryBlocks, Linear, all_linears, fingerprint
from autoprune.prune_blocks import PrunedLayer, Recipe, prune_blocks
from autoprune.solvers import permute
from autoprune.sparsity import Target

PATTERN = Target.of(pattern="2:4")
SMALL: dict[str, Any] = {"sequences": 4, "length": 16}


def retained(score_RC: Tensor, order_C: Tensor, keep: int, group: int) -> float:
    R = len(score_RC)
    return score_RC.double()[:, order_C].reshape(R, -1, group).topk(keep, dim=2).values.sum().item()


def snake(score_RC: Tensor, group: int) -> Tensor:
    """RIA's dealing, one column at a time."""
    hands: list[list[int]] = [[] for _ in range(score_RC.shape[1] // group)]
    for turn, column in enumerate(score_RC.sum(0).argsort(descending=True).tolist()):
        lap, seat = divmod(turn, len(hands))
        hands[-1 - seat if lap % 2 else seat].append(column)
    return torch.tensor(hands).flatten()


# ---------------------------------------------------------------- the search


@settings(max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 30), st.integers(1, 12)),
    pattern=st.sampled_from([(2, 4), (1, 4), (3, 4), (4, 8), (1, 2), (4, 4)]),
    kind=st.sampled_from(["normal", "positive", "ties", "equal", "dead", "huge"]),
    seed=st.integers(0, 1000),
)
def test_no_order_loses_to_the_given_one_or_to_snake(
    shape: tuple[int, int], pattern: tuple[int, int], kind: str, seed: int
):
    keep, group = pattern
    generator = torch.Generator().manual_seed(seed)
    R, C = shape[0], shape[1] * group
    score_RC = torch.randn(R, C, generator=generator) * torch.randn(C, generator=generator).exp()
    match kind:
        case "positive":
            score_RC = score_RC.abs()
        case "ties":
            score_RC = score_RC.round()
        case "equal":
            score_RC = torch.ones(R, C)
        case "dead":
            score_RC = score_RC.abs()
            score_RC[:, ::2] = 0
        case "huge":
            score_RC = score_RC * 1e29
    order_C = permute(score_RC, keep, group)
    assert torch.equal(order_C.sort().values, torch.arange(C))
    assert torch.equal(order_C, permute(score_RC, keep, group))
    slack = 1e-6 * score_RC.abs().sum().item()
    found = retained(score_RC, order_C, keep, group)
    assert found >= retained(score_RC, torch.arange(C), keep, group) - slack
    assert found >= retained(score_RC, snake(score_RC, group), keep, group) - slack


def all_partitions() -> Iterator[Tensor]:
    """8 columns in 2 groups of 4, each way once."""
    for rest in combinations(range(1, 8), 3):
        first = [0, *rest]
        yield torch.tensor(first + [column for column in range(8) if column not in first])


def test_small_cases_come_near_the_best_of_all_orders():
    gained, possible = 0.0, 0.0
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        score_RC = torch.rand(6, 8, generator=generator) * torch.randn(8, generator=generator).exp()
        own = retained(score_RC, torch.arange(8), 2, 4)
        best = max(retained(score_RC, order_C, 2, 4) for order_C in all_partitions())
        found = retained(score_RC, permute(score_RC, 2, 4), 2, 4)
        assert own <= found <= best + 1e-6
        gained, possible = gained + found - own, possible + best - own
    assert gained > 0.85 * possible


def test_columns_that_compete_are_separated():
    """Four good columns next to each other, of which 1:4 would keep one."""
    score_RC = torch.full((5, 16), 0.1)
    score_RC[:, :4] = 1.0
    order_C = permute(score_RC, 1, 4)
    assert sorted((order_C < 4).reshape(4, 4).sum(1).tolist()) == [1, 1, 1, 1]


def test_each_position_is_assigned_as_well_as_can_be():
    """With two groups the best assignment of two columns is plain to see: exchanged or not."""
    for seed in range(20):
        score_RC = torch.rand(10, 8, generator=torch.Generator().manual_seed(seed))
        order_C = permute(score_RC, 2, 4)
        exchanged_C = order_C.clone()
        exchanged_C[[3, 7]] = order_C[[7, 3]]  # the position that was assigned last
        slack = 2e-3 * score_RC.std().item()
        assert retained(score_RC, order_C, 2, 4) >= retained(score_RC, exchanged_C, 2, 4) - slack


# ---------------------------------------------------------------- where it is free

LAYER_BEFORE = {
    "llama": {"down_proj": ["gate_proj", "up_proj"]},
    "qwen2": {"down_proj": ["gate_proj", "up_proj"]},
    "gemma3_text": {"down_proj": ["gate_proj", "up_proj"]},
    "phi3": {"down_proj": ["gate_up_proj"]},
    "opt": {"fc2": ["fc1"]},
    "gpt2": {"c_proj": ["c_fc"]},
    "bloom": {"dense_4h_to_h": ["dense_h_to_4h"]},
    "falcon": {"dense_4h_to_h": ["dense_h_to_4h"]},
}


def last(linear: Linear) -> str:
    return linear.name.rsplit(".", 1)[-1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", LAYER_BEFORE)
def test_inner_layers_of_every_mlp_are_free_and_nothing_else(architecture: str, dtype: torch.dtype):
    model = tiny.model(architecture, dtype=dtype)
    before = fingerprint(model)
    source = InMemoryBlocks(model)
    channels = free_channels(source)
    assert fingerprint(model) == before
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert len(channels.before) == tiny.BLOCKS
    for linear, makers in channels.before.items():
        assert {last(linear): [last(maker) for maker in makers]} == LAYER_BEFORE[architecture]
        assert {maker.block for maker in makers} == {linear.block}
    assert {*channels.before, *channels.refused} == set(all_linears(source))
    assert set(channels.refused.values()) == {READ_ELSEWHERE, MIXED}


class Activation(nn.Module):
    """What stands between the layers of an MLP; each but the first two must be refused."""

    def __init__(self, kind: str, size: int):
        super().__init__()
        self.kind = kind
        self.scale = nn.Parameter(1 + 0.05 * torch.randn(size, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        match self.kind:
            case "elementwise":
                return x.tanh()
            case "alike":  # not elementwise, but no channel is special
                return x.softmax(-1) * x
            case "mixing":
                return x + 0.1 * x.roll(1, -1)
            case "pairs":
                return x * x.unflatten(-1, (-1, 2)).sum(-1).repeat_interleave(2, -1)
            case "scaled":
                return x * self.scale
            case "positional":
                return torch.cat([x[..., :8].relu(), x[..., 8:].tanh()], -1)
        raise AssertionError


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["elementwise", "alike", "mixing", "pairs", "scaled", "positional"])
def test_what_does_not_treat_channels_alike_is_refused(kind: str, dtype: torch.dtype):
    model = tiny.model("opt", dtype=dtype)
    for layer in model.model.decoder.layers:
        layer.activation_fn = Activation(kind, 48).to(dtype)
    channels = free_channels(InMemoryBlocks(model))
    if kind in ("elementwise", "alike"):
        assert {last(linear) for linear in channels.before} == {"fc2"}
        return
    assert {reason for linear, reason in channels.refused.items() if last(linear) == "fc2"} == {MIXED}
    with pytest.raises(AutopruneError, match=r"free for no layer of this model: .*elementwise") as caught:
        channels.require_any()
    assert caught.value.remedy


class Reads(nn.Module):
    """An MLP whose hidden channels something else reads, with or without a trace in autograd's graph."""

    def __init__(self, mlp: Any, traced: bool):
        super().__init__()
        self.mlp, self.traced = mlp, traced

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.mlp.act_fn(self.mlp.gate_proj(x)) * self.mlp.up_proj(x)
        extra = hidden[..., :1] if self.traced else hidden[..., :1].detach().sign()
        return self.mlp.down_proj(hidden) + extra


@pytest.mark.parametrize("traced", [True, False])
def test_channels_that_something_else_reads_are_refused(traced: bool):
    model = tiny.model()
    for layer in model.model.layers:
        layer.mlp = Reads(layer.mlp, traced)
    channels = free_channels(InMemoryBlocks(model))
    assert not channels.before
    assert {reason for linear, reason in channels.refused.items() if last(linear) == "down_proj"} == {READ_ELSEWHERE}


@pytest.mark.parametrize("shared", ["down_proj", "up_proj"])
def test_shared_weights_are_refused(shared: str):
    model = tiny.model()
    first, second = (layer.mlp for layer in model.model.layers)
    getattr(second, shared).weight = getattr(first, shared).weight
    channels = free_channels(InMemoryBlocks(model))
    assert not channels.before
    assert {reason for linear, reason in channels.refused.items() if last(linear) == "down_proj"} == {NOT_PLAIN}


def test_a_layer_with_a_forward_of_its_own_is_refused():
    class Doubling(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    model = tiny.model()
    model.model.layers[0].mlp.up_proj.__class__ = Doubling
    channels = free_channels(InMemoryBlocks(model))
    assert [linear.block for linear in channels.before] == [1]


# ---------------------------------------------------------------- in a prune


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=tiny.tokens(seed=7), use_cache=False).logits


def pruned(
    architecture: str, patch: pytest.MonkeyPatch | None = None, refine: str = "permute", **options: Any
) -> tuple[Any, list[PrunedLayer]]:
    """A pruned model; with a patch, columns stay where they were when the mask was chosen."""
    model = tiny.model(architecture)
    source = InMemoryBlocks(model)
    channels = free_channels(source)
    if patch:
        patch.setattr("autoprune.prune_blocks.fold_", lambda *args: None)
    propagation, target = options.pop("propagation", "one_pass"), options.pop("target", PATTERN)
    recipe = Recipe(
        method=Method.of(algorithms.load("wanda"), refine=refine, **options), target=target, propagation=propagation
    )
    return model, prune_blocks(source, recipe, tiny.tokens(16, 48), lambda layer: None, channels=channels)


def has_pattern(model: Any, keep: int = 2, group: int = 4) -> dict[str, bool]:
    return {
        linear.name: bool(((linear.weight_RC != 0).reshape(-1, group).sum(1) <= keep).all())
        for linear in all_linears(InMemoryBlocks(model))
    }


@pytest.mark.parametrize("architecture", LAYER_BEFORE)
@pytest.mark.parametrize("update", ["none", "least_squares"])
def test_the_folded_model_computes_what_the_unfolded_one_does(
    architecture: str, update: str, monkeypatch: pytest.MonkeyPatch
):
    folded, layers = pruned(architecture, update=update)
    unfolded, _ = pruned(architecture, monkeypatch, update=update)
    torch.testing.assert_close(logits(folded), logits(unfolded), rtol=1e-4, atol=1e-4)
    assert all(has_pattern(folded).values())
    moved = [layer.name for layer in layers if not layer.own_order]
    assert len(moved) == tiny.BLOCKS
    assert [name for name, regular in has_pattern(unfolded).items() if not regular] == moved
    assert all(layer.zeros == layer.requested for layer in layers)


@pytest.mark.parametrize("propagation", ["one_pass", "block", "dense"])
@pytest.mark.parametrize("target", [Target.of(pattern="1:4"), Target.of(pattern="4:8")], ids=str)
def test_every_propagation_and_pattern(propagation: str, target: Target, monkeypatch: pytest.MonkeyPatch):
    folded, _ = pruned("llama", propagation=propagation, target=target)
    unfolded, _ = pruned("llama", monkeypatch, propagation=propagation, target=target)
    torch.testing.assert_close(logits(folded), logits(unfolded), rtol=1e-4, atol=1e-4)
    assert all(has_pattern(folded, target.keep, target.group).values())


def test_permuted_layers_retain_more_of_their_score():
    plain, _ = pruned("llama", refine="none", propagation="dense")
    model, _ = pruned("llama", propagation="dense")
    dense = {linear.name: linear.weight_RC for linear in all_linears(InMemoryBlocks(tiny.model("llama")))}
    for one, other in zip(*(all_linears(InMemoryBlocks(each)) for each in (model, plain)), strict=True):
        if last(one) == "down_proj":
            assert one.weight_RC.abs().sum() > other.weight_RC.abs().sum()
            assert one.weight_RC.abs().sum() < dense[one.name].abs().sum()
        elif last(one) not in ("gate_proj", "up_proj"):
            assert int((one.weight_RC == 0).sum()) == int((other.weight_RC == 0).sum())


@pytest.mark.parametrize("architecture", ["gpt2", "phi3", "opt"])
def test_folding_moves_rows_biases_and_columns(architecture: str):
    model = tiny.model(architecture)
    expected, channels = logits(model), free_channels(InMemoryBlocks(model))
    for linear, makers in channels.before.items():
        columns = linear.weight_RC.clone()
        order_C = torch.randperm(linear.shape[1], generator=torch.Generator().manual_seed(linear.block))
        fold_(linear, order_C, makers)
        assert torch.equal(linear.weight_RC, columns[:, order_C])
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_saved_checkpoint_has_the_pattern_and_the_report_says_what_was_not_permuted(
    architecture: str, tmp_path: Path
):
    path = tmp_path / "text.txt"
    path.write_text(tiny.text(), "utf-8")
    model = tiny.model(architecture)
    report = autoprune.prune(
        model,
        tokenizer=tiny.tokenizer(),
        calibration=f"file:{path}",
        pattern="2:4",
        refine="permute",
        out=tmp_path / "out",
        **SMALL,
    )
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert all(has_pattern(loaded).values())
    torch.testing.assert_close(logits(loaded), logits(model))
    assert report.method["refine"] == "permute"
    assert len(report.notes) == 2
    assert any(READ_ELSEWHERE in note for note in report.notes)
    assert sum(not layer["own_order"] for layer in report.to_dict()["layers"]) == tiny.BLOCKS


def test_layers_that_do_not_lose_the_same_are_permuted_too(tmp_path: Path):
    path = tmp_path / "text.txt"
    path.write_text(tiny.text(), "utf-8")
    report = autoprune.prune(
        tiny.model(),
        tokenizer=tiny.tokenizer(),
        calibration=f"file:{path}",
        pattern="4:8",
        refine="permute",
        allocation="atp",
        **SMALL,
    )
    assert len({layer.requested / (layer.shape[0] * layer.shape[1]) for layer in report.layers}) > 1
    assert sum(not layer.own_order for layer in report.layers) == tiny.BLOCKS
    assert report.zeros * 2 == report.weights


def test_without_a_pattern_it_is_refused_before_anything_is_opened():
    with pytest.raises(AutopruneError, match="refine=permute is for n:m patterns") as caught:
        autoprune.prune("/nowhere", sparsity=0.5, refine="permute")
    assert "--pattern" in caught.value.remedy


def test_a_model_where_it_is_free_nowhere_is_refused_before_any_text_is_read():
    model = tiny.model("opt")
    for layer in model.model.decoder.layers:
        layer.activation_fn = Activation("mixing", 48)
    before = fingerprint(model)
    with pytest.raises(AutopruneError, match="free for no layer of this model"):
        autoprune.prune(
            model, tokenizer=tiny.tokenizer(), calibration="file:/dev/null", pattern="2:4", refine="permute"
        )
    assert fingerprint(model) == before


@pytest.mark.parametrize("update", ["sparsegpt", "admm"])
def test_updates_that_choose_the_mask_are_refused(update: str):
    with pytest.raises(AutopruneError, match="nothing to refine"):
        Method.of(algorithms.load("wanda"), refine="permute", update=update)


def test_without_free_channels_nothing_is_permuted():
    model = tiny.model()
    recipe = Recipe(method=Method.of(algorithms.load("wanda"), refine="permute"), target=PATTERN)
    layers = prune_blocks(InMemoryBlocks(model), recipe, tiny.tokens(), lambda layer: None, channels=Channels())
    assert all(layer.own_order for layer in layers)
    assert all(has_pattern(model).values())
