"""Lengths in the header of a GGUF file, held against the file before a library reads it.

The reader of the gguf package goes on past the end of a file, for as many values as a length there says: one flipped
bit, and opening the file takes all memory and does not end. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from autoprune.errors import AutopruneError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes by number of the type
_WHOLE = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 10: "Q", 11: "q"}
_STRING, _ARRAY = 8, 9
_MOST_DIMENSIONS = 8  # the format has four
_DEEPEST = 4  # arrays of arrays, which no model has


def check_gguf_header(file: Path) -> None:
    """Refuse a file whose header says more than the file has."""
    try:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            _Header(content, str(file)).check()
    except ValueError as error:
        if isinstance(error, AutopruneError):
            raise
        raise _damaged(str(file), "it is empty") from None  # which cannot be mapped


def _damaged(file: str, how: str) -> AutopruneError:
    return AutopruneError(f"is no sound GGUF file ({how})", where=file, remedy="download or copy it again")


class _Header:
    """A place in the file that moves on over what is looked at."""

    def __init__(self, content: mmap.mmap, file: str):
        self.content, self.file, self.place, self.order = content, file, 0, "<"

    def check(self) -> None:
        if self.content[:4] != _MAGIC:
            raise _damaged(self.file, "it does not begin with GGUF")
        self.place = 4
        version = self.number("I")
        if not version & 0xFFFF:  # written on a machine with the other order of bytes
            self.order = ">"
            version = int.from_bytes(version.to_bytes(4, "little"), "big")
        if version not in _VERSIONS:
            raise _damaged(
                self.file, f"its version is {version}, and only {_VERSIONS[0]} and {_VERSIONS[1]} can be read"
            )
        tensors, values = self.number("Q"), self.number("Q")
        blocks: int | None = None
        for _ in range(values):  # each takes bytes, so that the end of the file ends this
            key, kind, start = self.string(), self.number("I"), self.place
            self.value(kind, depth=0)
            if key.endswith(b".block_count") and kind in _WHOLE:
                blocks = struct.unpack_from(self.order + _WHOLE[kind], self.content, start)[0]
        for _ in range(tensors):
            self.string()
            dimensions = self.number("I")
            if dimensions > _MOST_DIMENSIONS:
                raise _damaged(self.file, f"a tensor has {dimensions} dimensions")
            self.skip(8 * dimensions + 4 + 8)  # lengths, type, place
        if blocks is None:
            raise _damaged(self.file, "it does not say how many blocks the model has")
        if blocks > tensors:  # modules would be made for each before a tensor is looked at
            raise _damaged(self.file, f"it says {blocks:,} blocks and has {tensors:,} tensors")

    def value(self, kind: int, depth: int) -> None:
        if kind in _SCALARS:
            self.skip(_SCALARS[kind])
        elif kind == _STRING:
            self.string()
        elif kind == _ARRAY and depth < _DEEPEST:
            inner, length = self.number("I"), self.number("Q")
            if inner in _SCALARS:
                self.skip(_SCALARS[inner] * length)
                return
            for _ in range(length):
                self.value(inner, depth + 1)
        else:
            raise _damaged(self.file, f"a value is of type {kind}" if kind != _ARRAY else "arrays in arrays")

    def string(self) -> bytes:
        length, start = self.number("Q"), self.place
        self.skip(length)
        return self.content[start : self.place]

    def number(self, code: str) -> int:
        start = self.place
        self.skip(struct.calcsize(code))
        return struct.unpack_from(self.order + code, self.content, start)[0]

    def skip(self, count: int) -> None:
        self.place += count
        if self.place > len(self.content):
            raise _damaged(self.file, "its header goes on past its end")
