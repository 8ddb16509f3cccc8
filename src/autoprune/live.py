"""What a person sees of a search while it runs: the best so far, how many went how far, the last verdicts."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from autoprune.search.graph import Graph

_VERDICTS = 6


class LiveWatch:
    """A few lines that are redrawn on a terminal; a line for every batch elsewhere (logs, pipes)."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._counts: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._verdicts: list[str] = []
        self._best = "nothing measured yet"
        self._done = self._total = 0

    def __enter__(self) -> LiveWatch:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def started(self, graph: Graph, done: int, total: int) -> None:
        self._done, self._total = done, total
        self._remember(graph)
        if done:
            self.note(f"going on after {done} of {total} proposals")
        self._draw()

    def measured(self, rung: str, outcome: Any) -> None:
        self._counts[rung] += 1
        if outcome.error:
            self._errors[rung] += 1
        self._draw()

    def step(self, proposal: Any, edge: Any) -> None:
        if proposal.step < 0:
            return
        self._done = proposal.step + 1
        text = f"{proposal.step:4d} {proposal.outcome}"
        if edge is not None and edge.observed is not None:
            predicted = f", predicted {edge.predicted:+.3f}" if edge.predicted is not None else ""
            text = (
                f"{proposal.step:4d} {edge.operator} {edge.observed:+.3f} ± {edge.noise:.3f}: {edge.verdict}{predicted}"
            )
        elif proposal.detail:
            text += f": {proposal.detail}"
        self._verdicts = [*self._verdicts, text[:110]][-_VERDICTS:]

    def batch(self, graph: Graph, done: int) -> None:
        self._remember(graph)
        if not self._console.is_terminal:
            self._console.print(self._summary(), markup=False, soft_wrap=True)
        self._draw()

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    def _remember(self, graph: Graph) -> None:
        for rung in graph.rungs:
            self._counts[rung] = sum(key[1] == rung for key in graph.outcomes)
        if graph.ranked:
            digest = graph.ranked[0]
            rung = graph.rung(digest)
            outcome = graph.outcome(digest, rung) if rung else None
            if outcome and outcome.damage is not None:
                self._best = f"{outcome.damage:.4f} nats/token ({rung}, {digest})"

    def _summary(self) -> str:
        rungs = ", ".join(f"{rung} {count}" for rung, count in self._counts.items())
        failed = sum(self._errors.values())
        return f"{self._done}/{self._total} proposals | best {self._best} | measured: {rungs}" + (
            f", {failed} failed" if failed else ""
        )

    def _draw(self) -> None:
        if self._console.is_terminal:
            self._live.update(Group(Text(self._summary()), *map(Text, self._verdicts)), refresh=True)
