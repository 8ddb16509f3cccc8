"""A search without a model: figures made from the hash of a program's text, a proposer that needs none either."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from autoprune import algorithms
from autoprune.language.space import Space
from autoprune.search.archive import Archive
from autoprune.search.loop import Search, Settings
from autoprune.search.prompt import Prompter
from autoprune.search.proposers.genetic import Genetic
from autoprune.search.protocol import Answer, Outcome, Request, Task

RUNGS = ("probe", "quick", "full")
SPACE = Space.of("update=none,refine=none,allocate=uniform")
ROOTS = ("magnitude", "wanda", "ria")


def outcome(task: Task) -> Outcome:
    """Figures that only depend on the task. Rungs agree roughly; one program in 16 does what another does; one in 20
    fails on the last rung."""
    digest = hashlib.sha256(task.program.encode()).digest()
    if task.rung == RUNGS[-1] and digest[3] % 20 == 0:
        return Outcome(error="out of memory")
    rng = random.Random(digest)
    base, shift = 1 + rng.random(), RUNGS.index(task.rung) if task.rung in RUNGS else 3
    rng.seed(f"{digest!r} {task.rung}")
    parts = tuple(base * (1 + 0.1 * shift) + 0.2 * rng.random() for _ in range(4))
    return Outcome(damage=sum(parts) / len(parts), parts=parts, signature=str(digest[0] // 16), seconds=0.001)


class FakeExecutor:
    """Answers in an order of its own, after a moment for each."""

    def __init__(self, pause_s: float = 0.0, order: int = 0):
        self.pause_s, self.order, self.asked = pause_s, random.Random(order), list[Task]()

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Outcome]]:
        for task in sorted(tasks, key=lambda _: self.order.random()):
            time.sleep(self.pause_s)
            self.asked.append(task)
            yield task, outcome(task)

    def close(self) -> None:
        pass


class Scripted:
    """Replies from a list, by number of the step; what is asked is kept."""

    repairs = True

    def __init__(self, replies: Sequence[str], repaired: Sequence[str] = ()):
        self.replies, self.repaired, self.requests = replies, repaired, list[Request]()

    def propose(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Answer]]:
        for request in requests:
            self.requests.append(request)
            texts = self.repaired if request.round else self.replies
            if request.step < len(texts):
                yield (
                    request,
                    Answer(text=texts[request.step], model="scripted", seconds=0.5, tokens_in=100, tokens_out=20),
                )
            else:
                yield request, Answer(text="", model="scripted", seconds=0.0, error="no more replies")

    def close(self) -> None:
        pass


class Deaf:
    """A watch that notes what it is told in passing."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def started(self, *_: Any) -> None:
        pass

    measured = step = batch = started

    def note(self, text: str) -> None:
        self.notes.append(text)


def searched(folder: Path, *, proposer: Any = None, executor: Any = None, **settings: Any) -> Archive:
    """Run a search in a folder, or go on with it."""
    folder.mkdir(exist_ok=True)
    archive = Archive.open(folder / "archive.sqlite")
    search = Search(
        Settings(**{"space": SPACE, "evaluations": 24, "batch": 6} | settings),
        archive,
        proposer or Genetic(SPACE),
        executor or FakeExecutor(),
        Prompter(about="A test.", space=SPACE, tokens=1000),
        lambda one, other: one == other,
        Deaf(),
    )
    roots = [algorithms.load(name) for name in ROOTS]
    search.run(roots, lambda graph: roots[1:2])
    return archive


def contents(archive: Archive) -> dict[str, Any]:
    """All that an archive says, but for what clocks have said."""
    kept = {name: archive.get(name) for name in ("finalists", "baselines")}
    told = [(call, call.answer) for call in archive.calls()]
    calls = [(call.step, call.round, call.prompt, answer.text, answer.model, answer.error) for call, answer in told]
    return kept | {
        "nodes": archive.nodes(),
        "edges": archive.edges(),
        "proposals": archive.proposals(),
        "calls": calls,
        "evaluations": {key: (found.damage, found.parts, found.error) for key, found in archive.evaluations().items()},
    }
