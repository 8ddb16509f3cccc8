"""Which layers of a block write into the residual stream: found by arithmetic, not by names of architectures.

Legend: T tokens, R output rows of a layer, which are as many as the stream is wide.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

K = TypeVar("K")

_TOKENS = 64  # that are looked at
_ROUNDINGS = 1  # of the dtype: what a sum of few terms may be off by, on average; real models are off by an eighth
_SHARE = 0.1  # of what a block adds: more than that must not be left unexplained, however coarse the dtype
_NEARLY = 0.01  # factors as near as this to 1 are 1
_APART = 1e-6  # least eigenvalue of the outputs' correlations for them to be told from each other


def some_tokens(output: Tensor) -> Tensor:
    """A copy (T, R) of what is at a few tokens, far apart."""
    output_TR = output.reshape(-1, output.shape[-1])
    return output_TR[:: max(1, len(output_TR) // _TOKENS)].to("cpu", copy=True)


@contextmanager
def parts_of(block: nn.Module, seen: list[tuple[Any, Tensor]]) -> Iterator[None]:
    """In this context what the modules of a block give is added to `seen`, as (None, some of it)."""

    def see(module: nn.Module, args: Any, output: Any) -> None:
        output = output[0] if isinstance(output, tuple) else output
        if isinstance(output, Tensor) and output.ndim:
            seen.append((None, some_tokens(output)))

    with ExitStack() as stack:
        for module in block.children():
            stack.callback(module.register_forward_hook(see).remove)
        yield


def writers(entering_TR: Tensor, outputs: Sequence[tuple[K | None, Tensor]], leaving_TR: Tensor) -> dict[K, float]:
    """The layers whose outputs are added to what enters a block, with their factors, in the order in which they run.

    `outputs` has some of what each layer gives, by layer, and of what other modules give, with None, which are asked
    where layers alone do not explain the sum, as with experts. What runs after such a module is left out.
    """
    fitting = [(layer, output_TR) for layer, output_TR in outputs if output_TR.shape == entering_TR.shape]
    layers = [(layer, output_TR) for layer, output_TR in fitting if layer is not None]
    known = [output_TR for _, output_TR in layers]
    whole = [(layer, output_TR) for layer, output_TR in fitting
             if layer is not None or not any(torch.equal(output_TR, other_TR) for other_TR in known)]  # fmt: skip
    for tried in (layers, whole):
        found = factors(entering_TR, [output_TR for _, output_TR in tried], leaving_TR)
        if any(found):
            break
    else:
        return {}
    made: dict[K, float] = {}
    for (layer, _), factor in zip(tried, found, strict=True):
        if factor and layer is None:
            break
        if factor and layer is not None:
            made[layer] = factor
    return made


def factors(entering_TR: Tensor, outputs: Sequence[Tensor], leaving_TR: Tensor) -> list[float]:
    """By what factor each output (T, R) is added to what enters a block, so that the sum is what leaves it; zeros where
    there are no such factors, as where a norm or experts stand between. What adds less than is left unexplained adds
    nothing."""
    none = [0.0] * len(outputs)
    if not outputs or entering_TR.shape != leaving_TR.shape:
        return none
    entering, leaving, *added = (some.double().flatten() for some in (entering_TR, leaving_TR, *outputs))
    # Each number counts as much as it is exact: some channels are a thousand times the others.
    weight = entering.abs() + leaving.abs() + sum(some.abs() for some in added)
    weight = torch.where(weight > 0, 1 / weight, 0.0)
    goal = (leaving - entering) * weight
    columns = torch.stack([some * weight for some in added])
    norm = torch.linalg.vector_norm(columns, dim=1)
    columns /= torch.where(norm > 0, norm, 1.0)[:, None]
    alike = columns @ columns.T + torch.diag((norm == 0).double())
    if not torch.isfinite(alike).all() or torch.linalg.eigvalsh(alike)[0] < _APART:
        return none
    parts = torch.linalg.solve(alike, columns @ goal)  # how much each output adds
    left = torch.linalg.vector_norm(goal - parts @ columns)
    found = torch.where(parts.abs() > left, parts / torch.where(norm > 0, norm, torch.inf), 0.0)
    found = torch.where((found - 1).abs() < _NEARLY, 1.0, found)
    left, whole = (part.square().mean().sqrt() for part in (goal - (found * norm) @ columns, goal))
    explained = left <= _ROUNDINGS * torch.finfo(leaving_TR.dtype).eps and left <= _SHARE * whole
    return found.tolist() if explained else none
