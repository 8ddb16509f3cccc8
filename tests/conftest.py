"""What all tests share: deterministic Hypothesis, one thread, a cache of their own, the command line."""

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

import tiny
from autoprune.cli import main
from command import Ran, Run

settings.register_profile(
    "autoprune", derandomize=True, deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("autoprune")
# Test processes run side by side; more threads than cores would spin, waiting for each other.
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def cache_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test reads or writes the user's cache."""
    root = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOPRUNE_CACHE", str(root))
        yield root


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model."""
    return tiny.save(tmp_path_factory.mktemp("checkpoint") / "model")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file to calibrate on."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(tiny.text(), "utf-8")
    return path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """`autoprune ARGUMENTS`, which has to end in SystemExit."""
    before = {which: signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)}

    def run(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["autoprune", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main()
        captured = capsys.readouterr()
        assert isinstance(exit_.value.code, int)
        return Ran(exit_.value.code, captured.out, captured.err)

    yield run
    for which, handler in before.items():
        signal.signal(which, handler)
