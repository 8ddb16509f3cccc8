"""A file of JSON objects, one a line, to which lines are only added: readable after any end of the process."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Lines:
    """The objects of a file, oldest first, and a place for more; one that a power loss has cut off is removed from the
    file, with all after it."""

    def __init__(self, path: Path):
        self.path = path
        self.found, sound = _sound(path)
        if path.exists() and sound < path.stat().st_size:
            os.truncate(path, sound)

    def add(self, line: Mapping[str, Any]) -> None:
        """Record an object. It is on the disk when this returns."""
        with self.path.open("ab") as file:
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.found.append(dict(line))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file that another process may be adding to; none where there is no file."""
    return _sound(path)[0]


def difference(was: Any, now: Mapping[str, Any]) -> str:
    """How the values of two objects differ, by name; empty where they do not."""
    if not isinstance(was, dict):
        return "its journal cannot be read"
    now = json.loads(json.dumps(now))
    return "; ".join(f"{name} {_short(was.get(name), now[name])}" for name in now if was.get(name) != now[name])


def _sound(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The objects up to the first line that is none, or has no end; and how many bytes they are."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return [], 0
    found, sound = [], 0
    for line in content.splitlines(keepends=True):
        try:
            value = json.loads(line)
        except ValueError:
            break
        if not line.endswith(b"\n") or not isinstance(value, dict):
            break
        found.append(value)
        sound += len(line)
    return found, sound


def _short(was: Any, now: Any) -> str:
    """What differs between two values, where that fits a line."""
    if isinstance(was, dict) and isinstance(now, dict):
        names = [name for name in {**was, **now} if was.get(name) != now.get(name)]
        return f"({', '.join(names[:4])})"
    shown = [json.dumps(value) for value in (was, now)]
    return f"(was {shown[0]}, is {shown[1]})" if max(map(len, shown)) <= 60 else "(differs)"
