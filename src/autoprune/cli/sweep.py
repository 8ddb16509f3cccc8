"""autoprune sweep."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autoprune.cli.shared import MODEL_HELP, TEXT_HELP, calibration_options, print_json, quiet, shared_options

if TYPE_CHECKING:
    from autoprune.sweeps import Point, Sweep


@click.command(
    "sweep", short_help="Perplexity and divergence over sparsity, for several algorithms.", epilog=MODEL_HELP
)
@click.argument("model")
@click.option(
    "--algorithms",
    required=True,
    help="Library names (see `autoprune algorithms`) or program files, with commas between.",
)
@click.option(
    "--sparsities",
    required=True,
    help="Shares of weights to remove (0.5), ranges start:stop:step with both ends (0.3:0.8:0.1) and patterns n:m "
    "(2:4), with commas between.",
)
@click.option(
    "--run",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of the sweep. The same command again goes on where it stopped, after any crash; more algorithms or "
    "sparsities are added to what is there.",
)
@click.option("--data", required=True, help=f"The text that every point is measured on: {TEXT_HELP}.")
@click.option("--eval-sequences", type=int, help="Of that text, take the first N sequences.  [default: all]")
@click.option(
    "--eval-length",
    type=int,
    help="Of that text, tokens per sequence.  [default: 2048, or the model's context if shorter]",
)
@click.option(
    "--allocation",
    help="How layers share out the sparsity, for all algorithms; as in prune.  [default: each algorithm's own]",
)
@calibration_options()
@click.option(
    "--propagation",
    default="one_pass",
    show_default=True,
    help="What a layer is judged by, as in prune. With dense, all points share one walk over the unpruned model, and "
    "their weights wait in RUN to be measured (a bit each, or whole where an algorithm changes them); with one_pass "
    "and block what a layer receives depends on what was pruned before it, so each point has a walk of its own.",
)
@shared_options
def sweep(model: str, algorithms: str, sparsities: str, as_json: bool, **settings: Any) -> None:
    """Perplexity and KL divergence of MODEL by sparsity, for several algorithms: the curves of every pruning paper.

    Each point is MODEL pruned as `autoprune prune` does it with the same options, and measured on --data against the
    unpruned one. A point that cannot be pruned is reported and the others go on. RUN/sweep.jsonl has all figures, one
    line for each point. In memory are the unpruned model and one pruned copy; for a model that does not fit twice,
    `autoprune prune` and `autoprune eval` make single points.
    """
    quiet()
    from autoprune.sweeps import sweep
    from autoprune.terminal import TerminalProgress

    with TerminalProgress() as progress:
        found = sweep(
            model,
            algorithms=[name.strip() for name in algorithms.split(",")],
            sparsities=sparsities.split(","),
            progress=progress,
            **settings,
        )
    if as_json:
        print_json(found.to_dict())
    else:
        _print_sweep(found)
        print(f"\nfigures    autoprune report {settings['run']}")


def _print_sweep(found: Sweep) -> None:
    if found.dense:
        print(f"unpruned   perplexity {found.dense.perplexity:.4f}, {found.dense.tokens:,} tokens scored")
    _print_table("perplexity", found, lambda point: point.perplexity)
    _print_table("KL, nats/token", found, lambda point: point.kl_nats_per_token)
    for point in found.points:
        if point.error:
            print(f"{point.algorithm} to {point.target}: {point.error}")


def _print_table(title: str, found: Sweep, figure: Callable[[Point], float | None]) -> None:
    """Algorithms by targets; "-" is what could not be pruned, a gap what was not asked for."""
    points, names = found.points, found.names
    columns = sorted({point.target for point in points}, key=_place)
    cells = {(point.algorithm, point.hash, point.target): _short(figure(point)) for point in points}
    width = max(len(title), *map(len, names.values())) + 2
    print(f"\n{title:<{width}}" + "".join(f"{target:>9}" for target in columns))
    for key, name in names.items():
        print(f"{name:<{width}}" + "".join(f"{cells.get((*key, target), ''):>9}" for target in columns))


def _place(target: str) -> tuple[bool, float, str]:
    """Shares of weights first, by size; then patterns."""
    return (True, 0.0, target) if ":" in target else (False, float(target), target)


def _short(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if value < 1e4 else f"{value:.2e}"
