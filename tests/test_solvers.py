"""Re-solved weights against direct solutions, row by row.

Legend: R output rows, C input columns, T tokens.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import autoprune
import tiny
from autoprune import algorithms
from autoprune.conditioning import DAMPING, SWAPS_DAMPING
from autoprune.errors import AutopruneError
from autoprune.language import read_program
from autoprune.layer import Method, solve
from autoprune.models import InMemoryBlocks, Linear, all_linears, fingerprint
from autoprune.prune_blocks import Recipe, prune_blocks
from autoprune.solvers import UnsolvableError, admm, dsnot, least_squares, output_error, sparsegpt, swaps, towards_dense
from autoprune.sparsity import Target, keep_mask
from autoprune.statistics import InputStatistics
from autoprune.stream import Visit, micro_batches, walk


def problem(R: int, C: int, T: int, share: float, seed: int, dead: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A weight, what stays of it, and the Gram matrix of correlated inputs, of which some are never active."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(C, C, generator=generator) / C**0.5 + torch.eye(C)
    x_TC = torch.randn(T, C, generator=generator) @ mixing * torch.logspace(-1, 1, C)
    x_TC[:, :dead] = 0
    keep_RC = torch.rand(R, C, generator=generator) >= share
    return torch.randn(R, C, generator=generator), keep_RC, x_TC.T @ x_TC / T


def exact(weight_RC: Tensor, keep_RC: Tensor, gram_CC: Tensor, damping: float) -> Tensor:
    """The damped problem of each row as an ordinary least squares problem, by LAPACK in float64."""
    gram = gram_CC.double().numpy().copy()
    gram[np.diag_indices_from(gram)] *= 1 + damping
    root = np.linalg.cholesky(gram).T  # root^T root = gram
    result = np.zeros(weight_RC.shape)
    for row, (w, keep) in enumerate(zip(weight_RC.double().numpy(), keep_RC.numpy(), strict=True)):
        solution = torch.linalg.lstsq(torch.from_numpy(root[:, keep]), torch.from_numpy(root @ w)[:, None]).solution
        result[row, keep] = solution[:, 0].numpy()
    return torch.from_numpy(result)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(6, 20, 200), (3, 40, 10), (1, 1, 5), (5, 2, 50)])
def test_least_squares_is_the_direct_solution(shape: tuple[int, int, int], share: float):
    weight_RC, keep_RC, gram_CC = problem(*shape, share, seed=0)
    found = least_squares(weight_RC, keep_RC, gram_CC, iterations=400, tolerance=1e-7)
    expected = exact(weight_RC, keep_RC, gram_CC, DAMPING)
    torch.testing.assert_close(found.double(), expected, rtol=2e-3, atol=2e-3)


@settings(max_examples=50)
@given(
    shape=st.tuples(st.integers(1, 8), st.integers(1, 30), st.integers(1, 60)),
    share=st.sampled_from([0.0, 0.3, 0.7, 1.0]),
    seed=st.integers(0, 1000),
    iterations=st.integers(0, 30),
)
def test_the_error_never_grows(shape: tuple[int, int, int], share: float, seed: int, iterations: int):
    weight_RC, keep_RC, gram_CC = problem(*shape, share, seed)
    damped_CC = damped(gram_CC, DAMPING)
    errors = [
        output_error(weight_RC, least_squares(weight_RC, keep_RC, gram_CC, iterations=count), damped_CC)
        for count in (0, iterations, iterations + 1)
    ]
    slack = 1e-5 * output_error(weight_RC, torch.zeros_like(weight_RC), damped_CC) + 1e-12
    assert (errors[1] <= errors[0] + slack).all()
    assert (errors[2] <= errors[1] + slack).all()
    torch.testing.assert_close(errors[0], output_error(weight_RC, weight_RC * keep_RC, damped_CC), rtol=1e-4, atol=1e-6)


def test_pruned_weights_stay_zero_and_a_full_row_stays_as_it_was():
    weight_RC, keep_RC, gram_CC = problem(6, 20, 200, 0.5, seed=1)
    keep_RC[0], keep_RC[1] = True, False
    found = least_squares(weight_RC, keep_RC, gram_CC)
    assert (found[~keep_RC] == 0).all()
    torch.testing.assert_close(found[0], weight_RC[0])


def test_inputs_that_were_never_active_keep_their_weights():
    weight_RC, keep_RC, gram_CC = problem(6, 20, 200, 0.5, seed=2, dead=5)
    found = least_squares(weight_RC, keep_RC, gram_CC)
    torch.testing.assert_close(found[:, :5], (weight_RC * keep_RC)[:, :5])


@pytest.mark.parametrize("gram", [torch.zeros(4, 4), torch.full((4, 4), torch.nan), torch.full((4, 4), torch.inf)])
def test_a_gram_matrix_that_says_nothing_cannot_be_solved_with(gram: Tensor):
    weight_RC, keep_RC = torch.ones(3, 4), torch.eye(3, 4).bool()
    with pytest.raises(UnsolvableError):
        least_squares(weight_RC, keep_RC, gram)
    with pytest.raises(UnsolvableError):
        admm(weight_RC, gram, lambda weight_RC: keep_RC)
    with pytest.raises(UnsolvableError):
        sparsegpt(weight_RC, gram, lambda weight_RC, curvature_1C, columns: keep_RC)


def test_scale_of_the_inputs_makes_no_difference():
    weight_RC, keep_RC, gram_CC = problem(6, 20, 200, 0.5, seed=3)
    plain = least_squares(weight_RC, keep_RC, gram_CC)
    for scale in (1e-12, 1e12):
        torch.testing.assert_close(least_squares(weight_RC, keep_RC, gram_CC * scale), plain, rtol=1e-3, atol=1e-4)


# ---------------------------------------------------------------- swaps


def damped(gram_CC: Tensor, damping: float) -> Tensor:
    """With this share of its own variance added to each input's."""
    return gram_CC + damping * gram_CC.diagonal().diag()


