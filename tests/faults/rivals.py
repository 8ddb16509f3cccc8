"""Two processes with one output."""

from __future__ import annotations

import time

from faults.commands import Command
from faults.trial import REFUSED, Bench, Trial


def two(bench: Bench, kind: type[Command]) -> Trial:
    """The same command twice, one a moment after the other: one writes, the other is refused, or finds all done."""
    whole, trial = bench.undisturbed(kind), Trial(bench.command(kind))
    first = trial.command.start()
    time.sleep(bench.random.uniform(0, 0.7) * whole.seconds)
    logs = trial.command.place.parent / f"{trial.command.place.name}.second"
    second = trial.command.start(logs=logs)
    ended = [first.wait(), second.wait()]
    trial.require(0 in [each.code for each in ended], "none of them has finished")
    trial.faults -= 1  # two ends of one fault
    for each in ended:
        trial.struck(each, 0, REFUSED)
        if each.code == REFUSED:
            trial.require("another" in each.err or "is not empty" in each.err, each.err)
    return trial.finish(whole)
