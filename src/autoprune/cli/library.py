"""autoprune algorithms and check."""

from __future__ import annotations

from pathlib import Path

import click

from autoprune.cli.search import leaderboard


@click.command("algorithms", short_help="The library, one of its texts, or the leaderboard of a search.")
@click.argument("name", required=False)
@click.option("--run", type=click.Path(path_type=Path), help="The leaderboard of this search instead of the library.")
def algorithms(name: str | None, run: Path | None) -> None:
    """List the library of algorithms and allocations, or print the text of the one called NAME."""
    from autoprune import algorithms

    if run is not None:
        leaderboard(run, name)
        return
    if name is not None:
        click.echo(algorithms.load(name).text, nl=False)
        return
    programs = [algorithms.load(known) for known in algorithms.names()]
    for heading, listed in (
        ("algorithms, for --algorithm", [program for program in programs if program.score]),
        ("allocations, for --allocation", [program for program in programs if program.allocate]),
    ):
        click.echo(heading)
        for program in listed:
            click.echo(f"  {program.name:<14} {program.doc}")


@click.command("check", short_help="Explain a program, or what is wrong with it and where.")
@click.argument("file")
@click.option("--language", is_flag=True, help="Also print the tables of the language.")
def check(file: str, language: bool) -> None:
    """Explain the pruning program in FILE (or of that library name), or say what is wrong with it and where."""
    from autoprune import algorithms
    from autoprune.language import explain, reference

    click.echo(explain(algorithms.load(file)))
    if language:
        click.echo(f"\n{reference()}")