def removed_error(weight_RC: Tensor, keep_RC: Tensor, gram_CC: Tensor) -> Tensor:
    return output_error(weight_RC.double(), weight_RC.double() * keep_RC, gram_CC)


def all_swaps(keep_C: Tensor, fixed_C: Tensor, group: int) -> list[tuple[int, int]]:
    """Every pair (prune, take back) that a row allows."""
    C = len(keep_C)
    return [
        (u, p)
        for u in range(C)
        for p in range(C)
        if keep_C[u] and not fixed_C[u] and not keep_C[p] and (not group or u // group == p // group)
    ]


def errors_after(weight_C: Tensor, keep_C: Tensor, gram_CC: Tensor, pairs: list[tuple[int, int]]) -> list[float]:
    found = []
    for u, p in pairs:
        other_C = keep_C.clone()
        other_C[u], other_C[p] = False, True
        found.append(removed_error(weight_C[None], other_C[None], gram_CC).item())
    return found


@pytest.mark.parametrize("group", [0, 4, 8])
def test_after_swaps_no_swap_of_a_row_helps(group: int):
    weight_RC, _, gram_CC = problem(10, 16, 40, 0.5, seed=4)
    target = Target.of(pattern=f"{group // 2}:{group}") if group else Target.of(0.5)
    keep_RC = keep_mask(weight_RC.abs(), target, 80, "row")
    fixed_RC = torch.rand(keep_RC.shape, generator=torch.Generator().manual_seed(0)) < 0.2
    found_RC = swaps(weight_RC, keep_RC, gram_CC, most=1000, fixed_RC=fixed_RC & keep_RC, group=group)
    damped_CC = damped(gram_CC, SWAPS_DAMPING)
    before_R, after_R = (removed_error(weight_RC, mask_RC, damped_CC) for mask_RC in (keep_RC, found_RC))
    assert (after_R < before_R).any()
    for row in range(10):
        pairs = all_swaps(found_RC[row], (fixed_RC & keep_RC)[row], group)
        best = min(errors_after(weight_RC[row], found_RC[row], damped_CC, pairs))
        assert best >= after_R[row].item() * (1 - 1e-4)


def test_one_swap_in_groups_is_the_best_there_is():
    weight_RC, _, gram_CC = problem(10, 16, 40, 0.5, seed=5)
    keep_RC = keep_mask(weight_RC.abs(), Target.of(pattern="2:4"), 80, "row")
    found_RC = swaps(weight_RC, keep_RC, gram_CC, most=1, group=4)
    damped_CC = damped(gram_CC, SWAPS_DAMPING)
    for row in range(10):
        pairs = all_swaps(keep_RC[row], torch.zeros(16).bool(), 4)
        own = removed_error(weight_RC[[row]], keep_RC[[row]], damped_CC).item()
        best = min(own, *errors_after(weight_RC[row], keep_RC[row], damped_CC, pairs))
        assert removed_error(weight_RC[[row]], found_RC[[row]], damped_CC).item() == pytest.approx(best, rel=1e-4)


@settings(max_examples=50)
@given(
    shape=st.tuples(st.integers(1, 8), st.sampled_from([4, 8, 24, 40]), st.integers(1, 60)),
    share=st.sampled_from([0.0, 0.3, 0.7, 1.0]),
    group=st.sampled_from([0, 4]),
    most=st.integers(0, 40),
    seed=st.integers(0, 1000),
)
def test_swaps_keep_counts_and_fixed_weights_and_never_add_error(
    shape: tuple[int, int, int], share: float, group: int, most: int, seed: int
):
    weight_RC, keep_RC, gram_CC = problem(*shape, share, seed)
    fixed_RC = keep_RC & (torch.rand(keep_RC.shape, generator=torch.Generator().manual_seed(seed)) < 0.3)
    found_RC = swaps(weight_RC, keep_RC, gram_CC, most=most, fixed_RC=fixed_RC, group=group)
    lines = (-1, group) if group else keep_RC.shape
    assert torch.equal(found_RC.reshape(lines).sum(1), keep_RC.reshape(lines).sum(1))
    assert (found_RC | ~fixed_RC).all()
    assert ((found_RC != keep_RC).sum(1) <= 2 * most).all()
    damped_CC = damped(gram_CC, SWAPS_DAMPING)
    before_R, after_R = (removed_error(weight_RC, mask_RC, damped_CC) for mask_RC in (keep_RC, found_RC))
    assert (after_R <= before_R * (1 + 1e-5) + 1e-12).all()


def test_swaps_do_not_depend_on_how_rows_are_tiled(monkeypatch: pytest.MonkeyPatch):
    weight_RC, keep_RC, gram_CC = problem(12, 20, 50, 0.5, seed=6)
    whole_RC = swaps(weight_RC, keep_RC, gram_CC, most=10)
    monkeypatch.setattr(sys.modules["autoprune.solvers.swaps"], "_TILE", {"cpu": 60})
    assert torch.equal(swaps(weight_RC, keep_RC, gram_CC, most=10), whole_RC)


# ---------------------------------------------------------------- dsnot


def plain_dsnot(weight_C: Tensor, keep_C: Tensor, mean_C: Tensor, std_C: Tensor, score_C: Tensor, group: int) -> Tensor:
    keep, contribution = keep_C.clone(), weight_C * mean_C
    for _ in range(50):
        lacking = contribution[~keep].sum()
        if abs(lacking) <= 0.1 / 2048 or keep.all():
            break
        pruned = (~keep).nonzero()[:, 0]
        back = pruned[(contribution[pruned] / std_C[pruned] ** 2 * lacking.sign()).argmax()]
        allowed = [
            u
            for u in range(len(keep))
            if keep[u] and contribution[u] * lacking < 0 and (not group or u // group == back // group)
        ]
        if not allowed:
            break
        gone = min(allowed, key=lambda u: float(score_C[u]))
        if abs(lacking - contribution[back] + contribution[gone]) >= abs(lacking):
            break
        keep[back], keep[gone] = True, False
    return keep


@pytest.mark.parametrize("group", [0, 4])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.8, 1.0])
def test_dsnot_is_the_plain_loop(group: int, share: float):
    weight_RC, keep_RC, _ = problem(12, 24, 10, share, seed=7)
    generator = torch.Generator().manual_seed(1)
    mean_1C, std_1C = torch.randn(1, 24, generator=generator), torch.rand(1, 24, generator=generator) + 0.1
    score_RC = weight_RC.abs() * (mean_1C.square() + std_1C.square()).sqrt()
    found_RC = dsnot(weight_RC, keep_RC, mean_1C, std_1C, score_RC, group=group)
    for row in range(12):
        expected = plain_dsnot(weight_RC[row], keep_RC[row], mean_1C[0], std_1C[0], score_RC[row], group)
        assert torch.equal(found_RC[row], expected), row
    if 0 < share < 1:
        assert not torch.equal(found_RC, keep_RC)


