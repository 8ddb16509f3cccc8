"""Scorers for tests of executors, in a module that workers can import; no torch, no model.

What a program text says is what happens: "raise", "hang", "allocate", ... ; any other text has a damage made from it.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from autoprune.errors import AutopruneError
from autoprune.search.protocol import Outcome, Task


class FakeScorer:
    """Keeps what it was told to hoard, so that memory can run out little by little."""

    def __init__(self, note: Path | None):
        self._note = note
        self._hoard: list[bytearray] = []

    def score(self, task: Task) -> Outcome:
        word, _, argument = task.program.partition(" ")
        match word:
            case "raise":
                raise KeyError(argument)
            case "hang":
                time.sleep(600)
            case "spin":  # never lets another thread of Python run
                re.match("(a+)+$", "a" * 60 + "b")
            case "sleep":
                time.sleep(float(argument))
            case "allocate":
                bytearray(100_000_000_000)
            case "hoard":
                self._hoard.append(bytearray(int(argument)))
            case "exit":
                os._exit(int(argument))
            case "signal":
                os.kill(os.getpid(), int(argument))
            case "fork":  # the child keeps what it inherits and outlives its parent
                if os.fork() == 0:
                    time.sleep(600)
                os._exit(4)
            case "once":  # dies the first time only
                self._die_unless_noted()
            case "print":
                print("words from a library", flush=True)
                os.write(1, b'{"outcome": {}}\n')
                os.write(2, b"more words\n")
            case "environment":
                return Outcome(figures=_environment())
            case "tensor":
                return Outcome(damage=0.0, figures={"figure": object()})
        parts = tuple(ord(letter) / 7 for letter in task.program)
        return Outcome(damage=sum(parts) / len(parts), parts=parts, figures={"rung": task.rung, "n": len(parts)})

    def _die_unless_noted(self) -> None:
        assert self._note is not None
        if not self._note.exists():
            self._note.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def _environment() -> dict[str, object]:
    kernel = Path("/proc/self/environ")
    return {
        "names": dict(os.environ),
        "kernel": kernel.read_text() if kernel.exists() else "",
        "path": sys.path,
        "group": os.getpgid(0),
    }


@dataclass(frozen=True)
class FakeRecipe:
    """Makes a `FakeScorer`, or fails as `failure` says. Whatever process does writes its id to the folder `ids`."""

    timeout_s: Mapping[str, float] = field(default_factory=lambda: {"short": 0.5})
    failure: str = ""
    note: Path | None = None
    ids: Path | None = None

    def make(self) -> FakeScorer:
        print("words from a library that is being loaded", flush=True)
        if self.ids is not None:
            (self.ids / str(os.getpid())).touch()
        match self.failure:
            case "mendable":
                raise AutopruneError("no such model", where="m", remedy="give another")
            case "bug":
                raise TypeError("cannot add\nthings")
            case "death":
                os.kill(os.getpid(), signal.SIGKILL)
        return FakeScorer(self.note)


class Unpicklable(FakeRecipe):
    """A recipe that cannot be sent."""

    def __reduce__(self) -> str:
        raise TypeError("cannot pickle this")


def measure(folder: str) -> None:
    """What a search does, in a process that a test kills or interrupts; the ids of its workers are in `folder`."""
    from contextlib import closing

    from autoprune.search.executors import Processes

    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
    recipe = FakeRecipe(ids=Path(folder))
    # Only the kernel of Linux ends a worker that does not look at its connection.
    stuck = "spin" if sys.platform == "linux" else "hang"
    try:
        with closing(Processes(recipe, 2)) as executor:
            for task, _ in executor.run(Task("long", program) for program in ("a", "b", "hang", stuck)):
                print(json.dumps(task.program), flush=True)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        time.sleep(600)  # children must be gone while this process is still there
