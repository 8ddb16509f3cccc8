"""The command line: parse flags, call the public functions, print. Results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from functools import partialmethod
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from autoprune.errors import AutopruneError

if TYPE_CHECKING:
    from autoprune.api import PruneReport
    from autoprune.demo import DemoRow
    from autoprune.evaluate import Evaluation
    from autoprune.search.account import Account

_MODEL_HELP = "MODEL is a hub id, a local folder, a .gguf file, or 'demo' (SmolLM2-135M, needs no network)."
_TEXT_HELP = "file:PATH (.txt, or .jsonl with `text`) or hub:NAME[:CONFIG][:SPLIT]"


def main() -> NoReturn:
    """Run the command line; exit code 0, 2 for what the user can mend, 130 when interrupted."""
    signal.signal(signal.SIGTERM, _interrupt)
    code: int = 0
    try:
        code = cli(standalone_mode=False) or 0
    except AutopruneError as error:
        code = _fail(str(error), 2, error)
    except click.ClickException as error:
        code = _fail(f"{' '.join(error.format_message().split())} See autoprune --help", 2)
    except (KeyboardInterrupt, click.Abort) as error:
        interrupt = error.__cause__ or error  # click makes one of the other
        kept = getattr(interrupt, "__notes__", None)
        code = _fail("interrupted" if kept else "interrupted; no unfinished output was left behind", 130, interrupt)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader of stdout has left
    except OSError as error:
        code = _fail(f"{error.filename or 'output'}: {error.strerror or error}; check the disk and permissions", 2)
    sys.exit(code)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _fail(message: str, code: int, error: BaseException | None = None) -> int:
    print("; ".join([f"error: {message}", *getattr(error, "__notes__", ())]), file=sys.stderr)
    return code


def _quiet() -> None:
    """Let libraries speak through our messages only, unless TRANSFORMERS_VERBOSITY asks for more."""
    from tqdm.std import tqdm
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    if "TRANSFORMERS_VERBOSITY" not in os.environ:
        transformers_logging.set_verbosity_error()
        for name in ("datasets", "huggingface_hub"):
            logging.getLogger(name).setLevel(logging.ERROR)
        warnings.simplefilter("ignore")
        # Bars that libraries draw by themselves. TQDM_DISABLE would come too late here.
        setattr(tqdm, "__init__", partialmethod(tqdm.__init__, disable=True))  # noqa: B010


def _print_json(record: dict[str, Any]) -> None:
    print(json.dumps(_finite(record), allow_nan=False))


def _finite(value: Any) -> Any:
    """JSON has no infinity: null instead."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _shared_options(command: Callable[..., None]) -> Callable[..., None]:
    """What every command that opens a model takes."""
    for option in (
        click.option(
            "--json", "as_json", is_flag=True, help="Print one JSON object on stdout, and nothing else there."
        ),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 or mps."),
        click.option(
            "--dtype",
            default="auto",
            show_default=True,
            help="Open in: auto (the checkpoint's own; bfloat16 for .gguf), float32, bfloat16 or float16. "
            "One narrower than the checkpoint's own rounds the weights that are kept.",
        ),
    ):
        command = option(command)
    return command


