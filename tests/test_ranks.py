"""Several processes prune one model: as one does, and none is lost in silence."""

from __future__ import annotations

import multiprocessing
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import autoprune
import tiny
from autoprune import prune_blocks
from autoprune.errors import AutopruneError
from autoprune.ranks import Ranks

WORLD = 2


def rank_of(rank: int, port: int, source: str, out: str, given: dict[str, Any], lose: int, said: Any) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if lose and rank == 1:
        calls, solve = [], prune_blocks.solve

        def lost(*args: Any, **more: Any) -> Any:
            calls.append(0)
            if len(calls) == lose:
                os._exit(9)
            return solve(*args, **more)

        prune_blocks.solve = lost  # type: ignore[attr-defined]
    try:
        report = autoprune.prune(source, out=out, **given)
        said.put((rank, [layer.zeros for layer in report.layers]))
    except AutopruneError as error:
        said.put((rank, str(error)))


def together(source: Path, out: Path, lose: int = 0, **given: Any) -> dict[int, Any]:
    """What each process has said, by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    said = context.Queue()
    processes = [
        context.Process(target=rank_of, args=(rank, port, str(source), str(out), given, lose, said))
        for rank in range(WORLD)
    ]
    for process in processes:
        process.start()
    found = dict(said.get(timeout=100) for _ in range(WORLD - bool(lose)))
    for process in processes:
        process.join(60)
        assert not process.is_alive()
    return found


def settings(text: str, **given: Any) -> dict[str, Any]:
    return {"calibration": f"file:{text}", "sequences": 5, "length": 24, "sparsity": 0.5} | given


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("llama", {}),
        ("llama", {"propagation": "block", "update": "least_squares", "allocation": "sdsa"}),
        ("llama", {"sparsity": None, "pattern": "2:4", "refine": "permute"}),
        ("mixtral", {"algorithm": "ria"}),
        ("mixtral", {"propagation": "dense", "algorithm": "sparsegpt"}),
        ("zamba2", {}),
    ],
    ids=str,
)
def test_two_processes_keep_what_one_keeps(architecture: str, options: dict[str, Any], text: str, tmp_path: Path):
    source = tiny.save(tmp_path / "dense", architecture)
    given = settings(text, **options)
    autoprune.prune(source, out=tmp_path / "one", **given)
    found = together(source, tmp_path / "two", **given)
    assert found[0] == found[1]
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    same = sum(int(((one[name] == 0) == (two[name] == 0)).sum()) for name in one)
    assert same >= 0.9999 * sum(tensor.numel() for tensor in one.values())
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-2, atol=1e-2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "one", "two"]


def test_a_lost_process_ends_the_others_and_the_same_command_continues(text: str, tmp_path: Path):
    source, given = tiny.save(tmp_path / "dense"), settings(text)
    found = together(source, tmp_path / "out", lose=5, **given)
    assert "another process of this prune was lost" in found[0]
    assert not (tmp_path / "out").exists()
    assert (tmp_path / ".out.unfinished").is_dir()  # the first block is there
    together(source, tmp_path / "out", **given)
    together(source, tmp_path / "whole", **given)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model.safetensors"
    ).read_bytes()


def test_more_processes_than_sequences_are_refused(text: str, tmp_path: Path):
    source = tiny.save(tmp_path / "dense")
    found = together(source, tmp_path / "out", **settings(text, sequences=1))
    assert all("1 calibration sequences for 2 processes" in error for error in found.values())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense"]


def test_alone_nothing_is_exchanged():
    alone = Ranks()
    tokens_BL = tiny.tokens()
    assert alone.own(tokens_BL) is not None
    assert torch.equal(alone.own(tokens_BL), tokens_BL)
    assert alone.least(3) == 3
    assert alone.tell("it") == "it"
    alone.send_(tokens_BL, 0)
    alone.meet()
