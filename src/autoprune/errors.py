"""One family of errors: every message says what is wrong, where, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

_LONGEST, _LONGEST_REASON = 1_000, 300  # characters


def printable(text: str) -> str:
    """The text with blanks in place of what is not shown, which a terminal may obey: line breaks are among that."""
    return "".join(sign if sign.isprintable() else " " for sign in text)


def one_line(text: str) -> str:
    """The text in one line of what is harmless to print."""
    return " ".join(printable(text).split())


class AutopruneError(ValueError):
    """Something the user can mend. `str()` is one line: ``where: what; remedy``."""

    def __init__(self, what: str, *, where: str = "", remedy: str = ""):
        # What is quoted may come from a file or a program of strangers.
        self.what, self.remedy = (_cut(one_line(text), _LONGEST) for text in (what, remedy))
        self.where = one_line(where)
        prefix = f"{self.where}: " if self.where else ""
        suffix = f"; {self.remedy}" if self.remedy else ""
        super().__init__(f"{prefix}{self.what}{suffix}")


@dataclass(frozen=True)
class Place:
    """A position in a program text; lines and columns count from 1."""

    line: int = 1
    column: int = 1

    def __str__(self) -> str:
        return f"line {self.line}, column {self.column}"


class ProgramError(AutopruneError):
    """A pruning program that cannot run: `place`, `reason` and `remedy`, also for a language model to read."""

    def __init__(self, reason: str, *, place: Place, remedy: str, file: str = ""):
        reason = _cut(reason, _LONGEST_REASON)
        super().__init__(reason, where=f"{file}, {place}" if file else str(place), remedy=remedy)
        self.place, self.reason = place, self.what

    def in_file(self, file: str) -> ProgramError:
        """The same error, naming the file."""
        return ProgramError(self.reason, place=self.place, remedy=self.remedy, file=file)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}…"


def nearest(name: str, known: Iterable[str]) -> str:
    """A remedy that names the closest known word, or all of them."""
    known = sorted(set(known))
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}"