def _calibration_options(command: Callable[..., None]) -> Callable[..., None]:
    """What every command that runs a calibration text through the model takes."""
    for option in reversed(
        (
            click.option(
                "--calibration",
                default="self",
                show_default=True,
                help=f"self (the model writes its own text), {_TEXT_HELP}.",
            ),
            click.option("--sequences", type=int, help="Calibration sequences.  [default: 128; on a CPU 32]"),
            click.option("--length", type=int, help="Tokens per sequence.  [default: 2048; on a CPU 512]"),
            click.option(
                "--seed",
                type=click.IntRange(0, 2**63 - 1),
                default=0,
                show_default=True,
                help="Seed of the self-written text. Of another text, 0 takes the first sequences, others draw them.",
            ),
        )
    ):
        command = option(command)
    return command


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Start with `autoprune demo`, or prune your own model: "
    "`autoprune prune ./my-model --out ./pruned --sparsity 0.5`",
    invoke_without_command=True,
)
@click.version_option(metadata.version("autoprune"))
@click.pass_context
def cli(context: click.Context) -> None:
    """Remove weights from a causal language model, without retraining."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@cli.command("prune", epilog=_MODEL_HELP)
@click.argument("model")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the result; new or empty.")
@click.option(
    "--algorithm",
    default="wanda",
    show_default=True,
    help="Library name (see `autoprune algorithms`) or program file.",
)
@click.option("--sparsity", type=float, help="Share of weights to remove, in [0, 1). Give this or --pattern.")
@click.option("--pattern", help="n:m, n weights kept of m consecutive inputs, as 2:4.")
@click.option("--compare", help="row or layer: where weights compete, instead of the algorithm's own choice.")
@click.option(
    "--refine",
    help="none, swaps, dsnot or permute: how the mask is improved before weights go; permute regroups the columns for "
    "--pattern, in layers where the order can be folded into the layer before.  [default: the algorithm's own]",
)
@click.option("--max-swaps", type=int, help="With swaps: at most so many in each output row.  [default: 30]")
@click.option("--protect", type=float, help="With swaps: share of kept weights that stay, by score.  [default: 0]")
@click.option(
    "--update",
    help="none, least_squares, sparsegpt or admm: what happens to weights that stay.  [default: the algorithm's own]",
)
@click.option(
    "--towards-dense",
    type=float,
    help="With an update: come close to the layer's own outputs on the inputs it will receive (0), to the unpruned "
    "model's (1), or in between. Above 0 takes about twice the time.  [default: the algorithm's own, mostly 0]",
)
@click.option(
    "--allocation",
    help="How layers share out the sparsity: uniform, sensitivity (equal marginal damage of layers pruned alone), auto "
    "(the best by measurement, at most three times the time of the prune), a library name (sdsa, owl, dlp, alpha, atp, "
    "marginal) or a program file.  [default: the algorithm's own, else uniform]",
)
@click.option("--granularity", help="block or linear: what shares out.  [default: the allocation's own, mostly block]")
@click.option("--strength", type=float, help="How far apart sparsities are.  [default: the allocation's own; sdsa 0.2]")
@click.option(
    "--max-shift",
    type=float,
    help="Furthest a layer may be from the mean.  [default: the allocation's own; sdsa 0.15]",
)
@click.option("--temperature", type=float, help="Of sdsa's softmax; a high one evens layers out.  [default: 1]")
@_calibration_options
@click.option(
    "--propagation",
    default="one_pass",
    show_default=True,
    help="What a layer is judged by: one_pass (inputs from all that is pruned so far, its own block included), "
    "block (from pruned earlier blocks; Wanda's scheme) or dense (from the unpruned model).",
)
@click.option(
    "--memory",
    help="Take no more than this, as 8GiB: activations beyond it wait in a file.  [default: what the machine has left]",
)
@click.option("--force", is_flag=True, help="Replace what is in --out, or what an ended prune has left there.")
@_shared_options
def _prune(
    model: str, out: Path, algorithm: str, sparsity: float | None, pattern: str | None, as_json: bool, **settings: Any
) -> None:
    """Prune MODEL and write a checkpoint that from_pretrained loads as it is.

    Weights in safetensors files are read, pruned and written block by block, so that a model may be larger than memory;
    a prune that was ended in any way goes on where it was when the same command is given again.
    """
    from autoprune.algorithms import load
    from autoprune.sparsity import Target

    Target.of(sparsity, pattern)  # what is cheap to refuse is refused before libraries are loaded
    program = load(algorithm)
    _quiet()
    from autoprune.api import prune
    from autoprune.terminal import TerminalProgress

    is_first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun has started
    with TerminalProgress() if is_first else nullcontext() as progress:
        report = prune(
            model, algorithm=program, sparsity=sparsity, pattern=pattern, out=out, progress=progress, **settings
        )
    if not is_first:
        return
    if as_json:
        _print_json(report.to_dict())
    else:
        _print_prune(report)


def _print_prune(report: PruneReport) -> None:
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in report.durations_s.items())
    print(f"{report.zeros:,} of {report.weights:,} weights in {len(report.layers)} layers are zero")
    print(f"sparsity   {report.sparsity:.4%} (requested {report.requested / report.weights:.4%}, {report.target})")
    print(f"algorithm  {report.algorithm['name']} ({report.algorithm['hash']}), compared by {report.method['compare']}")
    if report.method["refine"] != "none":
        print(f"refine     {report.method['refine']} of the mask")
    if report.method["update"] != "none":
        print(f"update     {report.method['update']} of the weights that stay")
    if len(report.allocation) > 1:
        shares = [layer.requested / (layer.shape[0] * layer.shape[1]) for layer in report.layers]
        chosen = f" ({report.allocation['chosen']})" if "chosen" in report.allocation else ""
        print(f"allocation {report.allocation['name']}{chosen}: layers lose {min(shares):.1%} to {max(shares):.1%}")
    if report.skipped:
        print(f"not pruned {len(report.skipped)} matrices that are not linear layers; see autoprune.json")
    print(f"time       {seconds}")
    print(f"load it    AutoModelForCausalLM.from_pretrained({report.out!r})")


@cli.command("eval", epilog=_MODEL_HELP)
@click.argument("model")
@click.option("--data", required=True, help=f"{_TEXT_HELP}.")
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
@_shared_options
def _eval(model: str, as_json: bool, **settings: Any) -> None:
    """Perplexity of MODEL on a text, as the pruning literature measures it."""
    _quiet()
    from autoprune.api import evaluate
    from autoprune.terminal import TerminalProgress

    with TerminalProgress() as progress:
        evaluation = evaluate(model, progress=progress, **settings)
    if as_json:
        _print_json({"model": model, "data": settings["data"], **asdict(evaluation)})
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


@cli.command("diagnose", epilog=_MODEL_HELP)
@click.argument("model")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Folder for pictures and figures; new or empty."
)
@click.option("--sparsity", type=float, default=0.7, show_default=True, help="Of the allocation that is drawn.")
@click.option("--allocation", default="sdsa", show_default=True, help="The allocation that is drawn beside uniform.")
@click.option("--algorithm", default="wanda", show_default=True, help="How weights are scored for the sensitivity.")
@_calibration_options
@click.option("--force", is_flag=True, help="Replace what is in --out.")
@_shared_options
def _diagnose(model: str, out: Path, as_json: bool, **settings: Any) -> None:
    """Draw how MODEL's layers differ: skewness, sensitivity to the pruning ratio, an allocation. Nothing is pruned."""
    from autoprune.figures import check_matplotlib

    check_matplotlib()
    _quiet()
    from autoprune.api import diagnose
    from autoprune.terminal import TerminalProgress

    with TerminalProgress() as progress:
        diagnosis = diagnose(model, out=out, progress=progress, **settings)
    if as_json:
        _print_json(diagnosis.to_dict())
        return
    alone = f"KL alone at {diagnosis.levels[-1]:.0%}"
    print(f"{'block':<28} {'skewness':>9} {'L-skew':>7} {alone:>16} sparsity")
    rows = zip(
        diagnosis.blocks, diagnosis.skewness, diagnosis.l_skewness, diagnosis.damage, diagnosis.sparsity, strict=True
    )
    for name, skewness, l_skewness, damage, sparsity in rows:
        print(f"{name:<28} {skewness:9.3f} {l_skewness:7.3f} {damage[-1]:16.4f} {sparsity:8.1%}")
    print(f"pictures   {out}/skewness.png, sensitivity.png, allocation.png")


