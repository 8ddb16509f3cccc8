"""The library: one program text per algorithm, looked up by name."""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path

from autoprune.errors import AutopruneError, ProgramError, nearest
from autoprune.language import Program, read_program

_PACKAGE, _SUFFIX = "autoprune.algorithms", ".prune"


def names(function: str | None = None) -> list[str]:
    """Names of the library programs, sorted; of those that define a function ("score", "allocate") only, if given."""
    known = sorted(
        entry.name.removesuffix(_SUFFIX) for entry in files(_PACKAGE).iterdir() if entry.name.endswith(_SUFFIX)
    )
    return known if function is None else [name for name in known if getattr(load(name), function)]


def load(name_or_path: str | Path, kind: str = "algorithm", others: Iterable[str] = ()) -> Program:
    """A program by library name, or from a text file; a name that is both means the library.

    `kind`, "algorithm" or "allocation", and `others`, names that are not programs, are for the error.
    """
    name, path = str(name_or_path), Path(name_or_path)
    if name in names():
        return read_program((files(_PACKAGE) / f"{name}{_SUFFIX}").read_text("utf-8"), name=name)
    if path.suffix or "/" in name or os.path.isfile(path):  # unlike Path.is_file, never raises
        return load_file(path)
    known = [*names("score" if kind == "algorithm" else "allocate"), *others]
    raise AutopruneError(f"unknown {kind} '{name[:80]}'", remedy=f"{nearest(name, known)} Or give a program file")


def load_file(path: Path) -> Program:
    """A program from a text file."""
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise AutopruneError(f"cannot read the program: {reason}", where=str(path), remedy="check the path") from None
    try:
        return read_program(text, name=path.stem)
    except ProgramError as error:
        raise error.in_file(str(path)) from None
