"""Experts whose weights are fused into one parameter (E, R, C) or (E, C, R), each as a linear layer of its own.

The modules' own forward selects an expert's slice and multiplies tokens by it. While one of a module's experts is to be
computed by something else, the parameter is seen as a tensor subclass that knows which slice is which, and hands the
product to whoever asked for it. Names of architectures are not asked.

Legend: E experts, R output rows, C input columns, T tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autoprune.errors import AutopruneError

Compute = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Fused:
    """A parameter that holds the weights of several experts."""

    module: nn.Module
    attribute: str

    @property
    def parameter(self) -> Tensor:
        parameter = self.module._parameters[self.attribute]
        assert parameter is not None
        return parameter

    @property
    def is_transposed(self) -> bool:
        """Whether it is (E, C, R). Transformers' own experts say so; those that do not multiply all tokens by all
        experts at once, x @ weight, as Llama 4's do, but for `weight` alone, which is a stack of nn.Linear's."""
        known = getattr(self.module, "is_transposed", None)
        return bool(known) if known is not None else self.attribute != "weight"

    @staticmethod
    def of(module: nn.Module) -> list[Fused]:
        """The fused weights among a module's own parameters: stacks of as many matrices as it says it has experts."""
        counts = {value for name, value in vars(module).items() if "expert" in name and isinstance(value, int)}
        return [Fused(module, name) for name, parameter in module.named_parameters(recurse=False)
                if parameter.ndim == 3 and parameter.shape[0] in counts and min(parameter.shape[1:]) > 1]  # fmt: skip


@dataclass(frozen=True, eq=False)
class Expert:
    """One expert of a fused weight."""

    fused: Fused
    index: int

    @property
    def name(self) -> str:
        return f"{self.fused.attribute}.{self.index}"

    @property
    def parameter(self) -> Tensor:
        return self.fused.parameter

    @property
    def weight_RC(self) -> Tensor:
        weight = self.parameter.data[self.index]
        return weight.T if self.fused.is_transposed else weight

    @property
    def forward(self) -> Compute:
        """What computes the expert now."""
        view = self.fused.module.__dict__.get(self.fused.attribute)
        replaced = view.replaced.get(self.index) if view is not None else None
        return replaced or self.compute

    def compute(self, x: Tensor) -> Tensor:
        """The product with its weight. A bias is added elsewhere."""
        return nn.functional.linear(x, self.weight_RC)

    @contextmanager
    def replaced(self, forward: Compute) -> Iterator[None]:
        """Let something else compute the expert, given its tokens. Afterwards all is as it was."""
        module, attribute = self.fused.module, self.fused.attribute
        if attribute not in module.__dict__:
            _show(self.fused)
        view = module.__dict__[attribute]
        own = view.replaced.get(self.index)
        view.replaced[self.index] = forward
        try:
            yield
        finally:
            if own is not None:
                view.replaced[self.index] = own
            else:
                del view.replaced[self.index]
                if not view.replaced:
                    _hide(self.fused)


def _show(fused: Fused) -> None:
    """Let the module see a `_View`, and compute its experts one after another, as its own code says: the faster ways
    of transformers multiply by all at once."""
    module = fused.module
    module.__dict__[fused.attribute] = view = _View(fused)
    config: Any = module.__dict__.get("config")
    if getattr(config, "_experts_implementation", "eager") != "eager":
        view.config, module.__dict__["config"] = config, copy.copy(config)
        module.__dict__["config"]._experts_implementation = "eager"


def _hide(fused: Fused) -> None:
    view = fused.module.__dict__.pop(fused.attribute)
    if view.config is None:
        return
    others = [value for value in fused.module.__dict__.values() if isinstance(value, _View)]
    if others:  # the module goes back to its own ways with the last of them
        others[0].config = view.config
    else:
        fused.module.__dict__["config"] = view.config


def experts_of(module: nn.Module) -> list[Expert]:
    """The experts of a module, each with all its weights, one after another: the order in which they are called."""
    fused = Fused.of(module)
    count = max((each.parameter.shape[0] for each in fused), default=0)
    return [Expert(each, index) for index in range(count) for each in fused if index < each.parameter.shape[0]]


class _View(Tensor):
    """A fused weight as its module sees it while some experts are computed by something else."""

    fused: Fused
    replaced: dict[int, Compute]
    config: Any  # the module's own, where it has been given another

    @staticmethod
    def __new__(cls, fused: Fused) -> _View:
        made = fused.parameter.data.as_subclass(cls)
        made.fused, made.replaced, made.config = fused, {}, None
        return made

    def __init__(self, fused: Fused) -> None: ...

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        view = args[0] if args and isinstance(args[0], _View) else None
        if func is Tensor.__getitem__ and view is not None and (index := _as_int(args[1])) is not None:
            expert = Expert(view.fused, index)
            return _Slice.of(expert) if index in view.replaced else _plain(view)[index]
        if _name(func) == "bmm" and len(args) == 2 and isinstance(args[1], _View):
            return _all_at_once(args[0], args[1])
        return _plainly(func, args, kwargs or {})


class _Slice(Tensor):
    """The weight of one expert that something else computes."""

    expert: Expert

    @staticmethod
    def of(expert: Expert) -> _Slice:
        made = expert.parameter.data[expert.index].as_subclass(_Slice)
        made.expert = expert
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, _name(func)
        given = args[1] if len(args) > 1 else kwargs.get("weight")
        if isinstance(given, _Slice) and name in ("linear", "matmul", "mm", "__matmul__"):
            if given.expert.fused.is_transposed != (name != "linear"):
                raise AutopruneError(
                    f"its experts are multiplied in a way that is not known here ({name})",
                    where=type(given.expert.fused.module).__name__,
                    remedy="please report the model",
                )
            y = given.expert.forward(args[0])
            bias = args[2] if len(args) > 2 else kwargs.get("bias")
            return y if bias is None else y + bias
        return _plainly(func, args, kwargs)


def _all_at_once(x_ETC: Tensor, view: _View) -> Tensor:
    """bmm over the experts. Tokens that are all zero were sent to others: an expert does not see them."""
    outputs = []
    for index, x_TC in enumerate(x_ETC):
        expert = Expert(view.fused, index)
        sent = x_TC.any(-1)
        if index in view.replaced and sent.any():
            part = expert.forward(x_TC[sent])
            y_TR = part.new_zeros(len(x_TC), part.shape[-1])
            y_TR[sent] = part
            outputs.append(y_TR)
        else:
            outputs.append(expert.compute(x_TC))
    return torch.stack(outputs)


def _as_int(index: Any) -> int | None:
    if isinstance(index, int):
        return index
    return int(index) if isinstance(index, Tensor) and index.ndim == 0 and index.dtype == torch.int64 else None


def _plain(value: Any) -> Any:
    return value.as_subclass(Tensor) if isinstance(value, _View | _Slice) else value


def _plainly(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """A function as ordinary tensors have it."""
    with torch._C.DisableTorchFunctionSubclass():
        return func(*map(_plain, args), **{name: _plain(value) for name, value in kwargs.items()})


def _name(func: Any) -> str:
    return getattr(func, "__name__", "")