@cli.command("search", epilog=_MODEL_HELP)
@click.argument("model")
@click.option(
    "--run",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of the search. The same command again goes on where it stopped, after any crash.",
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
@click.option("--sparsity", type=float, help="Share of weights to remove, in [0, 1). Give this or --pattern.")
@click.option("--pattern", help="n:m, n weights kept of m consecutive inputs, as 2:4.")
@click.option(
    "--freeze",
    default="",
    help="Options that programs may not change, as update=none,refine=none,allocate=uniform.  [default: nothing]",
)
@click.option(
    "--prompt",
    default="graph",
    show_default=True,
    help="graph (a walk in what was tried and measured) or plain (the task and the best program, to compare).",
)
@click.option("--prompt-tokens", type=int, help="Budget of a prompt.  [default: self 1500, local 2500, others 6000]")
@_calibration_options
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
@_shared_options
def _search(
    model: str,
    run: Path,
    as_json: bool,
    base_url: str | None,
    timeout_s: float,
    concurrency: int,
    usd_in: float | None,
    usd_out: float | None,
    **settings: Any,
) -> None:
    """Let a language model design pruning algorithms for MODEL, measure them, and keep the best.

    Every proposal is checked, run apart from this process with limits on time and memory, and measured. The best is
    written to RUN/winner.prune, for `autoprune prune --algorithm`. See also `autoprune algorithms --run RUN` and
    `autoprune explain RUN HASH`.
    """
    from autoprune.sparsity import Target

    Target.of(settings["sparsity"], settings["pattern"])
    _quiet()
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
            found = discover(model, run=run, service=service, progress=TerminalProgress(), watch=watch, **settings)
        except KeyboardInterrupt:
            watch.note("stopped; the same command goes on from here")
            raise
    if as_json:
        _print_json(asdict(found))
        return
    _print_account(found.account)
    if found.winner:
        print(f"winner     {found.winner}")
        target = f"--pattern {settings['pattern']}" if settings["pattern"] else f"--sparsity {settings['sparsity']}"
        print(f"prune it   autoprune prune {model} --out pruned --algorithm {found.winner} {target}")


def _print_account(told: Account) -> None:
    rungs = list(told.seconds_by_rung)
    heading = "".join(f"{rung:>9}" for rung in rungs)
    print(f"{'hash':<17}{'from':<20}{heading}  against the baselines on fresh tokens (95 % interval)")
    names = {row.digest for row in told.rows}
    for row in [*told.rows, *(row for row in told.baselines if row.digest not in names)]:
        damage = "".join(f"{row.damage[rung]:9.4f}" if rung in row.damage else f"{'-':>9}" for rung in rungs)
        compared = "; ".join(f"{d.against} {d.mean:+.3f} ({d.low:+.3f} to {d.high:+.3f})" for d in row.differences)
        print(f"{row.digest:<17}{row.origin:<20}{damage}  {compared}")
    print("proposals  " + ", ".join(f"{count} {outcome}" for outcome, count in told.proposals.items()))
    shown = [
        f"{name} {value:.2f} (n={count})" for name, (value, count) in told.correlations.items() if value is not None
    ]
    print("rank correlation of rungs  " + (", ".join(shown) or "too few measured by both"))
    print("seconds a program  " + ", ".join(f"{rung} {value:.2f}" for rung, value in told.seconds_by_rung.items()))
    cost = f", {told.tokens:,} tokens" * bool(told.tokens) + f", {told.usd:.4f} US dollars" * bool(told.usd)
    print(f"time       {told.seconds:.0f} s{cost}")


@cli.command("explain")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("digest", metavar="HASH")
def _explain(run: Path, digest: str) -> None:
    """Print the measured chain of reasoning that led to the program HASH in the search RUN."""
    from autoprune.discover import open_run
    from autoprune.scoring.scorer import RUNGS
    from autoprune.search.account import reasoning

    click.echo("\n".join(reasoning(open_run(run), RUNGS, digest)))


@cli.command("algorithms")
@click.argument("name", required=False)
@click.option("--run", type=click.Path(path_type=Path), help="The leaderboard of this search instead of the library.")
def _algorithms(name: str | None, run: Path | None) -> None:
    """List the library of algorithms and allocations, or print the text of the one called NAME."""
    from autoprune import algorithms

    if run is not None:
        _leaderboard(run, name)
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


def _leaderboard(run: Path, name: str | None) -> None:
    """The best programs of a search, or the text of one."""
    from autoprune.discover import open_run
    from autoprune.scoring.scorer import FRESH, RUNGS
    from autoprune.search.account import account, stored

    archive = open_run(run)
    if name is not None:
        click.echo(stored(archive, name).canonical, nl=False)
        return
    _print_account(account(archive, RUNGS, FRESH, count=20))


@cli.command("check")
@click.argument("file")
@click.option("--language", is_flag=True, help="Also print the tables of the language.")
def _check(file: str, language: bool) -> None:
    """Explain the pruning program in FILE (or of that library name), or say what is wrong with it and where."""
    from autoprune import algorithms
    from autoprune.language import explain, reference

    click.echo(explain(algorithms.load(file)))
    if language:
        click.echo(f"\n{reference()}")


@cli.command("demo")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("demo-out"),
    show_default=True,
    help="Folder for the pruned models.",
)
@click.option("--force", is_flag=True, help="Replace the results of an earlier demo.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout, and nothing else there.")
def _demo(out: Path, force: bool, as_json: bool) -> None:
    """Prune SmolLM2-135M at 60 % with magnitude, with Wanda, and with an algorithm that it designs itself in a short
    search, and compare. A few minutes, no network."""
    _quiet()
    from autoprune.demo import run_demo
    from autoprune.live import LiveWatch
    from autoprune.terminal import TerminalProgress

    with TerminalProgress() as progress:
        rows = run_demo(out, force=force, progress=progress, watch=LiveWatch())
    if as_json:
        _print_json({"rows": [asdict(row) for row in rows]})
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
