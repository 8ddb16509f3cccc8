"""The library: one program text per algorithm, looked up by name."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

from autoprune.errors import AutopruneError, ProgramError, nearest
from autoprune.language import Program, read_program

_PACKAGE, _SUFFIX = "autoprune.algorithms", ".prune"


def names() -> list[str]:
    """Names of the library programs, sorted."""
    return sorted(
        entry.name.removesuffix(_SUFFIX) for entry in files(_PACKAGE).iterdir() if entry.name.endswith(_SUFFIX)
    )


def load(name_or_path: str | Path) -> Program:
    """A program by library name, or from a text file; a name that is both means the library."""
    name, path = str(name_or_path), Path(name_or_path)
    if name in names():
        return read_program((files(_PACKAGE) / f"{name}{_SUFFIX}").read_text("utf-8"), name=name)
    if path.suffix or "/" in name or os.path.isfile(path):  # unlike Path.is_file, never raises
        return load_file(path)
    raise AutopruneError(f"unknown algorithm '{name[:80]}'", remedy=f"{nearest(name, names())} Or give a program file")


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