def test_dsnot_of_inputs_that_are_constant_or_dead_is_finite():
    weight_RC, keep_RC, _ = problem(4, 8, 10, 0.5, seed=8)
    mean_1C, std_1C = torch.tensor([[0.0, 0, 1, 1, 1, 1, -1, -1]]), torch.tensor([[0.0, 0, 0, 0, 1, 1, 1, 1]])
    found_RC = dsnot(weight_RC, keep_RC, mean_1C, std_1C, weight_RC.abs())
    assert torch.equal(found_RC.sum(1), keep_RC.sum(1))


# ---------------------------------------------------------------- sparsegpt


def plain_sparsegpt(weight_RC: Tensor, gram_CC: Tensor, select: Any, step: int) -> tuple[Tensor, Tensor]:
    """Column by column by the formulas of optimal brain surgeons, each time with a new inverse; float64."""
    hessian_CC = gram_CC.double() + 0.01 * gram_CC.diagonal().diag()
    w_RC = weight_RC.double().clone()
    R, C = weight_RC.shape
    keep_RC = torch.zeros(R, C, dtype=torch.bool)
    for j in range(C):
        if j % step == 0:
            columns = slice(j, min(j + step, C))
            curvature = [torch.linalg.inv(hessian_CC[k:, k:])[0, 0] for k in range(columns.start, columns.stop)]
            keep_RC[:, columns] = select(w_RC[:, columns].float(), torch.stack(curvature).float()[None], columns)
        inverse = torch.linalg.inv(hessian_CC[j:, j:])
        w_RC[:, j:] -= (~keep_RC[:, j] * w_RC[:, j] / inverse[0, 0])[:, None] * inverse[0]
    return keep_RC, w_RC * keep_RC


