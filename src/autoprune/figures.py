"""Pictures of a diagnosis, as PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from autoprune.diagnosis import Diagnosis
from autoprune.errors import AutopruneError

_INK, _SECOND, _QUIET = "#1f4e8c", "#c8553d", "#9aa5b1"


def check_matplotlib() -> None:
    """Refuse to start work whose pictures could not be drawn."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise AutopruneError("pictures need matplotlib", remedy="run: pip install 'autoprune[figures]'") from None


def draw(diagnosis: Diagnosis, folder: Path) -> list[Path]:
    """Write skewness.png, sensitivity.png and allocation.png; returns their paths."""
    pictures = {"skewness": _skewness, "sensitivity": _sensitivity, "allocation": _allocation}
    paths = []
    for name, picture in pictures.items():
        paths.append(folder / f"{name}.png")
        picture(diagnosis).savefig(paths[-1], dpi=150)
    return paths


def _name(diagnosis: Diagnosis) -> str:
    """The model as a title names it: the last part of a path."""
    return Path(diagnosis.model).name or diagnosis.model


def _figure(rows: int, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, height), layout="constrained")
    axes = figure.subplots(rows, 1, squeeze=False)[:, 0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#e3e7eb", linewidth=0.8)
        axis.set_axisbelow(True)
    return figure, axes


def _skewness(diagnosis: Diagnosis) -> Any:
    figure, (top, middle, bottom) = _figure(3, 9)
    values, block_of = np.array(diagnosis.linear_skewness), np.array(diagnosis.block_of)
    kinds = [name.split(".")[-1] for name in diagnosis.linears]
    for number, kind in enumerate(dict.fromkeys(kinds)):
        chosen = np.array([own == kind for own in kinds])
        marker = "osv^DP*X<>"[number % 10]
        top.plot(block_of[chosen], values[chosen], marker, markersize=5, label=kind, alpha=0.85)
    if values.max() > 10 * np.median(values):
        top.set_yscale("log")
    top.set(title=f"Skewness of |w| of each linear layer: {_name(diagnosis)}", ylabel="skewness")
    top.axhline(0.9953, color=_QUIET, linewidth=1, linestyle="--", label="normal weights")
    top.legend(ncols=4, fontsize=8, frameon=False)
    blocks = range(len(diagnosis.blocks))
    middle.bar(blocks, diagnosis.mean_skewness, color=_INK)
    middle.set(title="Mean over the linear layers of a block", ylabel="mean skewness")
    bottom.plot(blocks, diagnosis.l_skewness, "-o", markersize=4, color=_INK)
    bottom.axhline(0.1983, color=_QUIET, linewidth=1, linestyle="--")
    bottom.set(title="L-skewness of all |w| of a block, which sdsa reads", xlabel="block", ylabel="L-skewness")
    return figure


def _sensitivity(diagnosis: Diagnosis) -> Any:
    figure, (axis,) = _figure(1, 4.5)
    damage = np.maximum(np.array(diagnosis.damage), 1e-6)
    for index, level in enumerate(diagnosis.levels):
        shade = 0.25 + 0.75 * (index + 1) / len(diagnosis.levels)
        axis.plot(damage[:, index], "-o", markersize=3, color=_INK, alpha=shade, label=f"{level:.0%}")
    axis.set_yscale("log")
    axis.set(
        title=f"Damage when one block alone is pruned with {diagnosis.algorithm}: {_name(diagnosis)}",
        xlabel="block",
        ylabel="KL divergence (nats/token)",
    )
    axis.legend(title="pruned to", ncols=len(diagnosis.levels), fontsize=8, frameon=False)
    return figure


def _allocation(diagnosis: Diagnosis) -> Any:
    figure, (axis,) = _figure(1, 4.5)
    moved = np.array(diagnosis.sparsity) - diagnosis.target  # bars start at the line, not at a cut-off zero
    axis.bar(range(len(moved)), moved, bottom=diagnosis.target, color=_INK, label=diagnosis.allocation)
    axis.axhline(diagnosis.target, color=_SECOND, linewidth=1.5, label=f"uniform, {diagnosis.target:.0%}")
    low, high = min(diagnosis.sparsity), max(diagnosis.sparsity)
    margin = max(0.05, (high - low) / 2)
    axis.set_ylim(max(0.0, low - margin), min(1.0, high + margin))
    axis.set(
        title=f"Sparsity of each block at {diagnosis.target:.0%} in all: {_name(diagnosis)}",
        xlabel="block",
        ylabel="sparsity",
    )
    axis.legend(fontsize=8, frameon=False)
    return figure
