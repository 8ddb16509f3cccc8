"""autoprune demo."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from autoprune.cli.shared import print_json, quiet

if TYPE_CHECKING:
    from autoprune.demo import DemoRow


@click.command("demo", short_help="Prune a small model three ways and compare.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("demo-out"),
    show_default=True,
    help="Folder for the pruned models.",
)
@click.option("--force", is_flag=True, help="Replace the results of an earlier demo.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout, and nothing else there.")
def demo(out: Path, force: bool, as_json: bool) -> None:
    """Prune SmolLM2-135M at 60 % with magnitude, with Wanda, and with an algorithm that it designs itself in a short
    search, and compare. A few minutes, no network."""
    quiet()
    from autoprune.demo import run_demo
    from autoprune.live import LiveWatch
    from autoprune.terminal import TerminalProgress

    with TerminalProgress() as progress:
        rows = run_demo(out, force=force, progress=progress, watch=LiveWatch())
    if as_json:
        print_json({"rows": [asdict(row) for row in rows]})
    else:
        _print_demo(rows)


def _print_demo(rows: list[DemoRow]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="SmolLM2-135M, measured on held-out text that the dense model wrote")
    for heading in ("model", "zeros", "perplexity", "KL to dense (nats/token)", "same top token", "folder to load"):
        table.add_column(heading, justify="left" if heading in ("model", "folder to load") else "right")
    for row in rows:
        other = row.evaluation.against
        assert other is not None
        cells = [f"{row.sparsity:.2%}", f"{row.evaluation.perplexity:.2f}", f"{other.kl_nats_per_token:.3f}"]
        table.add_row(row.name, *cells, f"{other.top1_agreement:.1%}", row.folder)
    Console(width=None if sys.stdout.isatty() else 120).print(table)
