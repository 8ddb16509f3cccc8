"""Perplexity of algorithms and allocations at several sparsities and calibration seeds: the tables of docs/.

    python benchmarks/perplexity.py MODEL --text CALIBRATION.txt --test TEST.txt --out results.jsonl
    python benchmarks/perplexity.py --table results.jsonl

One process, one model in memory, its weights restored before each prune. Every figure is a line in `--out`; a run that
was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections import defaultdict
from itertools import product
from pathlib import Path
from typing import Any

import torch

import autoprune
from autoprune.models import InMemoryBlocks, all_linears, open_model

KEY = ("algorithm", "allocation", "target", "seed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--text", help="calibration text")
    parser.add_argument("--test", help="text the perplexity is of")
    parser.add_argument("--out", type=Path, default=Path("perplexity.jsonl"))
    parser.add_argument("--table", type=Path, help="print the table of these results, and measure nothing")
    parser.add_argument("--algorithms", default="wanda")
    parser.add_argument("--allocations", default="uniform", help="'own' is the algorithm's")
    parser.add_argument("--targets", default="0.5,0.6,0.7,0.8", help="sparsities and n:m patterns")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--propagation", default="block")
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--test-sequences", type=int, default=8)
    arguments = parser.parse_args()
    if arguments.table:
        print(table(arguments.table))
        return
    if not (arguments.model and arguments.text and arguments.test):
        parser.error("give MODEL, --text and --test")
    measure(arguments)


def measure(arguments: argparse.Namespace) -> None:
    opened = open_model(arguments.model)
    linears = all_linears(InMemoryBlocks(opened.model))
    dense = [linear.weight_RC.clone() for linear in linears]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    lines = arguments.out.read_text("utf-8").splitlines() if arguments.out.exists() else []
    done = {tuple(row[name] for name in KEY) for row in map(json.loads, lines)}

    def perplexity() -> float:
        return autoprune.evaluate(
            opened.model,
            tokenizer=opened.tokenizer,
            data=f"file:{arguments.test}",
            length=1024,
            sequences=arguments.test_sequences,
        ).perplexity

    def record(key: tuple[Any, ...], **row: object) -> None:
        whole = {"model": arguments.model, "commit": commit, **dict(zip(KEY, key, strict=True)), **row}
        with arguments.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(whole) + "\n")
        print(whole, file=sys.stderr)

    if (key := ("dense", "", "0", 0)) not in done:
        record(key, perplexity=perplexity())
    seeds, targets, algorithms, allocations = (
        getattr(arguments, name).split(",") for name in ("seeds", "targets", "algorithms", "allocations")
    )
    for seed, target, algorithm, allocation in product(seeds, targets, algorithms, allocations):
        if (key := (algorithm, allocation, target, int(seed))) in done:
            continue
        is_pattern = ":" in target
        report = autoprune.prune(
            opened.model,
            tokenizer=opened.tokenizer,
            algorithm=algorithm,
            allocation=None if allocation == "own" else allocation,
            propagation=arguments.propagation,
            calibration=f"file:{arguments.text}",
            sequences=arguments.sequences,
            length=arguments.length,
            seed=int(seed),
            pattern=target if is_pattern else None,
            sparsity=None if is_pattern else float(target),
        )
        record(
            key,
            perplexity=perplexity(),
            achieved=report.sparsity,
            durations_s=report.durations_s,
            chosen=report.allocation.get("chosen", ""),
        )
        with torch.no_grad():
            for linear, weight_RC in zip(linears, dense, strict=True):
                linear.weight_RC.copy_(weight_RC)


def table(path: Path) -> str:
    """Markdown: a row per algorithm and allocation, a column per target; mean ± standard deviation over the seeds."""
    found: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in map(json.loads, path.read_text("utf-8").splitlines()):
        found[row["algorithm"], row["allocation"]][row["target"]].append(row["perplexity"])
    dense = found.pop(("dense", ""))["0"]
    targets = sorted({target for columns in found.values() for target in columns}, key=lambda text: (":" in text, text))
    lines = [f"dense: {dense[0]:.2f}", ""]
    lines.append("| algorithm | allocation | " + " | ".join(shown(target) for target in targets) + " |")
    lines.append("|---" * (len(targets) + 2) + "|")
    for (algorithm, allocation), columns in found.items():
        cells = " | ".join(cell(columns[target]) for target in targets)
        lines.append(f"| {algorithm} | {allocation} | {cells} |")
    return "\n".join(lines)


def shown(target: str) -> str:
    return target if ":" in target else f"{float(target):.0%}"


def cell(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.4g} (one seed)" if values else ""
    return f"{statistics.mean(values):.4g} ± {statistics.stdev(values):.2g}"


if __name__ == "__main__":
    main()
