"""Programs measured in processes of this machine, each with a limit on its time, its memory and what it may know.

A worker gets no API key in its environment and what it says is read as JSON, never unpickled. It is no jail: it runs
as the same user, and could read this user's files.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from multiprocessing.connection import wait
from pathlib import Path
from typing import IO, Any

from autoprune.errors import AutopruneError
from autoprune.search.executors.environment import allowed
from autoprune.search.executors.pool import Died, Event, Failed, Pool, Ready, Scored, Worker, pickled
from autoprune.search.protocol import Outcome, ScorerRecipe, Task

_HEARTBEAT_S = 1.0
_LONGEST_MESSAGE_S = 60.0  # from its first byte to its last


class Processes(Pool["_Process"]):
    """`workers` local processes, started when needed, each with a scorer of its own.

    `memory_bytes` is what a worker may use above what its scorer takes (default: half of what is available now, shared
    out), `threads` what torch computes with in each (default: OMP_NUM_THREADS, else cores shared out; floating-point
    sums, and so the last digits of a damage, can depend on it). What libraries print goes to files in `logs`, or
    nowhere.
    """

    TRIES = 2

    def __init__(
        self,
        recipe: ScorerRecipe,
        workers: int,
        *,
        memory_bytes: int | None = None,
        threads: int | None = None,
        logs: Path | None = None,
    ):
        super().__init__(recipe, workers)
        if os.name != "posix":
            raise AutopruneError("worker processes need Linux or macOS", remedy="measure in process")
        self._setup = {
            "recipe": base64.b64encode(_pickled(recipe)).decode("ascii"),
            "memory_bytes": memory_bytes if memory_bytes is not None else _available_bytes() // 2 // workers,
        }
        self._environment = _environment(threads, workers)
        self._logs = logs

    def close(self) -> None:
        for worker in self._workers:
            worker.stop()  # all at once; each is then waited for
        super().close()

    def _start(self) -> _Process:
        number = min(set(range(self._size)) - {worker.number for worker in self._workers})
        with self._log(number) as log:
            worker = _Process(number, self._environment, log)
        # The kernel ties a child to the thread that started it, which only here is sure to last.
        tied = threading.current_thread() is threading.main_thread()
        worker.say({**self._setup, "parent": os.getpid() if tied else None})
        return worker

    def _log(self, number: int) -> IO[bytes]:
        if self._logs is None:
            return open(os.devnull, "wb")
        self._logs.mkdir(parents=True, exist_ok=True)
        return open(self._logs / f"worker-{number}.log", "ab")

    def _listen(self, patience_s: float) -> Iterator[tuple[_Process, Event]]:
        speaking = wait([worker.connection for worker in self._workers], min(patience_s, _HEARTBEAT_S))
        for worker in self._workers:
            if worker.connection in speaking or worker.has_died():
                yield worker, worker.hear()

    def _may_retry(self, worker: _Process) -> bool:
        return not worker.used


class _Process(Worker):
    """A process in a session of its own, which ends when its end of the connection does. It says a line at a time, in
    answer to one of ours; nothing that libraries print comes between, since it has another file for that."""

    def __init__(self, number: int, environment: dict[str, str], log: IO[bytes]):
        self.number = number
        self.connection, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-X", "faulthandler", "-m", f"{__package__}.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.connection.settimeout(_LONGEST_MESSAGE_S)
        self._lines = self.connection.makefile("rb")

    def send(self, task: Task) -> None:
        self.say([task.rung, task.program])

    def say(self, what: Any) -> None:
        try:
            self.connection.sendall(json.dumps(what).encode("ascii") + b"\n")
        except OSError:  # it died or does not listen; `hear` will tell
            self.stop()

    def has_died(self) -> bool:
        """Told by the system: what a dead worker has forked may hold its connection open."""
        if self._process.poll() is None:
            return False
        self.stop()
        return True

    def hear(self) -> Event:
        try:
            line = self._lines.readline()
        except OSError:
            line = b""
        if not line.endswith(b"\n"):
            self.stop()
            code = self._process.wait()
            return Died(f"signal {-code}" if code < 0 else f"exit code {code}")
        match json.loads(line):
            case {"outcome": outcome}:
                return Scored(Outcome(**{**outcome, "parts": tuple(outcome["parts"])}))
            case {"what": what, "where": where, "remedy": remedy}:
                return Failed(AutopruneError(what, where=where, remedy=remedy))
            case _:
                return Ready()

    def stop(self) -> None:
        """Kill it and what it has started, without waiting. That it is dying already keeps its exit code."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def kill(self) -> None:
        self.stop()
        self._process.wait()
        self._lines.close()
        self.connection.close()


def _pickled(recipe: ScorerRecipe) -> bytes:
    if type(recipe).__module__ == "__main__":
        raise AutopruneError(
            f"workers cannot import the script that defines {type(recipe).__qualname__}",
            remedy="define it in a module that can be imported",
        )
    return pickled(recipe, pickle.dumps)


def _environment(threads: int | None, workers: int) -> dict[str, str]:
    """What is allowed of ours; modules are found where they are found here."""
    environment = {"OMP_NUM_THREADS": str(max(1, _cores() // workers)), **allowed(os.environ)}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    return {**environment, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _available_bytes() -> int:
    """Memory that may still be taken without swapping; no more than the container may have."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not Linux, where no limit will be set
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit ("max")
        available = min(available, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return available
