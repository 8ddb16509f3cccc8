"""Perplexity of every allocation at several sparsities and calibration seeds: the table of docs/allocation.md.

    python benchmarks/allocations.py MODEL --text CALIBRATION.txt --test TEST.txt --out results.jsonl
    python benchmarks/allocations.py --table results.jsonl

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
from pathlib import Path

import torch

import autoprune
from autoprune.models import InMemoryBlocks, all_linears, open_model

ALLOCATIONS = (
    "uniform",
    "sdsa",
    "sdsa-fisher",
    "sdsa-reversed",
    "atp",
    "owl",
    "dlp",
    "alpha",
    "sensitivity",
    "marginal",
    "auto",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--text", help="calibration text")
    parser.add_argument("--test", help="text the perplexity is of")
    parser.add_argument("--out", type=Path, default=Path("allocations.jsonl"))
    parser.add_argument("--table", type=Path, help="print the table of these results, and measure nothing")
    parser.add_argument("--sparsities", default="0.5,0.6,0.7,0.8")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--allocations", default=",".join(ALLOCATIONS))
    parser.add_argument("--algorithm", default="wanda")
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
    done = {(row["allocation"], row["sparsity"], row["seed"]) for row in map(json.loads, lines)}

    def perplexity() -> float:
        return autoprune.evaluate(
            opened.model,
            tokenizer=opened.tokenizer,
            data=f"file:{arguments.test}",
            length=1024,
            sequences=arguments.test_sequences,
        ).perplexity

    def record(**row: object) -> None:
        with arguments.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"model": arguments.model, "commit": commit, **row}) + "\n")
        print(row, file=sys.stderr)

    if ("dense", 0.0, 0) not in done:
        record(allocation="dense", sparsity=0.0, seed=0, perplexity=perplexity())
    for seed in map(int, arguments.seeds.split(",")):
        for sparsity in map(float, arguments.sparsities.split(",")):
            for allocation in arguments.allocations.split(","):
                if (allocation, sparsity, seed) in done:
                    continue
                report = autoprune.prune(
                    opened.model,
                    tokenizer=opened.tokenizer,
                    algorithm=arguments.algorithm,
                    sparsity=sparsity,
                    allocation=allocation,
                    propagation=arguments.propagation,
                    calibration=f"file:{arguments.text}",
                    sequences=arguments.sequences,
                    length=arguments.length,
                    seed=seed,
                )
                record(
                    allocation=allocation,
                    sparsity=sparsity,
                    seed=seed,
                    perplexity=perplexity(),
                    achieved=report.sparsity,
                    durations_s=report.durations_s,
                    chosen=report.allocation.get("chosen", ""),
                )
                with torch.no_grad():
                    for linear, weight_RC in zip(linears, dense, strict=True):
                        linear.weight_RC.copy_(weight_RC)


def table(path: Path) -> str:
    """Markdown: a row per allocation, a column per sparsity; mean ± standard deviation over the seeds."""
    found: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in map(json.loads, path.read_text("utf-8").splitlines()):
        found[row["allocation"]][row["sparsity"]].append(row["perplexity"])
    sparsities = sorted({sparsity for columns in found.values() for sparsity in columns} - {0.0})
    lines = [f"dense: {found['dense'][0.0][0]:.2f}", ""]
    lines.append("| allocation | " + " | ".join(f"{sparsity:.0%}" for sparsity in sparsities) + " |")
    lines.append("|---" * (len(sparsities) + 1) + "|")
    for name in [name for name in found if name != "dense"]:
        cells = [cell(found[name][sparsity]) for sparsity in sparsities]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.4g} (one seed)" if values else ""
    return f"{statistics.mean(values):.4g} ± {statistics.stdev(values):.2g}"


if __name__ == "__main__":
    main()