@pytest.mark.parametrize(("columns", "group"), [(20, 0), (150, 0), (300, 0), (40, 4), (36, 3), (160, 80), (200, 200)])
def test_sparsegpt_is_the_plain_loop(columns: int, group: int):
    weight_RC, _, gram_CC = problem(5, columns, 4 * columns, 0.5, seed=9)

    def select(part_Rc: Tensor, curvature_1c: Tensor, columns: slice) -> Tensor:
        score_Rc = part_Rc.square() / curvature_1c
        if group:
            return keep_mask(score_Rc, Target.of(pattern=f"{group // 2}:{group}"), 5 * (group - group // 2), "row")
        return keep_mask(score_Rc, Target.of(0.6), int(0.6 * part_Rc.numel()), "layer")

    found = sparsegpt(weight_RC, gram_CC, select, group=group)
    expected = plain_sparsegpt(weight_RC, gram_CC, select, group or 128)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1].double(), expected[1], rtol=1e-3, atol=1e-3)


def test_sparsegpt_leaves_a_weight_that_is_stored_transposed():
    weight_RC, keep_RC, gram_CC = problem(5, 20, 100, 0.5, seed=11)
    stored_CR = weight_RC.T.contiguous()  # as GPT-2's
    sparsegpt(stored_CR.T, gram_CC, lambda weight_RC, curvature_1C, columns: keep_RC[:, columns])
    assert torch.equal(stored_CR.T, weight_RC)


