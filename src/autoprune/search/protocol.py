"""What a search is handed: who proposes programs, who measures them, and where measuring happens.

Neither models nor pruning are known here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

OPERATORS = {
    "mutate": "change one thing in the parent",
    "combine": "take what is best of both parents",
    "simplify": "make the parent shorter without making it worse",
    "transfer": "bring an idea of the second program into the first",
}
"""How a program is made from others."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One question to a proposer. `parents` are canonical program texts, the one to be improved first; whatever is
    left to chance in answering it is drawn from `seed`. `round` 0 is the proposal, 1 its repair. `known` are digests of
    programs that are there already: another one is wanted."""

    step: int
    round: int
    operator: str
    parents: tuple[str, ...]
    prompt: str
    seed: int
    known: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came back: any text. With an `error` (one line) none came, and the text is ""."""

    text: str
    model: str
    seconds: float
    tokens_in: int | None = None
    tokens_out: int | None = None
    price_usd: float | None = None
    error: str = ""


class Proposer(Protocol):
    """Answers requests, each on its own: an answer depends on its request only, not on which others came with it."""

    repairs: bool
    """Whether it is worth telling it what was wrong with a reply."""

    def propose(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Answer]]:
        """All answers, as they come. Stopping early loses those under way only."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a rung says of a program: its `damage` in nats a token above the dense model, the mean of `parts` (one per
    sequence or layer, so that two programs can be compared pair by pair); or an `error` in one line, and no damage.

    `figures` are plain JSON values; `signature` is what behaviour is compared by (see `Signature`), where there is one.
    """

    damage: float | None = None
    parts: tuple[float, ...] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)
    signature: str = ""
    seconds: float = 0.0
    peak_bytes: int | None = None
    error: str = ""


@dataclass(frozen=True)
class Task:
    """A program (canonical text) to be measured at a rung."""

    rung: str
    program: str


class Scorer(Protocol):
    """Measures programs. Made anew in every process from a `ScorerRecipe`."""

    def score(self, task: Task) -> Outcome:
        """Never raises for what a program does: that is an outcome with an error."""
        ...


class ScorerRecipe(Protocol):
    """How to make a scorer in another process: a value that can be pickled."""

    @property
    def timeout_s(self) -> Mapping[str, float]:
        """By rung, how long a task may take before whoever runs it is killed."""
        ...

    def make(self) -> Scorer: ...


class Executor(Protocol):
    """Where programs are measured. The outcome of a task does not depend on where, or on what else runs."""

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Outcome]]:
        """All outcomes, as they come. A task that fails, hangs or runs out of memory has an outcome with an error."""
        ...

    def close(self) -> None: ...


__all__ = ["OPERATORS", "Answer", "Executor", "Outcome", "Proposer", "Request", "Scorer", "ScorerRecipe", "Task"]
