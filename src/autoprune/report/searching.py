"""What a search found, how it came about, and what its measurements are worth."""

from __future__ import annotations

import itertools
import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from autoprune.figures.picture import COLOURS, QUIET, Picture, Table, axes, log_axis, named
from autoprune.report.graph import Layout
from autoprune.report.section import Parts, Section, short_name
from autoprune.search.account import Account, Row, account, best
from autoprune.search.archive import Archive
from autoprune.search.graph import Graph

_RUNGS = (
    "probe: error on parts of layers; quick: divergence with one-shot masks; full: divergence after a real prune; "
    "fresh: the same on tokens that the search never saw"
)
_TRAITS = 8  # of the most helpful, and of the most harmful


def searching(path: Path, rungs: Sequence[str], fresh: str) -> Section:
    """The section of a search, from its archive."""
    with Archive.snapshot(path) as archive:
        return _section(archive, path, rungs, fresh)


def _section(archive: Archive, path: Path, rungs: Sequence[str], fresh: str) -> Section:
    parts = Parts([] if archive.is_sound() else ["The archive is damaged: what is shown may be incomplete."])
    graph, settings = Graph(archive, rungs), archive.get("settings", {})
    told = parts.attempt("The account", lambda: account(archive, rungs, fresh), None)
    winner = parts.attempt("The winner", lambda: best(archive, rungs, fresh), None)
    layout = parts.attempt("The graph", lambda: Layout(archive, graph, fresh, winner), None)
    if not graph.nodes:
        parts.missing.append("The archive holds no program: the search has hardly begun.")
    elif winner is None:
        parts.missing.append("Unfinished: nothing was measured on fresh tokens, so there is no winner yet.")
    drawn = [partial(make, archive, graph) for make in (_progress, _correlations, _effects, _predictions, _seconds)]
    pictures = [parts.attempt("A figure", make, []) for make in drawn]
    if layout and layout.damage:
        pictures.insert(0, parts.attempt("A figure", lambda: [layout.picture()], []))
    tables = [_leaderboard(told)] if told and told.rows else []
    if told:
        tables += parts.attempt("The cost", lambda: [_cost(archive, graph, told)], [])
    name = " and ".join(map(short_name, _models(settings))) or "an unknown model"
    program = graph.nodes.get(winner or "")
    return Section(
        kind="search",
        title=f"Search for {name} at {settings.get('target', '?')}",
        says=_says(told, winner) if told else "",
        facts=_facts(settings, told) if told else {},
        commands={"To use the winner": _use(settings, path.parent / "winner.prune")} if program else {},
        programs={f"winner {winner}": program.canonical} if program else {},
        graph=parts.attempt("The graph", layout.data, None) if layout and graph.nodes else None,
        pictures=[picture for found in pictures for picture in found],
        tables=tables,
        missing=parts.missing,
    )


def _models(settings: Mapping[str, Any]) -> Counter[str]:
    """The model, if it is known, and those that programs were measured on too; on how many draws of text each."""
    return Counter(str(of["model"]) for of in (settings, *settings.get("also", [])) if "model" in of)


def _facts(settings: Mapping[str, Any], told: Account) -> dict[str, str]:
    models = [f"{name} ({draws} draws of text)" if draws > 1 else name for name, draws in _models(settings).items()]
    facts = {"Model": ", ".join(models)} if models else {}
    known = {"Target": "target", "Proposer": "proposer", "Prompt": "prompt", "Seed": "seed"}
    facts |= {label: str(settings[name]) for label, name in known.items() if name in settings}
    facts["Frozen"] = str(settings.get("freeze") or "nothing")
    facts["Rungs"] = _RUNGS
    facts["Proposals"] = ", ".join(f"{count} {outcome}" for outcome, count in told.proposals.items()) or "none"
    cost = f", {told.tokens:,} tokens" * bool(told.tokens) + f", {told.usd:.4f} US dollars" * bool(told.usd)
    return facts | {"Time": f"{told.seconds / 60:.1f} min{cost}"}


def _use(settings: Mapping[str, Any], program: Path) -> str:
    target = str(settings.get("target", "0.5"))
    given = [str(settings.get("model", "MODEL")), "--out", "pruned", "--algorithm", str(program)]
    return shlex.join(["autoprune", "prune", *given, "--pattern" if ":" in target else "--sparsity", target])


def _says(told: Account, winner: str | None) -> str:
    row = next((row for row in told.rows if row.digest == winner), None)
    if row is None or not row.differences:
        return ""
    parts = [f"{d.mean:+.3f} nats a token against {d.against} ({d.low:+.3f} to {d.high:+.3f})" for d in row.differences]
    compared = f"On tokens that the search never saw, the winner's damage is {'; '.join(parts)}."
    finalists = sum("fresh" in row.damage for row in told.rows)
    chosen = f" It is the best of {finalists} there." if finalists > 1 else ""
    return f"{compared}{chosen} Negative is better; 95 % intervals of a paired bootstrap."


