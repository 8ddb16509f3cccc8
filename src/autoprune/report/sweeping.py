"""The picture that every paper on pruning draws: what is left of a model over the share of its weights that went."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from autoprune.figures.picture import QUIET, Picture, Table, axes, log_axis, mark, named
from autoprune.inputs import amount_of_text
from autoprune.report.section import Section, short_name
from autoprune.sweeps import Point, Sweep, targets


def sweeping(sweep: Sweep) -> Section:
    """The section of a sweep."""
    failed = [point for point in sweep.points if point.error]
    missing = [f"{point.algorithm} at {point.target}: {point.error}" for point in failed]
    if sweep.dense is None:
        missing.insert(0, "The sweep was ended before the unpruned model was measured.")
    elif not sweep.points:
        missing.insert(0, "The sweep was ended before the first point was measured.")
    if sweep.damaged:
        missing.insert(0, f"{sweep.damaged} points cannot be read: the file is damaged.")
    if sweep.waiting:
        names = ", ".join(f"{point.algorithm} at {point.target}" for point in sweep.waiting[:5])
        more = " …" * (len(sweep.waiting) > 5)
        to_come = f"Unfinished: {len(sweep.waiting)} points are to come ({names}{more})."
        missing.insert(0, f"{to_come} The command that began it, given again, goes on.")
    settings = sweep.settings
    facts = {"Model": sweep.model}
    for label, key in (("Measured on", "data"), ("Calibration", "calibration")):
        facts[label] = amount_of_text(settings[key])
    facts["Propagation"] = settings["propagation"]
    if sweep.dense:
        facts["Unpruned"] = f"perplexity {sweep.dense.perplexity:.2f}"
    return Section(
        kind="sweep",
        title=f"{short_name(sweep.model)} over sparsity",
        facts=facts,
        missing=missing,
        pictures=pictures(sweep),
        tables=_tables(sweep),
    )


def pictures(sweep: Sweep) -> list[Picture]:
    """perplexity and kl, where there is a point."""
    dense = sweep.dense.perplexity if sweep.dense else None
    kl = "KL(dense ‖ pruned), nats a token"
    found = [
        _curves(sweep, "perplexity", "Perplexity over sparsity", "perplexity", lambda point: point.perplexity, dense),
        _curves(sweep, "kl", "Divergence over sparsity", kl, lambda point: point.kl_nats_per_token, None),
    ]
    return [picture for picture in found if picture]


def _curves(
    sweep: Sweep, name: str, title: str, label: str, value: Callable[[Point], float | None], dense: float | None
) -> Picture | None:
    measured = [(point, figure) for point in sweep.points if (figure := value(point)) is not None]
    known = [(point, figure) for point, figure in measured if math.isfinite(figure)]
    if not known:
        return None
    with axes(height=3.6) as axis:
        for number, (key, algorithm) in enumerate(sweep.names.items()):
            colour, marker = mark(number)
            own = [(point, figure) for point, figure in known if (point.algorithm, point.hash) == key]
            line = sorted((float(point.target), figure) for point, figure in own if ":" not in point.target)
            axis.plot(
                [x for x, _ in line],
                [y for _, y in line],
                f"-{marker}",
                color=colour,
                markersize=4,
                linewidth=1.5,
                label=named(algorithm),
            )
            for point, figure in own:
                if ":" in point.target:  # beside the curves: another kind of sparsity
                    axis.plot(_share(point.target), figure, marker, color=colour, markersize=7, markerfacecolor="none")
                    axis.annotate(
                        point.target,
                        (_share(point.target), figure),
                        (5, 0),
                        textcoords="offset points",
                        fontsize=8,
                        color=colour,
                    )
        if dense is not None:
            axis.axhline(dense, color=QUIET, linewidth=1, linestyle="--", label="unpruned")
        log_axis(axis, "y", [figure for _, figure in known])
        axis.set(xlabel="sparsity", ylabel=label)
        axis.figure.legend(loc="outside lower center", ncols=3)
    says = _least(known)
    if len(known) < len(measured):
        says += f" {len(measured) - len(known)} points are infinite, and not drawn."
    if any(":" in point.target for point, _ in known):
        says += " Open marks are n:m patterns."
    rows = [[point.algorithm, point.target, f"{figure:.4f}"] for point, figure in known]
    return Picture(name, title, says, axis.figure, Table(["algorithm", "target", label], rows))


def _least(known: Sequence[tuple[Point, float]]) -> str:
    """The best at the highest target that at least two have reached."""
    by_target: dict[str, list[tuple[Point, float]]] = {}
    for point, figure in known:
        by_target.setdefault(point.target, []).append((point, figure))
    compared = [target for target, found in by_target.items() if len(found) > 1]
    if not compared:
        return "Lower is better."
    target = max(compared, key=_share)
    point, figure = min(by_target[target], key=lambda item: item[1])
    return f"Lower is better; least at {target}: {point.algorithm}, {figure:.4g}."


def _share(target: str) -> float:
    """Of the weights that go."""
    return float(targets([target])[0].fraction)


def _tables(sweep: Sweep) -> Sequence[Table]:
    found = {point.target for point in sweep.points}
    columns = sorted(found, key=lambda target: (":" in target, _share(target), target))
    by_place = {(point.algorithm, point.hash, point.target): point for point in sweep.points}
    tables = []
    for title, value, digits in (
        ("Perplexity", "perplexity", 2),
        ("KL(dense ‖ pruned), nats a token", "kl_nats_per_token", 4),
    ):
        rows = []
        for key, algorithm in sweep.names.items():
            points = [by_place.get((*key, target)) for target in columns]
            figures = [getattr(point, value) if point else None for point in points]
            rows.append([algorithm, *("–" if figure is None else f"{figure:.{digits}f}" for figure in figures)])
        if rows:
            tables.append(Table(["algorithm", *columns], rows, title=title))
    return tables
