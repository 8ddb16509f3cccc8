"""Streaming statistics of what a linear layer receives: running sums with an explicit token count.

Legend: T tokens, R output rows, C input columns. Splitting the tokens into other batches gives the same result.
Vector sums are kept in float64 (float32 where the device has no float64), the Gram matrix in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from autoprune.conditioning import DAMPING, unit_diagonal
from autoprune.process_wide import ProcessWide
from autoprune.ranks import Ranks

_CHUNK = 1 << 18
"""Elements converted to float32 at a time: what stays in a core's cache, and never a copy of a whole batch."""


_GRAM_TOKENS = 4096  # in one matrix product
_GRAM_COLUMNS = 256  # of its narrower side, at least


def _medium_precision() -> Callable[[], None]:
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # the caller has set precisions by backend, and torch refuses to mix both ways
        return lambda: None
    torch.set_float32_matmul_precision("medium")
    return partial(torch.set_float32_matmul_precision, before)


_MEDIUM = ProcessWide(_medium_precision)


def bfloat16_products(allowed: bool = True) -> AbstractContextManager[None]:
    """Let products of float32 round their factors to bfloat16 where that is faster (with AMX three times), in all
    threads; sums are float32 all the same. Where factors have been bfloat16 anyway nothing is lost."""
    return _MEDIUM.held() if allowed else nullcontext()


