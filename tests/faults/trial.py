"""One trial: a command, faults while it runs, the same command until it ends, and what is wrong with all that."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field
from pathlib import Path

from faults.commands import Command, Inputs, Replace, Undisturbed
from faults.processes import Ended

REFUSED, INTERRUPTED = 2, 130


class Bench:
    """Where trials are made: inputs, what undisturbed runs give, and a new place for each trial."""

    def __init__(self, folder: Path, seed: int = 0):
        self.folder, self.random = folder, random.Random(seed)
        self.inputs = Inputs.make(folder / "inputs")
        self._undisturbed: dict[type[Command], Undisturbed] = {}
        self._places = 0

    def command(self, kind: type[Command]) -> Command:
        self._places += 1
        return kind(self.inputs, self.folder / f"{kind.name}{self._places}")

    def undisturbed(self, kind: type[Command]) -> Undisturbed:
        if kind not in self._undisturbed:
            self.command(kind).run()  # what is cached once and for all is cached now
            self._undisturbed[kind] = Undisturbed(self.command(kind))
        return self._undisturbed[kind]


@dataclass
class Trial:
    """How it went: faults that struck, steps that were done again after each, refusals, and all that was wrong."""

    command: Command
    faults: int = 0
    lost: list[int] = field(default_factory=list)
    refused: int = 0
    problems: list[str] = field(default_factory=list)

    def require(self, holds: object, otherwise: str) -> None:
        if not holds:
            self.problems.append(otherwise)

    def struck(self, ended: Ended, *codes: int) -> None:
        """A fault has struck; a run that was not killed has ended with one of these codes, and says why in a line."""
        self.faults += 1
        self.require(ended.code in codes, f"exit code {ended.code}: {ended.err[-1500:]}")
        if ended.code in (REFUSED, INTERRUPTED):
            self.refused += ended.code == REFUSED
            self.require(is_one_line(ended), f"not one line: {ended.err[-1500:]}")
        self.require(not re.search(r"Traceback|Exception ignored|Error in", ended.err), f"noise: {ended.err[-1500:]}")

    def finish(self, undisturbed: Undisturbed) -> Trial:
        """The command once more, which has to end with what an undisturbed run gives; then all about it is removed."""
        before, finished = self.command.again, self.command.is_finished
        ended = self.command.run()
        expected = REFUSED if finished and not isinstance(self.command, Replace) else 0
        self.require(ended.code == expected, f"it does not go on: {ended.code} {ended.err[-1500:]}")
        if not finished:
            self.lost.append(self.command.again - before)
        self.end(undisturbed)
        return self

    def end(self, undisturbed: Undisturbed) -> None:
        try:
            self.require(self.command.result() == undisturbed.result, "another result")
            self.require(not self.command.litter(), f"litter: {self.command.litter()}")
        except Exception as error:
            self.problems.append(f"no result: {error!r}")
        if not self.problems:
            self.command.forget()


def is_one_line(ended: Ended) -> bool:
    """Whether stderr ends with an error of one line, the only one."""
    lines = [line for line in ended.err.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return len(errors) == 1 and lines[-1] == errors[0] and "; " in errors[0]
