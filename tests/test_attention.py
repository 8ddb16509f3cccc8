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
from autoprune.evaluation import next_logits
from autoprune.models import InMemoryBlocks
from autoprune.statistics import bfloat16_products
from autoprune.stream import micro_batches, walk


def attention(*given: Tensor, **how: Any) -> Tensor:
    return functional.scaled_dot_product_attention(*given, **how)


def qkv(B: int, H: int, K: int, L: int, D: int, of_value: int, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    generator = torch.Generator().manual_seed(L)
    shapes = (B, L, H, D), (B, L, K, D), (B, L, K, of_value)
    return [torch.randn(shape, generator=generator).to(dtype).transpose(1, 2) for shape in shapes]


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The queries that were handed to our attention."""
    queries: list[Tensor] = []
    monkeypatch.setattr(
        ours, "causal_attention", lambda *given, **how: queries.append(given[0]) or causal_attention(*given, **how)
    )
    return queries


@pytest.fixture(params=["as here", "rounded"])
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products as this CPU does them, and with factors rounded to bfloat16, as CPUs with AMX do."""
    if request.param == "as here":
        return
    bmm, baddbmm = torch.bmm, torch.baddbmm

    def rounded(factors: tuple[Tensor, ...]) -> list[Tensor]:
        assert torch.get_float32_matmul_precision() == "medium"
        return [x.bfloat16().float() for x in factors]

    monkeypatch.setattr(torch, "bmm", lambda *factors: bmm(*rounded(factors)))
    monkeypatch.setattr(torch, "baddbmm", lambda start, *factors, **how: baddbmm(start, *rounded(factors), **how))


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("shape", [(2, 9, 3, 128, 16), (1, 4, 4, 300, 8), (3, 6, 1, 257, 80), (1, 2, 1, 1030, 128)])
@pytest.mark.parametrize("scale", [None, 0.7])
@pytest.mark.parametrize("peaks", [1, 6])
@pytest.mark.parametrize("at_once", [1, 1 << 19])
def test_it_is_as_near_to_float64_as_torch(
    shape: tuple[int, ...], scale: float | None, peaks: int, at_once: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ours, "_SCORES_AT_ONCE", at_once)
    query, key, value = qkv(*shape, shape[-1])
    given = query * peaks, key, value
    how: dict[str, Any] = {"is_causal": True, "enable_gqa": True, "scale": scale}
    exact = attention(*(x.double() for x in given), **how)
    found = causal_attention(*given, scale=scale)
    assert found.dtype == torch.bfloat16
    assert found.shape == exact.shape
    assert distance(found, exact) <= 1.1 * distance(attention(*given, **how), exact)


def test_values_may_be_narrower_or_wider():
    for of_value in (4, 24):
        given = qkv(2, 4, 2, 200, 8, of_value)
        exact = attention(*(x.double() for x in given), is_causal=True, enable_gqa=True)
        assert distance(causal_attention(*given), exact) < 3e-3


def test_only_what_it_computes_goes_through_it(asked: list[Tensor]):
    query, key, value = bf16 = qkv(1, 2, 2, 128, 8, 8)
    mask = torch.ones(128, 128, dtype=torch.bool).tril()
    causal = {"is_causal": True}
    others: list[tuple[list[Tensor], dict[str, Any]]] = [
        (qkv(1, 2, 2, 128, 8, 8, torch.float32), causal),
        (qkv(1, 2, 2, 128, 8, 8, torch.float16), causal),
        (qkv(1, 2, 2, 127, 8, 8), causal),
        (bf16, {}),
        (bf16, {"attn_mask": mask}),
        (bf16, {"is_causal": True, "dropout_p": 1.0}),
        ([query, torch.cat([key, key], 2), torch.cat([value, value], 2)], causal),  # of tokens that came before
        ([x[:0] for x in bf16], causal),
        ([query.expand(3, -1, -1, -1), key, value], causal),
        ([query[:, :1], key, value], causal),
        ([x[0] for x in bf16], causal),
    ]
    with torch.no_grad():
        plain = [attention(*given, **how) for given, how in others]
        with faster_attention():
            again = [attention(*given, **how) for given, how in others]
            with pytest.raises(RuntimeError):
                attention(query, key.repeat(1, 2, 1, 1), value.repeat(1, 2, 1, 1), is_causal=True, enable_gqa=True)
            with pytest.raises(RuntimeError):
                attention(query, key, value.float(), is_causal=True)
            assert not asked
            found = attention(*bf16, is_causal=True, scale=0.7)
            assert len(asked) == 1
        assert distance(found, attention(*(x.double() for x in bf16), is_causal=True, scale=0.7)) < 3e-3
    with faster_attention():
        attention(*(x.requires_grad_() for x in bf16), is_causal=True)
    assert len(asked) == 1
    assert all(torch.equal(*both) for both in zip(plain, again, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_last_token_whose_heads_share_keys(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    query, key, value = qkv(3, 6, 2, 40, 8, 4, dtype)
    last = query[:, :, -1:], key, value
    how: dict[str, Any] = {"enable_gqa": True, "scale": 0.3}
    exact = attention(*(x.double() for x in last), **how)
    groups: list[bool] = []
    torchs = functional.scaled_dot_product_attention
    spy = lambda *given, **how: groups.append("enable_gqa" in how) or torchs(*given, **how)  # noqa: E731
    monkeypatch.setattr(functional, "scaled_dot_product_attention", spy)
    others: list[tuple[tuple[Tensor, ...], dict[str, Any]]] = [
        (last, how | {"attn_mask": torch.ones(3, 1, 1, 40, dtype=torch.bool)}),
        (last, how | {"is_causal": True}),
        ((query[:, :, -2:], key, value), how),
        ((query[:, :2, -1:], key, value), how),
        ((query[:1, :, -1:], key, value), how),
    ]
    with torch.no_grad(), faster_attention():
        found = attention(*last, **how)
        assert groups == [False]
        for given, other in others:
            attention(*given, **other)
        assert groups == [False] + [True] * len(others)
    assert found.shape == exact.shape
    assert distance(found, exact) < (3e-3 if dtype == torch.bfloat16 else 1e-6)


def test_a_walk_uses_it_and_leaves_nothing_behind(asked: list[Tensor], monkeypatch: pytest.MonkeyPatch):
    torchs = functional.scaled_dot_product_attention
    model, tokens_BL = tiny.model().bfloat16(), tiny.tokens(3, 130)
    batches = micro_batches(tokens_BL, torch.device("cpu"), tokens=260)

    def norms() -> dict[str, Tensor]:
        visits = walk(InMemoryBlocks(model), batches, collects=frozenset(["sum_of_squares"]), propagation="dense")
        return {visit.linear.name: visit.inputs.input_norm for visit in visits}

    found, times = norms(), len(asked)
    assert times == model.config.num_hidden_layers * len(batches)
    assert functional.scaled_dot_product_attention is torchs
    monkeypatch.setattr(ours, "_can_be", lambda *args, **kwargs: False)
    for name, norm in norms().items():
        torch.testing.assert_close(found[name], norm, rtol=0.02, atol=1e-4)
    assert len(asked) == times


def test_evaluation_uses_it(asked: list[Tensor]):
    model = tiny.model().bfloat16()
    next_logits(model, tiny.tokens(1, 130)[0])
    assert len(asked) == model.config.num_hidden_layers


def test_the_last_of_several_contexts_puts_back_torchs_function_and_precision():
    torchs, precision = functional.scaled_dot_product_attention, torch.get_float32_matmul_precision()
    for context in (faster_attention, bfloat16_products):
        first, second = context(), context()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        if context is faster_attention:
            assert functional.scaled_dot_product_attention is not torchs
        else:
            assert torch.get_float32_matmul_precision() == "medium"
        second.__exit__(None, None, None)
        assert functional.scaled_dot_product_attention is torchs
        assert torch.get_float32_matmul_precision() == precision
