"""What a prune did: the sparsity, skewness and error of every layer, the time and memory of every block."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from autoprune.card import command
from autoprune.figures.kinds import NORMAL_SKEWNESS, plot_kinds
from autoprune.figures.picture import COLOURS, QUIET, Picture, Table, axes, log_axis
from autoprune.inputs import amount_of_text
from autoprune.report.section import Parts, Section, short_name

_WORST = 10

_ERROR_BY = {
    "gram": "the Gram matrix of the inputs",
    "input_norm": "the norms of the inputs, as if they were uncorrelated",
    "weight": "the weights alone",
}


def pruning(record: Mapping[str, Any], *, missing: Sequence[str] = ()) -> Section:
    """The section of a prune, from its autoprune.json, or from as much of it as there is of an unfinished one."""
    parts = Parts(missing)
    layers = [layer for layer in record["layers"] if _is_layer(layer)]
    if left := len(record["layers"]) - len(layers):
        parts.missing.append(f"{left} layers cannot be shown: the record is damaged.")
    record = {**record, "layers": layers}
    costs = record.get("blocks", [])
    drawn = [make for make, value in _PICTURES if layers and _known(layers, costs, value)]
    pictures = [parts.attempt("A figure", partial(make, record), None) for make in drawn]
    algorithm = record.get("algorithm", {})
    again = parts.attempt("The command", lambda: command(record), "") if "sparsity" in record else ""
    return Section(
        kind="prune",
        title=f"{short_name(str(record['model']))} pruned to {record.get('target', '?')} "
        f"by {algorithm.get('name', '?')}",
        says=parts.attempt("The error of the layers", lambda: _says(record), ""),
        facts=parts.attempt("What was done", lambda: _facts(record), {}),
        commands={"To make it again": again} if again else {},
        programs={algorithm["name"]: algorithm["text"]} if algorithm.get("text") else {},
        pictures=[picture for picture in pictures if picture],
        notes=[*record.get("notes", ()), *_skipped(record.get("skipped", {}))],
        tables=[_worst(layers)] if _known(layers, costs, "error") else [],
        missing=parts.missing,
    )


def _is_layer(layer: Any) -> bool:
    """Whether it has what every figure of a layer needs."""
    numbers = {"skewness", "error"}
    return (
        isinstance(layer, dict)
        and isinstance(layer.get("name"), str)
        and isinstance(layer.get("sparsity"), dict)
        and isinstance(layer["sparsity"].get("achieved"), int | float)
        and isinstance(layer.get("shape"), list | tuple)
        and all(layer.get(name) is None or isinstance(layer[name], int | float) for name in numbers)
    )


def _facts(record: Mapping[str, Any]) -> dict[str, str]:
    done = [layer["sparsity"]["achieved"] for layer in record["layers"]]
    facts = {"Model": str(record["model"]), "Algorithm": _algorithm(record), "Target": str(record["target"])}
    if done and "sparsity" in record:
        share = f"({record['sparsity']['achieved']:.4%})"
        facts["Zeros"] = f"{record['zeros']:,} of {record['weights']:,} prunable weights {share}"
        facts["Layers"] = f"{len(done)}, with {min(done):.2%} to {max(done):.2%} zeros"
    if text := record.get("settings", {}).get("calibration"):
        facts["Calibration"] = amount_of_text(text)
    if laps := record.get("durations_s"):
        facts["Time"] = ", ".join(f"{what} {_seconds(value)}" for what, value in laps.items())
    return facts


def block_of(name: str) -> int:
    """The number of a layer's block: the first in its name, as in model.layers.3.mlp.down_proj."""
    found = re.search(r"(?:^|\.)(\d+)\.", name)
    return int(found[1]) if found else 0


def _known(layers: Sequence[Mapping[str, Any]], costs: Sequence[Any], name: str) -> bool:
    return bool(costs) if name == "cost" else any(layer.get(name) is not None for layer in layers)


def _algorithm(record: Mapping[str, Any]) -> str:
    algorithm, method = record["algorithm"], record.get("method", {})
    more = [f"{name} {method[name]}" for name in ("refine", "update") if method.get(name, "none") != "none"]
    shared = record.get("allocation", {}).get("name", "uniform")
    return ", ".join([algorithm["name"], *more, *([f"sparsity by {shared}"] if shared != "uniform" else [])])


def _says(record: Mapping[str, Any]) -> str:
    """The layer that lost most, in a sentence."""
    known = [layer for layer in record["layers"] if layer.get("error") is not None]
    if not known:
        return ""
    worst = max(known, key=lambda layer: layer["error"])
    median = float(np.median([layer["error"] for layer in known]))
    return (
        f"Half of the layers lost more than {median:.1%} of their outputs' mean square; {worst['name']} lost most, "
        f"{worst['error']:.1%}."
    )


