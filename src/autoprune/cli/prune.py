"""autoprune prune."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autoprune.cli.shared import MODEL_HELP, calibration_options, print_json, quiet, shared_options

if TYPE_CHECKING:
    from autoprune.api import PruneReport


@click.command("prune", short_help="Prune a model and write a checkpoint that loads everywhere.", epilog=MODEL_HELP)
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
@calibration_options()
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
@shared_options
def prune(
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
    quiet()
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
        print_json(report.to_dict())
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
        reasons = Counter(report.skipped.values())
        print(f"not pruned {'; '.join(f'{count} of another kind ({reason})' for reason, count in reasons.items())}")
    print(f"time       {seconds}")
    print(f"a page     autoprune report {shlex.quote(str(report.out))}")
    print(f"load it    AutoModelForCausalLM.from_pretrained({report.out!r})")
