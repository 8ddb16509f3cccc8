"""The graph of a search, laid out: programs by the order in which they were found and by the damage they do, steps of
reasoning between them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from autoprune.figures.picture import COLOURS, QUIET, Picture, Table, axes
from autoprune.search.archive import Archive, Edge, Node
from autoprune.search.graph import CONFIRMED, INCONCLUSIVE, REFUTED, Graph
from autoprune.search.protocol import OPERATORS

_TICKS = 7
_WIDTH, _HEIGHT = 1000, 620
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 16, 34, 34
LINES = {CONFIRMED: (COLOURS[2], "-"), REFUTED: (COLOURS[1], "--"), INCONCLUSIVE: (QUIET, ":")}
"""Colour and line of an edge, by its verdict."""


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
        known = sorted(self.damage.values()) or [0.0, 1.0]
        self.low, self.high = known[0], max(known[-1], known[0] + 1e-6)
        self.scale = max(known[len(known) // 4] - self.low, (self.high - self.low) / 1000)

    def _damage(self, digest: str) -> float | None:
        known = self.graph.estimate(self.graph.nodes[digest].same_as or digest) if self.graph.rung(digest) else math.nan
        return known if math.isfinite(known) else None

    def x(self, index: int) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (index + 0.5) / max(1, len(self.graph.nodes))

    def y(self, damage: float | None) -> float:
        """Down is better; what was not measured is above all."""
        if damage is None:
            return _TOP / 2
        return _HEIGHT - _BOTTOM - self._share(damage) * (_HEIGHT - _BOTTOM - _TOP)

    def _share(self, damage: float) -> float:
        """Of the way from the best to the worst: logarithmic, but for the quarter nearest to the best."""
        beyond = (damage - self.low) / self.scale
        return math.copysign(math.log1p(abs(beyond)), beyond) / math.log1p((self.high - self.low) / self.scale)

    def _damage_at(self, share: float) -> float:
        beyond = share * math.log1p((self.high - self.low) / self.scale)
        return self.low + self.scale * math.copysign(math.expm1(abs(beyond)), beyond)

    def _ticks(self) -> list[float]:
        """Damages at even distances, rounded as far as they can be told apart."""
        exact = [self._damage_at(step / _TICKS) for step in range(_TICKS + 1)]
        return sorted({float(f"{value:.3g}") for value in exact})

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
            "ticks": [{"y": self.y(value), "label": f"{value:g}"} for value in self._ticks()],
            "failed": len(self.damage) < len(nodes),
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
            "name": self._origin(node),
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
            return {"parents": [], "verdict": ""}
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
        last = self.graph.rungs[-1]
        place = {digest: index for index, digest in enumerate(self.graph.nodes)}
        steps = [edge for edge in self.graph.edges if edge.parents and edge.parents[0] in place and edge.child in place]
        with axes(height=3.6, counted=True) as axis:
            for edge in steps:
                colour, line = LINES.get(edge.verdict, LINES[INCONCLUSIVE])
                ends = (edge.parents[0], edge.child)
                x, y = [place[digest] for digest in ends], [self.damage.get(digest, self.high) for digest in ends]
                axis.plot(x, y, line, color=colour, linewidth=0.5, alpha=0.6)

            def scatter(chosen: Sequence[str], label: str, **how: Any) -> None:
                x, y = [place[digest] for digest in chosen], [self.damage[digest] for digest in chosen]
                axis.scatter(x, y, label=label, zorder=3, **how)

            measured = [digest for digest in self.damage if self.graph.rung(digest) == last]
            scatter([digest for digest in self.damage if digest not in measured], "forecast", s=8, color=QUIET)
            scatter(measured, f"measured at {last}", s=16, color=COLOURS[0])
            if self.best in self.damage:
                scatter([self.best], "winner", s=90, marker="*", color=COLOURS[1])
            axis.set_yscale("function", functions=(np.vectorize(self._share), np.vectorize(self._damage_at)))
            axis.set_yticks(self._ticks(), [f"{value:g}" for value in self._ticks()])
            axis.set(xlabel="programs, in the order in which they were found", ylabel="damage, nats a token")
            axis.figure.legend(loc="outside lower center", ncols=3, handletextpad=0.2)
        counts = Counter(edge.verdict for edge in steps)
        says = "Lower is better; " + ", ".join(f"{counts[verdict]} steps {verdict}" for verdict in LINES) + "."
        shown = {digest: f"{damage:.4f}" for digest, damage in self.damage.items()}
        rows = [[node.digest, self._origin(node), shown.get(node.digest, "–")] for node in self.graph.nodes.values()]
        table = Table(["hash", "origin", "damage"], rows)
        return Picture("graph", "Programs and the steps between them", says, axis.figure, table)

    def _origin(self, node: Node) -> str:
        return self.names.get(node.digest) or f"step {node.step}"
