"""How time and memory of a prune from disk grow with the tokens, the blocks and the width of a model.

    python benchmarks/scaling.py --text FILE [--rounds 3] [--algorithm wanda] [--threads 2] [--out results.jsonl]

Models are random, in the shape of Llama, bfloat16, made anew in a temporary folder. Sizes are pruned in turn, each in
a process of its own, round after round. Prints the exponent of a power law fitted to the medians: 1 is linear. Weights
grow with the square of the width. Time is the prune's own, with reading and writing the blocks, without imports; peak
memory is the largest resident set of the process, and its range over the sizes that differ only in their blocks.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import timing

LENGTH, VOCABULARY = 512, 8000  # of benchmarks/large_checkpoint.py
BASE = {"tokens": 8192, "blocks": 8, "width": 512}
SIZES = {"tokens": (16384, 32768, 65536, 131072), "blocks": (4, 8, 16, 32), "width": (256, 512, 1024)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--algorithm", default="wanda")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("scaling.jsonl"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--tokens", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(pruned(options)))
        return
    print(table(measured(options)))


def measured(options: argparse.Namespace) -> list[dict[str, Any]]:
    shapes = {tuple((BASE | {axis: size}).values()) for axis, sizes in SIZES.items() for size in sizes}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for blocks, width in {shape[1:] for shape in shapes}:
            write(Path(scratch) / f"{blocks}-{width}", blocks, width, options.text)
        for _ in range(options.rounds):
            for tokens, blocks, width in sorted(shapes):
                command = [sys.executable, str(Path(__file__).resolve()), "--one", f"{scratch}/{blocks}-{width}"]
                command += ["--text", str(Path(options.text).resolve()), "--tokens", str(tokens)]
                command += ["--algorithm", options.algorithm, "--threads", str(options.threads)]
                found = subprocess.run(command, capture_output=True, text=True)
                if found.returncode:
                    sys.exit(found.stderr[-2000:])
                size = {"tokens": tokens, "blocks": blocks, "width": width}
                rows.append({"algorithm": options.algorithm, **size, **json.loads(found.stdout.splitlines()[-1])})
                print(rows[-1], file=sys.stderr, flush=True)
                with options.out.open("a", encoding="utf-8") as out:
                    out.write(json.dumps(rows[-1]) + "\n")
    return rows


def write(folder: Path, blocks: int, width: int, text: str) -> None:
    """A random model, and a tokenizer made from the text."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from large_checkpoint import tokenizer

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=blocks,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        vocab_size=VOCABULARY,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    tokenizer(Path(text)).save_pretrained(folder)


def pruned(options: argparse.Namespace) -> dict[str, float]:
    import torch

    import autoprune

    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as out:
        report = autoprune.prune(
            options.one,
            out=Path(out) / "pruned",
            algorithm=options.algorithm,
            sparsity=0.5,
            calibration=f"file:{options.text}",
            sequences=options.tokens // LENGTH,
            length=LENGTH,
        )
    return {"seconds": report.durations_s["prune"], "peak_bytes": timing.peak_resident_bytes()}


def table(rows: list[dict[str, Any]]) -> str:
    lines = []
    for axis, sizes in SIZES.items():
        lines += [f"| {axis} | seconds (median) | peak memory, GB |", "|---|---|---|"]
        medians: dict[int, tuple[float, float]] = {}
        for size in sizes:
            of_it = [row for row in rows if all(row[name] == value for name, value in (BASE | {axis: size}).items())]
            seconds, peak = (statistics.median(row[name] for row in of_it) for name in ("seconds", "peak_bytes"))
            medians[size] = seconds, peak
            lines.append(f"| {size:,} | {seconds:.2f} | {peak / 1e9:.3f} |")
        times, peaks = zip(*medians.values(), strict=True)
        slope, _ = statistics.linear_regression([*map(math.log, sizes)], [*map(math.log, times)])
        middle = (max(peaks) + min(peaks)) / 2
        lines += ["", f"Exponent of time {slope:.2f}; memory within ±{(max(peaks) - middle) / middle:.1%}.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
