"""autoprune eval."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from autoprune.cli.shared import MODEL_HELP, TEXT_HELP, print_json, quiet, shared_options

if TYPE_CHECKING:
    from autoprune.evaluate import Evaluation


@click.command("eval", epilog=MODEL_HELP)
@click.argument("model")
@click.option("--data", required=True, help=f"{TEXT_HELP}.")
@click.option("--length", type=int, help="Tokens per sequence.  [default: 2048, or the model's context if shorter]")
@click.option("--sequences", type=int, help="Take the first N sequences.  [default: all]")
@click.option("--against", help="Reference model: also print the KL divergence, agreement and difference to it.")
@click.option(
    "--bos",
    default="auto",
    show_default=True,
    help="Start token: none, start (once before the text), every (sequence); auto does as the field does: every for "
    "Gemma, start where the tokenizer adds one itself, else none.",
)
@shared_options
def evaluate(model: str, as_json: bool, **settings: Any) -> None:
    """Perplexity of MODEL on a text, as the pruning literature measures it."""
    quiet()
    from autoprune.api import evaluate
    from autoprune.terminal import TerminalProgress

    with TerminalProgress() as progress:
        evaluation = evaluate(model, progress=progress, **settings)
    if as_json:
        print_json({"model": model, "data": settings["data"], **asdict(evaluation)})
    else:
        _print_evaluation(evaluation)


def _print_evaluation(evaluation: Evaluation) -> None:
    print(f"perplexity       {evaluation.perplexity:.4f} ({evaluation.nats_per_token:.5f} nats/token)")
    print(f"tokens           {evaluation.tokens:,} scored, {evaluation.sequences} sequences of {evaluation.length}")
    if (other := evaluation.against) is not None:
        print(f"reference        perplexity {other.reference_perplexity:.4f}")
        print(f"KL(ref || model) {other.kl_nats_per_token:.5f} nats/token")
        print(f"top-1 agreement  {other.top1_agreement:.2%}")
        print(
            f"difference       {other.difference_nats_per_token:+.5f} nats/token, "
            f"95 % interval {other.difference_low:+.5f} to {other.difference_high:+.5f} (paired bootstrap)"
        )
