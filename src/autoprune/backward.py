"""A backward pass through a whole model in little memory: each block keeps its input only and is computed again.

No parameter gets a gradient of its own: whoever wants a derivative replaces the forward of the modules it depends on.
Afterwards the model is as it was.

Legend: B sequences, L tokens per sequence, T scored tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from autoprune.models import BlockSource, input_device, loading, replaced_forward

TOKENS_AT_ONCE = 256
"""Positions whose logits are worked on in float32 at a time."""

LOGITS_AT_ONCE = 1 << 27
"""Logits of one micro-batch: they and their gradient are there whole."""


@contextmanager
def recomputing(source: BlockSource) -> Iterator[ExitStack]:
    """Blocks are loaded when they compute, and computed again in the backward pass; no parameter gets a gradient. What
    enters the stack ends with it. At the end all is as it was."""
    trainable = [parameter for parameter in source.model.parameters() if parameter.requires_grad]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        with loading(source), ExitStack() as stack:
            for block in set(source.blocks):
                stack.enter_context(replaced_forward(block, _Checkpointed(block.forward)))
            yield stack
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def backward(model: Any, tokens_BL: Tensor, gradient: Callable[[Tensor], Tensor]) -> None:
    """Forward and backward. `gradient` is told the logits (B, L, V) in between, and gives the derivative by them."""
    with torch.enable_grad():
        logits_BLV = model(input_ids=tokens_BL.to(input_device(model)), use_cache=False).logits
        logits_BLV.backward(gradient(logits_BLV.detach()))


class _Checkpointed:
    """Forward of a block that keeps its input only and computes the rest again in the backward pass."""

    def __init__(self, forward: Callable[..., Any]):
        self.forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return checkpoint(self.forward, *args, use_reentrant=False, **kwargs)
