"""The safetensors files of a checkpoint: where each tensor is, reading one, writing one into a copy of the files.

A copy has the same headers, so that a tensor is at the same place in it; bytes that nobody wrote are carried over.
Format: https://huggingface.co/docs/safetensors (8 bytes length, JSON header, tensors).
"""

from __future__ import annotations

import errno
import json
import math
import os
import threading
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoprune.errors import AutopruneError
from autoprune.models.facts import require_finite

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_LONGEST_HEADER = 100_000_000  # as in the safetensors library
_MOST_DIMENSIONS = 64
_AT_ONCE = 64 << 20
_AGAIN = "download or copy the checkpoint again"

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "C64": torch.complex64,
}


@dataclass(frozen=True)
class Place:
    """Where a tensor is: bytes `start` to `end` of a file."""

    file: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


class Shards:
    """The tensors of a folder with model.safetensors, or with the shards that an index names; `places` by name."""

    def __init__(self, folder: Path):
        self.folder = folder
        index = folder / INDEX
        named: dict[str, str] | None = None
        if (folder / SINGLE).is_file():
            files = [SINGLE]
        else:
            named = _weight_map(index)
            files = sorted(set(named.values()))
        self.places: dict[str, Place] = {}
        self.headers: dict[str, int] = {}  # bytes before the tensors, by file
        self.sizes: dict[str, int] = {}
        for file in files:
            self._open(file)
        for name, file in (named or {}).items():
            if name not in self.places or self.places[name].file != file:
                raise AutopruneError(f"the index has {name} in {file}, which has no such tensor", where=str(index),
                                     remedy=_AGAIN)  # fmt: skip

    def _open(self, file: str) -> None:
        path = self.folder / file
        try:
            if not path.is_file():  # reading a pipe would never end
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            size = path.stat().st_size
            with path.open("rb") as stream:
                length = int.from_bytes(stream.read(8), "little")
                if size < 8 or not 0 < length <= min(_LONGEST_HEADER, size - 8):
                    raise ValueError("its header is cut off")
                header: dict[str, Any] = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            for name, entry in header.items():
                self.places[name] = place = _place(file, entry, 8 + length)
                if place.end > size:
                    raise ValueError(f"it ends within the tensor {name}")
            _require_tiles([place for place in self.places.values() if place.file == file], 8 + length)
        except OSError as error:
            what = f"this file of the checkpoint is missing, or cannot be read ({error.strerror})"
            raise AutopruneError(what, where=str(path), remedy=_AGAIN) from None
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            raise AutopruneError(f"a safetensors file is corrupt ({error})", where=str(path), remedy=_AGAIN) from None
        self.headers[file], self.sizes[file] = 8 + length, size

    @property
    def bytes(self) -> int:
        """Of all files together."""
        return sum(self.sizes.values())

    def identity(self) -> dict[str, list[int]]:
        """Size and time of change of each file, and a sum over the configuration: what tells checkpoints apart."""
        found = {file: [size, (self.folder / file).stat().st_mtime_ns] for file, size in sorted(self.sizes.items())}
        config = self.folder / "config.json"
        return found | {"config.json": [zlib.crc32(config.read_bytes()) if config.exists() else 0]}

    def where(self, name: str) -> str:
        """A tensor's file and name, for whoever has to look at it."""
        return f"{self.folder / self.places[name].file}, tensor {name}"

    def read(self, name: str) -> Tensor:
        """A tensor on the CPU, in memory of its own."""
        place = self.places[name]
        content = torch.empty(place.end - place.start, dtype=torch.uint8)
        path = self.folder / place.file
        with path.open("rb", buffering=0) as stream:
            stream.seek(place.start)
            view, done = _bytes(content), 0
            while done < len(view):
                count = stream.readinto(view[done : done + _AT_ONCE])
                if not count:
                    raise AutopruneError(
                        f"a safetensors file is corrupt (it ends within the tensor {name})",
                        where=str(path),
                        remedy=_AGAIN,
                    )
                done += count
        return content.view(place.dtype).reshape(place.shape)

    def mapped(self, name: str) -> Tensor:
        """A tensor on the CPU that is read where and when it is looked at. Not to be written to."""
        place = self.places[name]
        if place.start % place.dtype.itemsize:
            return self.read(name)
        content = torch.from_file(str(self.folder / place.file), shared=False, size=place.end, dtype=torch.uint8)
        return content[place.start :].view(place.dtype).reshape(place.shape)


