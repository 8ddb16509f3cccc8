"""How tasks are shared out to workers that may fail, hang or die: what local processes and Ray actors have in common.

A pool knows what to do; its subclasses know how a worker is started, listened to and killed.
"""

from __future__ import annotations

import math
import pickle
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from autoprune.errors import AutopruneError
from autoprune.search.executors.attempt import OUT_OF_MEMORY
from autoprune.search.protocol import Outcome, ScorerRecipe, Task


@dataclass(frozen=True)
class Ready:
    """The worker has made its scorer."""


@dataclass(frozen=True)
class Failed:
    """The worker could not make its scorer."""

    error: AutopruneError


@dataclass(frozen=True)
class Scored:
    """The worker has done its task."""

    outcome: Outcome


@dataclass(frozen=True)
class Died:
    """The worker is no more; `how` in a few words."""

    how: str


Event = Ready | Failed | Scored | Died


@dataclass(eq=False)
class Job:
    """A task under way; `losses` counts the workers that it was taken from without an outcome."""

    task: Task
    losses: int = 0
    started: float = 0.0
    limit_s: float = math.inf

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    @property
    def seconds_left(self) -> float:
        return self.limit_s - self.seconds


class Worker(ABC):
    """Makes a scorer, then is `ready`, and has a `job` while it measures; `used` once it has measured anything."""

    ready = False
    used = False
    job: Job | None = None

    @abstractmethod
    def send(self, task: Task) -> None:
        """Hand it a task; a worker that died meanwhile is heard of later."""

    @abstractmethod
    def kill(self) -> None:
        """End it and whatever it has started, whatever it does; nothing to an ended one."""


W = TypeVar("W", bound=Worker)


class Pool(ABC, Generic[W]):
    """At most `size` workers, started when there are tasks for them and kept until `close`.

    Each task is taken when a worker has room for it, in order. A worker that takes longer than its task may is killed,
    and that is the outcome. One that dies may not be the task's fault: the task is tried again elsewhere, up to
    `TRIES` times in all. So may running out of memory, in a worker that others have used.
    """

    TRIES: ClassVar[int]

    def __init__(self, recipe: ScorerRecipe, size: int):
        if size < 1:
            raise AutopruneError(f"{size} workers cannot measure anything", remedy="give at least 1")
        self._limits_s = dict(recipe.timeout_s)
        self._size = size
        self._workers: list[W] = []
        self._stillborn = 0  # workers lost in a row while they made their scorer

    @abstractmethod
    def _start(self) -> W:
        """A new worker, which begins to make its scorer."""

    @abstractmethod
    def _listen(self, patience_s: float) -> Iterable[tuple[W, Event]]:
        """What workers have to say, at most one thing each; waits up to about `patience_s` for the first of them."""

    @abstractmethod
    def _may_retry(self, worker: W) -> bool:
        """Whether a worker may be given a task that another was lost over."""

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Outcome]]:
        """All outcomes, as they come. Limits of time are looked at while this runs, so not while `tasks` blocks."""
        assert not any(worker.job for worker in self._workers), "one run at a time"
        source, waiting = iter(tasks), deque[Job]()
        try:
            while self._hand_out(source, waiting):
                yield from self._collect(waiting)
        except GeneratorExit:  # the caller has seen enough; what is under way would be heard in the next run
            for worker in [worker for worker in self._workers if worker.job]:
                self._discard(worker)
            raise
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for worker in list(self._workers):
            self._discard(worker)

    # ---------------------------------------------------------------- handing out

    def _hand_out(self, source: Iterator[Task], waiting: deque[Job]) -> bool:
        """Give tasks to workers with room for them and start as many workers as that takes; False when all is done."""
        busy = sum(worker.job is not None for worker in self._workers)
        while busy + len(waiting) < self._size and (task := next(source, None)) is not None:
            waiting.append(Job(task))
        for worker in self._workers:
            if worker.ready and worker.job is None:
                self._give(worker, waiting)
        starting = sum(not worker.ready for worker in self._workers)
        for _ in range(min(len(waiting) - starting, self._size - len(self._workers))):
            self._workers.append(self._start())
        return bool(waiting) or any(worker.job for worker in self._workers)

    def _give(self, worker: W, waiting: deque[Job]) -> None:
        job = next((job for job in waiting if not job.losses or self._may_retry(worker)), None)
        if job is None:
            return
        waiting.remove(job)
        job.started, job.limit_s = time.monotonic(), self._limits_s.get(job.task.rung, math.inf)
        worker.job = job
        worker.send(job.task)

    # ---------------------------------------------------------------- collecting

    def _collect(self, waiting: deque[Job]) -> Iterator[tuple[Task, Outcome]]:
        heard = dict(self._listen(self._patience_s()))
        for worker, event in heard.items():
            job = worker.job
            if (outcome := self._judge(worker, event, waiting)) is not None:
                assert job is not None
                yield job.task, outcome
        # Only of those that had nothing to say: an outcome that waited here to be read was in time.
        for worker in [worker for worker in self._workers if worker not in heard]:
            if (job := worker.job) is not None and job.seconds_left <= 0:
                self._discard(worker)
                yield job.task, Outcome(error=f"timed out after {job.limit_s:g} s", seconds=job.seconds)

    def _patience_s(self) -> float:
        return max(0.0, min((worker.job.seconds_left for worker in self._workers if worker.job), default=math.inf))

    def _judge(self, worker: W, event: Event, waiting: deque[Job]) -> Outcome | None:
        """The outcome of the worker's task, if this is one."""
        match event:
            case Ready():
                worker.ready, self._stillborn = True, 0
            case Failed(error):
                raise error
            case Scored(outcome):
                assert worker.job is not None
                if outcome.error.startswith(OUT_OF_MEMORY) and worker.used and not worker.job.losses:
                    return self._lose(worker, OUT_OF_MEMORY, waiting)
                worker.job, worker.used = None, True
                return outcome
            case Died(how):
                return self._lose(worker, how, waiting)
        return None

    def _lose(self, worker: W, how: str, waiting: deque[Job]) -> Outcome | None:
        """Without the worker, its task waits to be tried again, or has been tried often enough."""
        job = worker.job
        self._discard(worker)
        if job is not None:
            job.losses += 1
            if job.losses == self.TRIES:
                return Outcome(error=f"the worker died ({how})", seconds=job.seconds)
            waiting.appendleft(job)
        elif not worker.ready:
            self._stillborn += 1
            if self._stillborn == self.TRIES * self._size:
                raise AutopruneError(
                    f"workers die while they make their scorer ({how})",
                    remedy="give fewer workers if memory is short, or make the scorer in process to see where it fails",
                )
        return None

    def _discard(self, worker: W) -> None:
        worker.kill()
        worker.job = None
        self._workers.remove(worker)


def pickled(recipe: ScorerRecipe, dumps: Callable[[ScorerRecipe], bytes]) -> bytes:
    """A recipe as another process reads it; anything in it that cannot be pickled is the user's to mend."""
    try:
        return dumps(recipe)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise AutopruneError(
            f"{type(recipe).__qualname__} cannot be sent to a worker ({error})", remedy="make it of plain values"
        ) from None
