"""An output that is made in steps and can be continued after any end of the process: a folder beside the output with
what is finished, a line for each step, and the fingerprint of what was asked for."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from autoprune.errors import AutopruneError
from autoprune.files import exclusive, replace_folder, write_text, writing_to

_STEPS, _LOCK = "journal.jsonl", "journal.lock"
_FORMAT = 1


class Journal:
    """Steps that are finished, oldest first; `folder` is where they leave their results."""

    def __init__(self, folder: Path, steps: list[dict[str, Any]]):
        self.folder, self.steps = folder, steps

    def add(self, step: Mapping[str, Any]) -> None:
        """Record a step. It is on the disk when this returns."""
        with writing_to(self.folder), (self.folder / _STEPS).open("ab") as file:
            file.write(json.dumps(step).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.steps.append(dict(step))

    def first(self, kind: str) -> dict[str, Any] | None:
        """The first step of a kind."""
        return next((step for step in self.steps if step["step"] == kind), None)


def folder_of(out: Path) -> Path:
    """Where an output is while it is not finished."""
    out = out.resolve()
    return out.parent / f".{out.name}.unfinished"


@contextmanager
def journal(
    out: Path, fingerprint: Mapping[str, Any], *, anew: bool, worth: Callable[[dict[str, Any]], bool]
) -> Iterator[Journal]:
    """The journal of an output, new or of an earlier run with the same fingerprint; one of another is refused, or with
    `anew` removed. When the block ends without an error, the folder becomes `out`.

    After an interrupt, or where the disk failed, the folder stays if it has a step that is `worth` to be kept: the same
    command gets further then. It is removed otherwise.
    """
    folder = folder_of(out)
    with writing_to(out):
        folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder / _LOCK, "another process is writing this output"):
        with writing_to(out):
            steps = _read(folder / _STEPS)
        if steps and (other := _difference(steps[0].get("fingerprint"), json.loads(json.dumps(fingerprint)))):
            if not anew:
                raise AutopruneError(
                    f"there is an unfinished prune of other content: {other}",
                    where=str(folder),
                    remedy="repeat that command to continue it, or add --force to start anew",
                )
            steps = []
        made = Journal(folder, steps[1:])
        try:
            if not steps:
                with writing_to(out):
                    _clear(folder)
                    write_text(folder / _STEPS, json.dumps({"format": _FORMAT, "fingerprint": fingerprint}) + "\n")
            yield made
            with writing_to(out):
                replace_folder(folder, out.resolve())
                for name in (_STEPS, _LOCK):
                    (out / name).unlink()
        except BaseException as error:
            refused = isinstance(error, AutopruneError) and not isinstance(error.__cause__, OSError)
            if refused or not any(map(worth, made.steps)):
                shutil.rmtree(folder, ignore_errors=True)
            elif folder.exists():
                error.add_note(f"what is finished is kept in {folder}; the same command continues it")
            raise


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != _LOCK:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _read(path: Path) -> list[dict[str, Any]]:
    """The lines of a journal; one that a power loss has cut off is removed, with all after it."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    steps, sound = [], 0
    for line in content.splitlines(keepends=True):
        try:
            step = json.loads(line)
        except ValueError:
            break
        if not line.endswith(b"\n") or not isinstance(step, dict):
            break
        steps.append(step)
        sound += len(line)
    if sound < len(content):
        os.truncate(path, sound)
    return steps


def _difference(was: Any, now: Mapping[str, Any]) -> str:
    """How two fingerprints differ; empty where they do not."""
    if not isinstance(was, dict):
        return "its journal cannot be read"
    return "; ".join(f"{name} {_short(was.get(name), now[name])}" for name in now if was.get(name) != now[name])


def _short(was: Any, now: Any) -> str:
    """What differs between two values, where that fits a line."""
    if isinstance(was, dict) and isinstance(now, dict):
        names = [name for name in {**was, **now} if was.get(name) != now.get(name)]
        return f"({', '.join(names[:4])})"
    shown = [json.dumps(value) for value in (was, now)]
    return f"(was {shown[0]}, is {shown[1]})" if max(map(len, shown)) <= 60 else "(differs)"
