"""How much memory a prune takes, told before anything is loaded, and what may wait in a file to stay within a limit.

Legend: T calibration tokens, R output rows, C input columns.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from autoprune.errors import AutopruneError
from autoprune.layer import Method
from autoprune.models import BlockSource, DiskBlocks, Linear, input_device, weight_bytes

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_PROCESS = 700_000_000  # Python, torch and transformers themselves
_BLOCKS_AT_ONCE = 3  # one computes, the next is read, the last is written
_SOLVED = {"none": 4, "least_squares": 8, "sparsegpt": 6, "admm": 10}
"""Float32 matrices of R × C that are there at once while a layer is pruned, by update."""


def parse_bytes(text: str) -> int:
    """ "8GiB", "500 MB" or "2e9" as a number of bytes."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?(?:e[0-9]+)?)\s*([kmgt]i?)?b?\s*", text, re.IGNORECASE)
    amount = float(match[1]) * _UNITS[(match[2] or "").lower()] if match else 0.0
    if not 1 <= amount < 2**63:
        raise AutopruneError(f"'{text}' is no amount of memory", remedy="give it as 8GiB or 500MB")
    return int(amount)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Bytes, by what they are for. `activations` are those of all micro-batches that wait for each other."""

    weights: int
    statistics: int
    solving: int
    activations: int

    @property
    def fixed(self) -> int:
        """What cannot wait in a file."""
        return _PROCESS + self.weights + self.statistics + self.solving

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {getattr(self, name) / 1e9:.2f}" for name in self.__dataclass_fields__)
        whole = (self.fixed + self.activations) / 1e9
        return f"about {whole:.2f} GB of memory ({parts}, the program {_PROCESS / 1e9:.2f})"


def estimate(source: BlockSource, method: Method, propagation: str, tokens: int) -> Estimate:
    """What pruning a model with so many calibration tokens takes; on a GPU, all of it there."""
    blocks = [source.linears(index) for index in range(len(source.blocks))]
    if isinstance(source, DiskBlocks):
        weights = _BLOCKS_AT_ONCE * max(map(weight_bytes, source.blocks))
    else:
        weights = weight_bytes(source.model)
    grams = method.collects & {"gram", "dense_gram"}

    def collected(linears: list[Linear]) -> int:
        return sum(4 * linear.shape[1] * (4 + linear.shape[1] * len(grams)) for linear in linears)

    at_once = [[linear] for block in blocks for linear in block] if propagation == "one_pass" else blocks
    largest = max(linear.size for block in blocks for linear in block)
    element = max(parameter.element_size() for parameter in source.blocks[0].parameters())
    widest = max(max(linear.shape) for block in blocks for linear in block)
    width = min(max(linear.shape[1] for linear in block) for block in blocks if block)
    # Towards the unpruned model: twins, in both streams the residual stream once more, and what it lacks.
    streams, states, lack = (2, 3, 4 * largest) if method.towards_dense else (1, 2, 0)
    return Estimate(
        weights=weights,
        statistics=max(map(collected, at_once)) + lack,
        solving=4 * largest * _SOLVED[method.update],
        activations=tokens * element * (widest + states * min(width, widest)) * streams if method.collects else 0,
    )


def fit(found: Estimate, limit: int | None, source: BlockSource) -> int | None:
    """Bytes that activations may take in memory (None: any), so that all together stays within `limit`; refused where
    that cannot be. Without a limit, that is what the machine has left, beside what this process has already."""
    if input_device(source.model).type != "cpu":
        return None
    there = _PROCESS + (0 if isinstance(source, DiskBlocks) else found.weights)
    left = available()
    left = left + there if left is not None else None
    bound = limit if limit is not None else left
    if bound is None or found.fixed + found.activations <= bound:
        return None
    if found.fixed > bound:
        raise AutopruneError(
            f"pruning takes {found}, and there are {bound / 1e9:.2f} GB",
            where="--memory" if limit is not None else "",
            remedy="use --propagation one_pass, an algorithm without update or refine, a checkpoint of safetensors "
            "files, or a larger machine",
        )
    return bound - found.fixed


def require_room_to_write(source: DiskBlocks, limit: int | None) -> None:
    """Refuse to open a model whole, for it to write its own calibration text, where it does not fit."""
    bound = limit if limit is not None else available()
    if bound is not None and source.shards.bytes + _PROCESS > bound:
        raise AutopruneError(
            "to write its own calibration text the model has to be in memory whole: "
            f"{source.shards.bytes / 1e9:.2f} GB of weights, and there are {bound / 1e9:.2f} GB",
            where="--calibration self",
            remedy="name a text with --calibration file:PATH or hub:NAME",
        )


def available() -> int | None:
    """Memory that this machine can still give, in bytes, where it can be told."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return min(int(line.split()[1]) * 1024, *_of_container())
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None


def _of_container() -> list[int]:
    """What a container's limit leaves, if it has one."""
    try:
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text("ascii")) for name in ("max", "current"))
    except (OSError, ValueError):  # "max" is no limit
        return [sys.maxsize]
    return [max(0, limit - used)]
