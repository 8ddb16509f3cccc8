"""Activations in a file: the same result, and no more memory than was given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import autoprune.algorithms
import autoprune.spill
import tiny
from autoprune.budget import Estimate, estimate, fit, parse_bytes
from autoprune.errors import AutopruneError
from autoprune.layer import Method
from autoprune.models import InMemoryBlocks, all_linears
from autoprune.prune_blocks import Recipe, prune_blocks
from autoprune.sparsity import Target
from autoprune.spill import Spill


def pruned(architecture: str, spill: Spill | None, **options: Any) -> list[torch.Tensor]:
    wide = {"hidden_size": 192} if architecture == "llama" else {}  # so that a Gram matrix would be worth a file
    model = tiny.model(architecture, **wide)
    source = InMemoryBlocks(model)
    method = Method.of(autoprune.algorithms.load("wanda"), **options)
    recipe = Recipe(method=method, target=Target.of(0.5), micro_batch_tokens=1024)
    prune_blocks(source, recipe, tiny.tokens(64, 128), lambda layer: None, spill=spill)
    return [linear.weight_RC for linear in all_linears(source)]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral", "gemma2", "mamba"])
@pytest.mark.parametrize("limit", [0, 500_000])
@pytest.mark.parametrize(
    "options", [{}, {"update": "least_squares"}, {"update": "least_squares", "towards_dense": 0.5}], ids=str
)
def test_the_result_is_the_same(architecture: str, limit: int, options: dict[str, Any], monkeypatch: Any):
    most: list[int] = []
    leave = autoprune.spill.Waiting._leave

    def watched(self: Any) -> None:
        leave(self)
        most.append(self.spill.resident)
        spilled.append(self.spill.spilled)

    spilled: list[int] = []
    monkeypatch.setattr("autoprune.spill.Waiting._leave", watched)
    found = pruned(architecture, Spill(limit), **options)
    for one, other in zip(found, pruned(architecture, None, **options), strict=True):
        assert torch.equal(one, other)
    assert max(most) <= limit
    assert max(spilled) > 0


def test_nothing_is_spilled_within_the_limit(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: pytest.fail("spilled"))
    pruned("llama", Spill(10**9))


@pytest.mark.parametrize(
    ("text", "expected"), [("8GiB", 8 * 2**30), ("500 MB", 500_000_000), ("1.5g", 1_500_000_000), ("2e9", 2 * 10**9)]
)
def test_amounts(text: str, expected: int):
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "much", "-1GB", "0", "8 GB of it", "1e999"])
def test_wrong_amounts(text: str):
    with pytest.raises(AutopruneError, match="no amount of memory"):
        parse_bytes(text)


def test_what_cannot_fit_is_refused_with_a_remedy():
    source = InMemoryBlocks(tiny.model())
    found = Estimate(weights=10**9, statistics=0, solving=0, activations=10**9)
    with pytest.raises(AutopruneError, match=r"about 2\.70 GB") as caught:
        fit(found, 10**9, source)
    assert caught.value.remedy
    assert fit(found, 3 * 10**9, source) is None
    assert fit(found, 2 * 10**9, source) == 300_000_000


def test_a_gram_matrix_costs_more_and_so_does_the_unpruned_model():
    source = InMemoryBlocks(tiny.model())
    wanda, solved, twins = (
        estimate(source, Method.of(autoprune.algorithms.load("wanda"), **options), "one_pass", 1000)
        for options in ({}, {"update": "least_squares"}, {"update": "least_squares", "towards_dense": 0.5})
    )
    assert wanda.statistics < solved.statistics < twins.statistics
    assert wanda.activations == solved.activations < twins.activations


def test_the_command_says_what_it_takes_and_refuses_what_it_cannot(text: str, tmp_path: Path):
    source = tiny.save(tmp_path / "dense")
    with pytest.raises(AutopruneError, match=r"there are 0\.01 GB"):
        autoprune.prune(source, out=tmp_path / "out", sparsity=0.5, memory="10MB",
                        calibration=f"file:{text}", sequences=2, length=24)  # fmt: skip
    assert not (tmp_path / "out").exists()
