"""All targets, a million inputs: `python -m fuzz.campaign --inputs 1000000`, or `make fuzz`.

Each target gets a share of the inputs, in parts with a seed and a process of their own. What was found comes out as the
table of docs/fuzzing.md: what became of the inputs, the slowest one, memory, and the lines that the kept inputs reach.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHARES = {"program": 0.70, "reply": 0.21, "running": 0.04, "shards": 0.04, "archive": 0.008, "gguf": 0.002}
PARTS = {"program": 175_000, "reply": 105_000, "running": 20_000, "shards": 40_000, "archive": 10_000, "gguf": 2_000}
"""Inputs of a process, at most: some of the instrumentation's memory is never given back."""


@dataclass(frozen=True)
class Part:
    target: str
    seed: int
    runs: int
    out: Path

    def run(self) -> dict[str, Any]:
        """The counts; `broken` names the inputs that broke an invariant, and ended the part."""
        command = [sys.executable, "-m", "fuzz.guided", self.target]
        command += ["--runs", str(self.runs), "--seed", str(self.seed), "--out", str(self.out)]
        self.out.mkdir(parents=True, exist_ok=True)
        with (self.out / "log").open("wb") as log:
            ended = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode
        found = self.out / "counts.json"
        counts = json.loads(found.read_text("utf-8")) if found.is_file() else {}
        kept = [str(file) for kind in ("crash", "timeout", "oom") for file in self.out.glob(f"{kind}-*")]
        print(f"{self.target} {self.seed}: {counts.get('inputs', 0):,} inputs", *kept, flush=True)
        return counts | {"broken": kept or ([str(self.out / "log")] if ended else [])}


def parts(inputs: int, out: Path, targets: Sequence[str]) -> list[Part]:
    made = []
    for target in targets:
        left, seed = round(inputs * SHARES[target]), 1
        while left > 0:
            runs = min(left, PARTS[target])
            made.append(Part(target, seed, runs, out / f"{target}-{seed}"))
            left, seed = left - runs, seed + 1
    return made


def row(target: str, found: Sequence[dict[str, Any]]) -> str:
    """A line of the table."""
    outcomes = sum((Counter(part.get("outcomes", {})) for part in found), Counter[str]())
    total = outcomes.total()
    shares = ", ".join(f"{count / total:.1%} {name}" for name, count in outcomes.most_common())
    slowest = max(part.get("slowest_s", 0.0) for part in found)
    growth = max(part.get("memory_growth_mib", 0) for part in found)
    seconds = sum(part.get("seconds", 0) for part in found)
    return f"| {target} | {total:,} | {shares} | {slowest:.2f} s | {growth} MiB | {seconds:,} s |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, default=Path("fuzz-out"))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--targets", default=",".join(SHARES), help="some of them, by commas")
    given = parser.parse_args()
    targets = given.targets.split(",")
    work = parts(given.inputs, given.out, targets)
    with ThreadPoolExecutor(given.jobs) as threads:
        found = list(threads.map(Part.run, work))
    print("\n| target | inputs | outcome | slowest | memory grew by | time |\n|---|---|---|---|---|---|")
    for target in targets:
        print(row(target, [counts for part, counts in zip(work, found, strict=True) if part.target == target]))
    if broken := [file for counts in found for file in counts["broken"]]:
        sys.exit("an invariant is broken: " + ", ".join(broken))


if __name__ == "__main__":
    main()
