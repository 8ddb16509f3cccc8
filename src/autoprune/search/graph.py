"""The graph of a search: programs with their measurements, and the steps of reasoning between them.

It is the search's memory: parents are chosen from it, and a prompt is a walk in it.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from autoprune.errors import AutopruneError
from autoprune.search.archive import Archive, Edge, Node
from autoprune.search.protocol import Outcome

CONFIRMED, REFUTED, INCONCLUSIVE = "confirmed", "refuted", "inconclusive"

_NOISE = 2.0  # standard errors that an effect has to be away from nothing
_LEAST_PAIRS = 10  # programs that two rungs must have measured before their correlation counts


@dataclass(frozen=True)
class Effect:
    """What a trait did: the mean difference in nats a token over the steps that added it (or, with the sign turned,
    removed it), its standard error, and how many they were."""

    trait: str
    mean: float
    error: float
    steps: int


class Graph:
    """A view of what an archive holds at one moment. `rungs` go from the cheapest to the most telling."""

    def __init__(self, archive: Archive, rungs: Sequence[str]):
        self.rungs = tuple(rungs)
        self.nodes: dict[str, Node] = {node.digest: node for node in archive.nodes()}
        self.edges = archive.edges()
        self.outcomes = archive.evaluations()

    # ---------------------------------------------------------------- what was measured

    def outcome(self, digest: str, rung: str) -> Outcome | None:
        """What a rung said of a program, or of the one that does the same; None where it was not asked or failed."""
        node = self.nodes.get(digest)
        found = self.outcomes.get((node.same_as if node and node.same_as else digest, rung))
        return found if found and found.damage is not None else None

    def rung(self, digest: str) -> str | None:
        """The most telling rung that has measured a program."""
        return next((rung for rung in reversed(self.rungs) if self.outcome(digest, rung)), None)

    def both(self, low: str, high: str) -> tuple[list[float], list[float]]:
        """Damages of all programs that two rungs have measured."""
        pairs = [(self.outcome(digest, low), self.outcome(digest, high)) for digest in self.distinct]
        known = [(a.damage, b.damage) for a, b in pairs if a and b and a.damage is not None and b.damage is not None]
        return [a for a, _ in known], [b for _, b in known]

    def correlation(self, low: str, high: str) -> tuple[float | None, int]:
        """Spearman's rank correlation of two rungs, and of how many programs; None where they are too few."""
        first, second = self.both(low, high)
        return (spearman(first, second) if len(first) >= _LEAST_PAIRS else None), len(first)

    @cached_property
    def distinct(self) -> list[str]:
        """Programs that do not do the same as an earlier one, in the order in which they were found."""
        return [digest for digest, node in self.nodes.items() if node.same_as is None]

    @cached_property
    def ranked(self) -> list[str]:
        """All distinct programs that any rung has measured, the best first.

        Damage at a lower rung is taken to the highest by the median ratio of the two over the programs that have both.
        """
        return sorted((digest for digest in self.distinct if self.rung(digest)), key=self.estimate)

    def estimate(self, digest: str) -> float:
        """Damage at the highest rung, as far as it is known."""
        rung = self.rung(digest)
        assert rung is not None
        outcome = self.outcome(digest, rung)
        assert outcome is not None
        assert outcome.damage is not None
        return outcome.damage * self._scale[rung]

    @cached_property
    def _scale(self) -> dict[str, float]:
        scale, factor = {}, 1.0
        for index in range(len(self.rungs) - 1, -1, -1):
            if index + 1 < len(self.rungs):
                first, second = self.both(self.rungs[index], self.rungs[index + 1])
                ratios = [b / a for a, b in zip(first, second, strict=True) if a > 0 and b > 0]
                factor *= statistics.median(ratios) if ratios else 1.0
            scale[self.rungs[index]] = factor
        return scale

    # ---------------------------------------------------------------- choosing

    def visits(self) -> dict[str, int]:
        """How often each program has been the parent of a step."""
        count: dict[str, int] = {}
        for edge in self.edges:
            for digest in edge.parents[:1]:
                count[digest] = count.get(digest, 0) + 1
        return count

    def choose(self, rng: random.Random, visits: Mapping[str, int], others_than: str = "") -> str:
        """A parent: good ones rather than bad ones, and those that have been tried less rather than more."""
        if not self.ranked:
            errors = sorted({outcome.error for outcome in self.outcomes.values() if outcome.error})
            raise AutopruneError(
                f"no program could be measured ({errors[0] if errors else 'none was there'})",
                remedy="mend that and give another --run",
            )
        ranked = [digest for digest in self.ranked if digest != others_than] or self.ranked
        spread = max(2.0, len(ranked) / 8)
        weights = [
            math.exp(-rank / spread) / math.sqrt(1 + visits.get(digest, 0)) for rank, digest in enumerate(ranked)
        ]
        return rng.choices(ranked, weights)[0]

    # ---------------------------------------------------------------- reasoning

    @cached_property
    def made_by(self) -> dict[str, Edge]:
        """The step that first led to each program."""
        found: dict[str, Edge] = {}
        for edge in self.edges:
            found.setdefault(edge.child, edge)
        return found

    def chain(self, digest: str) -> list[Edge]:
        """The steps that led from a root to a program, along first parents."""
        steps: list[Edge] = []
        while (edge := self.made_by.get(digest)) and edge.parents and edge not in steps:
            steps.append(edge)
            digest = edge.parents[0]
        return steps[::-1]

    def refuted(self, parent: str) -> list[Edge]:
        """Steps from a parent that made it worse, the worst first."""
        steps = [edge for edge in self.edges if edge.parents[:1] == (parent,) and edge.verdict == REFUTED]
        return sorted(steps, key=lambda edge: -(edge.observed or 0.0))

    def effects(self) -> list[Effect]:
        """What each trait did, over all steps that added or removed it; the most helpful first."""
        found: dict[str, list[float]] = {}
        for edge in self.edges:
            if edge.observed is None or not edge.parents or edge.child not in self.nodes:
                continue
            before = set(self.nodes[edge.parents[0]].traits)
            after = set(self.nodes[edge.child].traits)
            for trait in after - before:
                found.setdefault(trait, []).append(edge.observed)
            for trait in before - after:
                found.setdefault(trait, []).append(-edge.observed)
        effects = [
            Effect(trait, statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values)), len(values))
            for trait, values in found.items()
            if len(values) > 1
        ]
        return sorted(effects, key=lambda effect: (effect.mean, effect.trait))

    def observed(self, child: str, parent: str) -> tuple[float, float] | None:
        """By how much a program's damage differs from its parent's at the highest rung that both have, and the standard
        error of that, part by part."""
        for rung in reversed(self.rungs):
            own, other = self.outcome(child, rung), self.outcome(parent, rung)
            if own and other and own.damage is not None and other.damage is not None:
                differences = [a - b for a, b in zip(own.parts, other.parts, strict=False)]
                enough = len(differences) > 1
                error = statistics.stdev(differences) / math.sqrt(len(differences)) if enough else 0.0
                return own.damage - other.damage, error
        return None


def verdict(operator: str, observed: tuple[float, float] | None) -> str:
    """Whether a step did what it was for: to make the parent better; for "simplify", not to make it worse."""
    if observed is None:
        return INCONCLUSIVE
    difference, error = observed
    if difference > _NOISE * error:
        return REFUTED
    if operator == "simplify" or difference < -_NOISE * error:
        return CONFIRMED
    return INCONCLUSIVE


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Rank correlation; ties share their mean rank; 0 where either does not vary."""
    a, b = _ranks(first), _ranks(second)
    if len(set(a)) < 2 or len(set(b)) < 2:
        return 0.0
    return statistics.correlation(a, b)


def _ranks(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    first = {value: index for index, value in reversed(list(enumerate(ordered)))}
    last = {value: index for index, value in enumerate(ordered)}
    return [(first[value] + last[value]) / 2 for value in values]