class ShardsCopy(Shards):
    """A copy of shards, in another folder, that is made tensor by tensor."""

    @classmethod
    def begin(cls, source: Shards, folder: Path) -> ShardsCopy:
        """Files with the headers of the source and room for its tensors."""
        for file, length in source.headers.items():
            with (source.folder / file).open("rb") as old, (folder / file).open("wb") as new:
                new.write(old.read(length))
                new.truncate(source.sizes[file])
        if (source.folder / INDEX).is_file() and SINGLE not in source.sizes:
            (folder / INDEX).write_bytes((source.folder / INDEX).read_bytes())
        return cls(folder)

    def write(self, name: str, tensor: Tensor) -> None:
        """A tensor of the same shape as the source's, in its dtype."""
        place = self.places[name]
        if tuple(tensor.shape) != place.shape:
            raise AutopruneError(
                f"{name} is {place.shape} in the checkpoint, and {tuple(tensor.shape)} in the model",
                where=str(self.folder),
                remedy="please report the model",
            )
        stored = tensor.detach().to("cpu", place.dtype).contiguous()
        content = _bytes(stored)
        with (self.folder / place.file).open("r+b", buffering=0) as stream:
            stream.seek(place.start)
            done = 0
            while done < len(content):
                done += stream.write(content[done : done + _AT_ONCE])

    def carry_over(self, source: Shards, names: Iterable[str], stopped: threading.Event) -> None:
        """Copy tensors as they are, unless `stopped`; refused where they are not finite."""
        for name in names:
            place = self.places[name]
            with (source.folder / place.file).open("rb") as old, (self.folder / place.file).open("r+b") as new:
                old.seek(place.start)
                new.seek(place.start)
                left = place.end - place.start
                while left and not stopped.is_set():
                    part = old.read(min(left, _AT_ONCE))
                    if not part:
                        raise AutopruneError(
                            "the file has become shorter", where=str(source.folder / place.file), remedy=_AGAIN
                        )
                    _check_finite(part, place.dtype, source.where(name))
                    new.write(part)
                    left -= len(part)

    def flush(self) -> None:
        """Everything that was written is on the disk when this returns."""
        for file in self.sizes:
            descriptor = os.open(self.folder / file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _bytes(tensor: Tensor) -> memoryview:
    content: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(content)


def _check_finite(content: bytes, dtype: torch.dtype, where: str) -> None:
    if dtype.is_floating_point:
        require_finite(torch.frombuffer(bytearray(content), dtype=dtype), where)


def is_sharded(folder: Path) -> bool:
    """Whether a folder has weights as safetensors."""
    return (folder / SINGLE).is_file() or (folder / INDEX).is_file()


def _weight_map(index: Path) -> dict[str, str]:
    try:
        named = json.loads(index.read_text("utf-8"))["weight_map"]
        if not named or not all(isinstance(name, str) and isinstance(file, str) for name, file in named.items()):
            raise ValueError("its weight_map does not say which file a tensor is in")
        if foreign := [f for f in named.values() if Path(f).name != f or Path(f).suffix != ".safetensors"]:
            raise ValueError(f"it names {foreign[0]!r}, which is not a safetensors file of this folder")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise AutopruneError(f"the index cannot be read ({error})", where=str(index), remedy=_AGAIN) from None
    return named


def _require_tiles(places: Iterable[Place], start: int) -> None:
    """Tensors lie one after another, and share no bytes."""
    for place in sorted(places, key=lambda place: (place.start, place.end)):
        if place.start != start:
            raise ValueError("its tensors overlap, or leave gaps")
        start = place.end


def _place(file: str, entry: Any, offset: int) -> Place:
    dtype, shape = _DTYPES[entry["dtype"]], _whole(entry["shape"])
    start, end = _whole(entry["data_offsets"])
    # Torch multiplies lengths in 64 bits, those around a zero too.
    if len(shape) > _MOST_DIMENSIONS or math.prod(max(length, 1) for length in shape) >= 2**60:
        raise ValueError("a tensor has a shape beyond all bounds")
    if start > end or end - start != math.prod(shape) * dtype.itemsize:
        raise ValueError("a tensor's place does not fit its shape")
    return Place(file, dtype, shape, offset + start, offset + end)


def _whole(numbers: Any) -> tuple[int, ...]:
    if not (isinstance(numbers, list) and all(type(number) is int and number >= 0 for number in numbers)):
        raise ValueError("a tensor's shape, or its place, is no list of whole numbers")
    return tuple(numbers)
