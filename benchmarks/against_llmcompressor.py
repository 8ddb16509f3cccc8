"""Wall time of SparseGPT here and in llmcompressor, in turn, on the same tokens of the same model.

    python benchmarks/against_llmcompressor.py MODEL --text FILE --peer PATH_TO_PYTHON [--rounds 3] [--threads 2]

`--peer` is the interpreter of an environment that has llmcompressor. Every prune is a process of its own; what is timed
is the prune alone, without imports, loading and saving. Prints medians, and the ratio to the peer in the same round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import timing


def main() -> None:
    parser = timing.parser(__doc__, rounds=3)
    parser.add_argument("--peer", required=True)
    parser.add_argument("--sparsity", type=float, default=0.7)
    parser.add_argument("--propagation", default="block")
    parser.add_argument("--one", choices=["own", "peer"], help=argparse.SUPPRESS)
    parser.add_argument("--tokens", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps((own if options.one == "own" else peer)(options)))
        return
    _, tokens_BL = timing.opened_with_tokens(options)
    times: dict[str, list[float]] = {"own": [], "peer": []}
    with tempfile.TemporaryDirectory() as folder:
        tokens = Path(folder) / "tokens.json"
        tokens.write_text(json.dumps(tokens_BL.tolist()), "utf-8")
        for _ in range(options.rounds):
            for name, python in (("own", sys.executable), ("peer", options.peer)):
                command = [python, __file__, *sys.argv[1:], "--one", name, "--tokens", str(tokens)]
                result = subprocess.run(command, capture_output=True, text=True, cwd=folder)
                if result.returncode:
                    sys.exit(f"{name} failed:\n{result.stderr[-2000:]}")
                times[name].append(json.loads(result.stdout.splitlines()[-1]))
                print(f"{name}: {times[name][-1]:.1f} s", file=sys.stderr)
    for name, taken in times.items():
        print(f"{name:<6} median {statistics.median(taken):6.1f} s")
    print(f"ratio  {timing.ratios(times['own'], times['peer'])}")


def own(options: argparse.Namespace) -> float:
    import torch

    from autoprune.algorithms import load
    from autoprune.layer import Method
    from autoprune.models import InMemoryBlocks, open_model
    from autoprune.prune import Recipe, prune_blocks
    from autoprune.sparsity import Target

    torch.set_num_threads(options.threads)
    source = InMemoryBlocks(open_model(options.model, device="cpu").model)
    tokens_BL = torch.tensor(json.loads(Path(options.tokens).read_text("utf-8")))
    method, target = Method.of(load("sparsegpt")), Target.of(options.sparsity)
    start = time.perf_counter()
    recipe = Recipe(method=method, target=target, propagation=options.propagation)
    prune_blocks(source, recipe, tokens_BL, lambda layer: None)
    return time.perf_counter() - start


def peer(options: argparse.Namespace) -> float:
    """The modifier's defaults; the sequential pipeline, which prunes block after block."""
    import torch
    from datasets import Dataset  # pyright: ignore[reportMissingImports]
    from llmcompressor import oneshot  # pyright: ignore[reportMissingImports]
    from llmcompressor.modifiers.pruning import SparseGPTModifier  # pyright: ignore[reportMissingImports]
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(options.threads)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype="auto")
    tokens: list[list[int]] = json.loads(Path(options.tokens).read_text("utf-8"))
    rows: dict[str, Any] = {"input_ids": tokens, "attention_mask": [[1] * len(row) for row in tokens]}
    recipe = SparseGPTModifier(sparsity=options.sparsity, targets=["Linear"], ignore=["lm_head"])
    start = time.perf_counter()
    oneshot(
        model=model,
        processor=AutoTokenizer.from_pretrained(options.model),
        dataset=Dataset.from_dict(rows),
        recipe=recipe,
        pipeline="sequential",
        max_seq_length=options.length,
        num_calibration_samples=len(tokens),
        shuffle_calibration_samples=False,
        output_dir=None,
    )
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
