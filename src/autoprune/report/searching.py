"""What a search found, how it came about, and what its measurements are worth."""

from __future__ import annotations

import itertools
import math
import shutil
import sqlite3
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from autoprune.errors import AutopruneError
from autoprune.figures.picture import COLOURS, QUIET, Picture, Table, axes
from autoprune.report.graph import Layout
from autoprune.report.section import Section
from autoprune.search.account import Account, Row, account, best
from autoprune.search.archive import Archive
from autoprune.search.graph import Graph

_TRAITS = 8  # of the most helpful, and of the most harmful


def searching(path: Path, rungs: Sequence[str], fresh: str) -> Section:
    """The section of a search, from its archive. The file is read from a copy: a search may be at work in it."""
    with tempfile.TemporaryDirectory() as folder:
        for file in (path, *(path.with_name(path.name + end) for end in ("-wal",))):
            if file.exists():
                shutil.copy(file, folder)
        archive = Archive.open(Path(folder) / path.name)
        try:
            return _section(archive, path, rungs, fresh)
        except (sqlite3.Error, ValueError, KeyError, TypeError) as error:
            if isinstance(error, AutopruneError):
                raise
            raise AutopruneError(
                f"the archive is damaged ({error})", where=str(path), remedy="restore it from a copy"
            ) from None
        finally:
            archive.close()


def _section(archive: Archive, path: Path, rungs: Sequence[str], fresh: str) -> Section:
    graph, told, winner = Graph(archive, rungs), account(archive, rungs, fresh), best(archive, rungs, fresh)
    settings = archive.get("settings", {})
    layout = Layout(archive, graph, fresh, winner)
    missing = []
    if not archive.is_sound():
        missing.append("The archive is damaged: what is shown may be incomplete.")
    if layout.is_empty:
        missing.append("The archive holds no program: the search has not begun.")
    elif winner is None:
        missing.append("The search was not finished: nothing was measured on fresh tokens, so there is no winner yet.")
    pictures = [layout.picture()] if layout.damage else []
    pictures += [
        made
        for made in (
            _progress(archive, graph),
            *_correlations(graph),
            _effects(graph),
            _predictions(graph),
            _seconds(archive, graph),
        )
        if made
    ]
    tables = [_leaderboard(told)] if told.rows else []
    tables += [_cost(archive, graph, told)]
    name = str(settings.get("model", "an unknown model")).rstrip("/").rsplit("/", 1)[-1]
    return Section(
        kind="search",
        title=f"Search for {name} at {settings.get('target', '?')}",
        says=_says(told, winner),
        facts={
            "Model": str(settings.get("model", "?")),
            "Target": str(settings.get("target", "?")),
            "Proposer": str(settings.get("proposer", "?")),
            "Frozen": str(settings.get("freeze") or "nothing"),
            "Proposals": ", ".join(f"{count} {outcome}" for outcome, count in told.proposals.items()) or "none",
            "Seed": str(settings.get("seed", "?")),
            "Time": f"{told.seconds / 60:.1f} min"
            + f", {told.tokens:,} tokens" * bool(told.tokens)
            + f", {told.usd:.4f} US dollars" * bool(told.usd),
        },
        missing=missing,
        commands={
            "To use the winner": f"autoprune prune {settings.get('model', 'MODEL')} --out pruned --algorithm {path.parent / 'winner.prune'} "
            + (
                f"--pattern {settings['target']}"
                if ":" in str(settings.get("target"))
                else f"--sparsity {settings.get('target')}"
            )
        }
        if winner
        else {},
        programs={f"winner {winner}": graph.nodes[winner].canonical} if winner else {},
        graph=None if layout.is_empty else layout.data(),
        pictures=pictures,
        tables=tables,
    )


def _says(told: Account, winner: str | None) -> str:
    row = next((row for row in told.rows if row.digest == winner), None)
    if row is None or not row.differences:
        return ""
    parts = [f"{d.mean:+.3f} nats a token against {d.against} ({d.low:+.3f} to {d.high:+.3f})" for d in row.differences]
    return f"On tokens that nothing was chosen on, the winner's damage is {'; '.join(parts)}. Negative is better; 95 % intervals of a paired bootstrap."


