"""What happens to disks: they are full, read-only, or the process ends right before one of its changes."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from faults.commands import Command
from faults.processes import Prepare
from faults.trial import REFUSED, Bench, Trial

_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod", "os.link", "os.symlink"}
_NEEDS_ROOM = {"open", "os.mkdir", "os.truncate"}


def on_change(folder: Path, act: Callable[[str, int], None]) -> Prepare:
    """Call `act` with the event and its number before each change that Python makes within a folder (SQLite's own are
    not seen)."""

    def prepare() -> None:
        count = 0

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal count
            if event in _CHANGES or (event == "open" and _writes(arguments)):
                within = str(arguments[0]).startswith(str(folder)) or not str(arguments[0]).startswith("/")
                if within and not isinstance(arguments[0], int):
                    count += 1
                    act(event, count)

        sys.addaudithook(hook)

    return prepare


def _writes(arguments: tuple[Any, ...]) -> bool:
    return isinstance(arguments[2], int) and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def changes(bench: Bench, kind: type[Command]) -> int:
    """How many changes an undisturbed run makes."""
    counted = getattr(bench, "_changes", {})
    bench._changes = counted
    if kind not in counted:
        command = bench.command(kind)
        tally = command.place.parent / "changes"
        tally.write_bytes(b"")

        def count(event: str, number: int) -> None:
            descriptor = os.open(tally, os.O_WRONLY | os.O_APPEND)
            os.write(descriptor, b".")
            os.close(descriptor)

        command.run(on_change(command.place, count))
        command.forget()
        counted[kind] = tally.stat().st_size
    return counted[kind]


def killed_before_a_change(bench: Bench, kind: type[Command], number: int | None = None) -> Trial:
    """kill -9 right before a file is opened to be written, renamed or removed."""
    whole, trial = bench.undisturbed(kind), Trial(bench.command(kind))
    number = number or bench.random.randint(1, changes(bench, kind))

    def act(event: str, now: int) -> None:
        if now == number:
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)

    ended = trial.command.run(on_change(trial.command.place, act))
    if ended.code != 0:
        trial.struck(ended, -signal.SIGKILL)
    return trial.finish(whole)


def full_from_a_change_on(bench: Bench, kind: type[Command]) -> Trial:
    """Nothing that takes room can be done any more, from one change on."""
    return _failing(bench, kind, errno.ENOSPC, _NEEDS_ROOM)


def failing_from_a_change_on(bench: Bench, kind: type[Command]) -> Trial:
    """The disk has turned read-only, as after an error of its own."""
    return _failing(bench, kind, errno.EROFS, _CHANGES | {"open"})


def _failing(bench: Bench, kind: type[Command], code: int, events: set[str]) -> Trial:
    whole, trial = bench.undisturbed(kind), Trial(bench.command(kind))
    number = bench.random.randint(1, changes(bench, kind))

    def act(event: str, now: int) -> None:
        if now >= number and event in events:
            raise OSError(code, os.strerror(code))

    ended = trial.command.run(on_change(trial.command.place, act))
    if ended.code != 0:
        trial.struck(ended, REFUSED)
    return trial.finish(whole)


def too_large(bench: Bench, kind: type[Command]) -> Trial:
    """No file may grow beyond a size: a quota."""
    whole, trial = bench.undisturbed(kind), Trial(bench.command(kind))
    trial.command.run()
    largest = max(path.stat().st_size for path in trial.command.place.rglob("*"))
    trial.command.forget()
    trial = Trial(bench.command(kind))
    limit = bench.random.randint(1500, largest)  # what goes to stdout, stderr and the tally is shorter
    ended = trial.command.run(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    if ended.code != 0:
        trial.struck(ended, REFUSED)
    return trial.finish(whole)


# ---------------------------------------------------------------- disks of their own


@cache
def can_mount() -> bool:
    """Whether this process may mount a disk of its own."""
    folder = Path(f"/tmp/autoprune-faults-{os.getpid()}")
    folder.mkdir()
    try:
        with mounted(folder, "size=1m"):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False
    finally:
        folder.rmdir()


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """An empty disk in memory."""
    _mount("-t", "tmpfs", "-o", options, "tmpfs", str(folder))
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, capture_output=True)


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)


def full(bench: Bench, kind: type[Command]) -> Trial:
    """A small disk that grows when it was full."""
    whole, trial = bench.undisturbed(kind), Trial(bench.command(kind))
    with mounted(trial.command.place, "size=64m"):
        trial.command.run()
        taken = sum(path.stat().st_blocks * 512 for path in trial.command.place.rglob("*"))
    trial.command.tally.unlink()
    with mounted(trial.command.place, f"size={bench.random.randint(4096, max(4096, taken - 4096))}"):
        ended = trial.command.run()
        if ended.code != 0:
            trial.struck(ended, REFUSED)
        _mount("-o", "remount,size=64m", str(trial.command.place))
        return trial.finish(whole)


def read_only(bench: Bench, kind: type[Command]) -> Trial:
    """A disk that is read-only, before the first run or after one that was killed."""
    whole, trial = bench.undisturbed(kind), Trial(bench.command(kind))
    with mounted(trial.command.place, "size=64m"):
        if bench.random.random() < 0.7:
            process = trial.command.start()
            time.sleep(bench.random.uniform(0.3, 0.9) * whole.seconds)
            process.send(signal.SIGKILL)
            process.wait()
        before = contents(trial.command.place)
        finished = trial.command.is_finished
        _mount("-o", "remount,ro", str(trial.command.place))
        ended = trial.command.run()
        if finished or ended.code != 0:  # a search or sweep that is finished has nothing to write
            trial.struck(ended, REFUSED)
        trial.require(contents(trial.command.place) == before, "something has changed")
        _mount("-o", "remount,rw", str(trial.command.place))
        return trial.finish(whole)


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