def _leaderboard(told: Account) -> Table:
    rungs = list(told.seconds_by_rung)
    known = {row.digest for row in told.rows}

    def cells(row: Row) -> list[str]:
        damage = [f"{row.damage[rung]:.4f}" if rung in row.damage else "–" for rung in rungs]
        compared = "; ".join(f"{d.against} {d.mean:+.3f} ({d.low:+.3f} to {d.high:+.3f})" for d in row.differences)
        return [row.digest, row.origin, *damage, compared or "–"]

    rows = [cells(row) for row in (*told.rows, *(row for row in told.baselines if row.digest not in known))]
    headings = ["hash", "from", *rungs, "against the baselines, fresh tokens"]
    return Table(headings, rows, title="The best, and the baselines")


def _cost(archive: Archive, graph: Graph, told: Account) -> Table:
    def row(what: str, seconds: list[float], failed: int, peaks: Sequence[int] = ()) -> list[str]:
        each = f"{np.median(seconds):.2f}" if seconds else "–"
        peak = f"{max(peaks) / 1e9:.2f}" if peaks else "–"
        return [what, str(len(seconds)), str(failed), each, f"{sum(seconds):.0f}", peak]

    calls = [call.answer for call in archive.calls()]
    rows = [row("proposals", [answer.seconds for answer in calls], sum(bool(answer.error) for answer in calls))]
    for rung in told.seconds_by_rung:
        outcomes = [outcome for (_, known), outcome in graph.outcomes.items() if known == rung]
        peaks = [outcome.peak_bytes for outcome in outcomes if outcome.peak_bytes]
        failed = sum(bool(outcome.error) for outcome in outcomes)
        rows.append(row(rung, [outcome.seconds for outcome in outcomes], failed, peaks))
    headings = ["what", "times", "failed", "seconds each (median)", "seconds in all", "peak memory, GB"]
    return Table(headings, rows, title="Cost")


def _progress(archive: Archive, graph: Graph) -> list[Picture]:
    """The best damage at the last rung, over proposals."""
    last = graph.rungs[-1]
    measured = [(graph.nodes[digest].step, graph.outcome(digest, last)) for digest in graph.distinct]
    found = [(step, outcome.damage) for step, outcome in measured if outcome and outcome.damage is not None]
    if not found:
        return []
    steps = np.array([max(step + 1, 0) for step, _ in found])
    damage = np.array([value for _, value in found])
    so_far = np.minimum.accumulate(damage)
    names = {digest: name for name, digest in archive.get("baselines", {}).items()}
    outcomes = [(name, graph.outcome(digest, last)) for digest, name in names.items()]
    lines = [(name, outcome.damage) for name, outcome in outcomes if outcome and outcome.damage]
    last_step = max((proposal.step for proposal in archive.proposals()), default=0) + 1
    with axes(counted=True) as axis:
        axis.plot(steps, damage, "o", color=QUIET, markersize=3, label="a program")
        x, y = [*steps, max(last_step, steps[-1])], [*so_far, so_far[-1]]
        axis.step(x, y, where="post", color=COLOURS[0], linewidth=2, label="best so far")
        for number, (name, value) in enumerate(lines):
            line = ("--", ":", "-.")[number % 3]
            axis.axhline(
                value, color=COLOURS[(1 + number) % len(COLOURS)], linestyle=line, linewidth=1.2, label=named(name)
            )
        axis.set(xlabel="proposals", ylabel=f"damage at {last}, nats a token")
        log_axis(axis, "y", damage.tolist())
        axis.figure.legend(loc="outside lower center", ncols=min(3, 2 + len(lines)), handletextpad=0.4)
    known, proposed = damage[steps == 0], damage[steps > 0]
    library = f"the best of the library {known.min():.3f}" if len(known) else "none of the library was measured there"
    own = f"the best proposal {proposed.min():.3f}" if len(proposed) else "no proposal came so far"
    says = f"Nats a token at {last}: {library}, {own} ({len(proposed)} proposals measured there). At 0: the library."
    rows = [[str(step), f"{value:.4f}", f"{least:.4f}"] for (step, value), least in zip(found, so_far, strict=True)]
    return [
        Picture(
            "progress",
            "Progress against the baselines",
            says,
            axis.figure,
            Table(["proposal", "damage", "best so far"], rows),
        )
    ]


