"""What an archive has to tell: the best programs, how the best came about, what the figures are worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from autoprune.bootstrap import bootstrap_interval
from autoprune.errors import AutopruneError
from autoprune.search.archive import Archive, Edge, Node
from autoprune.search.graph import Graph
from autoprune.search.protocol import OPERATORS, Outcome


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Damage of one program minus that of another on the same fresh sequences, nats a token, with the 95 % interval of
    a paired bootstrap over sequences."""

    against: str
    mean: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the leaderboard. `damage` is by rung, `origin` the name of a program that was known before, or the step
    that made it."""

    digest: str
    origin: str
    damage: dict[str, float]
    canonical: str
    differences: tuple[Difference, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Account:
    """All that is shown at the end of a search."""

    rows: list[Row]
    baselines: list[Row]
    proposals: dict[str, int]
    correlations: dict[str, tuple[float | None, int]]
    seconds_by_rung: dict[str, float]
    seconds: float
    tokens: int
    usd: float


def account(archive: Archive, rungs: Sequence[str], fresh: str, count: int = 10) -> Account:
    """The account of a search so far: its `count` best programs, by the most telling figures there are."""
    graph = Graph(archive, rungs)
    (tokens, usd), proposals = archive.cost(), archive.proposals()
    outcomes: dict[str, int] = {}
    for proposal in proposals:
        if proposal.step >= 0:
            outcomes[proposal.outcome] = outcomes.get(proposal.outcome, 0) + 1
    names, known = archive.get("names", {}), archive.get("baselines", {})
    first = archive.get("finalists", [])
    ranked = [*first, *(digest for digest in graph.ranked if digest not in first)]
    all_rungs = (*rungs, fresh)
    return Account(
        rows=[_row(graph, digest, names, all_rungs, fresh, known) for digest in ranked[:count]],
        baselines=[_row(graph, digest, names, all_rungs, fresh, {}) for digest in known.values()],
        proposals=outcomes,
        correlations={f"{low} → {high}": graph.correlation(low, high) for low, high in _pairs(rungs)},
        seconds_by_rung={rung: _median(_seconds(graph, rung)) for rung in all_rungs},
        seconds=float(archive.get("seconds", 0.0)),
        tokens=tokens,
        usd=usd,
    )


def best(archive: Archive, rungs: Sequence[str], fresh: str) -> str | None:
    """The program that a search recommends: the one with the least damage on fresh tokens, of the finalists and of
    those that it started from and compared them with. None where none has come that far."""
    graph = Graph(archive, rungs)
    finalists = archive.get("finalists", [])
    known = [*finalists, *archive.get("baselines", {}).values()] if finalists else []
    measured = [(found.damage, digest) for digest in known if digest in graph.nodes
                if (found := graph.outcomes.get((digest, fresh))) and found.damage is not None]  # fmt: skip
    return min(measured)[1] if measured else None


def leader(archive: Archive, rungs: Sequence[str], fresh: str) -> str:
    """The best program so far: what the search recommends or, before its end, what the rungs hold to be best."""
    ranked = [best(archive, rungs, fresh), *Graph(archive, rungs).ranked]
    found = next((digest for digest in ranked if digest), None)
    if found is None:
        raise AutopruneError("no program was measured yet", where=str(archive.path), remedy="let the search go on")
    return found


def stored(archive: Archive, digest: str) -> Node:
    """The program of a digest, which may be given by its first characters."""
    found = [node for node in archive.nodes() if digest and node.digest.startswith(digest)]
    if len(found) != 1:
        what = f"'{digest}' is the beginning of {len(found)} hashes" if found else f"no program '{digest}'"
        raise AutopruneError(what, where=str(archive.path), remedy="see autoprune algorithms --run")
    return found[0]


def reasoning(archive: Archive, rungs: Sequence[str], digest: str) -> list[str]:
    """The measured chain of steps that led to a program, as lines."""
    graph, node = Graph(archive, rungs), stored(archive, digest)
    chain = graph.chain(node.digest)
    root = chain[0].parents[0] if chain else node.digest
    lines = [f"root {root}{_figures(graph, root, rungs)}", *_indented(graph.nodes[root].canonical)]
    for edge in chain:
        lines += ["", *_told(graph, edge, rungs)]
    return lines


def _told(graph: Graph, edge: Edge, rungs: Sequence[str]) -> list[str]:
    lines = [f"step {edge.step}: {edge.operator} ({OPERATORS.get(edge.operator, edge.operator)})"]
    lines += [f"  with        {digest}" for digest in edge.parents[1:]]
    lines += [f"  diagnosis   {edge.diagnosis}"] * bool(edge.diagnosis)
    lines += [f"  hypothesis  {edge.hypothesis}"] * bool(edge.hypothesis)
    lines += [f"  predicted   {edge.predicted:+.4f} nats/token"] if edge.predicted is not None else []
    if edge.observed is not None:
        lines.append(f"  observed    {edge.observed:+.4f} ± {edge.noise:.4f} nats/token: {edge.verdict}")
    lines.append(f"  gave        {edge.child}{_figures(graph, edge.child, rungs)}")
    return [*lines, *_indented(graph.nodes[edge.child].canonical)]


def _figures(graph: Graph, digest: str, rungs: Sequence[str]) -> str:
    found = [(rung, graph.outcome(digest, rung)) for rung in rungs]
    shown = [f"{rung} {outcome.damage:.4f}" for rung, outcome in found if outcome and outcome.damage is not None]
    same = graph.nodes[digest].same_as
    return (f" (does the same as {same})" if same else "") + (f": {', '.join(shown)}" if shown else "")


def _indented(program: str) -> list[str]:
    return [f"    {line}" for line in program.rstrip().split("\n")]


def _row(
    graph: Graph, digest: str, names: dict[str, str], rungs: Sequence[str], fresh: str, baselines: dict[str, str]
) -> Row:
    found = {rung: graph.outcomes.get((digest, rung)) for rung in rungs}
    damage = {rung: outcome.damage for rung, outcome in found.items() if outcome and outcome.damage is not None}
    differences = [
        difference
        for name, other in baselines.items()
        if other != digest and (difference := _difference(name, found[fresh], graph.outcomes.get((other, fresh))))
    ]
    node, edge = graph.nodes.get(digest), graph.made_by.get(digest)
    step = f"step {node.step}, {edge.operator}" if node and edge else ""
    return Row(
        digest=digest,
        origin=names.get(digest, step),
        damage=damage,
        canonical=node.canonical if node else "",
        differences=tuple(differences),
    )


def _difference(name: str, own: Outcome | None, other: Outcome | None) -> Difference | None:
    if not (own and other and own.parts and len(own.parts) == len(other.parts)):
        return None
    difference_B = np.subtract(own.parts, other.parts)
    low, high = bootstrap_interval(difference_B)
    return Difference(against=name, mean=float(difference_B.mean()), low=float(low), high=float(high))


def _pairs(rungs: Sequence[str]) -> list[tuple[str, str]]:
    """Each rung with the next, and the first with the last."""
    return [*pairwise(rungs), *([(rungs[0], rungs[-1])] if len(rungs) > 2 else [])]


def _seconds(graph: Graph, rung: str) -> list[float]:
    return [outcome.seconds for (_, known), outcome in graph.outcomes.items() if known == rung]


def _median(values: list[float]) -> float:
    return float(np.median(values)) if values else 0.0