def test_sparsegpt_survives_a_gram_matrix_that_is_not_positive():
    weight_RC, keep_RC, gram_CC = problem(5, 20, 100, 0.5, seed=10)
    gram_CC = gram_CC - 0.3 * gram_CC.diagonal().mean() * torch.eye(20)
    found = sparsegpt(weight_RC, gram_CC, lambda weight_RC, curvature_1C, columns: keep_RC[:, columns])
    assert found[1].isfinite().all()


# ---------------------------------------------------------------- admm


@pytest.mark.parametrize("target", [Target.of(0.7), Target.of(pattern="2:4")], ids=str)
@pytest.mark.parametrize("compare", ["row", "layer"])
def test_admm_finds_a_better_mask_than_wanda(target: Target, compare: str):
    weight_RC, _, gram_CC = problem(20, 64, 256, 0.5, seed=11)
    count = int(target.fraction * weight_RC.numel())
    norm_1C = gram_CC.diagonal().sqrt()[None]

    def select(weight_RC: Tensor) -> Tensor:
        return keep_mask(weight_RC.abs() * norm_1C, target, count, compare)

    keep_RC, found_RC = admm(weight_RC, gram_CC, select)
    assert int(keep_RC.sum()) == weight_RC.numel() - count
    assert (found_RC[~keep_RC] == 0).all()
    if target.group:
        assert (keep_RC.reshape(-1, 4).sum(1) == 2).all()
    damped_CC = damped(gram_CC, DAMPING)
    own, wanda = (
        output_error(weight_RC, least_squares(weight_RC, mask_RC, gram_CC), damped_CC).sum()
        for mask_RC in (keep_RC, select(weight_RC))
    )
    assert own < 0.95 * wanda
    # Its own weights are nearly those of least squares on its mask.
    assert output_error(weight_RC, found_RC, damped_CC).sum() < 1.02 * own


def test_admm_without_anything_to_prune_changes_nothing():
    weight_RC, _, gram_CC = problem(4, 12, 30, 0.5, seed=12)
    keep_RC, found_RC = admm(weight_RC, gram_CC, lambda weight_RC: torch.ones(4, 12, dtype=torch.bool))
    assert keep_RC.all()
    torch.testing.assert_close(found_RC, weight_RC)


def test_admm_damps_more_where_lapack_does_not_converge(monkeypatch: pytest.MonkeyPatch):
    weight_RC, keep_RC, gram_CC = problem(4, 12, 30, 0.5, seed=13)
    eigh, calls = torch.linalg.eigh, []

    def fails_twice(matrix_CC: Tensor) -> Any:
        calls.append(matrix_CC)
        if len(calls) < 3:
            raise torch.linalg.LinAlgError("linalg.eigh: The algorithm failed to converge")  # pyright: ignore[reportPrivateImportUsage]
        return eigh(matrix_CC)

    monkeypatch.setattr(torch.linalg, "eigh", fails_twice)
    _, found_RC = admm(weight_RC, gram_CC, lambda weight_RC: keep_RC)
    assert len(calls) == 3
    assert found_RC.isfinite().all()
    assert (calls[2].diagonal() > 1.05).all()


# ---------------------------------------------------------------- towards the unpruned model