def _by_kind(
    record: Mapping[str, Any], value: str, label: str, title: str, says: str, log: bool, line: float | None
) -> Picture:
    """A figure of every layer, by block; a mark and colour for each kind."""
    layers = [layer for layer in record["layers"] if layer.get(value) is not None]
    names, values = [layer["name"] for layer in layers], [layer[value] for layer in layers]
    with axes(counted=True) as axis:
        plot_kinds(axis, names, [block_of(name) for name in names], values)
        if line is not None:
            axis.axhline(line, color=QUIET, linewidth=1, linestyle="--")
        if log:
            log_axis(axis, "y", values)
        axis.set(xlabel="block", ylabel=label)
    rows = [[name, f"{figure:.4g}"] for name, figure in zip(names, values, strict=True)]
    return Picture(value, title, says, axis.figure, Table(["layer", label], rows))


def _sparsity(record: Mapping[str, Any]) -> Picture:
    layers = [{**layer, "sparsity": layer["sparsity"]["achieved"]} for layer in record["layers"]]
    low, high = (edge([layer["sparsity"] for layer in layers]) for edge in (min, max))
    same = "the same in every layer" if high - low < 1e-3 else f"{low:.1%} to {high:.1%} by layer"
    whole = record.get("sparsity", {}).get("achieved")
    picture = _by_kind(
        {"layers": layers},
        "sparsity",
        "share of zeros",
        "Sparsity of each layer",
        f"Share of zeros: {same}.",
        False,
        whole,
    )
    picture.figure.axes[0].set_ylim(max(0.0, low - max(0.05, high - low)), min(1.0, high + max(0.05, high - low)))
    return picture


def _skewness(record: Mapping[str, Any]) -> Picture:
    values = [layer["skewness"] for layer in record["layers"] if layer.get("skewness") is not None]
    says = (
        f"Skewness of |w| before pruning, from {min(values):.2f} to {max(values):.2f}; normal weights have 0.995 "
        "(dashed). More means outliers."
    )
    wide = max(values) > 10 * max(float(np.median(values)), 1e-9)
    return _by_kind(record, "skewness", "skewness of |w|", "Skewness of each layer", says, wide, NORMAL_SKEWNESS)


def _error(record: Mapping[str, Any]) -> Picture:
    ways = sorted({layer.get("error_by", "") for layer in record["layers"]} & set(_ERROR_BY))
    says = "Share of the outputs' mean square on the calibration tokens that is lost, told by " + "; ".join(
        _ERROR_BY[way] for way in ways
    )
    return _by_kind(record, "error", "relative error", "Output error of each layer", f"{says}.", True, None)


def _cost(record: Mapping[str, Any]) -> Picture:
    costs = record["blocks"]
    seconds = [cost["seconds"] for cost in costs]
    peaks = [cost["peak_bytes"] for cost in costs]
    known = all(peak is not None for peak in peaks)
    with axes(2 if known else 1, counted=True) as found:
        panels = [("seconds", seconds, COLOURS[0])] + (
            [("peak memory, GB", [peak / 1e9 for peak in peaks], COLOURS[1])] if known else []
        )
        for axis, (label, values, colour) in zip(found if known else [found], panels, strict=True):
            axis.bar(range(len(values)), values, color=colour)
            axis.set(xlabel="block", ylabel=label)
        figure = found[0].figure if known else found.figure
    says = f"{sum(seconds):.1f} seconds for {len(costs)} blocks, {np.median(seconds):.2f} each (median)"
    says += f"; the process had {max(peaks) / 1e9:.2f} GB at most." if known else "."
    rows = [
        [str(index), f"{cost['seconds']:.2f}", f"{cost['peak_bytes'] / 1e9:.2f}" if known else "–"]
        for index, cost in enumerate(costs)
    ]
    return Picture(
        "cost", "Time and memory of each block", says, figure, Table(["block", "seconds", "peak memory, GB"], rows)
    )


def _worst(layers: Sequence[Mapping[str, Any]]) -> Table:
    known = sorted((layer for layer in layers if layer.get("error") is not None), key=lambda layer: -layer["error"])
    rows = [
        [
            layer["name"],
            "×".join(map(str, layer["shape"])),
            f"{layer['sparsity']['achieved']:.1%}",
            f"{layer['skewness']:.2f}" if layer.get("skewness") is not None else "–",
            f"{layer['error']:.2%}",
            f"{layer.get('calibration_tokens', 0):,}",
        ]
        for layer in known[:_WORST]
    ]
    return Table(["layer", "shape", "zeros", "skewness", "error", "tokens"], rows, title="Layers that lost most")


def _skipped(skipped: Mapping[str, str]) -> Iterable[str]:
    by_reason: dict[str, list[str]] = {}
    for name, reason in skipped.items():
        by_reason.setdefault(reason, []).append(name)
    return [
        f"{len(names)} not pruned ({reason}): {', '.join(names[:3])}{' …' * (len(names) > 3)}"
        for reason, names in by_reason.items()
    ]


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 120 else f"{value / 60:.1f} min"


_PICTURES = ((_sparsity, "sparsity"), (_error, "error"), (_skewness, "skewness"), (_cost, "cost"))
"""Figures, and what has to be known for each."""
