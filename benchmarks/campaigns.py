"""What searches found, side by side: one line of JSON for each, and the tables of docs/discovery.md.

    python benchmarks/campaigns.py RUN... --commit 0123abc --out results/campaigns.jsonl
    python benchmarks/campaigns.py --table results/campaigns.jsonl

Searches with the same model, target, seed and text judge programs on the same tokens, so their damages can be compared;
tables have a row for each kind of proposer and columns that are means over seeds.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from autoprune.discover import open_run
from autoprune.scoring.scorer import FRESH, RUNGS
from autoprune.search.account import account, best
from autoprune.search.archive import Archive
from autoprune.search.graph import Graph

FULL = RUNGS[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="folders of searches")
    parser.add_argument("--commit", default="", help="of the code that searched")
    parser.add_argument("--out", type=Path, default=Path("campaigns.jsonl"))
    parser.add_argument("--table", type=Path, help="print the tables of these results, and read no search")
    arguments = parser.parse_args()
    if arguments.table:
        print(tables([json.loads(line) for line in arguments.table.read_text("utf-8").splitlines()]))
        return
    if not arguments.runs:
        parser.error("give folders of searches, or --table")
    lines = arguments.out.read_text("utf-8").splitlines() if arguments.out.exists() else []
    known = {row["run"]: row for row in map(json.loads, lines)}
    for run in arguments.runs:
        with open_run(run) as archive:
            known[run.name] = {"run": run.name, "commit": arguments.commit, **summary(archive)}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text("".join(json.dumps(known[name]) + "\n" for name in sorted(known)), "utf-8")


def summary(archive: Archive) -> dict[str, Any]:
    """What is kept of a search. `curve` has the step and damage of each program that was the best so far at the last
    rung; steps below 0 are programs of the library."""
    graph, told = Graph(archive, RUNGS), account(archive, RUNGS, FRESH)
    settings = _without_folders(archive.get("settings", {}))
    measured = [(graph.nodes[digest].step, found.damage) for digest in graph.distinct
                if (found := graph.outcome(digest, FULL)) and found.damage is not None]  # fmt: skip
    curve: list[tuple[int, float]] = []
    for step, damage in sorted(measured):
        if not curve or damage < curve[-1][1]:
            curve.append((step, round(damage, 4)))
    names = {name: digest for digest, name in archive.get("names", {}).items()}
    roots = {name: graph.outcome(digest, FULL) for name, digest in names.items()}
    winner = best(archive, RUNGS, FRESH)
    row = next((row for row in told.rows if row.digest == winner), None)
    steps = [proposal.step for proposal in archive.proposals()]
    verdicts: dict[str, int] = defaultdict(int)
    for edge in graph.edges:
        verdicts[edge.verdict] += edge.step >= 0
    return {
        "settings": settings,
        "evaluations": max(steps, default=-1) + 1,
        "proposals": told.proposals,
        "verdicts": dict(verdicts),
        "curve": curve,
        "library": {name: round(found.damage, 4) for name, found in roots.items() if found and found.damage},
        "winner": row.canonical if row else "",
        "winner_step": graph.nodes[winner].step if winner else None,
        "fresh": {d.against: [round(d.mean, 4), round(d.low, 4), round(d.high, 4)] for d in row.differences}
        if row
        else {},
        "correlations": {
            name: [value and round(value, 3), count] for name, (value, count) in told.correlations.items()
        },
        "seconds": round(told.seconds, 1),
        "tokens": told.tokens,
    }


def _without_folders(settings: dict[str, Any]) -> dict[str, Any]:
    """What a search was told, with names of models instead of places on somebody's disk."""
    proposer, colon, of = settings["proposer"].partition(":")
    of = "" if proposer == "exchange" else Path(of).name
    also = [{**other, "model": Path(other["model"]).name} for other in settings.get("also", [])]
    model = Path(settings["model"]).name
    return {**settings, "model": model, "also": also, "proposer": f"{proposer}{colon if of else ''}{of}"}


def task(settings: dict[str, Any]) -> str:
    """What searches have to have in common to be compared."""
    models = [settings["model"], *(other["model"] for other in settings["also"])]
    return f"{' and '.join(models)} at {settings['target']}, {settings['freeze'] or 'nothing'} frozen"


def _same_tokens(settings: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(settings.get(name) for name in ("seed", "calibration", "propagation", "dtype"))


def kind(row: dict[str, Any]) -> str:
    """The proposer, and how it was asked if it was."""
    proposer, _, name = row["settings"]["proposer"].partition(":")
    asked = proposer not in ("genetic", "random")
    own = f" {name}" if proposer == "local" else ""
    return proposer + own + (f", {'GCoT' if row['settings']['prompt'] == 'graph' else 'plain'}" if asked else "")


def tables(rows: list[dict[str, Any]]) -> str:
    """A table for each task (model, target, what is frozen)."""
    tasks: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        tasks[task(row["settings"])].append(row)
    return "\n\n".join(f"{name}\n\n{table(of_it)}" for name, of_it in tasks.items())


def table(rows: list[dict[str, Any]]) -> str:
    """Best damage at the last rung less Wanda's there; the evaluations it took to find it, and to be as good as genetic
    programming's best of the same seed; duplicates; the winner on fresh tokens less Wanda."""
    kinds: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["curve"] and row["evaluations"]:
            kinds[kind(row)].append(row)
    goal = {_same_tokens(row["settings"]): row["curve"][-1][1] for row in kinds.get("genetic", [])}
    lines = [
        "| proposer | runs | evaluations | known already | refused | best − Wanda | found after | genetic's best after "
        "| winner − Wanda, fresh |",
        "|---" * 9 + "|",
    ]
    for name, of_it in kinds.items():
        share = [row["proposals"].get("duplicate", 0) / row["evaluations"] for row in of_it]
        refused = [row["proposals"].get("refused", 0) / row["evaluations"] for row in of_it]
        gains = [row["curve"][-1][1] - row["library"].get("wanda", math.nan) for row in of_it]
        found = [row["curve"][-1][0] + 1 for row in of_it if row["curve"][-1][0] >= 0]
        reached = [_reached(row, goal.get(_same_tokens(row["settings"]))) for row in of_it]
        fresh = [_fresh(row) for row in of_it]
        cells = [
            name,
            str(len(of_it)),
            "/".join(dict.fromkeys(str(row["evaluations"]) for row in of_it)),
            f"{statistics.mean(share):.0%}",
            f"{statistics.mean(refused):.0%}",
            _spread(gains),
            f"{statistics.median(found):g} ({', '.join(map(str, found))})" if found else "never",
            ", ".join(map(str, reached)),
            _spread(fresh),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _reached(row: dict[str, Any], goal: float | None) -> int | str:
    if goal is None:
        return "–"
    return next((max(step + 1, 0) for step, damage in row["curve"] if damage <= goal), "never")


def _fresh(row: dict[str, Any]) -> float:
    """Of the winner less Wanda, nats a token; nan where nothing was measured on fresh tokens."""
    if not row["winner"]:
        return math.nan
    return row["fresh"]["wanda"][0] if "wanda" in row["fresh"] else 0.0  # the winner is Wanda itself


def _spread(values: list[float]) -> str:
    known = [value for value in values if not math.isnan(value)]
    each = ", ".join("–" if math.isnan(value) else f"{value:+.3f}" for value in values)
    if len(known) < 2:
        return each
    return f"{statistics.mean(known):+.3f} ({each})"


if __name__ == "__main__":
    main()
