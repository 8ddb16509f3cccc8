"""An output that is made in steps and can be continued after any end of the process: a folder beside the output with
what is finished, a line for each step, and the fingerprint of what was asked for."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from autoprune.errors import AutopruneError
from autoprune.files import SIDECAR, clear, exclusive, replace_folder, writing_to
from autoprune.lines import Lines, difference, files_of_lines, read_lines

_STEPS, _LOCK = "journal.jsonl", "journal.lock"
_FORMAT = 1


class Journal:
    """Steps that are finished, oldest first; `folder` is where they leave their results."""

    def __init__(self, lines: Lines):
        self.folder, self._lines = lines.path.parent, lines

    @property
    def steps(self) -> list[dict[str, Any]]:
        return self._lines.found[1:]

    def add(self, step: Mapping[str, Any]) -> None:
        """Record a step. It is on the disk when this returns."""
        with writing_to(self.folder):
            self._lines.add(step)

    def first(self, kind: str) -> dict[str, Any] | None:
        """The first step of a kind."""
        return next((step for step in self.steps if step["step"] == kind), None)


def folder_of(out: Path) -> Path:
    """Where an output is while it is not finished."""
    out = out.resolve()
    return out.parent / f".{out.name}.unfinished"


def steps_of(out: Path) -> list[dict[str, Any]]:
    """What the journal of an unfinished output has: what was asked for (`fingerprint`), then the steps; a process may
    be at work on it."""
    return read_lines(folder_of(out) / _STEPS, chained=True)


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
            lines = Lines(folder / _STEPS, chained=True)
        if lines.found and (other := difference(lines.found[0].get("fingerprint"), fingerprint)):
            if not anew:
                raise AutopruneError(
                    f"there is an unfinished prune of other content: {other}",
                    where=str(folder),
                    remedy="repeat that command to continue it, or add --force to start anew",
                )
            lines.found.clear()
        made = Journal(lines)
        try:
            if not lines.found:
                with writing_to(out):
                    _forget_steps(folder, but=_LOCK)  # first: they say that what is cleared then is there
                    clear(folder, but=_LOCK)
                    lines.add({"format": _FORMAT, "fingerprint": fingerprint})
            yield made
            with writing_to(out):
                replace_folder(folder, out.resolve())
                _forget_steps(out)
        except BaseException as error:
            refused = isinstance(error, AutopruneError) and not isinstance(error.__cause__, OSError)
            if refused or not any(map(worth, made.steps)):
                shutil.rmtree(folder, ignore_errors=True)
            elif folder.exists():
                error.add_note(f"what is finished is kept in {folder}; the same command continues it")
            raise


def settle(out: Path) -> None:
    """Remove from a finished output what a process that was killed in its very last moment has left there."""
    if (out / SIDECAR).is_file() and any(path.is_file() for path in files_of_lines(out / _STEPS, chained=True)):
        with writing_to(out):
            _forget_steps(out)


def _forget_steps(folder: Path, *, but: str = "") -> None:
    for path in (folder / _LOCK, *files_of_lines(folder / _STEPS, chained=True)):
        if path.name != but:
            path.unlink(missing_ok=True)
