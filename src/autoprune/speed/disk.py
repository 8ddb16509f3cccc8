"""What a model's files take: as they are, and compressed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from autoprune.errors import AutopruneError
from autoprune.models.shards import Shards
from autoprune.progress import Progress
from autoprune.speed.payoff import Files

LEVELS = range(1, 23)
_AT_ONCE = 4 << 20


def check_compression(level: int) -> None:
    """Refuse to start what could not be compressed in the end."""
    if level not in LEVELS:
        raise AutopruneError(f"level {level} of zstd does not exist", remedy=f"use 1 to {LEVELS[-1]}")
    _zstandard()


def measure_files(files: list[Path], level: int, progress: Progress) -> Files:
    """Bytes of the files that a model is opened from (`models.weight_files`), read once, a few MB at a time."""
    sizes = [file.stat().st_size for file in files]
    progress.stage(f"compressing {files[0]}" if len(files) == 1 else f"compressing {files[0].parent}", sum(sizes))
    compressed = sum(len(part) for file in files for part in compressed_parts(file, level, progress))
    return Files(
        format=files[0].suffix.removeprefix("."),
        files=len(files),
        bytes=sum(sizes),
        bytes_per_weight=_bytes_per_weight(files),
        compressed=compressed,
    )


def _bytes_per_weight(files: list[Path]) -> int | None:
    if files[0].suffix != ".safetensors":
        return None
    places = Shards(files[0].parent).places.values()
    widths = {place.dtype.itemsize for place in places if len(place.shape) >= 2 and place.dtype.is_floating_point}
    return widths.pop() if len(widths) == 1 else None


def compressed_parts(file: Path, level: int, progress: Progress) -> Iterator[bytes]:
    """What zstd makes of a file, as it comes; progress is told the bytes that were read."""
    compressor = _zstandard().ZstdCompressor(level=level, threads=-1).compressobj(size=file.stat().st_size)
    with file.open("rb") as stream:
        while part := stream.read(_AT_ONCE):
            yield compressor.compress(part)
            progress.advance(len(part))
    yield compressor.flush()


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError:
        raise AutopruneError("compressing needs zstandard", remedy="run: pip install 'autoprune[speed]'") from None
    return zstandard
