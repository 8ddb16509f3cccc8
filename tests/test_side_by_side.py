"""Several prunings from one walk are what each would have been alone, bit for bit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from autoprune import algorithms, layer, side_by_side
from autoprune.errors import AutopruneError
from autoprune.gradients import loss_gradients
from autoprune.language import read_program
from autoprune.layer import Method, Solution
from autoprune.models import InMemoryBlocks, all_linears
from autoprune.progress import Silent
from autoprune.prune_blocks import Recipe, prune_blocks
from autoprune.side_by_side import Pruning, can_share, file_bytes, put_in_place, solve_side_by_side
from autoprune.sparsity import Target
from autoprune.stream import Visit

TOKENS_BL = tiny.tokens(6, 24)

# Masks only, new weights, gradients; sums alone, sums of squares alone, and both.
METHODS = [
    Method.of(algorithms.load(name)).undamaged
    for name in ("wanda", "magnitude", "dsnot", "swaps-wanda", "sparsegpt", "gblm", "best")
] + [Method.of(read_program("def score(weight, input_mean):\n    return abs(weight * input_mean)"))]
TARGETS = [Target.of(0.5), Target.of(0.37), Target.of(pattern="2:4")]


def prunings(folder: Path, methods: list[Method], targets: list[Target]) -> list[Pruning]:
    made = [Recipe(method=method, target=target, propagation="dense") for method in methods for target in targets]
    return [Pruning(recipe=recipe, file=folder / "solved" / str(index)) for index, recipe in enumerate(made)]


def weights(source: InMemoryBlocks) -> dict[str, Tensor]:
    return {linear.name: linear.weight_RC.clone() for linear in all_linears(source)}


def alone(model: Any, recipe: Recipe, stored: torch.dtype | None = None) -> tuple[dict[str, Tensor], int, int]:
    source = InMemoryBlocks(copy.deepcopy(model), stored)
    gradients = loss_gradients(source, recipe.method.score.collects, TOKENS_BL, Silent())
    layers = prune_blocks(source, recipe, TOKENS_BL, lambda layer: None, gradients)
    return weights(source), sum(layer.zeros for layer in layers), sum(bool(layer.fallback) for layer in layers)


@pytest.mark.parametrize(
    ("architecture", "dtype", "stored"),
    [
        ("llama", torch.float32, None),
        ("llama", torch.bfloat16, None),
        ("llama", torch.float32, torch.bfloat16),
        ("gpt2", torch.float32, None),
        ("mixtral", torch.float32, None),
    ],
)
def test_each_has_the_weights_that_it_has_alone(
    architecture: str, dtype: torch.dtype, stored: torch.dtype | None, tmp_path: Path
):
    model = tiny.model(architecture, dtype=dtype)
    if stored:
        model = model.to(stored).to(dtype)
    source, all_of_them = InMemoryBlocks(model, stored), prunings(tmp_path, METHODS, TARGETS)
    before = weights(source)
    collects = frozenset[str]().union(*(method.score.collects for method in METHODS))
    gradients = loss_gradients(source, collects, TOKENS_BL, Silent())
    solve_side_by_side(source, all_of_them, TOKENS_BL, gradients)
    assert all(torch.equal(before[name], weight_RC) for name, weight_RC in weights(source).items())
    for pruning in all_of_them:
        assert not pruning.error
        expected, zeros, fallbacks = alone(model, pruning.recipe, stored)
        other = InMemoryBlocks(copy.deepcopy(model), stored)
        assert (put_in_place(other, pruning), pruning.fallbacks) == (zeros, fallbacks)
        found = weights(other)
        assert all(torch.equal(found[name], weight_RC) for name, weight_RC in expected.items())


def test_masks_take_one_bit_a_weight(tmp_path: Path):
    source, (mask, solved) = (
        InMemoryBlocks(tiny.model(dtype=torch.bfloat16)),
        prunings(tmp_path, [METHODS[0], METHODS[4]], TARGETS[:1]),
    )
    solve_side_by_side(source, [mask, solved], TOKENS_BL)
    size = sum(linear.size for linear in all_linears(source))
    assert mask.file.stat().st_size == size // 8 == file_bytes(source, mask.recipe.method)
    assert solved.file.stat().st_size == size * 2 == file_bytes(source, solved.recipe.method)


def test_one_walk_serves_all_that_keep_the_same_sums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    walks: list[frozenset[str]] = []
    walk = side_by_side.walk

    def counted(*arguments: Any, collects: frozenset[str], **options: Any):
        walks.append(collects)
        return walk(*arguments, collects=collects, **options)

    monkeypatch.setattr(side_by_side, "walk", counted)
    source = InMemoryBlocks(tiny.model())
    named = [Method.of(algorithms.load(name)) for name in ("magnitude", "wanda", "sparsegpt", "swaps-wanda")]
    solve_side_by_side(source, prunings(tmp_path, named, TARGETS), TOKENS_BL)
    assert walks == [frozenset({"sum_of_squares", "gram"})]
    dsnot = Method.of(algorithms.load("dsnot"))  # its sums are in float64, those of the others would be, too
    solve_side_by_side(source, prunings(tmp_path, [*named, dsnot], TARGETS), TOKENS_BL)
    assert len(walks) == 3


def test_one_that_fails_leaves_no_file_and_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def solve(visit: Visit, method: Method, *arguments: Any) -> Solution:
        if method is failing.recipe.method and visit.depth > 0:
            raise AutopruneError("the score is not finite", where=visit.linear.name)
        return layer.solve(visit, method, *arguments)

    monkeypatch.setattr(side_by_side, "solve", solve)
    wanda, failing = prunings(tmp_path, [METHODS[0], METHODS[4]], TARGETS[:1])
    model = tiny.model()
    solve_side_by_side(InMemoryBlocks(model), [failing, wanda], TOKENS_BL)
    assert isinstance(failing.error, AutopruneError)
    assert [path.name for path in (tmp_path / "solved").iterdir()] == [wanda.file.name]
    other = InMemoryBlocks(copy.deepcopy(model))
    put_in_place(other, wanda)
    expected, *_ = alone(model, wanda.recipe)
    assert all(torch.equal(expected[name], weight_RC) for name, weight_RC in weights(other).items())


def test_what_changes_the_order_of_columns_has_a_walk_of_its_own():
    wanda = algorithms.load("wanda")
    assert can_share(Method.of(wanda), "dense")
    assert not can_share(Method.of(wanda, refine="permute"), "dense")
    assert not can_share(Method.of(wanda), "one_pass")
    assert not can_share(Method.of(wanda), "block")
