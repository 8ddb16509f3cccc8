"""Wall time and peak memory of a prune from disk, beside what it cannot do without: the plain forward of the same
tokens through the blocks, and reading and writing the files once.

    python benchmarks/large_prune.py FOLDER --text articles.txt --scratch /big/disk [--sequences 4] [--length 512]

FOLDER is a checkpoint of safetensors files, such as benchmarks/large_checkpoint.py writes. All in one run, each from a
cold page cache. Peak memory is the resident set of the prune's process (ru_maxrss).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--text", required=True)
    parser.add_argument("--scratch", type=Path, required=True, help="a folder on the disk that is written to")
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--algorithm", default="wanda")
    parser.add_argument("--pattern", default="2:4")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    files = sorted(options.folder.glob("*.safetensors"))
    size = sum(file.stat().st_size for file in files)

    forward = forward_seconds(options)
    forget(files)
    copied = copy_seconds(files, options.scratch)
    forget(files)
    out = options.scratch / "pruned"
    command = [sys.executable, "-m", "autoprune", "prune", str(options.folder), "--out", str(out), "--json"]
    command += ["--algorithm", options.algorithm, "--pattern", options.pattern, "--calibration", f"file:{options.text}"]
    command += ["--sequences", str(options.sequences), "--length", str(options.length)]
    start = time.perf_counter()
    result = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": str(options.threads)}
    )
    seconds = time.perf_counter() - start
    if result.returncode:
        sys.exit(result.stderr)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    report = json.loads(result.stdout)
    shutil.rmtree(out)
    print(f"checkpoint        {size / 1e9:.2f} GB, sparsity {report['sparsity']['achieved']:.4%}")
    print(f"plain forward     {forward:.1f} s")
    print(f"read and write    {copied:.1f} s")
    print(f"prune             {seconds:.1f} s: {report['durations_s']}")
    print(f"ratio             {seconds / (forward + copied):.2f} of the two together")
    print(f"peak memory       {peak / 1e9:.2f} GB")


def forward_seconds(options: argparse.Namespace) -> float:
    """One block's forward of all tokens, its weights in memory, times the number of blocks."""
    from autoprune.attention import faster_attention
    from autoprune.models import open_on_disk

    found = open_on_disk(options.folder)
    assert found
    opened, source = found
    tokens_BL = torch.arange(options.sequences * options.length).reshape(options.sequences, -1) % 1000
    taken: list[float] = []

    def timed(module: object, args: tuple[torch.Tensor, ...], kwargs: dict[str, object], output: object) -> None:
        times = []
        for _ in range(3):
            start = time.perf_counter()
            source.blocks[0].forward(*args, **kwargs)
            times.append(time.perf_counter() - start)
        taken.append(sorted(times)[1])
        raise StopIteration

    source.load(0)
    source.blocks[0].register_forward_hook(timed, with_kwargs=True)
    with torch.no_grad(), faster_attention(), contextlib.suppress(StopIteration):
        opened.model(input_ids=tokens_BL, use_cache=False)
    source.release(0)
    source.close()
    return taken[0] * len(source.blocks)


def copy_seconds(files: list[Path], scratch: Path) -> float:
    """Reading every file and writing its bytes to the disk."""
    start = time.perf_counter()
    buffer = bytearray(64 << 20)
    for file in files:
        with file.open("rb", buffering=0) as old, (scratch / "copy").open("wb", buffering=0) as new:
            while count := old.readinto(buffer):
                new.write(memoryview(buffer)[:count])
            os.fsync(new.fileno())
        os.unlink(scratch / "copy")
    return time.perf_counter() - start


def forget(files: list[Path]) -> None:
    """Out of the page cache."""
    for file in files:
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()
