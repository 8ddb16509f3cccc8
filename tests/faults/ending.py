"""Signals at instants by chance: kill -9, SIGTERM, SIGINT, and several of them in a row."""

from __future__ import annotations

import signal

from faults.commands import Command
from faults.processes import signalled
from faults.trial import INTERRUPTED, Bench, Trial

MOST = 4  # kills of one run


def killed(bench: Bench, kind: type[Command]) -> Trial:
    """Kills until the command ends before one."""
    whole, trial = bench.undisturbed(kind), Trial(bench.command(kind))
    for _ in range(MOST):
        before = trial.command.again
        after_s = bench.random.uniform(0, whole.seconds)
        ended = signalled(
            trial.command.arguments, trial.command.logs, signal.SIGKILL, after_s, trial.command.prepared(lambda: None)
        )
        trial.lost += [trial.command.again - before] if trial.faults else []
        if ended.code == 0:
            break
        trial.struck(ended, -signal.SIGKILL)
    return trial.finish(whole)


def interrupted(bench: Bench, kind: type[Command]) -> Trial:
    """SIGINT, as Ctrl-C sends it."""
    return _interrupted(bench, kind, signal.SIGINT, 0)


def terminated(bench: Bench, kind: type[Command]) -> Trial:
    """SIGTERM, as schedulers send it."""
    return _interrupted(bench, kind, signal.SIGTERM, 0)


def interrupted_again(bench: Bench, kind: type[Command]) -> Trial:
    """Several, while the first is being dealt with: someone is impatient."""
    which = bench.random.choice([signal.SIGINT, signal.SIGTERM])
    return _interrupted(bench, kind, which, bench.random.randint(1, 4))


def _interrupted(bench: Bench, kind: type[Command], which: signal.Signals, more: int) -> Trial:
    whole, trial = bench.undisturbed(kind), Trial(bench.command(kind))
    for _ in range(MOST):
        before = trial.command.again
        # A signal before the command's own handlers are there is the interpreter's business.
        after_s = bench.random.uniform(0.02, whole.seconds)
        again_s = [bench.random.uniform(0, 0.02) for _ in range(more)]
        ended = signalled(
            trial.command.arguments,
            trial.command.logs,
            which,
            after_s,
            trial.command.prepared(lambda: None),
            again_s=again_s,
        )
        trial.lost += [trial.command.again - before] if trial.faults else []
        if ended.code == 0:
            break
        trial.struck(ended, INTERRUPTED)
    return trial.finish(whole)
