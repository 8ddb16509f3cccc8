"""How good a language model is on a text, and how far it went from another one.

Legend: B sequences, L tokens per sequence, V vocabulary.
Every sequence is scored on its last L - 1 tokens; perplexity is exp of the mean loss, as Wanda and SparseGPT
report it. Log-probabilities are computed in float32, a few hundred tokens at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoprune.attention import faster_attention
from autoprune.bootstrap import bootstrap_interval
from autoprune.errors import AutopruneError
from autoprune.models import input_device
from autoprune.tasks import TaskResult

_TOKENS_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A model against a reference on the same tokens; the interval is a paired bootstrap over sequences (95 %),
    None for a single one."""

    reference_perplexity: float
    kl_nats_per_token: float
    top1_agreement: float
    difference_nats_per_token: float
    difference_low: float | None
    difference_high: float | None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Figures of one model on one text, nan and 0 where there was none, and at tasks.

    `tokens` counts the scored ones: B (L - 1).
    """

    perplexity: float = math.nan
    nats_per_token: float = math.nan
    sequences: int = 0
    length: int = 0
    tokens: int = 0
    against: Comparison | None = None
    tasks: tuple[TaskResult, ...] = ()


def evaluate_tokens(
    model: Any, tokens_BL: Tensor, *, against: Any = None, on_sequence: Callable[[], None] = lambda: None
) -> Evaluation:
    """Loss on (B, L) token ids; with `against`, KL(against ‖ model), agreement of the likeliest token, difference."""
    B, L = tokens_BL.shape
    losses, reference_losses, divergences, agreements = [], [], [], []
    for tokens_L in tokens_BL:
        logits_LV = next_logits(model, tokens_L)
        losses.append(_loss(logits_LV, tokens_L))
        if against is not None:
            reference_LV = next_logits(against, tokens_L)
            reference_losses.append(_loss(reference_LV, tokens_L))
            divergence, agreement = _divergence(reference_LV, logits_LV)
            divergences.append(divergence)
            agreements.append(agreement)
        on_sequence()
    nats = _mean(losses)
    if not math.isfinite(nats):
        raise AutopruneError("the loss is not finite", remedy="check the model's weights, or try --dtype float32")
    comparison = None
    if against is not None:
        difference_B = np.subtract(losses, reference_losses)
        low, high = bootstrap_interval(difference_B) if B > 1 else (None, None)  # one says nothing of others
        comparison = Comparison(
            reference_perplexity=perplexity(_mean(reference_losses)),
            kl_nats_per_token=_mean(divergences),
            top1_agreement=_mean(agreements),
            difference_nats_per_token=float(difference_B.mean()),
            difference_low=low,
            difference_high=high,
        )
    return Evaluation(
        perplexity=perplexity(nats),
        nats_per_token=nats,
        sequences=B,
        length=L,
        tokens=B * (L - 1),
        against=comparison,
    )


def perplexity(nats_per_token: float) -> float:
    """exp of the loss, infinite where it overflows."""
    return math.exp(nats_per_token) if nats_per_token < 700 else math.inf


def next_logits(model: Any, tokens_L: Tensor) -> Tensor:
    """What a model says (L - 1, V) of all tokens but the first."""
    with torch.no_grad(), faster_attention():
        return model(input_ids=tokens_L[None].to(input_device(model)), use_cache=False).logits[0, :-1]


def _loss(logits_LV: Tensor, tokens_L: Tensor) -> float:
    """Mean negative log-likelihood of the tokens that follow."""
    targets = tokens_L[1:].to(logits_LV.device).split(_TOKENS_AT_ONCE)
    total = sum(
        torch.nn.functional.cross_entropy(part.float(), target, reduction="sum").item()
        for part, target in zip(logits_LV.split(_TOKENS_AT_ONCE), targets, strict=True)
    )
    return total / len(logits_LV)


def _divergence(reference_LV: Tensor, logits_LV: Tensor) -> tuple[float, float]:
    """Mean KL(reference ‖ model) in nats, and the share of positions with the same likeliest token."""
    divergence = same = 0.0
    for reference, own in zip(reference_LV.split(_TOKENS_AT_ONCE), logits_LV.split(_TOKENS_AT_ONCE), strict=True):
        own = own.to(reference.device)
        reference_log, own_log = reference.float().log_softmax(-1), own.float().log_softmax(-1)
        share = reference_log.exp()
        divergence += torch.where(share > 0, share * (reference_log - own_log), 0.0).sum().item()
        same += (reference.argmax(-1) == own.argmax(-1)).sum().item()
    return divergence / len(logits_LV), same / len(logits_LV)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