def _leaderboard(told: Account) -> Table:
    rungs = list(told.seconds_by_rung)
    known = {row.digest for row in told.rows}

    def cells(row: Row) -> list[str]:
        damage = [f"{row.damage[rung]:.4f}" if rung in row.damage else "–" for rung in rungs]
        compared = "; ".join(f"{d.against} {d.mean:+.3f} ({d.low:+.3f} to {d.high:+.3f})" for d in row.differences)
        return [row.digest, row.origin, *damage, compared or "–"]

    rows = [*told.rows, *(row for row in told.baselines if row.digest not in known)]
    return Table(
        ["hash", "from", *rungs, "against the baselines, fresh tokens"],
        [cells(row) for row in rows],
        title="The best, and the baselines",
    )


def _cost(archive: Archive, graph: Graph, told: Account) -> Table:
    rows = []
    for rung in told.seconds_by_rung:
        outcomes = [outcome for (_, known), outcome in graph.outcomes.items() if known == rung]
        seconds = [outcome.seconds for outcome in outcomes]
        peaks = [outcome.peak_bytes for outcome in outcomes if outcome.peak_bytes]
        rows.append([rung, str(len(outcomes)), str(sum(bool(outcome.error) for outcome in outcomes)), f"{np.median(seconds) if seconds else 0:.2f}",
                     f"{sum(seconds):.0f}", f"{max(peaks) / 1e9:.2f}" if peaks else "–"])  # fmt: skip
    calls = archive.calls()
    asked = [call.answer.seconds for call in calls]
    rows.append(
        [
            "proposals",
            str(len(calls)),
            str(sum(bool(call.answer.error) for call in calls)),
            f"{np.median(asked) if asked else 0:.2f}",
            f"{sum(asked):.0f}",
            "–",
        ]
    )
    return Table(
        ["what", "times", "failed", "seconds each (median)", "seconds in all", "peak memory, GB"], rows, title="Cost"
    )


def _progress(archive: Archive, graph: Graph) -> Picture | None:
    """The best damage at the last rung, over proposals."""
    last = graph.rungs[-1]
    found = [(node.step, outcome.damage) for digest, node in graph.nodes.items()
             if node.same_as is None and (outcome := graph.outcome(digest, last)) and outcome.damage is not None]  # fmt: skip
    if not found:
        return None
    steps = np.array([max(step, 0) for step, _ in found])
    damage = np.array([value for _, value in found])
    so_far = np.minimum.accumulate(damage)
    names = {digest: name for name, digest in archive.get("baselines", {}).items()}
    lines = [
        (name, outcome.damage)
        for digest, name in names.items()
        if (outcome := graph.outcome(digest, last)) and outcome.damage
    ]
    with axes() as axis:
        axis.plot(steps, damage, "o", color=QUIET, markersize=3, label="a program")
        axis.step(
            [*steps, max(archive_steps(archive), default=steps[-1])],
            [*so_far, so_far[-1]],
            where="post",
            color=COLOURS[0],
            linewidth=2,
            label="best so far",
        )
        for number, (name, value) in enumerate(lines):
            axis.axhline(
                value, color=COLOURS[1 + number], linestyle=("--", ":", "-.")[number % 3], linewidth=1.2, label=name
            )
        axis.set(xlabel="proposals", ylabel=f"damage at {last}, nats a token")
        if damage.max() > 4 * damage.min() > 0:
            axis.set_yscale("log")
        axis.figure.legend(loc="outside lower center", ncols=min(5, 2 + len(lines)), handletextpad=0.4)
    says = f"From {so_far[0]:.3f} to {so_far[-1]:.3f} nats a token, with {len(found)} programs measured at {last}."
    rows = [[str(step), f"{value:.4f}", f"{least:.4f}"] for (step, value), least in zip(found, so_far, strict=True)]
    return Picture(
        "progress",
        "Progress against the baselines",
        says,
        axis.figure,
        Table(["proposal", "damage", "best so far"], rows),
    )


def archive_steps(archive: Archive) -> list[int]:
    return [proposal.step for proposal in archive.proposals()]


