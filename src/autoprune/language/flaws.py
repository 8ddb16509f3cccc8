"""What makes no sense in a program though it is valid, found on a layer that never was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from types import MappingProxyType

import torch
from torch import Tensor

from autoprune.language.check import infer_types
from autoprune.language.draw import SCORE
from autoprune.language.interpret import interpret
from autoprune.language.operators import OPERATORS
from autoprune.language.program import Node, Tape
from autoprune.language.space import ALLOCATE
from autoprune.language.statistics import FUNCTIONS
from autoprune.language.types import Type

MAX_STEPS = 40
"""Of a function that is made here; one made from a longer one may be as long."""

_SHAPES = {Type.SCALAR: (1, 1), Type.R: (6, 1), Type.C: (1, 40), Type.RC: (6, 40), Type.CC: (40, 40), Type.L: (1, 9)}


@cache
def _made_up(function: str) -> Mapping[str, Tensor]:
    """Statistics of a layer, or of layers, that never were: inputs about 1, weights of all sizes up to that."""
    generator = torch.Generator().manual_seed(0)

    def drawn(kind: Type) -> Tensor:
        positive = torch.randn(_SHAPES[kind], generator=generator).exp()
        return positive.T @ positive / len(positive) if kind is Type.CC else positive

    values = {name: drawn(row.type) for name, row in FUNCTIONS[function].statistics.items()}
    if function == SCORE:
        values["input_mean"] *= torch.randn(_SHAPES[Type.C], generator=generator).sign()
        size_R1 = torch.logspace(-2, 0, _SHAPES[Type.R][0])[:, None]
        values["weight"] = size_R1 * torch.randn(_SHAPES[Type.RC], generator=generator)
    values["sparsity"] = torch.tensor([[0.6]])  # a share: as a quantile's place, 4 would be the end of everything
    return MappingProxyType(values)


def flaws(tapes: Sequence[Tape], compare: str) -> Iterator[str]:
    """The ways in which functions make no sense, those that are quick to see first."""
    for tape in tapes:
        yield from _score_flaws(tape) if tape.function == SCORE else _allocate_flaws(tape)
    for tape in tapes:
        if len(tape.nodes) <= MAX_STEPS:
            yield from _idle_steps(tape, compare)


def _score_flaws(tape: Tape) -> Iterator[str]:
    """A score tells the weights of a row apart, by the weights themselves, in the same way for a layer and its
    negative (which are equally hard to prune), and more often than not the larger one has the higher score."""
    layer = _made_up(SCORE)
    weight_RC = layer["weight"]
    score_RC = interpret(tape, layer)
    order_RC = _order(score_RC)
    ranks = torch.stack([order_RC.argsort().flatten(), _order(weight_RC.abs()).argsort().flatten()])
    if float(torch.corrcoef(ranks.float())[0, 1]) < 0.1:
        yield "large weights have low scores"
    if len(score_RC.unique()) < score_RC.numel() / 3:
        yield "many weights have the same score"
    if not torch.equal(order_RC, _order(interpret(tape, {**layer, "weight": -weight_RC}))):
        yield "the sign of weights matters"
    if torch.equal(order_RC, _order(interpret(tape, {**layer, "weight": weight_RC.flip(1)}))):
        yield "weights do not matter"


def _allocate_flaws(tape: Tape) -> Iterator[str]:
    """An allocation tells layers apart."""
    if len(interpret(tape, _made_up(ALLOCATE)).unique()) < 2:
        yield "all layers are alike"


def _idle_steps(tape: Tape, compare: str) -> Iterator[str]:
    """Steps of a canonical tape that could be left out: with a part of theirs instead, or a constant, the same is
    pruned."""
    layer, types = _made_up(tape.function), infer_types(tape)
    leaves = {index: _leaf_value(node, layer) for index, node in enumerate(tape.nodes) if not node.arguments}
    values = _passed_on(tape, {}, leaves)
    effect = _effect(values[tape.result], tape.function, compare)
    for index, node in enumerate(tape.nodes):
        near = {part for argument in node.arguments for part in (argument, *tape.nodes[argument].arguments)}
        shorter = (values[part] for part in sorted(near) if types[part] is types[index])
        results = (_passed_on(tape, values, {index: value})[tape.result] for value in shorter)
        if types[index] is not Type.SCALAR and bool((values[index] == values[index][0, 0]).all()):
            yield f"{node.operator} is the same everywhere"
        elif any(torch.allclose(_effect(r, tape.function, compare), effect, rtol=1e-4, atol=1e-6) for r in results):
            yield f"{node.operator} makes no difference"


def _leaf_value(node: Node, layer: Mapping[str, Tensor]) -> Tensor:
    return layer[node.value] if isinstance(node.value, str) else torch.tensor([[node.value]])


def _passed_on(tape: Tape, values: Mapping[int, Tensor], changed: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """The values of steps once some have changed, and with them those that depend on them."""
    new = dict(changed)
    for index, node in enumerate(tape.nodes):
        if index not in new and not new.keys().isdisjoint(node.arguments):
            arguments = (new[argument] if argument in new else values[argument] for argument in node.arguments)
            new[index] = OPERATORS[node.operator](*arguments, over=node.over)
    return {**values, **new}


def _effect(result: Tensor, function: str, compare: str) -> Tensor:
    """What of a result counts: the order of scores that compete; how allocations differ, since all layers are shifted
    to meet the model's sparsity."""
    if function == ALLOCATE:
        return result - result.mean()
    return _order(result if compare == "row" else result.reshape(1, -1)).float()


def _order(score_RC: Tensor) -> Tensor:
    return score_RC.argsort(dim=1, stable=True)
