"""Perplexity, divergence and intervals against their formulas.

Legend: B sequences, L tokens per sequence, V vocabulary.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import tiny
from autoprune import evaluate
from autoprune.bootstrap import bootstrap_interval
from autoprune.errors import AutopruneError
from autoprune.evaluation import evaluate_tokens, perplexity

architectures = pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)


def log_probabilities(model: Any, tokens_BL: Tensor) -> Tensor:
    """(B, L - 1, V) in float64."""
    with torch.no_grad():
        return model(input_ids=tokens_BL, use_cache=False).logits[:, :-1].double().log_softmax(-1)


def losses(model: Any, tokens_BL: Tensor) -> Tensor:
    """Mean loss of every sequence."""
    return -log_probabilities(model, tokens_BL).gather(2, tokens_BL[:, 1:, None])[..., 0].mean(1)


@pytest.fixture
def text(tmp_path: Path) -> str:
    (tmp_path / "text.txt").write_text(tiny.text(500), "utf-8")
    return f"file:{tmp_path / 'text.txt'}"


# ---------------------------------------------------------------- the formulas


@architectures
def test_perplexity_is_exp_of_the_mean_loss(architecture: str):
    model, tokens_BL = tiny.model(architecture), tiny.tokens()
    found = evaluate_tokens(model, tokens_BL)
    expected = losses(model, tokens_BL).mean().item()
    assert found.nats_per_token == pytest.approx(expected, rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(expected), rel=1e-5)
    assert (found.sequences, found.length, found.tokens) == (5, 24, 5 * 23)
    assert found.against is None


def test_sequences_longer_than_a_chunk_are_whole():
    model = tiny.model(max_position_embeddings=600)
    tokens_BL = tiny.tokens(2, 600)
    reference = tiny.model(max_position_embeddings=600, seed=1)
    found = evaluate_tokens(model, tokens_BL, against=reference)
    assert found.nats_per_token == pytest.approx(losses(model, tokens_BL).mean().item(), rel=1e-5)
    p, q = log_probabilities(reference, tokens_BL), log_probabilities(model, tokens_BL)
    assert found.against is not None
    assert found.against.kl_nats_per_token == pytest.approx((p.exp() * (p - q)).sum(-1).mean().item(), rel=1e-4)


@architectures
def test_a_comparison_equals_the_formulas(architecture: str):
    model, reference, tokens_BL = tiny.model(architecture), tiny.model(architecture, seed=1), tiny.tokens()
    found = evaluate_tokens(model, tokens_BL, against=reference).against
    assert found is not None
    p, q = log_probabilities(reference, tokens_BL), log_probabilities(model, tokens_BL)
    difference_B = losses(model, tokens_BL) - losses(reference, tokens_BL)
    assert found.kl_nats_per_token == pytest.approx((p.exp() * (p - q)).sum(-1).mean().item(), rel=1e-4)
    assert found.top1_agreement == pytest.approx((p.argmax(-1) == q.argmax(-1)).double().mean().item())
    assert found.difference_nats_per_token == pytest.approx(difference_B.mean().item(), abs=1e-5)
    assert found.reference_perplexity == pytest.approx(losses(reference, tokens_BL).mean().exp().item(), rel=1e-5)
    assert found.difference_low <= found.difference_nats_per_token <= found.difference_high
    assert found.difference_low < found.difference_high


@architectures
def test_a_model_does_not_differ_from_itself(architecture: str):
    model = tiny.model(architecture)
    found = evaluate_tokens(model, tiny.tokens(), against=copy.deepcopy(model)).against
    assert found is not None
    assert found.kl_nats_per_token == 0
    assert found.top1_agreement == 1
    assert (found.difference_nats_per_token, found.difference_low, found.difference_high) == (0, 0, 0)


@pytest.mark.parametrize("seed", range(5))
def test_kl_is_never_negative(seed: int):
    model = tiny.model()
    near = copy.deepcopy(model)
    torch.manual_seed(seed)
    for parameter in near.parameters():
        parameter.data += 1e-3 * torch.randn_like(parameter)
    found = evaluate_tokens(near, tiny.tokens(), against=model).against
    assert found is not None
    assert found.kl_nats_per_token > 0


def test_impossible_tokens_of_the_reference_count_nothing():
    model, reference = tiny.model(), tiny.model()
    reference.lm_head.bias = torch.nn.Parameter(torch.zeros(tiny.VOCABULARY), requires_grad=False)
    reference.lm_head.bias[:100] = -torch.inf
    found = evaluate_tokens(model, tiny.tokens().clamp(min=100), against=reference).against
    assert found is not None
    assert 0 < found.kl_nats_per_token < math.inf


def test_a_loss_that_is_not_finite_is_refused():
    model = tiny.model()
    model.lm_head.weight.data.fill_(torch.nan)
    with pytest.raises(AutopruneError, match="the loss is not finite"):
        evaluate_tokens(model, tiny.tokens())


def test_every_sequence_is_told():
    told: list[int] = []
    evaluate_tokens(tiny.model(), tiny.tokens(), on_sequence=lambda: told.append(1))
    assert len(told) == 5


def test_perplexity_overflows_to_infinity():
    assert perplexity(1e4) == math.inf
    assert perplexity(0.0) == 1.0


# ---------------------------------------------------------------- the interval


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=20))
def test_the_interval_lies_within_the_differences(differences: list[float]):
    low, high = bootstrap_interval(np.array(differences))
    assert min(differences) - 1e-9 <= low <= high <= max(differences) + 1e-9


def test_the_interval_of_many_differences_is_that_of_a_normal_mean():
    differences = np.random.default_rng(1).normal(0.5, 1.0, 400)
    low, high = bootstrap_interval(differences)
    half = 1.96 * differences.std() / 20
    assert low == pytest.approx(differences.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(differences.mean() + half, abs=0.1 * half)


def test_the_interval_is_reproducible():
    differences = np.random.default_rng(1).normal(size=50)
    assert bootstrap_interval(differences) == bootstrap_interval(differences)


# ---------------------------------------------------------------- the public function


@pytest.mark.parametrize(("kind", "bos"), [("adds_bos", [tiny.BOS]), ("has_bos", []), ("no_bos", [])])
def test_the_text_is_scored_as_the_field_does(text: str, kind: str, bos: list[int]):
    model, tokenizer = tiny.model(), tiny.tokenizer(kind)
    ids = bos + tokenizer(tiny.text(500), add_special_tokens=False).input_ids
    tokens_BL = torch.tensor(ids[: 4 * 32]).view(4, 32)
    found = evaluate(model, tokenizer=tokenizer, data=text, length=32, sequences=4)
    assert found.nats_per_token == pytest.approx(losses(model, tokens_BL).mean().item(), rel=1e-5)


def test_gemma_gets_a_start_token_in_every_sequence(text: str):
    model, tokenizer = tiny.model("gemma2"), tiny.tokenizer()
    ids = tokenizer(tiny.text(500), add_special_tokens=False).input_ids
    tokens_BL = torch.tensor([[tiny.BOS, *ids[start : start + 31]] for start in range(0, 4 * 31, 31)])
    found = evaluate(model, tokenizer=tokenizer, data=text, length=32, sequences=4)
    assert found.nats_per_token == pytest.approx(losses(model, tokens_BL).mean().item(), rel=1e-5)


def test_a_folder_is_evaluated_as_the_live_model(text: str, tmp_path: Path):
    folder = tiny.save(tmp_path / "model")
    named = evaluate(folder, data=text, length=32, sequences=4, against=str(folder))
    live = evaluate(tiny.model(), tokenizer=tiny.tokenizer(), data=text, length=32, sequences=4)
    assert named.nats_per_token == live.nats_per_token
    assert named.against is not None
    assert named.against.kl_nats_per_token == 0


def test_a_different_vocabulary_is_refused(text: str):
    with pytest.raises(AutopruneError, match="different vocabularies"):
        evaluate(tiny.model(), tokenizer=tiny.tokenizer(), data=text, length=32, against=tiny.model(vocab_size=400))


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused(text: str):
    with pytest.raises(AutopruneError, match="the model has 100"):
        evaluate(tiny.model(vocab_size=100), tokenizer=tiny.tokenizer(), data=text, length=32)


def test_a_live_reference_is_named_in_one_short_line(text: str):
    small = tiny.model(vocab_size=100)
    with pytest.raises(AutopruneError, match="different vocabularies") as caught:
        evaluate(tiny.model(), tokenizer=tiny.tokenizer(), data=text, length=32, against=small)
    assert len(str(caught.value)) < 300


def test_a_length_beyond_the_context_is_refused(text: str):
    with pytest.raises(AutopruneError, match="128 positions"):
        evaluate(tiny.model(), tokenizer=tiny.tokenizer(), data=text, length=129)


def test_a_live_model_without_tokenizer_is_refused(text: str):
    with pytest.raises(AutopruneError, match="tokenizer"):
        evaluate(tiny.model(), data=text, length=32)


def test_dropout_is_off_in_both_models(text: str):
    model = tiny.model("gpt2").train()
    reference = tiny.model("gpt2").train()
    found = evaluate(model, tokenizer=tiny.tokenizer(), data=text, length=32, sequences=4, against=reference)
    assert found.against is not None
    assert found.against.kl_nats_per_token == 0
    assert model.training
    assert reference.training
