"""autoprune speed."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import click

from autoprune.cli.shared import MODEL_HELP, print_json, quiet, shared_options

if TYPE_CHECKING:
    from autoprune.speed import Measured, Pair, Payoff


@click.command(
    "speed",
    short_help="What pruning buys: bytes, memory, tokens a second.",
    epilog=MODEL_HELP.replace("MODEL is", "DENSE and PRUNED are each"),
)
@click.argument("dense", metavar="DENSE")
@click.argument("pruned", metavar="PRUNED")
@click.option(
    "--prompt", type=int, help="Tokens of the prompt, for prefill.  [default: 512, fewer where the context is short]"
)
@click.option("--new", type=int, help="Tokens written after it, for decode.  [default: 64, fewer as above]")
@click.option("--batch", type=int, default=1, show_default=True, help="Prompts side by side.")
@click.option(
    "--rounds",
    type=int,
    default=7,
    show_default=True,
    help="How often both models are measured. From 6 on a difference can be told from noise; more rounds tell smaller "
    "ones. A round opens each model once.",
)
@click.option("--level", type=int, default=3, show_default=True, help="Of zstd, 1 to 22.")
@shared_options
def speed(dense: str, pruned: str, as_json: bool, **settings: Any) -> None:
    """What PRUNED saves and gains against DENSE, the model it was made from, on this machine.

    Bytes of the files, plain and compressed; memory; tokens/s of prefill and decode, with the runtimes that are
    installed. Models take turns, each in a process of its own; a ratio comes with its 95 % interval, and one that the
    noise of the machine could have made is called so. What follows from the figures, and what would give a gain where
    there is none, is said in words.
    """
    quiet()
    from autoprune.speed import compare
    from autoprune.terminal import TerminalProgress

    with TerminalProgress() as progress:
        payoff = compare(dense, pruned, progress=progress, **settings)
    if as_json:
        print_json(payoff.to_dict())
    else:
        _print_payoff(payoff)


def _print_payoff(payoff: Payoff) -> None:
    dense, pruned = payoff.dense, payoff.pruned
    facts, settings = pruned.facts, payoff.settings
    print(f"dense    {dense.name}")
    print(f"pruned   {pruned.name}")
    print(
        f"here     {facts.device_name or facts.device}, {facts.threads} threads; {settings['rounds']} rounds of "
        f"{settings['batch']} × {settings['prompt']} tokens read and {settings['new']} written"
    )
    print()
    print(f"{'':<32}{'dense':>12}{'pruned':>12}  ratio")
    _print_sizes("files, MB", dense.files.bytes, pruned.files.bytes)
    _print_sizes(f"files after zstd -{settings['level']}, MB", dense.files.compressed, pruned.files.compressed)
    shares = f"{dense.facts.zeros.share:>12.1%}{pruned.facts.zeros.share:>12.1%}"
    print(f"{'zeros of the prunable weights':<32}{shares}")
    _print_sizes("parameters in memory, MB", dense.facts.parameter_bytes, pruned.facts.parameter_bytes)
    for measured in payoff.measured:
        _print_measured(measured)
    for runtime, reason in payoff.not_measured.items():
        print(f"{runtime:<32}not measured: {reason}")
    print()
    for sentence in payoff.words:
        print(textwrap.fill(f"- {sentence}", 110, subsequent_indent="  ", break_on_hyphens=False))


def _print_measured(measured: Measured) -> None:
    print(f"{measured.runtime}:")
    for label, pair in (
        ("  held after a first prompt, MB", measured.resident),
        ("  peak of the process, MB", measured.peak),
        ("  peak on the device, MB", measured.device),
    ):
        if pair is not None:
            _print_pair(label, pair, 1e6)
    _print_pair("  prefill, tokens/s", measured.prefill, 1)
    _print_pair("  decode, tokens/s", measured.decode, 1)


def _print_pair(label: str, pair: Pair, unit: float) -> None:
    figures = f"{pair.dense / unit:>12,.1f}{pair.pruned / unit:>12,.1f}"
    interval = "" if pair.verdict == "unknown" else f" ({pair.low:.2f} to {pair.high:.2f})"
    print(f"{label:<32}{figures}  {pair.ratio:.2f}{interval}")


def _print_sizes(label: str, dense: int, pruned: int) -> None:
    print(f"{label:<32}{dense / 1e6:>12,.1f}{pruned / 1e6:>12,.1f}  {pruned / dense:.2f}")
