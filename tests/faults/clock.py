"""A wall clock that jumps by days, forwards and back, and files from the future and the past."""

from __future__ import annotations

import os
import random
import signal
import time

from faults.commands import Command
from faults.processes import Prepare
from faults.trial import Bench, Trial

_DAY_S = 86_400.0


def jumping(seed: int) -> Prepare:
    """A third of all looks at the clock find it set anew."""

    def prepare() -> None:
        chance, real, offset = random.Random(seed), time.time, 0.0

        def now() -> float:
            nonlocal offset
            if chance.random() < 1 / 3:
                offset = chance.uniform(-1000, 1000) * _DAY_S
            return real() + offset

        time.time = now
        time.time_ns = lambda: int(now() * 1e9)

    return prepare


def jumped(bench: Bench, kind: type[Command]) -> Trial:
    """While it runs, while it is ended, and between its two runs."""
    whole, trial = bench.undisturbed(kind), Trial(bench.command(kind))
    process = trial.command.start(jumping(bench.random.getrandbits(32)))
    time.sleep(bench.random.uniform(0, 1.2) * whole.seconds)
    process.send(signal.SIGKILL)
    process.wait()
    for path in trial.command.place.rglob("*"):
        at = time.time() + bench.random.uniform(-1000, 1000) * _DAY_S
        os.utime(path, (at, at))
    if not trial.command.is_finished:
        before = trial.command.again
        trial.struck(trial.command.run(jumping(bench.random.getrandbits(32))), 0)
        trial.lost.append(trial.command.again - before)
    return trial.finish(whole)
