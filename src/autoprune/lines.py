"""A file of JSON objects, one a line, to which lines are only added: readable after any end of the process.

A line ends with a checksum of what is before it (`crc32`), so that one in which a bit has flipped is not believed.
Files without any are from before there were any.
"""

from __future__ import annotations

import io
import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoprune.files import write_text

_SUM = "crc32"


class Lines:
    """The objects of a file, oldest first, and a place for more; a line that a power loss has cut off is removed, and a
    damaged one is passed over.

    Lines that follow from one another (`chained`) are worth nothing after a damaged one. They are written to a second
    file as well, and read from the one that is sound further; so what happens to either costs nothing.
    """

    def __init__(self, path: Path, *, chained: bool = False):
        self.path = path
        self._files = files_of_lines(path, chained=chained)
        self.found, sound = _best(self._files, chained)
        for file in self._files:
            content = _content(file)
            if len(sound) < len(content) and content.startswith(sound):
                os.truncate(file, len(sound))
            elif content != sound:
                write_text(file, sound.decode())

    def add(self, line: Mapping[str, Any]) -> None:
        """Record an object. It is on the disk when this returns."""
        for path in self._files:
            with path.open("ab") as file:
                file.write(as_line(line).encode())
                file.flush()
                os.fsync(file.fileno())
        self.found.append(dict(line))


def as_line(content: Mapping[str, Any]) -> str:
    """An object with its checksum, as it is in the file."""
    return json.dumps({**content, _SUM: zlib.crc32(json.dumps(content).encode())}) + "\n"


def files_of_lines(path: Path, *, chained: bool) -> list[Path]:
    """Where lines are written to."""
    return [path, path.with_name(f"copy.{path.name}")] if chained else [path]


def read_lines(path: Path, *, chained: bool = False) -> list[dict[str, Any]]:
    """The objects of a file that another process may be adding to; none where there is no file."""
    return _best(files_of_lines(path, chained=chained), chained)[0]


def difference(was: Any, now: Mapping[str, Any]) -> str:
    """How the values of two objects differ, by name; empty where they do not."""
    if not isinstance(was, dict):
        return "its journal cannot be read"
    now = json.loads(json.dumps(now))
    return "; ".join(f"{name} {_short(was.get(name), now[name])}" for name in now if was.get(name) != now[name])


def _best(files: list[Path], chained: bool) -> tuple[list[dict[str, Any]], bytes]:
    """What the file says that is sound furthest, and its bytes up to there."""
    return max((_sound(_content(file), chained) for file in files), key=lambda read: len(read[1]))


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _sound(content: bytes, chained: bool) -> tuple[list[dict[str, Any]], bytes]:
    """The objects of lines that are as they were written, if `chained` up to the first that is not; and the bytes up to
    there, with checksums, or to the end of the last line."""
    found, sound = [], b""
    for line in io.BytesIO(content):  # which ends lines at line feeds only
        value = _object(line, needs_sum=chained and _SUM.encode() in content)
        if not line.endswith(b"\n") or (value is None and chained):
            break
        if value is not None:
            found.append(value)
        sound += as_line(value).encode() if chained and value is not None else line
    return found, sound


def _object(line: bytes, *, needs_sum: bool) -> dict[str, Any] | None:
    """What a line says, unless it is damaged."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    if _SUM not in value:
        return None if needs_sum else value
    return value if value.pop(_SUM) == zlib.crc32(json.dumps(value).encode()) else None


def _short(was: Any, now: Any) -> str:
    """What differs between two values, where that fits a line."""
    if isinstance(was, dict) and isinstance(now, dict):
        names = [name for name in {**was, **now} if was.get(name) != now.get(name)]
        return f"({', '.join(names[:4])})"
    shown = [json.dumps(value) for value in (was, now)]
    return f"(was {shown[0]}, is {shown[1]})" if max(map(len, shown)) <= 60 else "(differs)"
