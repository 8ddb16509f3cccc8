"""Re-solved weights against direct solutions, row by row.

Legend: R output rows, C input columns, T tokens.
"""

from __future__ import annotations

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
from autoprune.language.program import OPTIONS
from autoprune.models import InMemoryBlocks, all_linears, fingerprint
from autoprune.prune import Recipe, prune_blocks
from autoprune.solvers import UPDATES, least_squares, output_error
from autoprune.sparsity import Target


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
    gram[np.diag_indices_from(gram)] += damping * np.diag(gram).mean()
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
    expected = exact(weight_RC, keep_RC, gram_CC, 0.01)
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
    damped_CC = gram_CC + 0.01 * gram_CC.diagonal().mean() * torch.eye(len(gram_CC))
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
def test_a_gram_matrix_that_says_nothing_leaves_the_weights(gram: Tensor):
    weight_RC, keep_RC = torch.ones(3, 4), torch.eye(3, 4).bool()
    assert torch.equal(least_squares(weight_RC, keep_RC, gram), weight_RC * keep_RC)


def test_scale_of_the_inputs_makes_no_difference():
    weight_RC, keep_RC, gram_CC = problem(6, 20, 200, 0.5, seed=3)
    plain = least_squares(weight_RC, keep_RC, gram_CC)
    for scale in (1e-12, 1e12):
        torch.testing.assert_close(least_squares(weight_RC, keep_RC, gram_CC * scale), plain, rtol=1e-3, atol=1e-4)


# ---------------------------------------------------------------- in a prune


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("target", [Target.of(0.6), Target.of(pattern="2:4")])
def test_an_update_brings_outputs_closer_and_keeps_the_mask(architecture: str, target: Target):
    wanda = algorithms.load("wanda").require("score")
    models: dict[str, Any] = {name: tiny.model(architecture) for name in ("dense", *UPDATES)}
    for update in UPDATES:
        recipe = Recipe(score=wanda, target=target, compare="row", update=update, propagation="dense")
        prune_blocks(InMemoryBlocks(models[update]), recipe, tiny.tokens(16, 48), lambda layer: None)
    plain, solved = (all_linears(InMemoryBlocks(models[name])) for name in UPDATES)
    for one, other in zip(plain, solved, strict=True):
        assert torch.equal(one.weight_RC == 0, other.weight_RC == 0), one.name
    assert fingerprint(models["none"]) != fingerprint(models["least_squares"])

    def error(name: str) -> float:
        with torch.no_grad():
            logits, dense = (
                models[key](input_ids=tiny.tokens(16, 48), use_cache=False).logits for key in (name, "dense")
            )
        return (logits - dense).square().mean().item()

    assert error("least_squares") < error("none")


def test_the_option_and_the_solvers_agree():
    assert OPTIONS["update"].choices == UPDATES


def test_an_update_of_weights_alone_needs_a_text():
    with pytest.raises(autoprune.AutopruneError, match="tokenizer"):
        autoprune.prune(tiny.model(), algorithm="magnitude", update="least_squares", sparsity=0.5)
