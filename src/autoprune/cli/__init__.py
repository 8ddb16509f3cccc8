"""The command line."""

from autoprune.cli.main import main

__all__ = ["main"]
