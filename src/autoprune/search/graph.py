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
from itertools import pairwise

from autoprune.errors import AutopruneError
from autoprune.search.archive import Archive, Edge, Node
from autoprune.search.protocol import Outcome

CONFIRMED, REFUTED, INCONCLUSIVE = "confirmed", "refuted", "inconclusive"

_NOISE = 2.0  # standard errors that an effect has to be away from nothing
_LEAST_PAIRS = 10  # programs that two rungs must have measured before their correlation counts


@dataclass(frozen=True)
class Effect:
    """What a trait did, over the steps that added it (or, with the sign turned, removed it): the median difference in
    nats a token, how many they were, and in how many of them it helped. A median, since one bad program in ten is a
    hundred times worse than its parent, and would be all that a mean is about."""

    trait: str
    median: float
    helped: int
    steps: int

    @property
    def share(self) -> float:
        """Share of steps in which it helps, expected after so many (Laplace's rule): two of two are not yet always."""
        return (self.helped + 1) / (self.steps + 2)


@dataclass(frozen=True)
class _Relation:
    """What is expected of a program on a rung, from its damage on the one before: `factor` times that, the median ratio
    of the programs that have been on both. But those that the lower rung likes best are those that it flatters most:
    below the `pivot`, their median, damage changes only by this `power` of it."""

    factor: float
    pivot: float
    power: float

    @classmethod
    def of(cls, first: Sequence[float], second: Sequence[float]) -> _Relation:
        pairs = sorted((a, b) for a, b in zip(first, second, strict=True) if a > 0 and b > 0)
        if not pairs:
            return cls(1.0, 0.0, 1.0)
        factor, pivot = statistics.median(b / a for a, b in pairs), statistics.median(a for a, _ in pairs)
        better = [(math.log(a), math.log(b)) for a, b in pairs if a <= pivot]
        if len(better) < _LEAST_PAIRS or better[0][0] == better[-1][0]:
            return cls(factor, 0.0, 1.0)
        slope = statistics.linear_regression(*zip(*better, strict=True)).slope
        return cls(factor, pivot, min(max(slope, 0.0), 1.0))

    def __call__(self, damage: float) -> float:
        if not 0 < damage < self.pivot:
            return self.factor * damage
        return self.factor * self.pivot * (damage / self.pivot) ** self.power


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
        """All distinct programs that any rung has measured, the best first."""
        return sorted((digest for digest in self.distinct if self.rung(digest)), key=self.estimate)

    def estimate(self, digest: str) -> float:
        """Damage at the highest rung, as far as it is known: that at a lower one is taken up rung by rung."""
        rung = self.rung(digest)
        assert rung is not None
        outcome = self.outcome(digest, rung)
        assert outcome is not None
        assert outcome.damage is not None
        damage = outcome.damage
        for relation in self._relations[self.rungs.index(rung) :]:
            damage = relation(damage)
        return damage

    @cached_property
    def _relations(self) -> list[_Relation]:
        return [_Relation.of(*self.both(low, high)) for low, high in pairwise(self.rungs)]

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

    def confirmed(self) -> list[Edge]:
        """Steps anywhere that made a program better, those first that led to the best."""
        steps = [edge for edge in self.made_by.values() if edge.verdict == CONFIRMED and edge.child in self.places]
        # Better, not only shorter.
        steps = [edge for edge in steps if (edge.observed or 0.0) < -_NOISE * (edge.noise or 0.0)]
        return sorted(steps, key=lambda edge: self.places[edge.child])

    @cached_property
    def places(self) -> dict[str, int]:
        """The place of each distinct program, from 0 for the best."""
        return {digest: place for place, digest in enumerate(self.ranked)}

    @cached_property
    def noise(self) -> float | None:
        """By how much two programs have to differ at the highest rung before it means something: the median of the
        steps that it has measured; None where there is none."""
        last = self.rungs[-1]
        steps = [(edge.child, edge.parents[0]) for edge in self.edges if edge.parents]
        seen = [self.observed(*step) for step in steps if all(self.outcome(digest, last) for digest in step)]
        errors = [found[1] for found in seen if found]
        return _NOISE * statistics.median(errors) if errors else None

    @cached_property
    def effects(self) -> list[Effect]:
        """What each trait did, over all steps that added or removed it; what helped most often first."""
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
            Effect(trait, statistics.median(values), sum(value < 0 for value in values), len(values))
            for trait, values in found.items()
            if len(values) > 1
        ]
        return sorted(effects, key=lambda effect: (-effect.share, effect.median, effect.trait))

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
