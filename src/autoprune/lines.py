"""A file of JSON objects, one a line, to which lines are only added: readable after any end of the process.

A line ends with a checksum of what is before it (`crc32`), so that one in which a bit has flipped is not believed.
Lines without one are from before there were any.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_SUM = "crc32"


class Lines:
    """The objects of a file, oldest first, and a place for more; one that a power loss has cut off is removed from the
    file. Of a file whose lines follow from one another (`chained`) so is a damaged one, with all after it; else it is
    passed over."""

    def __init__(self, path: Path, *, chained: bool = False):
        self.path = path
        self.found, sound = _sound(path, chained)
        if path.exists() and sound < path.stat().st_size:
            os.truncate(path, sound)

    def add(self, line: Mapping[str, Any]) -> None:
        """Record an object. It is on the disk when this returns."""
        with self.path.open("ab") as file:
            file.write(as_line(line).encode())
            file.flush()
            os.fsync(file.fileno())
        self.found.append(dict(line))


def as_line(content: Mapping[str, Any]) -> str:
    """An object with its checksum, as it is in the file."""
    return json.dumps({**content, _SUM: zlib.crc32(json.dumps(content).encode())}) + "\n"


def read_lines(path: Path, *, chained: bool = False) -> list[dict[str, Any]]:
    """The objects of a file that another process may be adding to; none where there is no file."""
    return _sound(path, chained)[0]


def difference(was: Any, now: Mapping[str, Any]) -> str:
    """How the values of two objects differ, by name; empty where they do not."""
    if not isinstance(was, dict):
        return "its journal cannot be read"
    now = json.loads(json.dumps(now))
    return "; ".join(f"{name} {_short(was.get(name), now[name])}" for name in now if was.get(name) != now[name])


def _sound(path: Path, chained: bool) -> tuple[list[dict[str, Any]], int]:
    """The objects of lines that are as they were written, if `chained` up to the first that is not; and how many bytes
    the file has up to there, or to the end of its last line."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return [], 0
    found, sound = [], 0
    for line in content.splitlines(keepends=True):
        value = _object(line)
        if not line.endswith(b"\n") or (value is None and chained):
            break
        if value is not None:
            found.append(value)
        sound += len(line)
    return found, sound


def _object(line: bytes) -> dict[str, Any] | None:
    """What a line says, unless it is damaged."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    known = value.pop(_SUM, None)
    return value if known in (None, zlib.crc32(json.dumps(value).encode())) else None


def _short(was: Any, now: Any) -> str:
    """What differs between two values, where that fits a line."""
    if isinstance(was, dict) and isinstance(now, dict):
        names = [name for name in {**was, **now} if was.get(name) != now.get(name)]
        return f"({', '.join(names[:4])})"
    shown = [json.dumps(value) for value in (was, now)]
    return f"(was {shown[0]}, is {shown[1]})" if max(map(len, shown)) <= 60 else "(differs)"
