"""Every linear layer of a model in one figure, by block; a mark and colour for each kind of layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autoprune.figures.picture import mark, named

NORMAL_SKEWNESS = 0.9953
"""Of the absolute value of a normally distributed weight."""

_MOST_NAMES = 15  # in a legend


def plot_kinds(axis: Any, names: Sequence[str], blocks: Sequence[int], values: Sequence[float]) -> None:
    """Draw a value of each layer above its block, with a legend where kinds are not too many."""
    by_kind: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        by_kind.setdefault(kind_of(name), []).append(index)
    for number, (kind, own) in enumerate(by_kind.items()):
        colour, marker = mark(number)
        x, y = [blocks[index] for index in own], [values[index] for index in own]
        axis.plot(x, y, marker, color=colour, markersize=4, label=named(kind))
    if len(by_kind) <= _MOST_NAMES:
        axis.figure.legend(loc="outside lower center", ncols=min(3, len(by_kind)), handletextpad=0.2)


def kind_of(name: str) -> str:
    """What a layer is, the same in every block: the last part of its name that is no number."""
    return next((part for part in reversed(name.split(".")) if not part.isdigit()), name)
