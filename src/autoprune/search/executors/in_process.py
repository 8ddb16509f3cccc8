"""Programs measured in this process, one after the other: for tests, small models and debuggers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from autoprune.search.executors.attempt import attempt
from autoprune.search.protocol import Outcome, Scorer, ScorerRecipe, Task


class InProcess:
    """The scorer is made on first use. Nothing can stop a program here: neither its time nor its memory is limited."""

    def __init__(self, recipe: ScorerRecipe):
        self._recipe = recipe
        self._scorer: Scorer | None = None

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Outcome]]:
        """All outcomes, in the order of the tasks."""
        for task in tasks:
            if self._scorer is None:
                self._scorer = self._recipe.make()
            yield task, attempt(self._scorer, task)

    def close(self) -> None:
        self._scorer = None
