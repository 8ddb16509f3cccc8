"""Figures of a diagnosis: skewness, sensitivity, and what an allocation makes of them."""

from __future__ import annotations

import numpy as np

from autoprune.diagnosis import Diagnosis
from autoprune.figures.kinds import NORMAL_SKEWNESS, plot_kinds
from autoprune.figures.picture import COLOURS, QUIET, Picture, Table, axes, mark

_NORMAL_L_SKEWNESS = 0.1983


def pictures(diagnosis: Diagnosis) -> list[Picture]:
    """skewness, mean_skewness, l_skewness, sensitivity and allocation."""
    return [make(diagnosis) for make in (_skewness, _mean_skewness, _l_skewness, _sensitivity, _allocation)]


def _skewness(diagnosis: Diagnosis) -> Picture:
    values = diagnosis.linear_skewness
    with axes(counted=True) as axis:
        plot_kinds(axis, diagnosis.linears, diagnosis.block_of, values)
        if np.nanmax(values) > 10 * np.nanmedian(values):
            axis.set_yscale("log")
        axis.axhline(NORMAL_SKEWNESS, color=QUIET, linewidth=1, linestyle="--")
        axis.set(xlabel="block", ylabel="skewness of |w|")
    says = "A mark for each linear layer; normal weights have 0.995 (dashed)."
    rows = [[name, f"{value:.3f}"] for name, value in zip(diagnosis.linears, values, strict=True)]
    return Picture(
        "skewness", "Skewness of |w| of each linear layer", says, axis.figure, Table(["layer", "skewness"], rows)
    )


def _bars(name: str, title: str, says: str, label: str, values: list[float], line: float | None) -> Picture:
    with axes(counted=True) as axis:
        axis.bar(range(len(values)), values, color=COLOURS[0])
        if line is not None:
            axis.axhline(line, color=QUIET, linewidth=1, linestyle="--")
        axis.set(xlabel="block", ylabel=label)
    rows = [[str(index), f"{value:.4f}"] for index, value in enumerate(values)]
    return Picture(name, title, says, axis.figure, Table(["block", label], rows))


def _mean_skewness(diagnosis: Diagnosis) -> Picture:
    title, says = "Mean skewness of each block", "The mean over the linear layers of a block."
    return _bars("mean_skewness", title, says, "mean skewness", diagnosis.mean_skewness, NORMAL_SKEWNESS)


def _l_skewness(diagnosis: Diagnosis) -> Picture:
    title, says = (
        "L-skewness of each block",
        "Of all |w| of a block, which sdsa reads; normal weights have 0.198 (dashed).",
    )
    return _bars("l_skewness", title, says, "L-skewness", diagnosis.l_skewness, _NORMAL_L_SKEWNESS)


def _sensitivity(diagnosis: Diagnosis) -> Picture:
    damage = np.maximum(np.array(diagnosis.damage), 1e-6)
    with axes(counted=True) as axis:
        for index, level in enumerate(diagnosis.levels):
            colour, marker = mark(index)
            axis.plot(damage[:, index], f"-{marker}", markersize=3, linewidth=1, color=colour, label=f"to {level:.0%}")
        axis.set_yscale("log")
        axis.set(xlabel="block", ylabel="KL divergence, nats a token")
        axis.figure.legend(loc="outside lower center", ncols=min(3, len(diagnosis.levels)))
    most = int(damage[:, -1].argmax())
    says = (
        f"Damage when one block alone is pruned with {diagnosis.algorithm}; block {most} bears it worst "
        f"({damage[most, -1]:.3f} nats a token at {diagnosis.levels[-1]:.0%})."
    )
    headings = ["block", *(f"{level:.0%}" for level in diagnosis.levels)]
    rows = [[str(index), *(f"{value:.4g}" for value in row)] for index, row in enumerate(diagnosis.damage)]
    return Picture("sensitivity", "Sensitivity of each block", says, axis.figure, Table(headings, rows))


def _allocation(diagnosis: Diagnosis) -> Picture:
    moved = np.array(diagnosis.sparsity) - diagnosis.target  # bars start at the line, not at a cut-off zero
    low, high = min(diagnosis.sparsity), max(diagnosis.sparsity)
    margin = max(0.05, (high - low) / 2)
    with axes(counted=True) as axis:
        axis.bar(range(len(moved)), moved, bottom=diagnosis.target, color=COLOURS[0])
        axis.axhline(diagnosis.target, color=COLOURS[1], linewidth=1.5)
        axis.set_ylim(max(0.0, low - margin), min(1.0, high + margin))
        axis.set(xlabel="block", ylabel="sparsity")
    whole = f"the line is the {diagnosis.target:.0%} of the whole"
    says = f"{diagnosis.allocation} gives blocks {low:.1%} to {high:.1%}; {whole}."
    rows = [[str(index), f"{value:.2%}"] for index, value in enumerate(diagnosis.sparsity)]
    return Picture(
        "allocation",
        f"Sparsity of each block, by {diagnosis.allocation}",
        says,
        axis.figure,
        Table(["block", "sparsity"], rows),
    )
