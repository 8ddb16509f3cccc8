"""What commands share: options, quiet libraries, JSON."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable
from functools import partialmethod
from typing import Any

import click

from autoprune.strict_json import strict_json

MODEL_HELP = "MODEL is a hub id, a local folder, a .gguf file, or 'demo' (SmolLM2-135M, needs no network)."
TEXT_HELP = "file:PATH (.txt, or .jsonl with `text`) or hub:NAME[:CONFIG][:SPLIT]"


def quiet() -> None:
    """Let libraries speak through our messages only, unless TRANSFORMERS_VERBOSITY asks for more."""
    from tqdm.std import tqdm
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    if "TRANSFORMERS_VERBOSITY" not in os.environ:
        transformers_logging.set_verbosity_error()
        for name in ("datasets", "huggingface_hub", "lm_eval"):
            logging.getLogger(name).setLevel(logging.ERROR)
        warnings.simplefilter("ignore")
        # Bars that libraries draw by themselves. TQDM_DISABLE would come too late here.
        setattr(tqdm, "__init__", partialmethod(tqdm.__init__, disable=True))  # noqa: B010


def print_json(record: dict[str, Any]) -> None:
    print(strict_json(record))


def shared_options(command: Callable[..., None]) -> Callable[..., None]:
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


def calibration_options(
    sequences: str = "Calibration sequences.  [default: 128; on a CPU 32]",
    length: str = "Tokens per sequence.  [default: 2048; on a CPU 512]",
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """What every command that runs a calibration text through the model takes, with the help of what has no default of
    its own."""
    options = (
        click.option(
            "--calibration",
            default="self",
            show_default=True,
            help=f"self (the model writes its own text), {TEXT_HELP}.",
        ),
        click.option("--sequences", type=int, help=sequences),
        click.option("--length", type=int, help=length),
        click.option(
            "--seed",
            type=click.IntRange(0, 2**63 - 1),
            default=0,
            show_default=True,
            help="Seed of the self-written text. Of another text, 0 takes the first sequences, others draw them.",
        ),
    )

    def add(command: Callable[..., None]) -> Callable[..., None]:
        for option in reversed(options):
            command = option(command)
        return command

    return add
