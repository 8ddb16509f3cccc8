"""How many proposals a search measures in a minute, by the number of workers.

    python benchmarks/search_speed.py MODEL --text FILE [--workers 1,2] [--evaluations 40] [--rounds 2] [--sparsity 0.6]

The same genetic search (same seed, so the same programs) is run anew with each number of workers, in turn; one before
fills the cache of what every search measures of the unpruned model. Cores are shared out among workers. Prints
proposals a minute, the gain over the first number of workers in the same round, and seconds a program by rung.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import timing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--text", required=True)
    parser.add_argument("--workers", default="1,2")
    parser.add_argument("--evaluations", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--sparsity", type=float, default=0.6)
    options = parser.parse_args()
    workers = [int(number) for number in options.workers.split(",")]
    seconds: dict[int, list[float]] = {number: [] for number in workers}
    rungs: dict[str, float] = {}
    searched(options, workers[0], 0)
    for _ in range(options.rounds):
        for number in workers:
            told = searched(options, number, options.evaluations)
            seconds[number].append(told["seconds"])
            rungs = told["seconds_by_rung"]
    for number, taken in seconds.items():
        rate = 60 * options.evaluations / statistics.median(taken)
        print(f"{number} workers: {rate:.1f} proposals a minute, gain {timing.ratios(seconds[workers[0]], taken)}")
    print(f"seconds a program with {workers[-1]}: " + ", ".join(f"{rung} {value:.2f}" for rung, value in rungs.items()))


def searched(options: argparse.Namespace, workers: int, evaluations: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as run:
        command = [sys.executable, "-m", "autoprune", "search", options.model, "--run", run, "--proposer", "genetic"]
        command += ["--freeze", "update=none,refine=none,allocate=uniform", "--sparsity", str(options.sparsity)]
        command += ["--calibration", f"file:{Path(options.text).resolve()}", "--evaluations", str(evaluations)]
        command += ["--roots", "wanda", "--workers", str(workers), "--json"]  # others are measured once a search
        threads = str(max(1, (os.cpu_count() or 1) // workers))
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": threads})
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    return json.loads(done.stdout)["account"]


if __name__ == "__main__":
    main()
