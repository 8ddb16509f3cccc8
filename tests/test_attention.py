"""Faster attention against torch's, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import tiny
from autoprune import attention as ours
from autoprune.attention import causal_attention, faster_attention
from autoprune.models import InMemoryBlocks
from autoprune.stream import micro_batches, walk


def attention(*given: Tensor, **how: Any) -> Tensor:
    return functional.scaled_dot_product_attention(*given, **how)


def qkv(B: int, H: int, K: int, L: int, D: int, of_value: int, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    generator = torch.Generator().manual_seed(L)
    shapes = (B, L, H, D), (B, L, K, D), (B, L, K, of_value)
    return [torch.randn(shape, generator=generator).to(dtype).transpose(1, 2) for shape in shapes]


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(
    "shape", [(2, 9, 3, 128, 16, 16), (1, 4, 4, 300, 8, 8), (3, 6, 1, 257, 16, 24), (1, 2, 2, 1030, 4, 4)]
)
@pytest.mark.parametrize("scale", [None, 0.7])
@pytest.mark.parametrize("at_once", [1, 1 << 19])
def test_it_is_as_near_to_float64_as_torch(
    shape: tuple[int, ...], scale: float | None, at_once: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ours, "_SCORES_AT_ONCE", at_once)
    given = qkv(*shape)
    exact = attention(*(x.double() for x in given), is_causal=True, enable_gqa=True, scale=scale)
    found = causal_attention(*given, scale=scale)
    assert found.dtype == torch.bfloat16
    assert found.shape == exact.shape
    torchs = attention(*given, is_causal=True, enable_gqa=True, scale=scale)
    assert distance(found, exact) <= 1.001 * distance(torchs, exact)


def test_only_what_it_computes_goes_through_it(monkeypatch: pytest.MonkeyPatch):
    asked: list[Tensor] = []
    monkeypatch.setattr(
        ours, "causal_attention", lambda *given, **how: asked.append(given[0]) or causal_attention(*given, **how)
    )
    bf16, fp32, short = qkv(1, 2, 2, 128, 8, 8), qkv(1, 2, 2, 128, 8, 8, torch.float32), qkv(1, 2, 2, 127, 8, 8)
    mask = torch.ones(128, 128, dtype=torch.bool).tril()
    others = [(fp32, {"is_causal": True}), (short, {"is_causal": True}), (bf16, {}), (bf16, {"attn_mask": mask})]
    cached = [bf16[0], *(torch.cat([x, x], dim=2) for x in bf16[1:])]
    with torch.no_grad():
        plain = [attention(*given, **how) for given, how in others]
        with faster_attention():
            again = [attention(*given, **how) for given, how in others]
            attention(*cached, is_causal=True)
            assert not asked
            attention(*bf16, is_causal=True)
            assert len(asked) == 1
        attention(*bf16, is_causal=True)
    with faster_attention():
        attention(*(x.requires_grad_() for x in bf16), is_causal=True)
    assert len(asked) == 1
    assert all(torch.equal(*both) for both in zip(plain, again, strict=True))


def test_a_walk_uses_it_and_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch):
    torchs = functional.scaled_dot_product_attention
    asked: list[Tensor] = []
    monkeypatch.setattr(
        ours, "causal_attention", lambda *given, **how: asked.append(given[0]) or causal_attention(*given, **how)
    )
    model = tiny.model().bfloat16()
    tokens_BL = tiny.tokens(3, 130)
    batches = micro_batches(tokens_BL, torch.device("cpu"), tokens=260)
    found = {visit.linear.name: visit.inputs.input_norm for visit in walk(
        InMemoryBlocks(model), batches, collects=frozenset(["sum_of_squares"]), propagation="dense"
    )}  # fmt: skip
    assert len(asked) == model.config.num_hidden_layers * len(batches)
    assert functional.scaled_dot_product_attention is torchs
    with torch.no_grad():
        model(input_ids=tokens_BL)
    assert len(asked) == model.config.num_hidden_layers * len(batches)
    assert all(torch.isfinite(norm).all() for norm in found.values())


def test_of_two_contexts_at_once_the_first_puts_back_torchs_function():
    torchs = functional.scaled_dot_product_attention
    first, second = faster_attention(), faster_attention()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert functional.scaled_dot_product_attention is torchs