def test_towards_dense_is_least_squares_from_the_inputs_there_are():
    generator = torch.Generator().manual_seed(14)
    x_TC = torch.randn(200, 16, generator=generator).double()
    dense_TC = x_TC @ torch.randn(16, 16, generator=generator).double() / 4
    weight_RC = torch.randn(5, 16, generator=generator)
    gram_CC, cross_CC = x_TC.T @ x_TC / 200, dense_TC.T @ x_TC / 200
    found_RC = towards_dense(weight_RC, gram_CC.float(), cross_CC.float(), 1.0, damping=1e-9)
    expected_CR = torch.linalg.lstsq(x_TC, dense_TC @ weight_RC.double().T).solution
    torch.testing.assert_close(found_RC.double(), expected_CR.T, rtol=1e-4, atol=1e-4)


def test_what_the_residual_stream_lacks_is_part_of_what_is_aimed_at():
    generator = torch.Generator().manual_seed(16)
    x_TC, dense_TC = (torch.randn(200, 16, generator=generator).double() for _ in range(2))
    lack_TR = torch.randn(200, 5, generator=generator).double() + x_TC[:, :5]
    weight_RC = torch.randn(5, 16, generator=generator)
    gram_CC, cross_CC, lack_RC = (part.T @ x_TC / 200 for part in (x_TC, dense_TC, lack_TR))
    found_RC = towards_dense(weight_RC, gram_CC.float(), cross_CC.float(), 1.0, lack_RC=lack_RC.float(), damping=1e-9)
    expected_CR = torch.linalg.lstsq(x_TC, dense_TC @ weight_RC.double().T + lack_TR).solution
    torch.testing.assert_close(found_RC.double(), expected_CR.T, rtol=1e-4, atol=1e-4)


def test_towards_dense_changes_nothing_where_inputs_are_the_same_or_dead():
    weight_RC, _, gram_CC = problem(5, 16, 60, 0.5, seed=15, dead=3)
    assert torch.equal(towards_dense(weight_RC, gram_CC, gram_CC, 1.0), weight_RC)
    other_RC = towards_dense(weight_RC, gram_CC, gram_CC * 0.9, 0.5)
    assert torch.equal(other_RC[:, :3], weight_RC[:, :3])


# ---------------------------------------------------------------- in a prune


def pruned(architecture: str, target: Target, **options: Any) -> Any:
    model: Any = tiny.model(architecture)
    recipe = Recipe(method=Method.of(algorithms.load("wanda"), **options), target=target, propagation="dense")
    prune_blocks(InMemoryBlocks(model), recipe, tiny.tokens(16, 48), lambda layer: None)
    return model


def distance(model: Any, architecture: str) -> float:
    """Mean squared difference of the logits from the unpruned model's."""
    with torch.no_grad():
        logits, dense = (
            each(input_ids=tiny.tokens(16, 48), use_cache=False).logits for each in (model, tiny.model(architecture))
        )
    return (logits - dense).square().mean().item()


STAGES: list[dict[str, Any]] = [
    {"refine": "swaps"},
    {"refine": "swaps", "update": "least_squares", "protect": 0.5},
    {"refine": "dsnot"},
    {"update": "least_squares"},
    {"update": "sparsegpt"},
    {"update": "admm"},
    {"update": "admm", "towards_dense": 0.5},
]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("target", [Target.of(0.6), Target.of(pattern="2:4"), Target.of(pattern="4:8")], ids=str)
@pytest.mark.parametrize("options", STAGES, ids=lambda options: "+".join(map(str, options.values())))
def test_every_stage_keeps_counts_and_patterns(architecture: str, target: Target, options: dict[str, Any]):
    model, plain = pruned(architecture, target, **options), pruned(architecture, target)
    for one, other in zip(all_linears(InMemoryBlocks(model)), all_linears(InMemoryBlocks(plain)), strict=True):
        weight_RC = one.weight_RC
        assert int((weight_RC == 0).sum()) == int((other.weight_RC == 0).sum()), one.name
        if target.group:
            kept_G = (weight_RC != 0).reshape(-1, target.group).sum(1)
            assert (kept_G <= target.keep).all(), one.name
    assert fingerprint(model) != fingerprint(plain)
    if options != {"refine": "dsnot"}:
        assert distance(model, architecture) < distance(plain, architecture)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("update", ["least_squares", "sparsegpt", "admm"])
