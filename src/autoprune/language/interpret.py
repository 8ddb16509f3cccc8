"""Runs a checked tape on tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from autoprune.language.check import last_uses
from autoprune.language.operators import OPERATORS
from autoprune.language.program import CONSTANT, STATISTIC, Tape


def interpret(tape: Tape, statistics: Mapping[str, Tensor]) -> Tensor:
    """Value of a tape: float32, shape (R, C) for a score.

    `statistics` holds two-dimensional float32 tensors in the run-time shapes of `types`, all on one device.
    They are read, never written. A value is dropped after the last step that needs it.
    """
    device = next(iter(statistics.values())).device
    last = last_uses(tape)
    values: dict[int, Tensor] = {}
    for index, node in tape.steps():
        if node.operator == CONSTANT:
            values[index] = torch.tensor([[node.value]], dtype=torch.float32, device=device)
        elif node.operator == STATISTIC:
            values[index] = statistics[str(node.value)]
        else:
            operands = [values[argument] for argument in node.arguments]
            values[index] = OPERATORS[node.operator](*operands, over=node.over)
        for argument in set(node.arguments):
            if last[argument] == index:
                del values[argument]
    return values[tape.result]
