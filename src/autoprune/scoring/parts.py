"""Parts of layers on which a program is tried in a moment, whatever the size of the model.

Legend: N linear layers, R rows, C columns of a part, G columns of a group.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from autoprune.language.statistics import GRADIENTS, OUTPUT_GRADIENT
from autoprune.layer import Method
from autoprune.models import Linear
from autoprune.scoring.store import Part, Store
from autoprune.solvers import output_error
from autoprune.stream import Visit


def spread(linears: Sequence[Linear], count: int) -> list[int]:
    """Indices of so many layers, evenly spaced: with several kinds of layers in a block, of many kinds."""
    count = min(count, len(linears))
    return [(2 * index + 1) * len(linears) // (2 * count) for index in range(count)]


def part_of(linear: Linear, rows: int, columns: int, group: int, seed: int) -> Part:
    """So many rows and columns of a layer, drawn at random; whole groups of n:m patterns."""
    rng = np.random.default_rng([seed, *linear.name.encode()])
    R, C = linear.shape
    G = group or 1
    row_R = np.sort(rng.permutation(R)[:rows])
    start_G = np.sort(rng.permutation(C // G)[: max(1, columns // G)]) * G
    column_C = (start_G[:, None] + np.arange(G)).reshape(-1)
    return Part(torch.from_numpy(row_R), torch.from_numpy(column_C))


class Piece:
    """A part of a layer, with what a method needs to be tried on it and what its errors cost."""

    def __init__(self, store: Store, linear: Linear, part: Part):
        self.store, self.linear, self.part = store, linear, part
        price = store.visit(linear, frozenset([OUTPUT_GRADIENT]), part).statistics([OUTPUT_GRADIENT])[OUTPUT_GRADIENT]
        self.price_R = price.square()[:, 0]

    def visit(self, method: Method) -> Visit:
        """The part as a layer to be solved."""
        return self.store.visit(self.linear, GRADIENTS & method.collects, self.part)

    def harm(self, visit: Visit, pruned_RC: Tensor) -> float:
        """What other weights do to the part's outputs: squared errors, each times the mean square of the loss gradient
        by that output (the diagonal of K-FAC's approximation of the loss)."""
        error_R = output_error(visit.linear.weight_RC, pruned_RC, visit.inputs.gram)
        return float((error_R * self.price_R.to(error_R.dtype)).sum())
