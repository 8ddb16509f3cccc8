"""The command line: parse flags, call the public functions, print. Results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import click
import typer
from rich.console import Console
from rich.table import Table

from autoprune.errors import AutopruneError

if TYPE_CHECKING:
    from autoprune.api import PruneReport
    from autoprune.evaluate import Evaluation

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Remove weights from a causal language model, without retraining.\n\n"
    "Start with [bold]autoprune demo[/bold], or prune your own model:\n\n"
    "[dim]autoprune prune ./my-model --out ./pruned --algorithm wanda --sparsity 0.5[/dim]",
)

_MODEL = "Hub id, local folder, .gguf file, or 'demo' (SmolLM2-135M, needs no network)."
_DTYPE = "Compute in: auto (the checkpoint's own), float32, bfloat16, float16."
_DEVICE = "auto, cpu, cuda, cuda:1, mps."
_JSON = "Print one JSON object on stdout and nothing else there."


def main() -> NoReturn:
    """Run the command line; exit code 0, 2 for what the user can mend, 130 when interrupted."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = app(standalone_mode=False)
    except AutopruneError as error:
        code = _fail(str(error), 2)
    except click.ClickException as error:
        code = _fail(" ".join(error.format_message().split()), 2)
    except (KeyboardInterrupt, click.Abort):
        code = _fail("interrupted; no output was written", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader of stdout has left
        code = 0
    sys.exit(code or 0)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _fail(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


def _quiet() -> None:
    """Libraries speak through our own messages only; a user who wants them sets TRANSFORMERS_VERBOSITY."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    if "TRANSFORMERS_VERBOSITY" not in os.environ:
        transformers_logging.set_verbosity_error()
        logging.getLogger("datasets").setLevel(logging.ERROR)
        warnings.simplefilter("ignore")


def _print_json(record: dict[str, Any]) -> None:
    print(json.dumps(record, allow_nan=False, default=str))


@app.command("prune")
def _prune(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=_MODEL)],
    out: Annotated[Path, typer.Option(help="Folder for the pruned checkpoint; must be new or empty.")],
    algorithm: Annotated[
        str, typer.Option(help="Library name (see `autoprune algorithms`) or a program file.")
    ] = "wanda",
    sparsity: Annotated[float | None, typer.Option(help="Share of weights to remove, in [0, 1).")] = None,
    pattern: Annotated[str | None, typer.Option(help="n:m, n kept of m consecutive inputs, as 2:4.")] = None,
    compare: Annotated[str | None, typer.Option(help="row or layer, instead of the algorithm's own.")] = None,
    calibration: Annotated[
        str, typer.Option(help="self (the model writes its own), file:PATH (.txt, .jsonl), hub:NAME[:CONFIG][:SPLIT].")
    ] = "self",
    sequences: Annotated[
        int | None, typer.Option(help="Calibration sequences (default: 128, on a CPU 32).", show_default=False)
    ] = None,
    length: Annotated[
        int | None, typer.Option(help="Tokens per sequence (default: 2048, on a CPU 512).", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of self-written calibration text.")] = 0,
    propagation: Annotated[
        str, typer.Option(help="Inputs a layer is judged by: one_pass (pruned so far), block (Wanda's), dense.")
    ] = "one_pass",
    dtype: Annotated[str, typer.Option(help=_DTYPE)] = "auto",
    device: Annotated[str, typer.Option(help=_DEVICE)] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace a non-empty --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help=_JSON)] = False,
) -> None:
    """Prune MODEL and write a checkpoint that from_pretrained loads as it is."""
    from autoprune.algorithms import load
    from autoprune.sparsity import Target

    Target.of(sparsity, pattern)  # what is cheap to refuse is refused before torch models are touched
    program = load(algorithm)
    _quiet()
    from autoprune.api import prune
    from autoprune.terminal import TerminalProgress

    with TerminalProgress() as progress:
        report = prune(
            model,
            algorithm=program,
            sparsity=sparsity,
            pattern=pattern,
            compare=compare,
            calibration=calibration,
            sequences=sequences,
            length=length,
            seed=seed,
            propagation=propagation,
            dtype=dtype,
            device=device,
            out=out,
            force=force,
            progress=progress,
        )
    if as_json:
        _print_json(report.to_dict())
    else:
        _print_prune(report)


def _print_prune(report: PruneReport) -> None:
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in report.durations_s.items())
    print(f"{report.zeros:,} of {report.weights:,} weights in {len(report.layers)} layers are zero")
    print(f"sparsity   {report.sparsity:.4%} (requested {report.requested / report.weights:.4%}, {report.target})")
    print(f"algorithm  {report.algorithm} ({report.digest}), compared by {report.compare}")
    if report.skipped:
        print(f"not pruned {len(report.skipped)} matrices that are not linear layers; see autoprune.json")
    print(f"time       {seconds}")
    print(f"load it    AutoModelForCausalLM.from_pretrained({report.out!r})")


@app.command("eval")
def _eval(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=_MODEL)],
    data: Annotated[str, typer.Option(help="file:PATH (.txt, .jsonl) or hub:NAME[:CONFIG][:SPLIT].")],
    length: Annotated[int, typer.Option(help="Tokens per sequence.")] = 2048,
    sequences: Annotated[
        int | None, typer.Option(help="Take the first N sequences (default: all).", show_default=False)
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="Reference model: KL divergence, agreement and paired difference to it.")
    ] = None,
    bos: Annotated[
        str, typer.Option(help="auto, none, start (once, before the text), every (sequence). auto: as the field does.")
    ] = "auto",
    dtype: Annotated[str, typer.Option(help=_DTYPE)] = "auto",
    device: Annotated[str, typer.Option(help=_DEVICE)] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help=_JSON)] = False,
) -> None:
    """Perplexity of MODEL on a text, as the pruning literature measures it."""
    _quiet()
    from autoprune.api import evaluate
    from autoprune.terminal import TerminalProgress

    with TerminalProgress() as progress:
        evaluation = evaluate(
            model,
            data=data,
            length=length,
            sequences=sequences,
            against=against,
            bos=bos,
            dtype=dtype,
            device=device,
            progress=progress,
        )
    if as_json:
        _print_json({"model": model, "data": data, **asdict(evaluation)})
    else:
        _print_evaluation(evaluation)


def _print_evaluation(evaluation: Evaluation) -> None:
    print(f"perplexity      {evaluation.perplexity:.4f} ({evaluation.nats_per_token:.5f} nats/token)")
    print(f"tokens          {evaluation.tokens:,} scored, {evaluation.sequences} sequences of {evaluation.length}")
    if (other := evaluation.against) is not None:
        print(f"reference       perplexity {other.reference_perplexity:.4f}")
        print(f"KL(ref || this) {other.kl_nats_per_token:.5f} nats/token")
        print(f"top-1 agreement {other.top1_agreement:.2%}")
        print(
            f"difference      {other.difference_nats_per_token:+.5f} nats/token, "
            f"95 % interval {other.difference_low:+.5f} to {other.difference_high:+.5f} (paired bootstrap)"
        )


@app.command("algorithms")
def _algorithms(name: Annotated[str | None, typer.Argument(help="Show the program text of one.")] = None) -> None:
    """List the library of pruning algorithms, or show one."""
    from autoprune import algorithms

    if name is not None:
        print(algorithms.load(name).text, end="")
        return
    for known in algorithms.names():
        print(f"{known:<12} {algorithms.load(known).doc}")


@app.command("check")
def _check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A program file, or the name of a library program.")],
    operators: Annotated[bool, typer.Option("--language", help="Also print the tables of the language.")] = False,
) -> None:
    """Explain a pruning program, or say what is wrong with it and where."""
    from autoprune import algorithms
    from autoprune.language import explain, reference

    print(explain(algorithms.load(file)))
    if operators:
        print(f"\n{reference()}")


@app.command("demo")
def _demo(
    out: Annotated[Path, typer.Option(help="Folder for the pruned models.")] = Path("demo-out"),
    force: Annotated[bool, typer.Option("--force", help="Replace results of an earlier demo.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help=_JSON)] = False,
) -> None:
    """Prune SmolLM2-135M at 60 % with magnitude and Wanda, and compare. A few minutes, no network."""
    _quiet()
    from autoprune.demo import run_demo
    from autoprune.terminal import TerminalProgress

    with TerminalProgress() as progress:
        rows = run_demo(out, force=force, progress=progress)
    if as_json:
        _print_json({"rows": [asdict(row) for row in rows]})
        return
    table = Table(title="SmolLM2-135M on text the dense model wrote (held out)")
    for heading in ("model", "zeros", "perplexity", "KL to dense, nats/token", "same top token", "folder to load"):
        table.add_column(heading, justify="left" if heading in ("model", "folder to load") else "right")
    for row in rows:
        other = row.evaluation.against
        assert other is not None
        cells = [f"{row.sparsity:.2%}", f"{row.evaluation.perplexity:.2f}", f"{other.kl_nats_per_token:.3f}"]
        table.add_row(row.name, *cells, f"{other.top1_agreement:.1%}", row.folder)
    Console(width=None if sys.stdout.isatty() else 120).print(table)
