"""The decoder blocks of a model and the linear layers in them, found by structure, not by names of architectures.

Legend: R output rows, C input columns of a linear layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from autoprune.errors import AutopruneError
from autoprune.models.experts import Fused
from autoprune.models.facts import fingerprint
from autoprune.models.linears import Linear, find_linears, is_linear, replaced_forward


class BlockSource(Protocol):
    """Access to the decoder blocks of a model; a block's weights are only touched between `load` and `release`."""

    model: nn.Module
    blocks: Sequence[nn.Module]
    skipped: dict[str, str]

    def load(self, index: int, *, unpruned: bool = False) -> None:
        """Make the weights of block `index` present on the device it computes on; as they were before, if it has been
        pruned and is to be `unpruned`."""

    def release(self, index: int) -> None:
        """Block `index` is not needed any more for now: its weights may be dropped."""

    def linears(self, index: int) -> list[Linear]:
        """The prunable linear layers of block `index`, in the order in which they are called, as far as known."""
        ...

    def stored(self, linear: Linear) -> torch.dtype:
        """The dtype of a weight in the checkpoint: what a pruned one is rounded to."""
        ...

    def fingerprint(self) -> str:
        """What tells the weights of this model from others."""
        ...


def all_linears(source: BlockSource) -> list[Linear]:
    """Every prunable layer of the model, block by block."""
    return [linear for index in range(len(source.blocks)) for linear in source.linears(index)]


@contextmanager
def loading(source: BlockSource) -> Iterator[None]:
    """Whenever a block computes in this context, it is loaded before, and released when another one computes: a
    backward pass reads the weights of the block that was computed last."""
    held: list[int] = []

    def compute(index: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if held != [index]:
            source.load(index)
            drop()
            held.append(index)
        return forward(*args, **kwargs)

    def drop() -> None:
        while held:
            source.release(held.pop())

    with ExitStack() as stack:
        stack.callback(drop)
        for block, index in {block: index for index, block in enumerate(source.blocks)}.items():
            stack.enter_context(replaced_forward(block, partial(compute, index, block.forward)))
        yield


class InMemoryBlocks:
    """The blocks of a model that is whole in memory: nothing to load, nothing to release.

    `skipped` names the matrices inside blocks that are not pruned, with the reason. `stored_dtype` is that of the
    checkpoint, if it is another than the model has.
    """

    def __init__(self, model: nn.Module, stored_dtype: torch.dtype | None = None):
        self.model, self._stored = model, stored_dtype
        structure = Structure.of(model)
        self.blocks: Sequence[nn.Module] = structure.blocks
        self.skipped, self._linears = structure.skipped, structure.linears

    def load(self, index: int, *, unpruned: bool = False) -> None:
        assert not unpruned

    def release(self, index: int) -> None:
        pass

    def linears(self, index: int) -> list[Linear]:
        return self._linears[index]

    def stored(self, linear: Linear) -> torch.dtype:
        return self._stored or linear.weight_RC.dtype

    def fingerprint(self) -> str:
        return fingerprint(self.model)


@dataclass
class Structure:
    """The decoder blocks of a model with their prunable linear layers, and the matrices inside them that are not
    pruned, by name with the reason."""

    path: str
    blocks: list[nn.Module]
    linears: list[list[Linear]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module) -> Structure:
        made = cls(*find_blocks(model))
        owner: dict[tuple[Tensor, int], str] = {}  # weights that blocks share are pruned once, in the first
        for index, block in enumerate(made.blocks):
            prefix = f"{made.path}.{index}"
            made.skipped |= _skipped(block, prefix)
            reasons = _not_pruned(block)
            made.linears.append([])
            for linear in find_linears(block, prefix, index):
                first = owner.setdefault(linear.key, linear.name)
                if linear.module in reasons:
                    made.skipped[linear.name] = reasons[linear.module]
                elif first != linear.name:
                    made.skipped[linear.name] = f"shares the weight of {first}"
                else:
                    made.linears[-1].append(linear)
        if not any(made.linears):
            raise _without_blocks(model)
        for linear in find_linears(model, "", 0):
            if not linear.name.startswith(f"{made.path}."):
                made.skipped[linear.name] = "it is outside the decoder blocks"
        return made


def find_blocks(model: nn.Module) -> tuple[str, list[nn.Module]]:
    """Name and members of the decoder block list: the outermost ModuleList that holds the most linear weights."""
    best = (0, "", nn.ModuleList())
    outermost: list[str] = []
    start, tower = language_tower(model)
    for name, module in tower.named_modules(prefix=start):
        if not isinstance(module, nn.ModuleList) or any(name.startswith(f"{outer}.") for outer in outermost):
            continue
        outermost.append(name)
        size = sum(linear.size for linear in find_linears(module, name, 0))
        best = max(best, (size, name, module), key=lambda entry: entry[0])
    size, name, blocks = best
    if size == 0:
        raise _without_blocks(model)
    return name, list(blocks)


def language_tower(model: nn.Module) -> tuple[str, nn.Module]:
    """Name and module of the part that has the text configuration; of a plain language model, the whole."""
    config: Any = getattr(model, "config", None)
    text = config.get_text_config(decoder=True) if config is not None else None
    if text is not config:
        for name, module in model.named_modules():
            if getattr(module, "config", None) is text and any(isinstance(m, nn.ModuleList) for m in module.modules()):
                return name, module
    return "", model


def _without_blocks(model: nn.Module) -> AutopruneError:
    return AutopruneError("has no list of decoder blocks with linear layers", where=type(model).__name__)


def _not_pruned(block: nn.Module) -> dict[nn.Module, str]:
    """The linear modules of a block that are left alone, with the reason."""
    reasons = {}
    for parent in block.modules():
        children = dict(parent.named_children())
        counts = {_experts_in(child) for child in children.values()} - {0}
        for child in children.values():
            if not is_linear(child):
                continue
            R, C = Linear("", child, 0).shape
            if R in counts:
                reasons[child] = "it chooses among experts (a router)"
            elif min(R, C) == 1:
                reasons[child] = "it has a single row or column"
    return reasons


def _experts_in(module: nn.Module) -> int:
    """How many experts a module holds side by side; 0 where it is something else."""
    if isinstance(module, nn.ModuleList):
        holds_linears = len(module) > 1 and all(any(map(is_linear, each.modules())) for each in module)
        return len(module) if holds_linears else 0
    return max((fused.parameter.shape[0] for fused in Fused.of(module)), default=0)


def _skipped(block: nn.Module, prefix: str) -> dict[str, str]:
    """Matrices of a block that are not linear layers, with the reason."""
    skipped = {}
    for module_name, module in block.named_modules():
        if is_linear(module):
            continue
        fused = {fused.attribute for fused in Fused.of(module)}
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim >= 2 and name not in fused and not name.endswith("bias"):
                where = f"{prefix}.{module_name}".rstrip(".")
                skipped[f"{where}.{name}"] = f"{type(module).__name__} is not a linear layer"
    return skipped
