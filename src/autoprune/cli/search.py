"""autoprune search and explain, and the leaderboard."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autoprune.cli.shared import MODEL_HELP, calibration_options, print_json, quiet, shared_options
from autoprune.errors import printable

if TYPE_CHECKING:
    from autoprune.search.account import Account


@click.command("search", short_help="Let a language model design the algorithm.", epilog=MODEL_HELP)
@click.argument("model")
@click.option(
    "--run",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of the search. The same command again goes on where it stopped, after any crash.",
)
@click.option(
    "--also",
    multiple=True,
    metavar="MODEL",
    help="Measure every program on this model too, and judge it by the mean; may be repeated. The same model again is "
    "another draw of the text. A worker holds all of them.",
)
@click.option(
    "--proposer",
    default="self",
    show_default=True,
    help="Who designs: self (the model itself), local:MODEL (another model on this machine), openai:MODEL (any server "
    "that speaks OpenAI's API; key from OPENAI_API_KEY), exchange:FOLDER (prompts and replies as files, for people and "
    "batch services), genetic or random (no language model).",
)
@click.option("--evaluations", type=int, default=100, show_default=True, help="Proposals in all.")
@click.option(
    "--batch",
    type=int,
    default=4,
    show_default=True,
    help="Proposals made from the same knowledge: many keep many workers busy, few learn sooner.",
)
@click.option("--sparsity", type=float, help="Share of weights to remove, in [0, 1). Give this or --pattern.")
@click.option("--pattern", help="n:m, n weights kept of m consecutive inputs, as 2:4.")
@click.option(
    "--freeze",
    default="",
    help="Options that programs may not change, as update=none,refine=none,allocate=uniform.  [default: nothing]",
)
@click.option(
    "--roots",
    help="Programs to start from: names of the library or files, as wanda,ria,mine.prune.  [default: all of the "
    "library that fit]",
)
@click.option(
    "--prompt",
    default="graph",
    show_default=True,
    help="graph (a walk in what was tried and measured) or plain (the task and the best program, to compare).",
)
@click.option("--prompt-tokens", type=int, help="Budget of a prompt.  [default: self 1500, local 2500, others 6000]")
@calibration_options(
    "Sequences in a draw of calibration text; a search draws five.  [default: 32; on a CPU 16]",
    "Tokens per sequence.  [default: 1024; on a CPU 512]",
)
@click.option("--propagation", default="one_pass", show_default=True, help="Of the full prunes; as in prune.")
@click.option("--workers", type=int, default=1, show_default=True, help="Processes that measure; 0: in this one.")
@click.option("--ray", help="Measure on a Ray cluster at this address instead ('auto': this machine's).")
@click.option("--base-url", help="With openai: the server, as http://localhost:8000/v1.")
@click.option(
    "--timeout-s", type=float, default=300.0, show_default=True, help="With openai: longest wait for a reply."
)
@click.option("--concurrency", type=int, default=4, show_default=True, help="With openai: requests at a time.")
@click.option("--usd-in", type=float, help="With openai: price of a million prompt tokens, for --budget-usd.")
@click.option("--usd-out", type=float, help="With openai: price of a million reply tokens.")
@click.option("--budget-usd", type=float, help="Stop when replies have cost so much.")
@click.option("--budget-s", type=float, help="Stop after so many seconds, all sessions together.")
@click.option("--budget-tokens", type=int, help="Stop after so many tokens of prompts and replies.")
@shared_options
def search(
    model: str,
    run: Path,
    roots: str | None,
    as_json: bool,
    base_url: str | None,
    timeout_s: float,
    concurrency: int,
    usd_in: float | None,
    usd_out: float | None,
    **settings: Any,
) -> None:
    """Let a language model design pruning algorithms for MODEL, measure them, and keep the best.

    What wins on one model and one draw of text may lose on others: with --also a program's damage is the mean over
    several.

    Every proposal is checked, run apart from this process with limits on time and memory, and measured. The best is
    written to RUN/winner.prune, for `autoprune prune --algorithm`. See also `autoprune algorithms --run RUN` and
    `autoprune explain RUN HASH`.
    """
    from autoprune.sparsity import Target

    Target.of(settings["sparsity"], settings["pattern"])
    quiet()
    from autoprune.discover import Service, discover
    from autoprune.live import LiveWatch
    from autoprune.terminal import TerminalProgress

    service = Service(
        base_url=base_url,
        timeout_s=timeout_s,
        concurrency=concurrency,
        usd_per_million_in=usd_in,
        usd_per_million_out=usd_out,
    )
    with LiveWatch() as watch:
        try:
            found = discover(
                model,
                run=run,
                roots=None if roots is None else [name.strip() for name in roots.split(",")],
                service=service,
                progress=TerminalProgress(),
                watch=watch,
                **settings,
            )
        except KeyboardInterrupt:
            watch.note("stopped; the same command goes on from here")
            raise
    if as_json:
        print_json(asdict(found))
        return
    _print_account(found.account)
    if found.winner:
        known = f" ({found.was_known}, where it started: nothing better was found)" if found.was_known else ""
        print(f"winner     {found.winner}{known}")
        target = f"--pattern {settings['pattern']}" if settings["pattern"] else f"--sparsity {settings['sparsity']}"
        print(f"a page     autoprune report {run}")
        print(f"prune it   autoprune prune {model} --out pruned --algorithm {found.winner} {target}")


def _print_account(told: Account) -> None:
    rungs = list(told.seconds_by_rung)
    heading = "".join(f"{rung:>9}" for rung in rungs)
    print(f"{'hash':<17}{'from':<20}{heading}  against the baselines on fresh tokens (95 % interval)")
    names = {row.digest for row in told.rows}
    for row in [*told.rows, *(row for row in told.baselines if row.digest not in names)]:
        damage = "".join(f"{row.damage[rung]:9.4f}" if rung in row.damage else f"{'-':>9}" for rung in rungs)
        compared = "; ".join(f"{d.against} {d.mean:+.3f} ({d.low:+.3f} to {d.high:+.3f})" for d in row.differences)
        print(printable(f"{row.digest:<17}{row.origin:<20}{damage}  {compared}"))
    print(printable("proposals  " + ", ".join(f"{count} {outcome}" for outcome, count in told.proposals.items())))
    shown = [
        f"{name} {value:.2f} (n={count})" for name, (value, count) in told.correlations.items() if value is not None
    ]
    print("rank correlation of rungs  " + (", ".join(shown) or "too few measured by both"))
    print("seconds a program  " + ", ".join(f"{rung} {value:.2f}" for rung, value in told.seconds_by_rung.items()))
    cost = f", {told.tokens:,} tokens" * bool(told.tokens) + f", {told.usd:.4f} US dollars" * bool(told.usd)
    print(f"time       {told.seconds:.0f} s{cost}")


@click.command("explain", short_help="How a program of a search came about, step by measured step.")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("digest", metavar="[HASH]", required=False)
def explain(run: Path, digest: str | None) -> None:
    """Print the measured chain of reasoning that led to the program HASH in the search RUN; without a hash, to the best
    one so far."""
    from autoprune.discover import open_run
    from autoprune.scoring.scorer import FRESH, RUNGS
    from autoprune.search.account import leader, reasoning

    with open_run(run) as archive:
        for line in reasoning(archive, RUNGS, digest or leader(archive, RUNGS, FRESH)):
            click.echo(printable(line))


def leaderboard(run: Path, name: str | None) -> None:
    """The best programs of a search, or the text of one."""
    from autoprune.discover import open_run
    from autoprune.scoring.scorer import FRESH, RUNGS
    from autoprune.search.account import account, stored

    with open_run(run) as archive:
        if name is not None:
            for line in stored(archive, name).canonical.splitlines():
                click.echo(printable(line))
            return
        _print_account(account(archive, RUNGS, FRESH, count=20))
