"""autoprune eval."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from autoprune.cli.shared import MODEL_HELP, TEXT_HELP, print_json, quiet, shared_options

if TYPE_CHECKING:
    from autoprune.evaluation import Evaluation
    from autoprune.tasks import TaskComparison


@click.command("eval", short_help="Perplexity, divergence and accuracy of one or more models.", epilog=MODEL_HELP)
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@click.option("--data", help=f"Measure the perplexity of a text: {TEXT_HELP}.")
@click.option("--length", type=int, help="Tokens per sequence.  [default: 2048, or the model's context if shorter]")
@click.option("--sequences", type=int, help="Take the first N sequences.  [default: all]")
@click.option(
    "--tasks",
    help="Measure the accuracy at tasks of multiple choice, with commas between them: names that lm-eval knows (their "
    "questions come from the hub), seven (boolq, rte, hellaswag, winogrande, arc_easy, arc_challenge, openbookqa), or "
    'file:PATH, one JSON object a line: {"question": "...", "choices": ["...", "..."], "answer": 0}, with a lone _ for '
    "a blank.",
)
@click.option("--shots", type=int, default=0, show_default=True, help="Solved questions before each question.")
@click.option("--limit", type=int, help="Ask the first N questions of each task.  [default: all]")
@click.option("--batch", help="Prompts at a time, or auto, what fits.  [default: auto; on a CPU 8]")
@click.option("--against", help="Reference model: print how each MODEL differs from it.  [default: the first MODEL]")
@click.option(
    "--bos",
    default="auto",
    show_default=True,
    help="Start token of the text: none, start (once before the text), every (sequence); auto does as the field does: "
    "every for Gemma, start where the tokenizer adds one itself, else none.",
)
@shared_options
def evaluate(models: tuple[str, ...], as_json: bool, **settings: Any) -> None:
    """Perplexity of MODEL on a text, as the pruning literature measures it, and accuracy at tasks.

    Give --data, --tasks or both. Several MODELs make a table; each is compared with the first one, on the same tokens
    and questions: KL divergence, agreement of the likeliest token, difference of accuracy with a 95 % interval.
    """
    quiet()
    from autoprune.api import evaluate_each
    from autoprune.terminal import TerminalProgress

    measured: list[tuple[str, Evaluation]] = []
    try:
        with TerminalProgress() as progress:
            for evaluation in evaluate_each(models, progress=progress, **settings):
                measured.append((models[len(measured)], evaluation))
    finally:  # also what was measured before an error, or Ctrl-C
        if as_json and measured:
            results = [{"model": model, **asdict(evaluation)} for model, evaluation in measured]
            print_json({"data": settings["data"], "against": settings["against"], "results": results})
        elif len(models) == 1 and measured:
            _print_evaluation(measured[0][1])
        elif measured:
            _print_table(measured, settings["against"] or models[0])


def _print_evaluation(evaluation: Evaluation) -> None:
    if evaluation.tokens:
        print(f"perplexity       {evaluation.perplexity:.4f} ({evaluation.nats_per_token:.5f} nats/token)")
        print(f"tokens           {evaluation.tokens:,} scored, {evaluation.sequences} sequences of {evaluation.length}")
    if (other := evaluation.against) is not None:
        print(f"reference        perplexity {other.reference_perplexity:.4f}")
        print(f"KL(ref || model) {other.kl_nats_per_token:.5f} nats/token")
        print(f"top-1 agreement  {other.top1_agreement:.2%}")
        low, high = other.difference_low, other.difference_high
        interval = f", 95 % interval {low:+.5f} to {high:+.5f} (paired bootstrap)" if low is not None else ""
        print(f"difference       {other.difference_nats_per_token:+.5f} nats/token{interval}")
    for task in evaluation.tasks:
        normed = "" if task.acc_norm is None else f", acc_norm {_share(task.acc_norm, task.acc_norm_stderr)}"
        print(f"task             {task.task}: acc {_share(task.acc, task.acc_stderr)}{normed}")
        print(f"  asked          {task.questions:,} questions, {task.shots} shots, version {task.version}")
        if (compared := task.against) is not None:
            print(f"  reference      acc {compared.reference:.2%}")
            print(f"  difference     {_difference(compared)} points (95 % interval by paired bootstrap)")
    if len(evaluation.tasks) > 1:
        print(f"mean accuracy    {_mean(evaluation)}")


def _print_table(measured: list[tuple[str, Evaluation]], reference: str) -> None:
    from rich.console import Console
    from rich.table import Table

    first = measured[0][1]
    same = " and ".join(["tokens"] * bool(first.tokens) + ["questions"] * bool(first.tasks))
    intervals = "; 95 % intervals by paired bootstrap" * bool(first.tasks)
    caption = f"compared with {reference} on the same {same}{intervals}" if len(measured) > 1 else None
    table = Table(caption=caption, show_lines=bool(first.tasks))
    table.add_column("model", overflow="fold")
    if first.tokens:
        for heading in ("perplexity", "KL (nats/token)", "same top token"):
            table.add_column(heading, justify="right")
    for task in first.tasks:
        asked = f"acc of {task.questions:,}\n{task.shots} shots\n{task.version}"
        table.add_column(f"{task.task.rsplit('/', 1)[-1]}\n{asked}", justify="right")
    if len(first.tasks) > 1:
        table.add_column("mean", justify="right")
    for model, evaluation in measured:
        cells = []
        if evaluation.tokens:
            other = evaluation.against
            cells.append(f"{evaluation.perplexity:.2f}")
            cells += [f"{other.kl_nats_per_token:.4f}", f"{other.top1_agreement:.1%}"] if other else ["", ""]
        for task in evaluation.tasks:
            own = _share(task.acc, task.acc_stderr)
            cells.append(own if task.against is None else f"{own}\n{_difference(task.against)}")
        if len(evaluation.tasks) > 1:
            cells.append(_mean(evaluation))
        table.add_row(model, *cells)
    Console(width=None if sys.stdout.isatty() else 200, markup=False, emoji=False).print(table)


def _share(value: float, stderr: float | None) -> str:
    return f"{value:.2%}" if stderr is None else f"{value:.2%} ± {100 * stderr:.2f}"


def _difference(compared: TaskComparison) -> str:
    """In points of a hundred, with its interval."""
    low, high = compared.difference_low, compared.difference_high
    interval = f" ({100 * low:+.2f} to {100 * high:+.2f})" if low is not None and high is not None else ""
    return f"{100 * compared.difference:+.2f}{interval}"


def _mean(evaluation: Evaluation) -> str:
    return f"{sum(task.acc for task in evaluation.tasks) / len(evaluation.tasks):.2%}"
