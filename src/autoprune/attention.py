"""Attention on a CPU, faster than torch's: causal attention of bfloat16 models (up to twice; it is 40 % of a forward of
short sequences), and that of a token that is being generated, where heads share keys (about ten times).

Queries go some rows at a time, so that scores stay in the caches and most of those that causality hides are never
computed. Factors are rounded to bfloat16 where products are faster so, as in torch's own: queries and keys, which are
bfloat16 as they come, and probabilities, the largest of which is made 1. All else is float32. The result is as
near to attention in float64 as torch's, or nearer. Inputs have to be finite: one that is not spoils up to 127 tokens
before it, too.

Legend: B sequences, H heads of queries, K heads of keys, G = H / K, L tokens, D numbers in a head, N = B * K, n some of
N, r some tokens, g = G * r, l tokens up to the last of those.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from autoprune.process_wide import ProcessWide
from autoprune.statistics import bfloat16_products

_ROWS = 128  # tokens whose queries go at a time; shorter sequences are left to torch
_SCORES_AT_ONCE = 1 << 19  # for each thread


def faster_attention() -> AbstractContextManager[None]:
    """Within this context `torch.nn.functional.scaled_dot_product_attention` is computed so where it can be and
    gradients are off. It is the function that is exchanged: a mode of torch's would be lost where a greenlet waits
    within a tensor subclass (`autoprune.models.experts`)."""
    return _EXCHANGED.held()


def _exchange() -> Callable[[], None]:
    torchs = functional.scaled_dot_product_attention

    def either(*args: Any, **kwargs: Any) -> Tensor:
        if _can_be(*args, **kwargs):
            return causal_attention(*args, scale=kwargs.get("scale"))
        if _is_last_of_groups(*args, **kwargs):
            query_BH1D, key_BKLD, value_BKLD = args
            # Queries of a group become those of one head, with which torch needs a tenth of the time.
            query_BKGD = query_BH1D.reshape(len(query_BH1D), key_BKLD.shape[1], -1, query_BH1D.shape[3])
            mean_BKGD = torchs(query_BKGD, key_BKLD, value_BKLD, scale=kwargs.get("scale"))
            return mean_BKGD.reshape(*query_BH1D.shape[:3], -1)
        return torchs(*args, **kwargs)

    def put_back() -> None:
        functional.scaled_dot_product_attention = torchs

    functional.scaled_dot_product_attention = either
    return put_back


_EXCHANGED = ProcessWide(_exchange)


def _can_be(
    *args: Any,
    is_causal: bool = False,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    enable_gqa: bool = False,
    **_: Any,
) -> bool:
    """Whether it is plain causal attention of a sequence to itself, in bfloat16, on a CPU."""
    if len(args) != 3 or not is_causal or attn_mask is not None or dropout_p or torch.is_grad_enabled():
        return False
    query, key, value = args
    if any(x.ndim != 4 or x.dtype != torch.bfloat16 or x.device.type != "cpu" for x in args):
        return False
    (B, H, L, D), (_, K, _, _) = query.shape, key.shape
    return (
        L >= _ROWS
        and key.shape == (B, K, L, D)
        and value.shape[:3] == (B, K, L)
        and min(B, K, D, value.shape[3]) > 0
        and (H == K or (enable_gqa and H % K == 0))
    )


def _is_last_of_groups(
    *args: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    enable_gqa: bool = False,
    **_: Any,
) -> bool:
    """Whether it is attention of one token, the last, to all, where heads of queries share keys, on a CPU."""
    if len(args) != 3 or not enable_gqa or is_causal or attn_mask is not None or dropout_p or torch.is_grad_enabled():
        return False
    query, key, value = args
    return (
        all(x.ndim == 4 and x.device.type == "cpu" for x in args)
        and query.shape[2] == 1
        and 0 < len(query) == len(key) == len(value)
        and 0 < key.shape[1] == value.shape[1] < query.shape[1]
        and query.shape[1] % key.shape[1] == 0
    )


def causal_attention(query_BHLD: Tensor, key_BKLD: Tensor, value_BKLD: Tensor, *, scale: float | None = None) -> Tensor:
    """softmax(Q K^T * scale, of what is not later) V: (B, H, L, D) in the dtype of the query; `scale` is 1 / sqrt(D)
    unless told. A head of keys serves as many neighbouring heads of queries as there are for each."""
    B, H, L, D = query_BHLD.shape
    K, G = key_BKLD.shape[1], H // key_BKLD.shape[1]
    factor = D**-0.5 if scale is None else scale
    query_NGLD = query_BHLD.float().reshape(B * K, G, L, D)
    key_NLD, value_NLD = (x.float().reshape(B * K, L, x.shape[3]) for x in (key_BKLD, value_BKLD))
    mean_NGLD = query_BHLD.new_empty(B * K, G, L, value_BKLD.shape[3])
    later_rr = torch.full((_ROWS, _ROWS), -torch.inf).triu(1)
    nothing = torch.empty(1, 1, 1)
    with bfloat16_products():
        for first in range(0, L, _ROWS):
            last = min(first + _ROWS, L)
            rows = last - first
            heads = max(1, _SCORES_AT_ONCE * torch.get_num_threads() // (G * rows * last))
            for some in (slice(left, left + heads) for left in range(0, B * K, heads)):
                query_ngD = query_NGLD[some, :, first:last].reshape(-1, G * rows, D)
                key_nDl = key_NLD[some, :last].transpose(1, 2)
                # Scaled after the product: a query times 1 / sqrt(D) would have to be rounded again.
                score_ngl = torch.baddbmm(nothing, query_ngD, key_nDl, beta=0, alpha=factor)
                # A sum takes a tenth of the time of masked_fill_.
                score_ngl.view(-1, G, rows, last)[..., first:].add_(later_rr[:rows, :rows])
                share_ngl = score_ngl.softmax(2)
                # The largest of a row is 1, as in torch's, so that rounding leaves it as it is.
                largest_ng1 = share_ngl.amax(2, keepdim=True)
                mean_ngD = torch.bmm(share_ngl.div_(largest_ng1), value_NLD[some, :last]).mul_(largest_ng1)
                mean_NGLD[some, :, first:last] = mean_ngD.view(-1, G, rows, mean_ngD.shape[2])
    return mean_NGLD.view(B, H, L, value_BKLD.shape[3])
