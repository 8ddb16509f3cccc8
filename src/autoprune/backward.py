"""A backward pass through a whole model in little memory: each block keeps its input only and is computed again.

No parameter gets a gradient of its own: whoever wants a derivative replaces the forward of the modules it depends on.
Afterwards the model is as it was.

Legend: B sequences, L tokens per sequence, T scored tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from autoprune.models import BlockSource, input_device

TOKENS_AT_ONCE = 256
"""Positions whose logits are worked on in float32 at a time."""

LOGITS_AT_ONCE = 1 << 27
"""Logits of one micro-batch: they and their gradient are there whole."""


Replace = Callable[[nn.Module, Callable[..., Any]], None]


@contextmanager
def replacing_forward() -> Iterator[Replace]:
    """Gives a function that replaces a module's forward. At the end all is as it was."""
    own: dict[nn.Module, Any] = {}

    def replace(module: nn.Module, forward: Callable[..., Any]) -> None:
        own.setdefault(module, module.__dict__.get("forward"))
        module.__dict__["forward"] = forward

    try:
        yield replace
    finally:
        for module, forward in own.items():
            module.__dict__.pop("forward", None)
            if forward is not None:
                module.__dict__["forward"] = forward


@contextmanager
def recomputing(source: BlockSource) -> Iterator[Replace]:
    """Blocks are recomputed in the backward pass, and no parameter gets a gradient. Gives a function that replaces a
    module's forward. At the end all is as it was."""
    trainable = [parameter for parameter in source.model.parameters() if parameter.requires_grad]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        with replacing_forward() as replace:
            for block in set(source.blocks):
                replace(block, _Checkpointed(block.forward))
            yield replace
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
