"""Measures programs on several models at once, or on several draws of text: what wins on one may lose on another.

A program's damage is the mean over the models, and two programs are compared part by part of all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoprune.models import OpenModel
from autoprune.scoring.scorer import ModelRecipe
from autoprune.scoring.signature import joined
from autoprune.search.executors.attempt import attempt
from autoprune.search.protocol import Outcome, Scorer, Task


def labels(models: Sequence[str]) -> list[str]:
    """Short names that tell models apart; one that comes again is another draw of text."""
    names = {model: Path(model).name or model for model in models}
    shared = Counter(names.values())
    draws: Counter[str] = Counter()
    found = []
    for model in models:
        name = names[model] if shared[names[model]] == 1 else model
        draws[name] += 1
        found.append(name if draws[name] == 1 else f"{name} (text {draws[name]})")
    return found


@dataclass(frozen=True)
class SeveralRecipe:
    """How to make a scorer of several models, all with the same rungs. A model that comes again is opened once."""

    recipes: tuple[ModelRecipe, ...]

    @property
    def timeout_s(self) -> Mapping[str, float]:
        return {rung: sum(recipe.timeout_s[rung] for recipe in self.recipes) for rung in self.recipes[0].timeout_s}

    def make(self) -> SeveralScorer:
        opened: dict[str, OpenModel] = {}
        scorers = []
        for recipe in self.recipes:
            if recipe.model not in opened:
                opened[recipe.model] = recipe.opened()
            scorers.append(recipe.scorer(opened[recipe.model]))
        return SeveralScorer(dict(zip(labels([recipe.model for recipe in self.recipes]), scorers, strict=True)))


class SeveralScorer:
    """Scores programs with scorers by name, one after the other. What fails with one of them fails."""

    def __init__(self, scorers: Mapping[str, Scorer]):
        self.scorers = scorers

    def score(self, task: Task) -> Outcome:
        outcomes: dict[str, Outcome] = {}
        for label, scorer in self.scorers.items():
            outcomes[label] = attempt(scorer, task)
            if error := outcomes[label].error:
                # At the end, since how an error begins tells executors what to do.
                return Outcome(error=f"{error} (on {label})", **_cost(list(outcomes.values())))
        return mean(outcomes)


def mean(outcomes: Mapping[str, Outcome]) -> Outcome:
    """The outcome of all models, from that of each by its name. The mean of all parts is the mean over the models, also
    where one has fewer parts than others: its parts then count for more."""
    each = list(outcomes.values())
    total = sum(len(outcome.parts) for outcome in each)
    shares = [total / (len(each) * len(outcome.parts)) for outcome in each]
    parts = tuple(part * share for outcome, share in zip(each, shares, strict=True) for part in outcome.parts)
    return Outcome(
        damage=sum(parts) / total,
        parts=parts,
        figures=_figures(outcomes),
        signature=joined([outcome.signature for outcome in each]),
        **_cost(each),
    )


def _cost(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    return {
        "seconds": sum(outcome.seconds for outcome in outcomes),
        "peak_bytes": max((outcome.peak_bytes for outcome in outcomes if outcome.peak_bytes), default=None),
    }


def _figures(outcomes: Mapping[str, Outcome]) -> dict[str, dict[str, Any]]:
    """Every figure by the model's name, and by its own names after that where it has any."""
    found: dict[str, dict[str, Any]] = {}
    for label, outcome in outcomes.items():
        for name, value in outcome.figures.items():
            found.setdefault(name, {}).update(_named(label, value))
    return found


def _named(label: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from ((f"{label}: {name}", of_name) for name, of_name in value.items())
    else:
        yield label, value