def _correlations(archive: Archive, graph: Graph) -> list[Picture]:
    pictures = []
    for low, high in itertools.combinations(graph.rungs, 2):
        first, second = graph.both(low, high)
        if len(first) < 3:
            continue
        value, count = graph.correlation(low, high)
        with axes() as axis:
            axis.plot(first, second, "o", color=COLOURS[0], markersize=4)
            log_axis(axis, "x", first)
            log_axis(axis, "y", second)
            axis.set(xlabel=f"{low}, nats a token", ylabel=f"{high}, nats a token")
        says = f"{count} programs" + (
            f"; Spearman's rank correlation {value:.2f}." if value is not None else ": too few for a rank correlation."
        )
        rows = [[f"{a:.4f}", f"{b:.4f}"] for a, b in zip(first, second, strict=True)]
        pictures.append(
            Picture(f"{low}-{high}", f"Does {low} foretell {high}?", says, axis.figure, Table([low, high], rows))
        )
    return pictures


def _effects(archive: Archive, graph: Graph) -> list[Picture]:
    effects = [effect for effect in graph.effects if math.isfinite(effect.median)]
    if not effects:
        return []
    shown = effects if len(effects) <= 2 * _TRAITS else [*effects[:_TRAITS], *effects[-_TRAITS:]]
    shown = shown[::-1]
    with axes(height=0.9 + 0.26 * len(shown)) as axis:
        colours = [COLOURS[2] if effect.median < 0 else COLOURS[1] for effect in shown]
        axis.barh(range(len(shown)), [effect.median for effect in shown], color=colours)
        axis.set_yticks(range(len(shown)), [f"{effect.trait} ({effect.helped} of {effect.steps})" for effect in shown])
        axis.grid(axis="y", visible=False)
        axis.set(xlabel="median effect, nats a token (steps in which it helped)")
    first = effects[0]
    says = (
        f"{len(effects)} traits, over the steps that added one (or removed it, with the sign turned). {first.trait} "
        f"helped most often: in {first.helped} of {first.steps} steps, {first.median:+.3f} nats in the median."
    )
    rows = [[effect.trait, f"{effect.median:+.4f}", str(effect.helped), str(effect.steps)] for effect in effects]
    return [
        Picture(
            "traits",
            "What each trait did",
            says,
            axis.figure,
            Table(["trait", "median effect", "helped in", "of steps"], rows),
        )
    ]


def _predictions(archive: Archive, graph: Graph) -> list[Picture]:
    known = [
        (edge.predicted, edge.observed)
        for edge in graph.edges
        if edge.predicted is not None and edge.observed is not None
    ]
    if len(known) < 3:
        return []
    predicted, observed = (np.array(values) for values in zip(*known, strict=True))
    with axes() as axis:
        axis.axhline(0, color=QUIET, linewidth=1)
        axis.axvline(0, color=QUIET, linewidth=1)
        axis.plot(predicted, observed, "o", color=COLOURS[0], markersize=4)
        axis.set_yscale("symlog", linthresh=0.1)
        axis.set(xlabel="predicted, nats a token", ylabel="observed, nats a token")
    right = int((np.sign(predicted) == np.sign(observed)).sum())
    says = f"{right} of {len(known)} predictions had the right sign."
    rows = [[f"{a:+.4f}", f"{b:+.4f}"] for a, b in known]
    return [
        Picture(
            "predictions", "Predicted and observed effects", says, axis.figure, Table(["predicted", "observed"], rows)
        )
    ]


def _seconds(archive: Archive, graph: Graph) -> list[Picture]:
    by_rung = {"proposals": sum(call.answer.seconds for call in archive.calls())}
    for (_, rung), outcome in graph.outcomes.items():
        if math.isfinite(outcome.seconds):
            by_rung[rung] = by_rung.get(rung, 0.0) + outcome.seconds
    order = [name for name in ("proposals", *graph.rungs) if by_rung.get(name)] + [
        name for name in by_rung if name not in ("proposals", *graph.rungs)
    ]
    if not order or not sum(by_rung.values()):
        return []
    with axes(height=2.4) as axis:
        axis.barh(range(len(order)), [by_rung[name] for name in order], color=COLOURS[0])
        axis.set_yticks(range(len(order)), order)
        axis.invert_yaxis()
        axis.grid(axis="y", visible=False)
        axis.set(xlabel="seconds in all")
    most = max(order, key=lambda name: by_rung[name])
    says = f"{most} took most: {by_rung[most]:.0f} of {sum(by_rung.values()):.0f} seconds."
    rows = [[name, f"{by_rung[name]:.1f}"] for name in order]
    return [Picture("cost", "Where the time went", says, axis.figure, Table(["what", "seconds"], rows))]
