"""autoprune report."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from autoprune.cli.shared import TEXT_HELP, print_json, quiet


@click.command("report", short_help="One page about prunes, diagnoses, sweeps and searches.")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("report.html"), show_default=True, help="The page; a file."
)
@click.option("--title", default="", help="Of the page.  [default: what it is about]")
@click.option(
    "--samples",
    "count",
    type=click.IntRange(0),
    default=2,
    show_default=True,
    help="Texts on which a pruned model is shown beside the unpruned one, token by token; both are opened. 0: none.",
)
@click.option("--data", help=f"Where those texts come from: {TEXT_HELP}.  [default: the unpruned model writes them]")
@click.option("--against", help="The unpruned model.  [default: the one that autoprune.json names]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 or mps.")
@click.option("--force", is_flag=True, help="Replace --out even if it is another kind of file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout, and nothing else there.")
def report(paths: tuple[str, ...], as_json: bool, **settings: Any) -> None:
    """Write one page about what is at each PATH: the --out of a prune or a diagnosis, the --run of a search or a sweep.

    Finished or not, damaged or not: what there is is shown, and what is missing is said. The page is one file that
    needs no network; each figure is also written as PNG and SVG, for papers, into a folder beside it.
    """
    from autoprune.report.page import check_libraries

    check_libraries()
    quiet()
    from autoprune.report import report
    from autoprune.terminal import TerminalProgress

    with TerminalProgress() as progress:
        made = report(paths, progress=progress, **settings)
    if as_json:
        print_json(asdict(made))
        return
    print(f"page       {made.page}: {'; '.join(made.sections)}")
    print(f"figures    {made.figures}")
    for problem in made.problems:
        print(f"not shown  {problem}")
