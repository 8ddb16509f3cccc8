"""The graph of a search, laid out: programs by the order in which they were found and by the damage they do, steps of
reasoning between them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from autoprune.figures.picture import COLOURS, QUIET, Picture, Table, axes
from autoprune.search.archive import Archive, Edge, Node
from autoprune.search.graph import CONFIRMED, INCONCLUSIVE, REFUTED, Graph
from autoprune.search.protocol import OPERATORS

_WIDTH, _HEIGHT = 1000, 460
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 16, 34, 34
VERDICTS = {CONFIRMED: ("confirmed", COLOURS[2], "-"), REFUTED: ("refuted", COLOURS[1], "--"), INCONCLUSIVE: ("inconclusive", QUIET, ":")}  # fmt: skip
"""Name, colour and line of an edge."""


class Layout:
    """Where every program and step of a search goes."""

    def __init__(self, archive: Archive, graph: Graph, fresh: str, best: str | None):
        self.graph, self.fresh, self.best = graph, fresh, best
        self.names: Mapping[str, str] = archive.get("names", {})
        self.models = {call.step: call.answer.model for call in archive.calls()}
        self.failed = {
            proposal.digest: proposal.detail for proposal in archive.proposals() if proposal.outcome == "failed"
        }
        self.damage = {digest: found for digest in graph.nodes if (found := self._damage(digest)) is not None}
        known = [value for value in self.damage.values() if value > 0]
        self.low, self.high = (min(known), max(known)) if known else (0.1, 1.0)
        if self.high < self.low * 1.2:
            self.low, self.high = self.low / 1.1, self.high * 1.1

    def _damage(self, digest: str) -> float | None:
        return self.graph.estimate(self.graph.nodes[digest].same_as or digest) if self.graph.rung(digest) else None

    @property
    def is_empty(self) -> bool:
        return not self.graph.nodes

    def x(self, index: int) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (index + 0.5) / max(1, len(self.graph.nodes))

    def y(self, damage: float | None) -> float:
        """Down is better; what was not measured is above all."""
        if damage is None:
            return _TOP / 2
        share = math.log(max(damage, self.low) / self.low) / math.log(self.high / self.low)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _BOTTOM - _TOP)

    def data(self) -> dict[str, Any]:
        """All that the page draws and shows, in plain JSON types."""
        position = {digest: self.x(index) for index, digest in enumerate(self.graph.nodes)}
        nodes = [self._node(node, position[node.digest]) for node in self.graph.nodes.values()]
        edges = [
            {
                "from": parent,
                "to": edge.child,
                "verdict": edge.verdict,
                "first": place == 0,
                "path": self._path(position, parent, edge.child),
            }
            for edge in self.graph.edges
            for place, parent in enumerate(edge.parents)
            if parent in position and edge.child in position and parent != edge.child
        ]
        return {
            "width": _WIDTH,
            "height": _HEIGHT,
            "left": _LEFT,
            "best": self.best,
            "last": self.graph.rungs[-1],
            "nodes": nodes,
            "edges": edges,
            "ticks": [{"y": self.y(value), "label": f"{value:g}"} for value in _ticks(self.low, self.high)],
        }

    def _path(self, position: Mapping[str, float], parent: str, child: str) -> str:
        x1, x2 = position[parent], position[child]
        y1, y2 = (self.y(self.damage.get(digest)) for digest in (parent, child))
        middle = (x1 + x2) / 2
        return f"M{x1:.1f} {y1:.1f}C{middle:.1f} {y1:.1f} {middle:.1f} {y2:.1f} {x2:.1f} {y2:.1f}"

    def _node(self, node: Node, x: float) -> dict[str, Any]:
        graph = self.graph
        digest, edge = node.digest, graph.made_by.get(node.digest)
        rungs = (*graph.rungs, self.fresh)
        figures = {rung: graph.outcomes.get((node.same_as or digest, rung)) for rung in rungs}
        damage = self.damage.get(digest)
        return {
            "id": digest,
            "name": self.names.get(digest, "") or f"step {node.step}",
            "known": digest in self.names,
            "x": round(x, 1),
            "y": round(self.y(damage), 1),
            "damage": damage,
            "rung": graph.rung(digest),
            "same_as": node.same_as,
            "program": node.canonical,
            "figures": {
                rung: {"damage": outcome.damage, "seconds": outcome.seconds, "error": outcome.error}
                for rung, outcome in figures.items()
                if outcome
            },
            "error": self.failed.get(digest, ""),
            "traits": list(node.traits),
            **self._step(edge),
        }

    def _step(self, edge: Edge | None) -> dict[str, Any]:
        if edge is None or not edge.parents:
            return {"parents": []}
        return {
            "parents": list(edge.parents),
            "operator": f"{edge.operator}: {OPERATORS[edge.operator]}" if edge.operator in OPERATORS else edge.operator,
            "diagnosis": edge.diagnosis,
            "hypothesis": edge.hypothesis,
            "predicted": edge.predicted,
            "observed": edge.observed,
            "noise": edge.noise,
            "verdict": edge.verdict,
            "model": self.models.get(edge.step, ""),
        }

    def picture(self) -> Picture:
        """The same as a still one, without what a click shows."""
        graph = self.graph
        place = {digest: index for index, digest in enumerate(graph.nodes)}
        top = self.high * 1.15
        with axes(height=3.6) as axis:
            for edge in graph.edges:
                label, colour, line = VERDICTS.get(edge.verdict, VERDICTS[INCONCLUSIVE])
                for parent in edge.parents[:1]:
                    if parent in place and edge.child in place:
                        ends = [self.damage.get(digest, top) for digest in (parent, edge.child)]
                        axis.plot(
                            [place[parent], place[edge.child]], ends, line, color=colour, linewidth=0.5, alpha=0.6
                        )
            for measured, marker, size in ((False, "o", 8), (True, "o", 16)):
                chosen = [digest for digest in self.damage if (graph.rung(digest) == graph.rungs[-1]) == measured]
                axis.scatter([place[digest] for digest in chosen], [self.damage[digest] for digest in chosen], s=size,
                             marker=marker, color=COLOURS[0] if measured else QUIET, zorder=3,
                             label=f"measured at {graph.rungs[-1]}" if measured else "forecast from cheaper rungs")  # fmt: skip
            if self.best in self.damage:
                axis.scatter(
                    [place[self.best]],
                    [self.damage[self.best]],
                    s=90,
                    marker="*",
                    color=COLOURS[1],
                    zorder=4,
                    label="winner",
                )
            axis.set_yscale("log")
            axis.set_yticks(_ticks(self.low, self.high), [f"{value:g}" for value in _ticks(self.low, self.high)])
            axis.yaxis.set_minor_locator(_nothing())
            axis.set(xlabel="programs, in the order in which they were found", ylabel="damage, nats a token")
            axis.figure.legend(loc="outside lower center", ncols=3, handletextpad=0.2)
        counts = {
            verdict: sum(edge.verdict == verdict and bool(edge.parents) for edge in graph.edges) for verdict in VERDICTS
        }
        says = ", ".join(f"{count} steps {VERDICTS[verdict][0]}" for verdict, count in counts.items())
        rows = [[node.digest, self.names.get(node.digest, f"step {node.step}"),
                 f"{self.damage[node.digest]:.4f}" if node.digest in self.damage else "–"] for node in graph.nodes.values()]  # fmt: skip
        return Picture(
            "graph",
            "Programs and the steps between them",
            f"Lower is better; {says}.",
            axis.figure,
            Table(["hash", "origin", "damage"], rows),
        )


def _nothing() -> Any:
    from matplotlib.ticker import NullLocator

    return NullLocator()


def _ticks(low: float, high: float) -> Sequence[float]:
    """Round numbers of a logarithmic axis."""
    steps = (
        (1, 2, 5)
        if high / low > 20
        else (1, 1.5, 2, 3, 4, 5, 7)
        if high / low > 2
        else [1 + 0.1 * i for i in range(90)]
    )
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [round(step * 10.0**power, 12) for power in powers for step in steps]
    return [value for value in found if low <= value <= high] or [low, high]
