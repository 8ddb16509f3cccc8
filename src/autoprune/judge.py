"""How far a changed model is from the unpruned one, on a held-out text whose likeliest tokens are kept.

Legend: B sequences, L tokens per sequence, T scored positions, V vocabulary, K likeliest tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from autoprune.backward import LOGITS_AT_ONCE, TOKENS_AT_ONCE
from autoprune.errors import AutopruneError
from autoprune.models import BlockSource, Linear, all_linears, input_device, users, vocabulary_size
from autoprune.stream import MICRO_BATCH_TOKENS, micro_batches, walk_blocks

_TOP = 256  # likeliest tokens that are kept of each position; all others are one more outcome

WORST = 1e3
"""Nats a token, that a damage counts as which is larger or not finite."""

Likely = tuple[Tensor, Tensor]
"""Of each position of a micro-batch: the likeliest tokens (T, K), int32, and their log-probabilities (T, K)."""


class Judge:
    """Measures KL(unpruned ‖ changed) in nats a token. Nothing is changed for good.

    Of each position the probabilities of the likeliest tokens are compared, with all others as one outcome: a lower
    bound of the divergence over the whole vocabulary, and close to it. Made of the model while it is unpruned, or with
    the `likely` that another one of the same model and text has kept.
    """

    def __init__(self, source: BlockSource, held_BL: Tensor, likely: Sequence[Likely] | None = None):
        self.source, self.device = source, input_device(source.model)
        self._used_by = [_linears_used(block, all_linears(source)) for block in source.blocks]
        # Two micro-batches at least, so that half of the text can be had, and not too many logits at once.
        vocabulary = vocabulary_size(source.model)
        tokens = min(MICRO_BATCH_TOKENS.get(self.device.type) or held_BL.numel(), held_BL.numel() // 2)
        self.batches = micro_batches(held_BL, self.device, max(1, min(tokens, LOGITS_AT_ONCE // vocabulary)))
        self.likely: list[Likely] = list(likely or [])
        if not self.likely:
            self.likely = [(torch.empty(0), torch.empty(0))] * len(self.batches)
            for _ in walk_blocks(source, self.batches, self._keep_likely):
                pass

    def scored(self, batches: int | None = None) -> int:
        """Number of positions with a next token, in the first few micro-batches or all."""
        return sum(tokens_BL.shape[0] * (tokens_BL.shape[1] - 1) for tokens_BL in self.batches[:batches])

    def divergence(self, changed: Callable[[Linear], Tensor | None], batches: int | None = None) -> np.ndarray:
        """KL divergence (B,) of each sequence, nats a token, with other weights (R, C) where `changed` gives any.

        It is asked once for each block that uses a layer. `batches` uses the first few micro-batches only.
        """
        used = self.batches[:batches]
        found: list[np.ndarray] = [np.empty(0)] * len(used)

        def judge(index: int, logits_BLV: Tensor) -> None:
            found[index] = self._divergences(index, logits_BLV).reshape(len(logits_BLV), -1).mean(1)

        replaced: dict[Linear, Tensor] = {}
        steps = walk_blocks(self.source, used, judge)
        try:
            for block in steps:
                _restore(replaced)
                for linear in self._used_by[block]:
                    if (weight_RC := changed(linear)) is not None:
                        replaced[linear] = linear.exchange(torch.empty_like(linear.weight_RC).copy_(weight_RC))
        finally:
            steps.close()
            _restore(replaced)
        return np.concatenate(found)

    def gradient(self, index: int, logits_BLV: Tensor) -> Tensor:
        """Derivative by the logits of a micro-batch's divergence, summed over positions: of their shape and dtype, 0
        where a position is not scored."""
        gradient_BLV = torch.zeros_like(logits_BLV)
        flat = []
        for logits_TV, token_TK, dense_TK in self._compared(index, logits_BLV):
            own_TV = logits_TV.softmax(-1)
            own_TK = own_TV.gather(1, token_TK)
            rest_T, own_rest_T = _rest(dense_TK), _rest(own_TK.log())
            part_TV = own_TV * (1 - rest_T / own_rest_T)[:, None]  # for all tokens that are not among the likely
            part_TV.scatter_(1, token_TK, own_TK - dense_TK.exp())
            flat.append(part_TV.to(gradient_BLV.dtype))
        gradient_BLV[:, :-1] = torch.cat(flat).reshape(gradient_BLV[:, :-1].shape)
        return gradient_BLV

    def _keep_likely(self, index: int, logits_BLV: Tensor) -> None:
        tokens, logs = [], []
        for logits_TV in _parts(logits_BLV):
            log_TV = logits_TV.float().log_softmax(-1)
            if not torch.isfinite(log_TV).all():
                raise AutopruneError(
                    "the logits of the unpruned model are not finite",
                    where=type(self.source.model).__name__,
                    remedy="try --dtype float32",
                )
            top = log_TV.topk(min(_TOP, log_TV.shape[-1]), dim=-1)
            tokens.append(top.indices.to(torch.int32))
            logs.append(top.values)
        self.likely[index] = torch.cat(tokens), torch.cat(logs)

    def _divergences(self, index: int, logits_BLV: Tensor) -> np.ndarray:
        """The divergence at each scored position, float64."""
        found = []
        for logits_TV, token_TK, dense_TK in self._compared(index, logits_BLV):
            own_TK = logits_TV.gather(1, token_TK) - logits_TV.logsumexp(-1, keepdim=True)
            rest_T, own_rest_T = _rest(dense_TK), _rest(own_TK)
            likely_T = (dense_TK.exp() * (dense_TK - own_TK)).sum(-1)
            found.append((likely_T + rest_T * (rest_T / own_rest_T).log()).cpu().numpy())
        return np.concatenate(found).astype(np.float64)

    def _compared(self, index: int, logits_BLV: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        token_TK, dense_TK = (part.to(logits_BLV.device) for part in self.likely[index])
        parts = zip(token_TK.split(TOKENS_AT_ONCE), dense_TK.split(TOKENS_AT_ONCE), strict=True)
        for logits_TV, (tokens, logs) in zip(_parts(logits_BLV), parts, strict=True):
            yield logits_TV.float(), tokens.long(), logs


def _linears_used(block: nn.Module, linears: Sequence[Linear]) -> list[Linear]:
    """The linear layers whose weights a block uses, also those it shares with an earlier block."""
    used = users(block)
    return [linear for linear in linears if linear.key in used]


def _parts(logits_BLV: Tensor) -> tuple[Tensor, ...]:
    """The logits of all positions with a next token, a few positions at a time."""
    return logits_BLV[:, :-1].flatten(0, 1).split(TOKENS_AT_ONCE)


def _rest(log_TK: Tensor) -> Tensor:
    """Probability of all other tokens; never zero, so that its logarithm is finite."""
    return (1 - log_TK.exp().sum(-1)).clamp(min=1e-6)


def _restore(replaced: dict[Linear, Tensor]) -> None:
    while replaced:
        linear, weight = replaced.popitem()
        linear.exchange(weight)
