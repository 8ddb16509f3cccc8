"""Perplexity of algorithms and allocations at several sparsities and calibration seeds: the tables of docs/.

    python benchmarks/perplexity.py MODEL --text CALIBRATION.txt --test TEST.txt --out results.jsonl
    python benchmarks/perplexity.py --table results.jsonl
    python benchmarks/perplexity.py --table results.jsonl --against wanda,ria

One process, one model in memory, its weights restored before each prune. Every figure is a line in `--out`; a run that
was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from collections import defaultdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

import autoprune
from autoprune.bootstrap import bootstrap_interval
from autoprune.evaluation import evaluate_tokens
from autoprune.inputs import evaluation_tokens
from autoprune.models import InMemoryBlocks, all_linears, open_model

KEY = ("model", "algorithm", "allocation", "target", "seed", "test")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--text", help="calibration text")
    parser.add_argument("--test", help="texts the perplexity is of, with commas between")
    parser.add_argument("--out", type=Path, default=Path("perplexity.jsonl"))
    parser.add_argument("--table", type=Path, help="print the table of these results, and measure nothing")
    parser.add_argument("--against", help="with --table: differences in nats a token from the better of these")
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
        rows = [json.loads(line) for line in arguments.table.read_text("utf-8").splitlines()]
        for model, test in dict.fromkeys((row["model"], row.get("test", "")) for row in rows):
            of_it = [row for row in rows if (row["model"], row.get("test", "")) == (model, test)]
            text = differences(of_it, arguments.against.split(",")) if arguments.against else table(of_it)
            print(f"{Path(model).name} {test}\n\n{text}\n")
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
    done = {tuple(row.get(name, "") for name in KEY) for row in map(json.loads, lines)}
    model = Path(arguments.model).name
    tests = {
        Path(test).name: evaluation_tokens(opened, f"file:{test}", arguments.test_sequences, 1024, "auto")[0]
        for test in arguments.test.split(",")
    }

    def is_done(key: tuple[Any, ...]) -> bool:
        return all((*key, test) in done for test in tests)

    def record(key: tuple[Any, ...], **row: object) -> None:
        """Measure the model as it is now on all texts."""
        for test, tokens_BL in tests.items():
            if (*key, test) in done:
                continue
            nats_B = [evaluate_tokens(opened.model, tokens_L[None]).nats_per_token for tokens_L in tokens_BL]
            whole = {
                "commit": commit,
                **dict(zip(KEY, (*key, test), strict=True)),
                "perplexity": math.exp(statistics.fmean(nats_B)),
                "nats": [round(nats, 5) for nats in nats_B],
                **row,
            }
            with arguments.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(whole) + "\n")
            print(" ".join(f"{whole[name]}" for name in (*KEY, "perplexity")), file=sys.stderr)

    if not is_done(key := (model, "dense", "", "0", 0)):
        record(key)
    seeds, targets, algorithms, allocations = (
        getattr(arguments, name).split(",") for name in ("seeds", "targets", "algorithms", "allocations")
    )
    for seed, target, algorithm, allocation in product(seeds, targets, algorithms, allocations):
        if is_done(key := (model, Path(algorithm).stem, allocation, target, int(seed))):
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
            achieved=report.sparsity,
            durations_s=report.durations_s,
            chosen=report.allocation.get("chosen", ""),
        )
        with torch.no_grad():
            for linear, weight_RC in zip(linears, dense, strict=True):
                linear.weight_RC.copy_(weight_RC)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a row per algorithm and allocation, a column per target; mean ± standard deviation over the seeds."""
    found: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
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


def differences(rows: list[dict[str, Any]], against: list[str]) -> str:
    """Markdown: nats a token of each algorithm minus those of the better of `against` at that target, on the same
    sequences and calibration seeds; mean over seeds, 95 % interval of a paired bootstrap over sequences."""
    found: dict[tuple[str, str], dict[int, list[float]]] = defaultdict(dict)
    for row in rows:
        name = row["algorithm"] if row["allocation"] in ("", "uniform") else f"{row['algorithm']}, {row['allocation']}"
        found[name, row["target"]][row["seed"]] = row["nats"]
    targets = sorted({row["target"] for row in rows} - {"0"}, key=lambda text: (":" in text, text))
    names = dict.fromkeys(name for name, target in found if target != "0" and name not in against)

    def nats_SB(name: str, target: str, seeds: list[int]) -> np.ndarray:
        return np.array([found[name, target][seed] for seed in seeds])

    lines = ["| algorithm | " + " | ".join(map(shown, targets)) + " |", "|---" * (len(targets) + 1) + "|"]
    for name in names:
        cells = []
        for target in targets:
            known = [other for other in against if (other, target) in found]
            seeds = sorted(set(found[name, target]).intersection(*(found[other, target] for other in known)))
            if not (seeds and known):
                cells.append("")
                continue
            best = min(known, key=lambda other: nats_SB(other, target, seeds).mean())
            difference_B = (nats_SB(name, target, seeds) - nats_SB(best, target, seeds)).mean(0)
            low, high = bootstrap_interval(difference_B)
            over = f"{len(seeds)} seeds" if len(seeds) > 1 else "one seed"
            cells.append(f"{difference_B.mean():+.3f} ({low:+.3f} to {high:+.3f}) on {best}, {over}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def shown(target: str) -> str:
    return target if ":" in target else f"{float(target):.0%}"


def cell(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.4g} (one seed)" if values else ""
    return f"{statistics.mean(values):.4g} ± {statistics.stdev(values):.2g}"


if __name__ == "__main__":
    main()
