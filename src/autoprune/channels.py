"""Where the input channels of a linear layer may be permuted for free, and folding such permutations into the model.

The order of a layer's inputs is free where all of them come from linear layers whose outputs nothing else reads, by a
function that treats channels alike, as in down(silu(gate(x)) * up(x)): then the rows of those layers are permuted along
with the columns of this one, and the model computes what it did. Names of architectures are not asked. In a run on a
few tokens every linear layer gives noise instead of its output; the graph that autograd keeps tells whose noise reaches
which input. Then the noise before all candidates is permuted and run again: their inputs must come out permuted in the
same way, all others and the logits as they were. What commutes with two random permutations commutes with all even
ones, since two almost surely generate them (Dixon, 1969).

Legend: B sequences, L tokens, V vocabulary, R output rows, C input columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from autoprune.errors import AutopruneError
from autoprune.models import (
    BlockSource,
    Linear,
    all_linears,
    context_length,
    input_device,
    is_linear,
    loading,
    replaced_forward,
    vocabulary_size,
)

_TOKENS = 48  # enough to reach each of a few dozen experts
_PERMUTATIONS = 2

READ_ELSEWHERE = "its inputs are the residual stream, or something else reads them too"
MIXED = "its inputs are not elementwise functions of linear layers' outputs, as where attention mixes them"
NOT_PLAIN = "it, or a linear layer before it, shares weights, is used twice, or has a forward of its own"
FUSED = "it is one of several experts in one parameter"
NOT_REACHED = "no token reached it in the trial that looks for free permutations"


@dataclass(frozen=True)
class Channels:
    """Linear layers whose input channels may be permuted for free, each with those before it, whose rows are permuted
    along; and for all others the reason why not."""

    before: Mapping[Linear, list[Linear]] = field(default_factory=dict)
    refused: Mapping[Linear, str] = field(default_factory=dict)

    def require_any(self) -> None:
        """Refuse a model where no permutation is free."""
        if not self.before:
            reasons = sorted(set(self.refused.values()))
            raise AutopruneError(
                f"refine=permute is free for no layer of this model: {' / '.join(reasons)}",
                remedy="use refine none or swaps",
            )


def free_channels(source: BlockSource) -> Channels:
    """Which prunable layers of a model in evaluation mode may have their inputs permuted. Changes nothing."""
    trial = _Trial(source)
    dense = trial.run({})
    read_by = {module: dense.graph.makers(node) for module, node in dense.node.items()}
    once, twice = 0, 0
    for makers in (*read_by.values(), dense.graph.makers(dense.end)):
        once, twice = once | makers, twice | once & makers

    before: dict[nn.Module, list[nn.Module]] = {}
    refused: dict[nn.Module, str] = {}
    for module in trial.linears:
        makers = read_by.get(module)
        if makers is None:
            refused[module] = NOT_REACHED
        elif not makers or makers & twice:
            refused[module] = READ_ELSEWHERE
        else:
            before[module] = [maker for index, maker in enumerate(trial.linears) if makers >> index & 1]

    def refuse(reason: str, unfit: Callable[[nn.Module], bool]) -> None:
        found = dict.fromkeys([module for module in before if unfit(module)], reason)
        refused.update(found)
        for module in found:
            del before[module]

    columns = {module: linear.shape[1] for module, linear in trial.linears.items()}
    refuse(MIXED, lambda m: any(trial.linears[maker].shape[0] % columns[m] for maker in before[m]))
    refuse(NOT_PLAIN, lambda m: any(each not in trial.plain or dense.calls[each] > 1 for each in (m, *before[m])))
    generator = torch.Generator().manual_seed(0)
    for _ in range(_PERMUTATIONS if before else 0):
        order = {module: torch.randperm(columns[module], generator=generator) for module in before}
        after = trial.run({maker: order[module] for module, makers in before.items() for maker in makers})
        same = _alike(after.logits, dense.logits) and all(
            _alike(after.x[module], dense.x[module]) for module in dense.x if module not in before
        )
        if not same:  # something reads them that leaves no trace in the graph
            refuse(READ_ELSEWHERE, lambda m: True)
            break
        moved = {m: dense.x[m][..., order[m].to(dense.x[m].device)] for m in before}
        refuse(MIXED, lambda m, after=after, moved=moved: not _alike(after.x[m], moved[m]))

    prunable = all_linears(source)
    found = {linear: [trial.linears[maker] for maker in before[linear.module]]
             for linear in prunable if linear.module in before}  # fmt: skip
    return Channels(
        {linear: makers for linear, makers in found.items() if all(maker.block == linear.block for maker in makers)},
        {linear: FUSED if linear.expert else refused.get(linear.module, READ_ELSEWHERE) for linear in prunable},
    )


def fold_(linear: Linear, order_C: Tensor, before: list[Linear]) -> None:
    """Put a layer's input channels in another order, in place: its columns, and the rows and biases before it."""
    linear.weight_RC.copy_(linear.weight_RC[:, order_C])
    for maker in before:
        rows = _rows(order_C, maker.shape[0])
        maker.weight_RC.copy_(maker.weight_RC[rows])
        if isinstance(bias := maker.module.bias, Tensor):
            bias.data.copy_(bias.data[rows])


