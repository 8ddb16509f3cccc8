"""Gradients of the language-model loss by every prunable weight, one sequence at a time in effect, not in cost; and by
the outputs of the layers.

The gradient by a linear layer's weight is a sum over tokens of output gradient times input. Of a micro-batch of several
sequences one backward pass gives both for all tokens, and each sequence has its own sum: sequences do not interact.
Where they cannot be told apart (a layer receives tokens without their sequences, as OPT's and experts do, or a weight
is used twice) micro-batches are single sequences.

Memory: the inputs of all blocks for one micro-batch, the activations of one block, and 4 bytes for every weight where
gradients by weights are asked for.

Legend: B sequences, L tokens per sequence, T tokens, V vocabulary, R output rows, C input columns.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autoprune.backward import LOGITS_AT_ONCE, TOKENS_AT_ONCE, backward, recomputing
from autoprune.errors import AutopruneError
from autoprune.language.statistics import GRADIENT, GRADIENTS, OUTPUT_GRADIENT
from autoprune.memory import reuse_freed_memory
from autoprune.models import BlockSource, Linear, all_linears, input_device, users, vocabulary_size
from autoprune.progress import Progress
from autoprune.statistics import Gradient, bfloat16_products
from autoprune.stream import micro_batches

_PRODUCTS_AT_ONCE = 1 << 24
"""Elements of gradients that are there at once: of several sequences by one weight, one sequence at least; of tokens
by outputs."""


def loss_gradients(
    source: BlockSource,
    collects: frozenset[str],
    tokens_BL: Tensor | None,
    progress: Progress,
    micro_batch_tokens: int | None = None,
) -> dict[str, Gradient]:
    """By name of the linear layer, those of the statistics `gradient` and `output_gradient` that are in `collects`;
    empty where neither is.

    The loss of a sequence is the mean cross-entropy of its L - 1 next tokens. The model is left as it was.
    """
    wanted = GRADIENTS & collects
    if not wanted:
        return {}
    assert tokens_BL is not None
    device = input_device(source.model)
    if device.type == "cpu":
        reuse_freed_memory()
    progress.stage("gradients of the loss", len(tokens_BL))
    collector = _Collector(source, wanted)
    most = max(1, LOGITS_AT_ONCE // (vocabulary_size(source.model) * tokens_BL.shape[1]))
    waiting = [part for batch in micro_batches(tokens_BL, device, micro_batch_tokens) for part in batch.split(most)]
    with recomputing(source) as stack:
        collector.attach(stack)
        while waiting:
            try:
                collector.add(waiting[0])
            except _Inseparable:
                waiting = [tokens_1L for batch in waiting for tokens_1L in batch.split(1)]
                continue
            progress.advance(len(waiting.pop(0)))
    return collector.result(sequences=len(tokens_BL), scored=tokens_BL.shape[1] - 1)


class _Inseparable(Exception):
    """The gradients of the sequences of a micro-batch cannot be told apart."""


class _Collector:
    """Runs micro-batches forward and backward and sums what they say about each weight."""

    def __init__(self, source: BlockSource, wanted: frozenset[str]):
        self.model = source.model
        self.sums = [_Sum(linear, wanted) for linear in all_linears(source)]
        self.shape = torch.Size()  # of this micro-batch: sequences, tokens per sequence
        self.forward = False  # whether it is on its way forward for the first time, not recomputed
        # What depends on a tensor that requires a gradient has a backward pass, though no parameter requires one.
        self.anchor = torch.zeros((), requires_grad=True)

    def attach(self, stack: ExitStack) -> None:
        used_by = users(self.model)
        for total in self.sums:
            for same in used_by[total.linear.key]:
                stack.enter_context(same.replaced(_Tapped(self, total, same, same.forward)))

    def add(self, tokens_BL: Tensor) -> None:
        def gradient(logits_BLV: Tensor) -> Tensor:
            self.forward = False
            return _loss_gradient(logits_BLV, tokens_BL.to(logits_BLV.device))

        for total in self.sums:
            total.uses, total.seen, total.unsquared_RC = 0, 0, None
        self.shape, self.forward = tokens_BL.shape, True
        backward(self.model, tokens_BL, gradient)
        for total in self.sums:
            total.finish()

    def arrive(self, total: _Sum, x: Tensor) -> None:
        """A layer is about to compute."""
        if self.forward:
            total.uses += 1
            total.seen += x.shape[:-1].numel()
            separable = total.uses == 1 and x.ndim > 2 and x.shape[:2] == self.shape
            if total.squares_RC is not None and self.shape[0] > 1 and not separable:
                raise _Inseparable

    def result(self, sequences: int, scored: int) -> dict[str, Gradient]:
        found = {}
        for total in self.sums:
            rms = {}
            for name, squares, count in (
                (GRADIENT, total.squares_RC, sequences),
                (OUTPUT_GRADIENT, total.squares_R1, max(total.tokens, 1)),
            ):
                if squares is None:
                    continue
                rms[name] = squares.div_(count).sqrt_().div_(scored) if total.tokens else torch.ones_like(squares)
                if not torch.isfinite(rms[name].max()):
                    raise AutopruneError(
                        "the gradient of the loss is not finite", where=total.linear.name, remedy="try --dtype float32"
                    )
            found[total.linear.name] = Gradient(total.tokens, **rms)
        return found


class _Sum:
    """Sums of squared gradients: over sequences, by one weight, float32 (R, C); over tokens, by its outputs (R, 1).

    `uses` counts how often the micro-batch uses the weight, `seen` with how many tokens. Where that is more than once,
    the gradients by the weight add up in `unsquared_RC` first.
    """

    def __init__(self, linear: Linear, wanted: frozenset[str]):
        self.linear, self.tokens = linear, 0
        R, C = linear.shape
        device = linear.weight_RC.device
        self.squares_RC = torch.zeros(R, C, device=device) if GRADIENT in wanted else None
        self.squares_R1 = torch.zeros(R, 1, device=device) if OUTPUT_GRADIENT in wanted else None
        self.uses, self.seen = 0, 0
        self.unsquared_RC: Tensor | None = None

    def add_outputs(self, delta_TR: Tensor) -> None:
        """Count the gradients by outputs of T tokens."""
        if self.squares_R1 is not None:
            for part_TR in delta_TR.split(max(1, _PRODUCTS_AT_ONCE // delta_TR.shape[1])):
                self.squares_R1 += part_TR.float().square().sum(0)[:, None]

    def add(self, linear: Linear, x_BTC: Tensor, delta_BTR: Tensor) -> None:
        """Count the inputs of B sequences and the gradients by the outputs that `linear` made of them."""
        assert self.squares_RC is not None
        at_once = max(1, _PRODUCTS_AT_ONCE // linear.size)
        with bfloat16_products(torch.promote_types(x_BTC.dtype, delta_BTR.dtype) == torch.bfloat16):
            for x, delta in zip(x_BTC.split(at_once), delta_BTR.split(at_once), strict=True):
                for gradient_RC in linear.weight_gradients(x, delta):
                    if self.uses == 1:
                        self.squares_RC.addcmul_(gradient_RC, gradient_RC)
                    elif self.unsquared_RC is None:
                        self.unsquared_RC = gradient_RC
                    else:
                        self.unsquared_RC += gradient_RC

    def finish(self) -> None:
        self.tokens += self.seen
        if self.unsquared_RC is not None and self.squares_RC is not None:
            self.squares_RC.addcmul_(self.unsquared_RC, self.unsquared_RC)
            self.unsquared_RC = None


@dataclass(frozen=True)
class _Tapped:
    """Forward of a linear layer that takes down its input and, on the way back, the gradient by its output."""

    collector: _Collector
    total: _Sum
    linear: Linear
    forward: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        self.collector.arrive(self.total, x)
        return _Tap.apply(x, self.forward(x), self.collector.anchor, self)  # pyright: ignore[reportReturnType]

    def take(self, x: Tensor, delta: Tensor) -> None:
        self.total.add_outputs(delta.reshape(-1, delta.shape[-1]))
        if self.total.squares_RC is not None:
            B = self.collector.shape[0]
            self.total.add(self.linear, x.reshape(B, -1, x.shape[-1]), delta.reshape(B, -1, delta.shape[-1]))


class _Tap(torch.autograd.Function):
    """y as it is. Saved for the backward pass as autograd saves tensors, x is recomputed with its block."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, anchor: Tensor, tapped: _Tapped) -> Tensor:
        ctx.save_for_backward(x)
        ctx.tapped = tapped
        return y.clone()  # a view could not be changed in place, as models may do

    @staticmethod
    def backward(ctx: Any, *deltas: Tensor) -> tuple[None, Tensor, None, None]:
        ctx.tapped.take(*ctx.saved_tensors, *deltas)
        return None, deltas[0], None, None


def _loss_gradient(logits_BLV: Tensor, tokens_BL: Tensor) -> Tensor:
    """Derivative by the logits of the cross-entropy of all next tokens, summed, so that half precision does not lose
    small values: of the logits' shape and dtype."""
    gradient_BLV = torch.zeros_like(logits_BLV)
    for logits_LV, gradient_LV, tokens_L in zip(logits_BLV, gradient_BLV, tokens_BL, strict=True):
        parts = (tensor.split(TOKENS_AT_ONCE) for tensor in (logits_LV[:-1], gradient_LV[:-1], tokens_L[1:, None]))
        for logits_TV, gradient_TV, next_T1 in zip(*parts, strict=True):
            off_TV = logits_TV.float().softmax(-1)
            gradient_TV.copy_(off_TV.scatter_add_(1, next_T1, torch.full_like(next_T1, -1, dtype=off_TV.dtype)))
    return gradient_BLV
