"""How long a Wanda prune takes next to a plain forward of the same tokens, and how much memory it needs.

    python benchmarks/prune_speed.py MODEL --text FILE [--sequences 64] [--length 512] [--rounds 5] [--threads 2]

One process alternates: forward of all calibration tokens through the blocks at the best micro-batch size (found
first), then a prune of the unpruned weights with each propagation. Opening and saving are excluded. Prints medians,
the ratio of each prune to the forward of its round, and, from a fresh process that opens the model and prunes it
once, the peak resident memory against the bytes of the model.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import timing
from autoprune.algorithms import load
from autoprune.attention import faster_attention
from autoprune.layer import Method
from autoprune.models import InMemoryBlocks, weight_bytes
from autoprune.prune_blocks import Recipe, all_linears, prune_blocks
from autoprune.sparsity import Target

SPARSITY = 0.6


def main() -> None:
    parser = timing.parser(__doc__, rounds=5)
    parser.add_argument("--propagation", nargs="+", default=["one_pass", "block"])
    parser.add_argument("--memory-only", action="store_true", help="open, prune once, print peak memory, end")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    opened, tokens_BL = timing.opened_with_tokens(options)
    source = InMemoryBlocks(opened.model)
    if options.memory_only:
        prune_once(source, tokens_BL, options.propagation[0])
        peak, size = timing.peak_resident_bytes(), weight_bytes(opened.model)
        own = (peak - size) / 1e6
        print(f"{options.propagation[0]}: peak {peak / 1e6:.0f} MB = model {size / 1e6:.0f} + {own:.0f} MB")
        return

    unpruned = {linear.name: linear.weight_RC.clone() for linear in all_linears(source)}
    best = best_micro_batch(opened.model, tokens_BL)
    print(f"best micro-batch of a plain forward: {best} sequences")
    forward_s: list[float] = []
    prune_s: dict[str, list[float]] = {name: [] for name in options.propagation}
    for _ in range(options.rounds):
        forward_s.append(seconds(forward, opened.model, tokens_BL, best))
        for name, times in prune_s.items():
            times.append(seconds(prune_once, source, tokens_BL, name))
            for linear in all_linears(source):
                linear.weight_RC.copy_(unpruned[linear.name])
    print(f"forward   median {statistics.median(forward_s):.2f} s")
    for name, times in prune_s.items():
        print(
            f"{name:<9} median {statistics.median(times):.2f} s, ratio to the forward of its round: "
            f"{timing.ratios(times, forward_s)}"
        )
    for name in options.propagation:
        subprocess.run([sys.executable, *sys.argv, "--memory-only", "--propagation", name], check=True)


def forward(model: Any, tokens_BL: Tensor, micro_batch: int) -> None:
    """The blocks only: the head's logits would dwarf them, and pruning does not need them. With a prune's attention."""
    with torch.no_grad(), faster_attention():
        for part_BL in tokens_BL.split(micro_batch):
            model.base_model(input_ids=part_BL, use_cache=False)


def best_micro_batch(model: Any, tokens_BL: Tensor) -> int:
    sizes = [size for size in (1, 2, 4, 8, 16, 32, 64) if size <= len(tokens_BL)]
    forward(model, tokens_BL, sizes[-1])  # warm-up
    return min(sizes, key=lambda size: seconds(forward, model, tokens_BL, size))


def prune_once(source: InMemoryBlocks, tokens_BL: Tensor, propagation: str) -> None:
    recipe = Recipe(method=Method.of(load("wanda")), target=Target.of(SPARSITY), propagation=propagation)
    prune_blocks(source, recipe, tokens_BL, lambda layer: None)


def seconds(function: Callable[..., None], *arguments: Any) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
