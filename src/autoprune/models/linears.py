"""A prunable linear layer, as everything else sees it: a module, or a single expert of a fused weight.

Legend: R output rows, C input columns of a linear layer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from autoprune.models.experts import Compute, Expert, experts_of


@dataclass(frozen=True)
class Linear:
    """A prunable linear layer: its full name, its module, the index of its block; and, where it is one expert of a
    weight that holds several, which."""

    name: str
    module: nn.Module
    block: int
    expert: Expert | None = None

    @property
    def weight_RC(self) -> Tensor:
        """The live weight as output rows by input columns (a view, also where the module stores it transposed)."""
        if self.expert:
            return self.expert.weight_RC
        weight = self.parameter.data
        return weight.T if isinstance(self.module, Conv1D) else weight

    @property
    def parameter(self) -> Tensor:
        """The weight as the module stores it; of an expert, the one it shares with others."""
        weight = self.expert.parameter if self.expert else self.module.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def key(self) -> tuple[Tensor, int]:
        """What two layers have in common that share a weight."""
        return self.parameter, self.expert.index if self.expert else 0

    def exchange(self, weight_RC: Tensor) -> Tensor:
        """Put another weight in place of the live one, and get that."""
        if self.expert:
            was_RC = self.weight_RC.clone()
            self.weight_RC.copy_(weight_RC)
            return was_RC
        was_RC = self.weight_RC
        self.parameter.data = weight_RC.T if isinstance(self.module, Conv1D) else weight_RC
        return was_RC

    @property
    def forward(self) -> Compute:
        """What computes the layer now."""
        return self.expert.forward if self.expert else self.module.forward

    @contextmanager
    def replaced(self, forward: Compute) -> Iterator[None]:
        """Let something else compute the layer, given its input."""
        with self.expert.replaced(forward) if self.expert else replaced_forward(self.module, forward):
            yield

    def compute(self, x: Tensor, weight_RC: Tensor, *, bias: bool = True) -> Tensor:
        """What the layer's own forward gives with another weight, and with its bias or without."""
        if self.expert:
            return nn.functional.linear(x, weight_RC)  # experts' biases are added elsewhere
        module = copy.copy(self.module)
        module.__dict__.pop("forward", None)
        module._parameters = {name: None if name == "bias" and not bias else value
                              for name, value in module._parameters.items() if name != "weight"}  # fmt: skip
        module.__dict__["weight"] = weight_RC.T if isinstance(module, Conv1D) else weight_RC
        if not bias and isinstance(module, Conv1D):  # its forward cannot do without
            return nn.functional.linear(x, weight_RC)
        forward: Callable[..., Tensor] = type(module).forward
        return forward(module, x)

    def weight_gradients(self, x_BTC: Tensor, delta_BTR: Tensor) -> Tensor:
        """Gradient by the weight for each of B inputs on its own: float32 (B, R, C), `delta_BTR` by the output."""
        x_BTC, delta_BTR = x_BTC.float(), delta_BTR.float()
        if self.is_plain:
            return delta_BTR.mT @ x_BTC
        weight_RC = self.weight_RC.float().detach().requires_grad_()
        with torch.enable_grad():
            outputs = [self.compute(x_TC, weight_RC, bias=False) for x_TC in x_BTC]
        pairs = zip(outputs, delta_BTR, strict=True)
        return torch.stack([torch.autograd.grad(y_TR, weight_RC, delta_TR)[0] for y_TR, delta_TR in pairs])

    @property
    def is_plain(self) -> bool:
        """Whether it computes weight @ x + bias and nothing else."""
        return self.expert is not None or type(self.module).forward in (nn.Linear.forward, Conv1D.forward)

    @property
    def shape(self) -> tuple[int, int]:
        R, C = self.weight_RC.shape
        return R, C

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.weight_RC.numel()


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let something else compute a module. Afterwards it is as it was."""
    own = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        module.__dict__.pop("forward", None)
        if own is not None:
            module.__dict__["forward"] = own


def is_linear(module: nn.Module) -> bool:
    """Whether a module is one of those that are pruned."""
    return isinstance(module, nn.Linear | Conv1D)


def find_linears(block: nn.Module, prefix: str, index: int) -> list[Linear]:
    """All nn.Linear and Conv1D modules below a block, and the experts of fused weights, in order of definition."""
    found = []
    for path, module in block.named_modules():
        name = f"{prefix}.{path}".strip(".")
        if is_linear(module):
            found.append(Linear(name, module, index))
        else:
            found += [Linear(f"{name}.{expert.name}", module, index, expert) for expert in experts_of(module)]
    return found


def users(root: nn.Module) -> dict[tuple[Tensor, int], list[Linear]]:
    """The linear layers at or below `root` that use each weight, by `Linear.key`: several, where it is shared."""
    found: dict[tuple[Tensor, int], list[Linear]] = {}
    for linear in find_linears(root, "", 0):
        found.setdefault(linear.key, []).append(linear)
    return found
