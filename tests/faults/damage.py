"""Bits that flip and files that are cut off: in a checkpoint, and in what a run that goes on reads."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path

from faults.commands import Command, Inputs
from faults.disk import contents
from faults.trial import REFUSED, Bench, Trial


def flip(path: Path, bit: int) -> None:
    """Once more, and the file is as it was."""
    with path.open("r+b") as file:
        file.seek(bit // 8)
        (byte,) = file.read(1)
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


def flipped(bench: Bench, kind: type[Command]) -> Trial:
    """A bit of what says which steps are finished. Either the result is the same, or the run is refused."""
    whole, trial = bench.undisturbed(kind), Trial(bench.command(kind))
    process = trial.command.start()
    time.sleep(bench.random.uniform(0.3, 0.95) * whole.seconds)
    process.send(signal.SIGKILL)
    process.wait()
    files = [path for path in trial.command.kept() if path.exists() and path.stat().st_size]
    if not files:
        return trial.finish(whole)
    path = bench.random.choice(files)
    bit = bench.random.randrange(8 * path.stat().st_size)
    # SQLite copies a log into its file when it is opened: both are put back.
    copy = trial.command.place.parent / "before"
    shutil.copytree(trial.command.place, copy)
    flip(path, bit)
    before = trial.command.again
    ended = trial.command.run()
    trial.struck(ended, 0, REFUSED)
    trial.lost.append(trial.command.again - before)
    if ended.code == REFUSED:
        shutil.rmtree(trial.command.place)
        copy.rename(trial.command.place)
        return trial.finish(whole)
    shutil.rmtree(copy)
    trial.end(whole)
    return trial


def cut_checkpoint(bench: Bench, kind: type[Command]) -> Trial:
    """A safetensors file that ends too early is refused, and nothing is written."""
    return _checkpoint(bench, kind, cut=True)


def flipped_checkpoint(bench: Bench, kind: type[Command]) -> Trial:
    """A bit of a safetensors file. Its format has no checksum, so most flipped weights are weights."""
    return _checkpoint(bench, kind, cut=False)


def _checkpoint(bench: Bench, kind: type[Command], *, cut: bool) -> Trial:
    whole, trial = bench.undisturbed(kind), Trial(bench.command(kind))
    damaged = Inputs(bench.folder / "damaged")
    shutil.rmtree(damaged.folder, ignore_errors=True)
    shutil.copytree(bench.inputs.folder, damaged.folder)
    path = damaged.model / "model.safetensors"
    size, header = path.stat().st_size, int.from_bytes(path.read_bytes()[:8], "little")
    if cut:
        with path.open("r+b") as file:
            file.truncate(bench.random.randrange(size))
    else:  # half of them in the header
        end = bench.random.choice([8 + header, size])
        flip(path, bench.random.randrange(8 * end))
    trial.command.inputs = damaged
    ended = trial.command.run()
    trial.struck(ended, *((REFUSED,) if cut else (REFUSED, 0)))
    if ended.code == 0:
        trial.require(not trial.command.litter(), f"litter: {trial.command.litter()}")
        trial.command.forget()
        return trial
    left = [name for name in contents(trial.command.place) if not name.startswith("run/")]
    trial.require(not left, f"left: {left}")
    trial.command.inputs = bench.inputs
    return trial.finish(whole)