def test_aiming_at_the_unpruned_model_brings_its_outputs_closer(architecture: str, update: str):
    tokens_BL = tiny.tokens(32, 48)
    logits = []
    for share in (0.0, 0.5, None):
        model: Any = tiny.model(architecture)
        if share is not None:
            method = Method.of(algorithms.load("wanda"), update=update, towards_dense=share)
            recipe = Recipe(method=method, target=Target.of(0.6))
            prune_blocks(InMemoryBlocks(model), recipe, tokens_BL, lambda layer: None)
        with torch.no_grad():
            logits.append(model(input_ids=tokens_BL, use_cache=False).logits)
    own, dense = ((pruned - logits[2]).square().mean() for pruned in logits[:2])
    assert dense < own


def test_an_update_keeps_the_mask():
    for one, other in zip(
        *(all_linears(InMemoryBlocks(pruned("llama", Target.of(0.6), update=update)))
          for update in ("none", "least_squares")), strict=True
    ):  # fmt: skip
        assert torch.equal(one.weight_RC == 0, other.weight_RC == 0), one.name


def test_all_protected_means_no_swap():
    assert fingerprint(pruned("llama", Target.of(0.6), refine="swaps", protect=1.0)) == fingerprint(
        pruned("llama", Target.of(0.6))
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"refine": "swaps", "update": "admm"}, "nothing to refine"),
        ({"refine": "dsnot", "update": "sparsegpt"}, "nothing to refine"),
        ({"towards_dense": 0.5}, "for an update"),
        ({"max_swaps": 3}, "for refine=swaps"),
        ({"protect": 0.5, "refine": "dsnot"}, "for refine=swaps"),
        ({"refine": "swap"}, "refine cannot be 'swap'; use none, swaps"),
        ({"update": "obs"}, "update cannot be 'obs'"),
        ({"protect": 2.0, "refine": "swaps"}, "protect cannot be 2; use a number from 0 to 1"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(AutopruneError, match=message) as caught:
        Method.of(algorithms.load("wanda"), **options)
    assert caught.value.remedy


@pytest.mark.parametrize(
    "options",
    [{"update": "least_squares"}, {"update": "sparsegpt"}, {"update": "admm"}, {"refine": "swaps"}],
    ids=lambda options: next(iter(options.values())),
)
def test_a_layer_that_cannot_be_solved_is_pruned_by_score_and_says_so(options: dict[str, Any]):
    class Broken(InputStatistics):
        gram = torch.full((16, 16), torch.inf)  # pyright: ignore[reportAssignmentType]

    linear = Linear("layer", torch.nn.Linear(16, 8), 0)
    visit = Visit(linear, Broken((), 16, torch.device("cpu")), 0.0)
    method = Method.of(algorithms.load("magnitude"), **options)
    solution = solve(visit, method, Target.of(0.5), 64)
    assert "Gram matrix" in solution.fallback
    assert int(solution.keep_RC.sum()) == 64
    assert torch.equal(solution.weight_RC, linear.weight_RC)


@pytest.mark.parametrize("update", ["least_squares", "sparsegpt", "admm"])
def test_outputs_do_not_depend_on_micro_batches(update: str):
    weights, grams = [], []
    for size in (48, 16 * 48):
        model: Any = tiny.model("llama")
        batches = micro_batches(tiny.tokens(16, 48), torch.device("cpu"), size)
        visits = walk(InMemoryBlocks(model), batches, collects=frozenset({"gram", "sum_of_squares"}))
        visit = next(iter(visits))
        solution = solve(visit, Method.of(algorithms.load("wanda"), update=update), Target.of(0.5), 128)
        weights.append(solution.weight_RC)
        grams.append(visit.inputs.gram)
    torch.testing.assert_close(grams[0], grams[1], rtol=1e-5, atol=1e-5 * grams[0].abs().max().item())
    zeros_RC = torch.zeros_like(weights[0])
    difference = output_error(weights[0], weights[1], grams[0]).sum()
    assert difference.sqrt() <= 1e-5 * output_error(weights[0], zeros_RC, grams[0]).sum().sqrt()


SETTLED = read_program(
    """
def score(weight, sparsity):
    magnitude = abs(weight)
    return where(magnitude < quantile(magnitude, sparsity, over="columns"), 0, 1 + sparsity)
"""
)
"""Marks what goes itself: only with each layer's own sparsity are as many marked as go."""


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_a_score_knows_what_the_layer_loses(share: float):
    weight_RC, _, gram_CC = problem(10, 64, 40, 0.5, seed=21)
    visit, count = visit_of(weight_RC, gram_CC), int(share * weight_RC.numel())
    keep_RC = solve(visit, Method.of(SETTLED), Target.of(0.5), count).keep_RC
    assert torch.equal(keep_RC, keep_mask(weight_RC.abs(), Target.of(0.5), count, "row"))


def test_an_update_of_weights_alone_needs_a_text():
    with pytest.raises(autoprune.AutopruneError, match="tokenizer"):
        autoprune.prune(tiny.model(), algorithm="magnitude", update="least_squares", sparsity=0.5)


def test_sparsegpt_by_rows_prunes_every_row_alike():
    weight_RC, _, gram_CC = problem(10, 1280, 40, 0.5, seed=20)
    visit = visit_of(weight_RC, gram_CC)
    method = Method.of(algorithms.load("sparsegpt"), compare="row")
    count = int(0.7 * weight_RC.numel())
    removed_R = (~solve(visit, method, Target.of(0.7), count).keep_RC).sum(1)
    assert int(removed_R.sum()) == count
    assert int(removed_R.max() - removed_R.min()) <= 2


def test_admm_is_never_worse_than_its_first_mask():
    """The magnitude has little to do with the error of inputs of very different sizes."""
    for seed in range(4):
        weight_RC, _, gram_CC = problem(20, 64, 256, 0.5, seed=30 + seed)
        method = Method.of(algorithms.load("magnitude"), update="admm")
        solution = solve(visit_of(weight_RC, gram_CC), method, Target.of(0.5), 640)
        first_RC = keep_mask(weight_RC.abs(), Target.of(0.5), 640, method.compare)
        plain = output_error(weight_RC, least_squares(weight_RC, first_RC, gram_CC), gram_CC).sum()
        assert output_error(weight_RC, solution.weight_RC, gram_CC).sum() <= 1.05 * plain


def visit_of(weight_RC: Tensor, gram_CC: Tensor) -> Visit:
    class Known(InputStatistics):
        gram = gram_CC  # pyright: ignore[reportAssignmentType]

    module = torch.nn.Linear(weight_RC.shape[1], weight_RC.shape[0], bias=False)
    module.weight.data.copy_(weight_RC)
    return Visit(Linear("layer", module, 0), Known((), weight_RC.shape[1], torch.device("cpu")), 0.0)


def test_a_caller_who_sets_precisions_by_backend_is_left_alone(tmp_path: Path):
    """torch refuses to mix its two ways of setting the precision of products."""
    script = (
        "import torch, sys; sys.path.insert(0, sys.argv[1]); import tiny, autoprune;"
        "torch.backends.mkldnn.matmul.fp32_precision = 'ieee';"
        "torch.backends.cuda.matmul.fp32_precision = 'tf32';"
        "r = autoprune.prune(tiny.model().bfloat16(), tokenizer=tiny.tokenizer(), algorithm='alps', sparsity=0.5,"
        "calibration='file:' + sys.argv[2], sequences=2, length=16); print(r.sparsity)"
    )
    text = tmp_path / "text.txt"
    text.write_text(tiny.text(2000), "utf-8")
    command = [sys.executable, "-c", script, str(Path(tiny.__file__).parent), str(text)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-500:]
