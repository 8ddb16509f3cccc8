"""Processes side by side, one for each piece of work: whatever happens in one leaves the others as they are."""

from __future__ import annotations

import gc
import signal
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import TypeVar

Name = TypeVar("Name")

Job = Callable[[], object]


def each(jobs: Mapping[Name, Job], workers: int) -> Iterator[tuple[Name, object]]:
    """Name and result of every job, as they end. The result is a string where the process died: of what."""
    context = get_context("fork")
    waiting, running = iter(jobs.items()), {}
    gc.freeze()  # a collection in a child would copy all memory that it shares with this process
    while True:
        for name, job in waiting:
            mine, its = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(its, job))
            process.start()
            its.close()
            running[mine] = name, process
            if len(running) == workers:
                break
        if not running:
            return
        for done in wait(list(running)):
            assert isinstance(done, Connection)
            name, process = running.pop(done)
            try:
                result = done.recv()
            except EOFError:
                process.join()
                result = _death(process.exitcode)
            process.join()
            done.close()
            yield name, result


def _work(connection: Connection, job: Job) -> None:
    gc.disable()
    connection.send(job())


def _death(code: int | None) -> str:
    return "does not end" if code == -signal.SIGALRM else f"the process ended with {code}"
