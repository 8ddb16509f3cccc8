"""The command line: parse flags, call the public functions, print. Results on stdout, everything else on stderr."""

from __future__ import annotations

import os
import signal
import sys
from importlib import metadata
from typing import NoReturn

import click

from autoprune.cli.demo import demo
from autoprune.cli.diagnose import diagnose
from autoprune.cli.evaluate import evaluate
from autoprune.cli.library import algorithms, check
from autoprune.cli.prune import prune
from autoprune.cli.report import report
from autoprune.cli.search import explain, search
from autoprune.cli.speed import speed
from autoprune.cli.sweep import sweep
from autoprune.errors import AutopruneError


def main() -> NoReturn:
    """Run the command line; exit code 0, 2 for what the user can mend, 130 when interrupted."""
    for which in (signal.SIGINT, signal.SIGTERM):
        signal.signal(which, _interrupt)
    code: int = 0
    try:
        code = cli(standalone_mode=False) or 0
    except AutopruneError as error:
        code = _fail(str(error), 2, error)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        command = f"autoprune {context.info_name}" if context and context.parent else "autoprune"
        code = _fail(f"{' '.join(error.format_message().split())} See {command} --help", 2)
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
    for which in (signal.SIGINT, signal.SIGTERM):
        signal.signal(which, _leave)
    raise KeyboardInterrupt


def _leave(*_: object) -> NoReturn:
    """Someone cannot wait until all is in order: what follows a kill follows this."""
    os.write(2, b"error: interrupted again; what is finished is kept, and the same command goes on\n")
    os._exit(130)


def _fail(message: str, code: int, error: BaseException | None = None) -> int:
    print("; ".join([f"error: {message}", *getattr(error, "__notes__", ())]), file=sys.stderr)
    return code


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


for command in (prune, evaluate, speed, sweep, report, diagnose, search, explain, algorithms, check, demo):
    cli.add_command(command)