def add_upper_gram_(gram_CC: Tensor, x_TC: Tensor) -> None:
    """Add X^T X on and above the diagonal (and a little below it): little more than half of the work."""
    columns = len(gram_CC)
    width = max(_GRAM_COLUMNS, -(-columns // 8))
    for left in range(0, columns, width):
        right = left + width
        gram_CC[left:right, left:].addmm_(x_TC[:, left:right].T, x_TC[:, left:])


class InputStatistics:
    """What one stream of inputs looked like. Layers that read the same input share one object.

    Before any token was added every statistic is neutral (unit norm, identity Gram matrix), so that a layer no
    token reached is scored by its weights alone.
    """

    def __init__(self, collects: Iterable[str], columns: int, device: torch.device, *, lacking: int = 0):
        collects = frozenset(collects)
        self._wide = wide = torch.float32 if device.type == "mps" else torch.float64
        self.tokens = 0
        self.additions = 0  # calls of `add`, empty ones included
        self.columns, self.device = columns, device
        self._sum_C = torch.zeros(columns, dtype=wide, device=device) if "sum" in collects else None
        self._squares_C = torch.zeros(columns, dtype=wide, device=device) if "sum_of_squares" in collects else None
        self._max_C = torch.zeros(columns, device=device) if "max" in collects else None
        self._gram_CC = torch.zeros(columns, columns, device=device) if "gram" in collects else None
        self._dense_CC = torch.zeros(columns, columns, device=device) if "dense_gram" in collects else None
        self._dense_tokens = self._lack_tokens = 0
        self._lack_RC = torch.zeros(lacking, columns, device=device) if lacking and "dense_gram" in collects else None

    def add(self, input_TC: Tensor) -> None:
        """Count a batch of inputs, shape (..., C), any floating dtype."""
        self.additions += 1
        input_TC = input_TC.reshape(-1, self.columns)
        if len(input_TC) == 0:
            return
        self.tokens += input_TC.shape[0]
        # A standard deviation is the small difference of two large sums: those need more than float32.
        both = self._sum_C is not None and self._squares_C is not None
        for part_TC in input_TC.split(max(1, _CHUNK // self.columns)):
            x_TC = part_TC.to(self._wide if both else torch.float32)
            if self._sum_C is not None:
                self._sum_C += x_TC.sum(0)
            if self._squares_C is not None:
                self._squares_C += x_TC.square().sum(0)
            if self._max_C is not None:
                largest_C = torch.linalg.vector_norm(x_TC, torch.inf, dim=0).to(torch.float32)
                torch.maximum(self._max_C, largest_C, out=self._max_C)
        if self._gram_CC is not None:
            with bfloat16_products(input_TC.dtype == torch.bfloat16):
                for part_TC in input_TC.split(_GRAM_TOKENS):
                    add_upper_gram_(self._gram_CC, part_TC.float())

    def add_dense(self, dense_TC: Tensor, x_TC: Tensor) -> None:
        """Count the inputs that the unpruned model has at the same tokens as a batch that was added."""
        assert self._dense_CC is not None
        dense_TC, x_TC = (part.reshape(-1, self.columns) for part in (dense_TC, x_TC))
        self._dense_tokens += len(x_TC)
        with bfloat16_products(x_TC.dtype == torch.bfloat16):
            for dense_part, part in zip(dense_TC.split(_GRAM_TOKENS), x_TC.split(_GRAM_TOKENS), strict=True):
                self._dense_CC.addmm_(dense_part.float().T, part.float())

    def add_lack(self, dense_TR: Tensor, here_TR: Tensor, x_TC: Tensor) -> None:
        """Count the residual stream that the unpruned model has at the tokens of a batch that was added, and the one
        that there is."""
        if self._lack_RC is None:
            return
        device, rows = x_TC.device, self._lack_RC.shape[0]
        self._lack_tokens += x_TC.numel() // self.columns
        parts = (part.reshape(-1, width).split(_GRAM_TOKENS)
                 for part, width in ((dense_TR, rows), (here_TR, rows), (x_TC, self.columns)))  # fmt: skip
        with bfloat16_products(x_TC.dtype == torch.bfloat16):
            for dense_part, here_part, x_part in zip(*parts, strict=True):
                lack_part = dense_part.to(device).float() - here_part.to(device).float()
                self._lack_RC.addmm_(lack_part.T, x_part.float())

    def gather(self, ranks: Ranks) -> None:
        """Add what other processes have counted of the same layer."""
        for total in (self._sum_C, self._squares_C, self._gram_CC, self._dense_CC, self._lack_RC):
            if total is not None:
                ranks.add_(total)
        if self._max_C is not None:
            ranks.maximum_(self._max_C)
        counts = torch.tensor([self.tokens, self._dense_tokens, self._lack_tokens])
        ranks.add_(counts)
        self.tokens, self._dense_tokens, self._lack_tokens = counts.tolist()

    @cached_property
    def dense_gram(self) -> Tensor | None:
        """X_d^T X / T with X_d the inputs that the unpruned model has (C, C); None where they are not known."""
        if self._dense_CC is None or not self.tokens or self._dense_tokens != self.tokens:
            return None
        return self._dense_CC / self.tokens

    @property
    def lack(self) -> Tensor | None:
        """L^T X / T with L what the residual stream lacks against the unpruned model's (R, C); None where that is not
        known."""
        if self._lack_RC is None or not self.tokens or self._lack_tokens != self.tokens:
            return None
        return self._lack_RC / self.tokens

    def statistic(self, name: str, weight_RC: Tensor, depth: float) -> Tensor:
        """A statistic of `autoprune.language.STATISTICS` for one layer, but gradients and the sparsity, which inputs do
        not tell: float32, two-dimensional."""
        match name:
            case "weight":
                return weight_RC.float()
            case "depth":
                return torch.tensor([[depth]], device=weight_RC.device)
            case "output_norm":
                weight_RC = weight_RC.float()
                return (weight_RC @ self.gram * weight_RC).sum(1, keepdim=True).clamp_(min=0).sqrt_()
        return getattr(self, name)

    @property
    def error_known_by(self) -> str:
        """The statistic that `output_energy` uses."""
        if not self.tokens:
            return "weight"
        return "gram" if self._gram_CC is not None else "input_norm" if self._squares_C is not None else "weight"

    def output_energy(self, weight_rC: Tensor) -> Tensor:
        """Mean square (r,) of what some outputs are with these weights (r, C), float32: exactly, by the Gram matrix;
        else as if inputs were uncorrelated, by their norms; else as if they were all alike too."""
        match self.error_known_by:
            case "gram":
                return (weight_rC @ self.gram * weight_rC).sum(1)
            case "input_norm":
                return (weight_rC * self.input_norm).square().sum(1)
        return weight_rC.square().sum(1)

    # One property per input statistic, named as in the table; computed once, however many layers share it.

    @cached_property
    def input_norm(self) -> Tensor:
        return self._mean(self._squares_C, neutral=1.0).sqrt().float()[None, :]

    @cached_property
    def input_mean(self) -> Tensor:
        return self._mean(self._sum_C, neutral=0.0).float()[None, :]

    @cached_property
    def input_std(self) -> Tensor:
        mean_C = self._mean(self._sum_C, neutral=0.0)
        return (self._mean(self._squares_C, neutral=1.0) - mean_C.square()).clamp(min=0).sqrt().float()[None, :]

    @cached_property
    def input_max(self) -> Tensor:
        assert self._max_C is not None
        return (self._max_C if self.tokens else torch.ones_like(self._max_C))[None, :]

    @cached_property
    def gram(self) -> Tensor:
        assert self._gram_CC is not None
        if not self.tokens:
            return torch.eye(self.columns, device=self.device)
        upper_CC = self._gram_CC.triu()
        return (upper_CC + upper_CC.triu(1).T).div_(self.tokens)

    @cached_property
    def inverse_gram_diagonal(self) -> Tensor:
        return damped_inverse_diagonal(self.gram)[None, :]

    def _mean(self, total_C: Tensor | None, neutral: float) -> Tensor:
        assert total_C is not None, "the program names a statistic that was not collected"
        return total_C / self.tokens if self.tokens else torch.full_like(total_C, neutral)


@dataclass(frozen=True)
class Gradient:
    """Root mean squares of the gradient of a sequence's loss, as far as they were asked for: over sequences, by the
    weight of a layer, float32 (R, C); over tokens, by its outputs, float32 (R, 1).

    `tokens` is how many reached the layer; where none did the gradients are neutral too: ones.
    """

    tokens: int
    gradient: Tensor | None = None
    output_gradient: Tensor | None = None


def damped_inverse_diagonal(gram_CC: Tensor) -> Tensor:
    """Diagonal (C,) of (G + d diag G)^-1 with d = DAMPING, raised tenfold until Cholesky succeeds.

    NaN where G is not finite.
    """
    if gram_CC.diagonal().mean() <= 0:  # no input was ever active
        return torch.ones(len(gram_CC), device=gram_CC.device)
    if not torch.isfinite(gram_CC).all():
        return torch.full((len(gram_CC),), torch.nan, device=gram_CC.device)
    damping = DAMPING
    while True:
        scaled_CC, scale_C = unit_diagonal(gram_CC, damping)
        factor_CC, failed = torch.linalg.cholesky_ex(scaled_CC)
        if not failed:
            break
        damping *= 10
    identity_CC = torch.eye(len(gram_CC), device=gram_CC.device)
    inverse_factor_CC = torch.linalg.solve_triangular(factor_CC, identity_CC, upper=False)
    return inverse_factor_CC.square().sum(0) / scale_C.square()
