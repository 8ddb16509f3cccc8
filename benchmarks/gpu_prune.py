"""Seconds of a prune from disk on a GPU, in total and split, and the share of the device's matrix limit.

    python benchmarks/large_checkpoint.py FOLDER --text articles.txt
    python benchmarks/gpu_prune.py FOLDER --text articles.txt --scratch DISK [--device cuda]

The split waits for the device around each part, which costs a little; the total is of a run without that. The limit is
what a large matrix product in the checkpoint's dtype reaches here. Runs on a CPU too (--device cpu).
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import autoprune
from autoprune import prune_blocks
from autoprune.models import DiskBlocks, all_linears, open_on_disk
from autoprune.models.opening import resolve_device
from autoprune.statistics import InputStatistics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--text", required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--algorithm", default="wanda")
    parser.add_argument("--pattern", default="2:4")
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--length", type=int, default=2048)
    options = parser.parse_args()
    device = resolve_device(options.device)

    prune(options)  # files into the page cache, kernels loaded
    total = prune(options)
    spent: dict[str, float] = defaultdict(float)
    parts: list[tuple[Any, str, str]] = [
        (InputStatistics, "add", "statistics"),
        (prune_blocks, "solve", "masks"),
        (prune_blocks, "zero_pruned_", "masks"),
        (DiskBlocks, "load", "transfer"),
        (DiskBlocks, "commit", "transfer"),
    ]
    for owner, name, part in parts:
        setattr(owner, name, timed(getattr(owner, name), part, spent, device))
    split = prune(options)
    spent["forward and the rest"] = split - sum(spent.values())

    found = open_on_disk(options.folder, device="cpu")
    assert found
    weights = sum(linear.size for linear in all_linears(found[1]))
    found[1].close()
    work = 2 * weights * options.sequences * options.length
    limit = matrix_limit(device, found[0].stored_dtype)
    print(f"total             {total:.2f} s ({options.sequences} x {options.length} tokens, {options.algorithm})")
    for part, seconds in spent.items():
        print(f"{part:<22}{seconds:8.2f} s of {split:.2f} with waiting in between")
    print(f"matrix products   {work / total / 1e12:.1f} TFLOP/s, {work / total / limit:.1%} of {limit / 1e12:.1f}")


def prune(options: argparse.Namespace) -> float:
    out = options.scratch / "pruned"
    start = time.perf_counter()
    autoprune.prune(
        options.folder,
        out=out,
        algorithm=options.algorithm,
        pattern=options.pattern,
        calibration=f"file:{options.text}",
        sequences=options.sequences,
        length=options.length,
        device=options.device,
    )
    seconds = time.perf_counter() - start
    shutil.rmtree(out)
    return seconds


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(call: Callable[..., Any], part: str, spent: dict[str, float], device: torch.device) -> Callable[..., Any]:
    def inner(*args: Any, **more: Any) -> Any:
        wait(device)
        start = time.perf_counter()
        result = call(*args, **more)
        wait(device)
        spent[part] += time.perf_counter() - start
        return result

    return inner


def matrix_limit(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a square product."""
    width = 8192 if device.type == "cuda" else 2048
    one, other = (torch.randn(width, width, device=device).to(dtype) for _ in range(2))
    taken = []
    for _ in range(6):
        wait(device)
        start = time.perf_counter()
        torch.matmul(one, other)
        wait(device)
        taken.append(time.perf_counter() - start)
    return 2 * width**3 / min(taken)


if __name__ == "__main__":
    main()
