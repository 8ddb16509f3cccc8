"""Commands in processes of their own, forked from this one, which has imported everything: anything may end them."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import autoprune.api
import autoprune.discover
import autoprune.sweeps  # noqa: F401  imported once, for all children
from autoprune.cli import main

PATIENCE_S = 120.0

Prepare = Callable[[], object]
"""What a child does before its command: this is where faults are put in place."""


@dataclass(frozen=True)
class Ended:
    """How a command has ended; the code is negative where a signal killed it."""

    code: int
    out: str
    err: str


class Process:
    """`autoprune ARGUMENTS`, at work."""

    def __init__(self, arguments: Sequence[object], logs: Path, prepare: Prepare = lambda: None):
        logs.mkdir(parents=True, exist_ok=True)
        self._out, self._err = logs / "stdout", logs / "stderr"
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _child([str(argument) for argument in arguments], self._out, self._err, prepare)

    def send(self, which: signal.Signals) -> None:
        """A signal, unless the process has ended."""
        os.kill(self.pid, which)  # not waited for yet, so that the number is nobody else's

    def wait(self, patience_s: float = PATIENCE_S) -> Ended:
        """Until it ends; a process that does not is killed, and an error here."""
        until = time.monotonic() + patience_s
        while time.monotonic() < until:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return Ended(os.waitstatus_to_exitcode(status), _read(self._out), _read(self._err))
            time.sleep(0.005)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        raise TimeoutError(f"it did not end within {patience_s:g} s: {_read(self._err)[-2000:]}")


def signalled(
    arguments: Sequence[object],
    logs: Path,
    which: signal.Signals,
    after_s: float,
    prepare: Prepare = lambda: None,
    again_s: Sequence[float] = (),
) -> Ended:
    """A command that is sent a signal, and the same again after each of `again_s`."""
    process = Process(arguments, logs, prepare)
    for pause in (after_s, *again_s):
        time.sleep(pause)
        process.send(which)
    return process.wait()


def both(generator: random.Random, *prepares: Prepare) -> Prepare:
    """One preparation after the other; chance in the child is drawn from a seed of its own."""
    seed = generator.getrandbits(32)

    def prepare() -> None:
        random.seed(seed)
        for each in prepares:
            each()

    return prepare


def _read(path: Path) -> str:
    return path.read_text("utf-8", errors="replace") if path.exists() else ""


def _child(arguments: list[str], out: Path, err: Path, prepare: Prepare) -> None:
    """The rest of this process."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        warnings.resetwarnings()
        for path, number in ((out, 1), (err, 2)):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(descriptor, number)
            os.close(descriptor)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", 1, closefd=False)
        torch.set_num_threads(1)
        sys.argv = ["autoprune", *arguments]
        prepare()
        main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
