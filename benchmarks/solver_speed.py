"""How long each refinement and update takes next to a plain Wanda prune of the same tokens.

    python benchmarks/solver_speed.py MODEL --text FILE [--sequences 64] [--length 512] [--rounds 3] [--threads 2]

One process; each round prunes the unpruned weights with every method in turn, so that noise of the machine meets all
alike. Prints medians, and the ratio to the Wanda prune of the same round.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

import torch

import timing
from autoprune.algorithms import load
from autoprune.gradients import loss_gradients
from autoprune.layer import Method
from autoprune.models import InMemoryBlocks
from autoprune.progress import Silent
from autoprune.prune_blocks import Recipe, all_linears, prune_blocks
from autoprune.sparsity import Target

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "wanda": ("wanda", {}),
    "least_squares": ("wanda", {"update": "least_squares"}),
    "swaps": ("wanda", {"refine": "swaps"}),
    "sparsegpt": ("sparsegpt", {}),
    "alps": ("alps", {}),
    "best": ("best", {}),
}


def main() -> None:
    parser = timing.parser(__doc__, rounds=3)
    parser.add_argument("--sparsity", type=float, default=0.7)
    parser.add_argument("--propagation", default="block")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    opened, tokens_BL = timing.opened_with_tokens(options)
    source = InMemoryBlocks(opened.model)
    unpruned = {linear.name: linear.weight_RC.clone() for linear in all_linears(source)}
    names = ["wanda", *(name for name in options.methods if name != "wanda")]
    taken: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(options.rounds):
        for name in names:
            algorithm, settings = METHODS[name]
            method = Method.of(load(algorithm), **settings)
            recipe = Recipe(method=method, target=Target.of(options.sparsity), propagation=options.propagation)
            start = time.perf_counter()
            gradients = loss_gradients(source, method.score.collects, tokens_BL, Silent())
            prune_blocks(source, recipe, tokens_BL, lambda layer: None, gradients)
            taken[name].append(time.perf_counter() - start)
            print(f"{name}: {taken[name][-1]:.1f} s", file=sys.stderr)
            for linear in all_linears(source):
                linear.weight_RC.copy_(unpruned[linear.name])
    for name, times in taken.items():
        print(
            f"{name:<14} median {statistics.median(times):6.1f} s, ratio to wanda in its round: "
            f"{timing.ratios(times, taken['wanda'])}"
        )


if __name__ == "__main__":
    main()
