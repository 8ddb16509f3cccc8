"""One target, guided by coverage: `python -m fuzz.guided TARGET --runs N`.

Needs atheris (libFuzzer for Python), which `make fuzz` installs. Inputs are bytes; libFuzzer keeps those that reach new
code, and `mutated` of the target changes them, so that most keep their structure. Writes counts, the slowest input and
the largest memory as JSON to --out; an input that breaks an invariant is kept beside it, as crash-*.
"""

from __future__ import annotations

import argparse
import importlib
import json
import resource
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import atheris  # pyright: ignore[reportMissingImports]

TARGETS = ("program", "running", "reply", "archive", "shards", "gguf")
LONGEST = {"archive": 400_000, "gguf": 50_000}
"""Bytes of an input where a target needs more than a program does: the time of most goes by their length."""
LIMIT_S = 2.0
"""Of the process's time, for one input."""


class Run:
    """Counts what becomes of the inputs."""

    def __init__(self, target: Any, runs: int, out: Path):
        self.target, self.runs, self.out = target, runs, out
        self.outcomes = Counter[str]()
        self.slowest, self.slowest_input = 0.0, b""
        self.since, self.memory_at_start = time.perf_counter(), _peak_mib()

    def one(self, data: bytes) -> None:
        start = time.process_time()
        self.outcomes[self.target.check(data)] += 1
        took = time.process_time() - start
        if took > self.slowest:
            self.slowest, self.slowest_input = took, data
        assert took < LIMIT_S, f"{took:.1f} s"
        count = self.outcomes.total()
        if count >= self.runs or count % 5_000 == 0:
            self.write()

    def mutated(self, data: bytes, most: int, seed: int) -> bytes:
        rng = Random(seed)
        if rng.random() < 0.1:
            return atheris.Mutate(data, most)
        return self.target.mutated(data, rng)[:most]

    def write(self) -> None:
        told = {
            "inputs": self.outcomes.total(),
            "outcomes": dict(self.outcomes),
            "slowest_s": round(self.slowest, 3),
            "memory_mib": _peak_mib(),
            "memory_growth_mib": _peak_mib() - self.memory_at_start,
            "seconds": round(time.perf_counter() - self.since),
        }
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "counts.json").write_text(json.dumps(told, indent=1) + "\n", "utf-8")
        (self.out / "slowest").write_bytes(self.slowest_input)


def _peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("fuzz-out"))
    given = parser.parse_args()
    with atheris.instrument_imports(include=["autoprune"]):  # pyright: ignore[reportAttributeAccessIssue]
        target = importlib.import_module(f"fuzz.{given.target}")
    corpus = given.out / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(target.seeds()):
        (corpus / f"seed-{number:04d}").write_bytes(data)
        target.check(data)  # what is imported at first use is no input's time
    run = Run(target, given.runs, given.out)
    flags = [
        f"-runs={given.runs}",
        f"-seed={given.seed}",
        f"-max_len={LONGEST.get(given.target, 4_000)}",
        "-len_control=0",
        "-mutate_depth=1",
    ]
    flags += ["-timeout=30", "-rss_limit_mb=4000", f"-artifact_prefix={given.out}/"]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], run.one, custom_mutator=run.mutated)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
