"""autoprune diagnose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from autoprune.cli.shared import MODEL_HELP, calibration_options, print_json, quiet, shared_options


@click.command("diagnose", short_help="Draw how the layers of a model differ.", epilog=MODEL_HELP)
@click.argument("model")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Folder for pictures and figures; new or empty."
)
@click.option("--sparsity", type=float, default=0.7, show_default=True, help="Of the allocation that is drawn.")
@click.option("--allocation", default="sdsa", show_default=True, help="The allocation that is drawn beside uniform.")
@click.option("--algorithm", default="wanda", show_default=True, help="How weights are scored for the sensitivity.")
@calibration_options()
@click.option("--force", is_flag=True, help="Replace what is in --out.")
@shared_options
def diagnose(model: str, out: Path, as_json: bool, **settings: Any) -> None:
    """Draw how MODEL's layers differ: skewness, sensitivity to the pruning ratio, an allocation. Nothing is pruned."""
    from autoprune.figures.picture import check_matplotlib

    check_matplotlib()
    quiet()
    from autoprune.api import diagnose
    from autoprune.terminal import TerminalProgress

    with TerminalProgress() as progress:
        diagnosis = diagnose(model, out=out, progress=progress, **settings)
    if as_json:
        print_json(diagnosis.to_dict())
        return
    alone = f"KL alone at {diagnosis.levels[-1]:.0%}"
    print(f"{'block':<28} {'skewness':>9} {'L-skew':>7} {alone:>16} sparsity")
    rows = zip(
        diagnosis.blocks, diagnosis.skewness, diagnosis.l_skewness, diagnosis.damage, diagnosis.sparsity, strict=True
    )
    for name, skewness, l_skewness, damage, sparsity in rows:
        print(f"{name:<28} {skewness:9.3f} {l_skewness:7.3f} {damage[-1]:16.4f} {sparsity:8.1%}")
    print(f"figures    {out}/*.png and *.svg; a page: autoprune report {out}")