def _rows(order_C: Tensor, R: int) -> Tensor:
    """The order of the outputs of a layer that makes several inputs at once (gate and up in one), one after another."""
    return torch.cat([order_C + start for start in range(0, R, len(order_C))])


def _is_plain(linear: Linear) -> bool:
    """Whether a layer computes weight @ x + bias and nothing else."""
    module = linear.module
    if linear.is_plain or not {name for name, _ in module.named_parameters()} <= {"weight", "bias"}:
        return linear.is_plain
    weight_RC, bias = linear.weight_RC, module.bias
    x = torch.randn(4, weight_RC.shape[1], generator=torch.Generator().manual_seed(0)).to(weight_RC)
    with torch.no_grad():
        plain = nn.functional.linear(x, weight_RC, bias if isinstance(bias, Tensor) else None)
        return _alike(module(x), plain, rounded=4.0)


def _alike(found: Tensor, expected: Tensor, rounded: float = 0.25) -> bool:
    """Whether two tensors are equal but for rounding, of few elements by default: elementwise functions round alike
    wherever an element stands, save in what is left over from whole vectors."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    tolerance = max(1e-6, torch.finfo(expected.dtype).eps * rounded)
    difference = (found.float() - expected.float()).norm()
    return bool(difference <= tolerance * expected.float().norm())  # false where something is not finite


@dataclass
class _Seen:
    """What one run has shown: inputs and how often each layer ran, its input's place in the graph, and the logits."""

    graph: _Graph
    x: dict[nn.Module, Tensor] = field(default_factory=dict)
    node: dict[nn.Module, Any] = field(default_factory=dict)
    calls: dict[nn.Module, int] = field(default_factory=dict)
    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    end: Any = None


class _Graph:
    """Which layers' noise a node of autograd's graph depends on: an integer with one bit for each."""

    def __init__(self) -> None:
        self.bits: dict[int, tuple[Tensor, int]] = {}  # by identity of the noise
        self._known: dict[Any, int] = {None: 0}

    def makers(self, node: Any) -> int:
        stack = [node]
        while stack:
            top = stack[-1]
            parents = [] if top in self._known else [parent for parent, _ in top.next_functions]
            if missing := [parent for parent in parents if parent not in self._known]:
                stack += missing
                continue
            stack.pop()
            if top not in self._known:
                _, own = self.bits.get(id(getattr(top, "variable", None)), (None, 0))
                for parent in parents:
                    own |= self._known[parent]
                self._known[top] = own
        return self._known[node]


class _Trial:
    """Runs the model on a few tokens with noise for the outputs of all linear layers in its blocks."""

    def __init__(self, source: BlockSource):
        self.source, self.model = source, cast(Any, source.model)
        self.linears = {
            module: Linear("", module, index)
            for index, block in enumerate(source.blocks) for module in block.modules() if is_linear(module)
        }  # fmt: skip
        self.linears |= {linear.module: linear for linear in all_linears(source) if not linear.expert}
        owners: dict[Tensor, int] = {}
        for module in source.model.modules():
            for parameter in module.parameters(recurse=False):
                owners[parameter] = owners.get(parameter, 0) + 1
        self.plain = {
            module for module, linear in self.linears.items()
            if _is_plain(linear) and all(owners[parameter] == 1 for parameter in module.parameters(recurse=False))
        }  # fmt: skip
        length = min(_TOKENS, context_length(source.model) or _TOKENS)
        self.tokens_BL = (torch.arange(length) % vocabulary_size(source.model))[None].to(input_device(source.model))

    def run(self, order: Mapping[nn.Module, Tensor]) -> _Seen:
        """The noise of some layers is permuted."""
        seen = _Seen(_Graph())

        def noise(x: Tensor, module: nn.Module, index: int) -> Tensor:
            seen.calls[module] = seen.calls.get(module, 0) + 1
            seen.x[module], seen.node[module] = x.detach().clone(), x.grad_fn
            R = self.linears[module].shape[0]
            made = torch.randn(*x.shape[:-1], R, generator=torch.Generator().manual_seed(index))
            if module in order:
                made = made[..., _rows(order[module], R)]
            leaf = made.to(x.device, x.dtype).requires_grad_()
            seen.graph.bits[id(leaf)] = leaf, 1 << index
            return leaf.clone()  # which may be changed in place

        with ExitStack() as stack, torch.enable_grad():
            for index, module in enumerate(self.linears):
                made = partial(noise, module=module, index=index)
                stack.enter_context(replaced_forward(module, made))
            stack.enter_context(loading(self.source))
            logits = self.model(input_ids=self.tokens_BL, use_cache=False).logits
        seen.logits, seen.end = logits.detach(), logits.grad_fn
        return seen