def _correlations(graph: Graph) -> list[Picture]:
    pictures = []
    for low, high in itertools.combinations(graph.rungs, 2):
        first, second = graph.both(low, high)
        if len(first) < 3:
            continue
        value, count = graph.correlation(low, high)
        with axes() as axis:
            axis.plot(first, second, "o", color=COLOURS[0], markersize=4)
            if min(first) > 0 and max(first) > 10 * min(first):
                axis.set_xscale("log")
            if min(second) > 0 and max(second) > 10 * min(second):
                axis.set_yscale("log")
            axis.set(xlabel=f"{low}, nats a token", ylabel=f"{high}, nats a token")
        says = f"{count} programs" + (
            f"; Spearman's rank correlation {value:.2f}." if value is not None else ": too few for a rank correlation."
        )
        rows = [[f"{a:.4f}", f"{b:.4f}"] for a, b in zip(first, second, strict=True)]
        pictures.append(
            Picture(f"{low}-{high}", f"Does {low} foretell {high}?", says, axis.figure, Table([low, high], rows))
        )
    return pictures


def _effects(graph: Graph) -> Picture | None:
    effects = [effect for effect in graph.effects() if math.isfinite(effect.mean)]
    if not effects:
        return None
    shown = effects if len(effects) <= 2 * _TRAITS else [*effects[:_TRAITS], *effects[-_TRAITS:]]
    shown = shown[::-1]
    with axes(height=0.9 + 0.26 * len(shown)) as axis:
        colours = [COLOURS[2] if effect.mean < 0 else COLOURS[1] for effect in shown]
        axis.barh(
            range(len(shown)),
            [effect.mean for effect in shown],
            xerr=[effect.error for effect in shown],
            color=colours,
            ecolor=QUIET,
        )
        axis.set_yticks(range(len(shown)), [f"{effect.trait} ({effect.steps})" for effect in shown])
        axis.grid(axis="y", visible=False)
        axis.set(xlabel="mean effect on damage, nats a token (steps)")
    says = f"Of {len(effects)} traits, the steps that added {effects[0].trait} (or removed it, with the sign turned) helped most: {effects[0].mean:+.3f} ± {effects[0].error:.3f}."
    rows = [[effect.trait, f"{effect.mean:+.4f}", f"{effect.error:.4f}", str(effect.steps)] for effect in effects]
    return Picture(
        "traits",
        "What each trait did",
        says,
        axis.figure,
        Table(["trait", "mean effect", "standard error", "steps"], rows),
    )


def _predictions(graph: Graph) -> Picture | None:
    known = [
        (edge.predicted, edge.observed)
        for edge in graph.edges
        if edge.predicted is not None and edge.observed is not None
    ]
    if len(known) < 3:
        return None
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
    return Picture(
        "predictions", "Predicted and observed effects", says, axis.figure, Table(["predicted", "observed"], rows)
    )


def _seconds(archive: Archive, graph: Graph) -> Picture | None:
    by_rung = {"proposals": sum(call.answer.seconds for call in archive.calls())}
    for (_, rung), outcome in graph.outcomes.items():
        by_rung[rung] = by_rung.get(rung, 0.0) + outcome.seconds
    order = [name for name in ("proposals", *graph.rungs) if by_rung.get(name)] + [
        name for name in by_rung if name not in ("proposals", *graph.rungs)
    ]
    if not order or not sum(by_rung.values()):
        return None
    with axes(height=2.4) as axis:
        axis.barh(range(len(order)), [by_rung[name] for name in order], color=COLOURS[0])
        axis.set_yticks(range(len(order)), order)
        axis.invert_yaxis()
        axis.grid(axis="y", visible=False)
        axis.set(xlabel="seconds in all")
    most = max(order, key=lambda name: by_rung[name])
    says = f"{most} took most: {by_rung[most]:.0f} of {sum(by_rung.values()):.0f} seconds."
    rows = [[name, f"{by_rung[name]:.1f}"] for name in order]
    return Picture("cost", "Where the time went", says, axis.figure, Table(["what", "seconds"], rows))
