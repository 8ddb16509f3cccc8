"""What a prune did: the sparsity, skewness and error of every layer, the time and memory of every block."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from autoprune.card import command
from autoprune.figures.picture import COLOURS, MARKERS, QUIET, Picture, Table, axes, kind_of, log_axis
from autoprune.report.section import Section

_NORMAL_SKEWNESS = 0.9953
_WORST = 10

_ERROR_BY = {
    "gram": "the Gram matrix of the inputs",
    "input_norm": "the norms of the inputs, as if they were uncorrelated",
    "weight": "the weights alone",
}


def pruning(record: Mapping[str, Any], *, missing: Sequence[str] = ()) -> Section:
    """The section of a prune, from its autoprune.json, or from as much of it as there is of an unfinished one."""
    layers, costs = record["layers"], record.get("blocks", [])
    name = str(record["model"]).rstrip("/").rsplit("/", 1)[-1]
    done = [layer["sparsity"]["achieved"] for layer in layers]
    facts = {"Model": str(record["model"]), "Algorithm": _algorithm(record), "Target": str(record["target"])}
    if layers and "sparsity" in record:
        facts["Zeros"] = (
            f"{record['zeros']:,} of {record['weights']:,} prunable weights ({record['sparsity']['achieved']:.4%})"
        )
        facts["Layers"] = f"{len(layers)}, which lost {min(done):.2%} to {max(done):.2%}"
    if text := record.get("settings", {}).get("calibration"):
        facts["Calibration"] = f"{text['sequences']} × {text['length']} tokens of {text['source']}"
    if laps := record.get("durations_s"):
        facts["Time"] = ", ".join(f"{what} {_seconds(value)}" for what, value in laps.items())
    pictures = [
        make(record) for make, names in _PICTURES if layers and any(_known(layers, costs, name) for name in names)
    ]
    notes = [*record.get("notes", ()), *_skipped(record.get("skipped", {}))]
    tables = [_worst(layers)] if _known(layers, costs, "error") else []
    if notes:
        tables.append(Table(["Note"], [[note] for note in notes], title="Notes"))
    return Section(
        kind="prune",
        title=f"{name} pruned to {record['target']}",
        says=_says(record),
        facts=facts,
        missing=missing,
        commands={"To make it again": command(record)} if "sparsity" in record else {},
        programs={record["algorithm"]["name"]: record["algorithm"]["text"]} if record["algorithm"].get("text") else {},
        pictures=pictures,
        tables=tables,
    )


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
    kinds = list(dict.fromkeys(kind_of(layer["name"]) for layer in layers))
    with axes(counted=True) as axis:
        for number, kind in enumerate(kinds):
            own = [layer for layer in layers if kind_of(layer["name"]) == kind]
            colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
            blocks = [block_of(layer["name"]) for layer in own]
            axis.plot(blocks, [layer[value] for layer in own], marker, color=colour, markersize=4, label=kind)
        if line is not None:
            axis.axhline(line, color=QUIET, linewidth=1, linestyle="--")
        values = [layer[value] for layer in layers]
        if log:
            log_axis(axis, "y", values)
        axis.set(xlabel="block", ylabel=label)
        if len(kinds) <= len(COLOURS):
            axis.figure.legend(loc="outside lower center", ncols=min(3, len(kinds)), handletextpad=0.2)
        figure = axis.figure
    rows = [[layer["name"], f"{layer[value]:.4g}"] for layer in layers]
    return Picture(value, title, says, figure, Table(["layer", label], rows))


def _sparsity(record: Mapping[str, Any]) -> Picture:
    layers = [{**layer, "sparsity": layer["sparsity"]["achieved"]} for layer in record["layers"]]
    low, high = (edge([layer["sparsity"] for layer in layers]) for edge in (min, max))
    same = "every layer lost the same share" if high - low < 1e-3 else f"layers lost {low:.1%} to {high:.1%}"
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
    return _by_kind(record, "skewness", "skewness of |w|", "Skewness of each layer", says, wide, _NORMAL_SKEWNESS)


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
            f"{layer['calibration_tokens']:,}",
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


_PICTURES = (
    (_sparsity, ("sparsity",)),
    (_error, ("error",)),
    (_skewness, ("skewness",)),
    (_cost, ("cost",)),
)
