"""The command `search` from end to end on tiny models: what it writes, going on, wrong input, what it must not keep."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from autoprune import algorithms
from autoprune.report.searching import searching
from autoprune.scoring.scorer import FRESH, RUNGS
from autoprune.scoring.several import SeveralRecipe, SeveralScorer
from autoprune.search.archive import Archive
from autoprune.search.protocol import Outcome, Task
from command import Run
from fake_search import contents

SIZES = ("--sequences", 6, "--length", 24)


@pytest.fixture
def command(checkpoint: Path, text: Path, tmp_path: Path) -> list[Any]:
    """A small search in `tmp_path / "run"`, in this process."""
    folder = ["--run", tmp_path / "run", "--calibration", f"file:{text}", *SIZES]
    return [
        "search",
        checkpoint,
        *folder,
        "--sparsity",
        0.5,
        "--proposer",
        "genetic",
        "--evaluations",
        8,
        "--workers",
        0,
    ]


def test_a_search_ends_with_a_program_that_prunes(run: Run, command: list[Any], checkpoint: Path, tmp_path: Path):
    ran = run(*command)
    assert ran.code == 0, ran.err
    winner = tmp_path / "run" / "winner.prune"
    program = algorithms.load(winner)
    assert program.digest in winner.read_text("utf-8")
    assert f"winner     {winner}" in ran.out
    assert ("nothing better was found" in ran.out) == ("nothing better was found" in winner.read_text("utf-8"))
    pruned = run("prune", checkpoint, "--out", tmp_path / "out", "--algorithm", winner, "--sparsity", 0.5, *SIZES)
    assert pruned.code == 0, pruned.err
    listed = run("algorithms", "--run", tmp_path / "run")
    assert program.digest in listed.out
    assert run("algorithms", program.digest[:8], "--run", tmp_path / "run").out == program.canonical
    told = run("explain", tmp_path / "run", program.digest)
    assert told.code == 0
    assert "root " in told.out
    assert program.digest in told.out


def test_json_is_one_object(run: Run, command: list[Any]):
    ran = run(*command, "--json")
    record = json.loads(ran.out)
    assert sum(record["account"]["proposals"].values()) == 8
    assert {"wanda"} <= {row["against"] for row in record["account"]["rows"][0]["differences"]} | {"wanda"}
    assert set(record["account"]["rows"][0]["damage"]) == {"probe", "quick", "full", "fresh"}


def test_workers_change_nothing_and_a_search_that_is_done_is_told_again(run: Run, command: list[Any], tmp_path: Path):
    first = run(*command)
    whole = contents(Archive.open(tmp_path / "run" / "archive.sqlite"))
    again = run(*command)
    assert again.out.splitlines()[:-3] == first.out.splitlines()[:-3]  # but for the time
    other = [tmp_path / "other" if part == tmp_path / "run" else part for part in command]
    other[other.index("--workers") + 1] = 2
    assert run(*other).code == 0
    assert contents(Archive.open(tmp_path / "other" / "archive.sqlite")) == whole


def test_other_settings_are_refused(run: Run, command: list[Any]):
    assert run(*command).code == 0
    changed = [0.6 if part == 0.5 else part for part in command]
    ran = run(*changed)
    assert ran.code == 2
    assert "begun with target '0.5', not '0.6'" in ran.error


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--proposer": "gpt"}, "unknown proposer 'gpt'"),
        ({"--proposer": "local:"}, "unknown proposer 'local:'"),
        ({"--evaluations": -1}, "--evaluations cannot be -1"),
        ({"--workers": -1}, "--workers cannot be -1"),
        ({"--sparsity": 1.5}, "sparsity 1.5 is outside"),
        ({"--freeze": "update"}, "'update' names no value"),
        ({"--roots": "wanad"}, "did you mean 'wanda'?"),
        ({"--roots": "wanda,sdsa"}, "sdsa: a search cannot start from it: the program defines no score"),
        ({"--freeze": "udpate=none"}, "did you mean 'update'?"),
        ({"--freeze": "update=magic"}, "update cannot be 'magic'"),
        ({"--prompt": "long"}, "unknown prompt 'long'"),
        ({"--calibration": "file:/nowhere.txt"}, "/nowhere.txt"),
        ({"--sequences": 100_000}, "tokens"),
        ({"--sequences": 1}, "--sequences 1 is too few"),
        ({"--freeze": "update=none,update=admm"}, "update is given twice"),
        ({"--freeze": "refine=swaps,update=admm"}, "no program can have all of that together"),
        ({"--budget-s": "nan"}, "--budget-s cannot be nan"),
        ({"--prompt-tokens": -5}, "--prompt-tokens cannot be -5"),
    ],
)
def test_wrong_input_is_one_line(run: Run, command: list[Any], changes: dict[str, Any], message: str):
    for name, value in changes.items():
        if name in command:
            command[command.index(name) + 1] = value
        else:
            command += [name, value]
    ran = run(*command)
    assert ran.code == 2
    assert message in ran.error


def test_another_dtype_or_model_is_another_search(run: Run, command: list[Any], checkpoint: Path, tmp_path: Path):
    assert run(*command).code == 0
    assert "begun with dtype 'float32'" in run(*command, "--dtype", "bfloat16").error


@pytest.mark.parametrize("freeze", ["strength=0.3", "update=sparsegpt,towards_dense=0.5", "compare=layer"])
def test_any_option_can_be_frozen(run: Run, command: list[Any], freeze: str):
    ran = run(*command, "--freeze", freeze, "--evaluations", 2, "--json")
    assert ran.code == 0, ran.err
    compared = {row["against"] for row in json.loads(ran.out)["account"]["rows"][0]["differences"]}
    assert "ria" in compared  # also where it is not of the space itself


def test_a_search_starts_where_it_is_told_to(run: Run, command: list[Any], tmp_path: Path):
    own = tmp_path / "own.prune"
    own.write_text("def score(weight, input_std):\n    return abs(weight) * input_std\n", "utf-8")
    assert run(*command, "--roots", f"wanda, {own}").code == 0
    with closing(Archive.open(tmp_path / "run" / "archive.sqlite")) as archive:
        roots = [node.digest for node in archive.nodes() if node.step < 0]
    assert set(roots) == {algorithms.load(root).digest for root in ("wanda", own)}
    assert "begun with roots" in run(*command).error
    assert "begun with roots" in run(*command, "--roots", "wanda").error


def test_a_pattern_is_searched(run: Run, command: list[Any]):
    command[command.index("--sparsity") : command.index("--sparsity") + 2] = ["--pattern", "2:4"]
    ran = run(*command)
    assert ran.code == 0, ran.err


def test_no_search_is_one_line(run: Run, tmp_path: Path):
    for arguments in (("algorithms", "--run", tmp_path), ("explain", tmp_path, "abc")):
        ran = run(*arguments)
        assert ran.code == 2
        assert "there is no search here" in ran.error
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_cannot_be_written_is_one_line(run: Run, command: list[Any], tmp_path: Path):
    (tmp_path / "run").write_text("a file")
    ran = run(*command)
    assert ran.code == 2
    assert "cannot write" in ran.error


def test_one_search_in_a_folder_at_a_time(run: Run, command: list[Any], tmp_path: Path):
    fcntl = pytest.importorskip("fcntl")
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ran = run(*command)
    assert ran.code == 2
    assert "another search is at work in this folder" in ran.error


# ---------------------------------------------------------------- several models


@pytest.fixture
def several(command: list[Any], checkpoint: Path, tmp_path: Path) -> list[Any]:
    """The same search on another model and on another draw of the text too."""
    other = tiny.save(tmp_path / "other", "gpt2", kind="no_bos")
    few = ["--freeze", "update=none,refine=none,allocate=uniform", "--evaluations", 4]
    return [*command, *few, "--also", other, "--also", checkpoint]


def test_several_models_are_searched_told_and_taken_up_again(
    run: Run, several: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "run"
    ran = run(*several)
    assert ran.code == 0, ran.err
    names = "model, other, model (text 2)"
    assert f"for {names} at 0.5" in (folder / "winner.prune").read_text("utf-8")
    whole = Archive.open(folder / "archive.sqlite")
    probed = next(found for (_, rung), found in whole.evaluations().items() if rung == "probe")
    assert {name.partition(": ")[0] for name in probed.figures["harm"]} == set(names.split(", "))
    known = whole.get("settings")
    assert [each["model"] for each in known["also"]] == [str(several[-3]), str(several[-1])]
    assert known["also"][1]["weights"] == known["weights"]
    assert known["also"][1]["calibration"] != known["calibration"]  # the same model, other text
    told = searching(folder / "archive.sqlite", RUNGS, FRESH)
    assert told.facts["Model"] == f"{several[1]} (2 draws of text), {several[-3]}"
    assert run("algorithms", "--run", folder).code == 0

    # Stopped while it measures, and taken up again by a worker, it ends the same.
    again = [tmp_path / "again" if part == folder else part for part in several]
    scored, score = itertools.count(), SeveralScorer.score

    def interrupted(self: SeveralScorer, task: Task) -> Outcome:
        if next(scored) == 15:
            raise KeyboardInterrupt
        return score(self, task)

    with monkeypatch.context() as patch:
        patch.setattr(SeveralScorer, "score", interrupted)
        assert run(*again).code == 130
    assert len(Archive.open(tmp_path / "again" / "archive.sqlite").evaluations()) == 15
    again[again.index("--workers") + 1] = 1
    assert run(*again).code == 0
    assert contents(Archive.open(tmp_path / "again" / "archive.sqlite")) == contents(whole)

    assert "begun with also [" in run(*again[:-2]).error
    tiny.save(tmp_path / "other", "gpt2", kind="no_bos", seed=1)
    assert "begun with weights of model 2" in run(*again).error


def test_texts_to_calibrate_and_to_judge_on_differ_for_every_model(
    run: Run, several: list[Any], monkeypatch: pytest.MonkeyPatch
):
    made: list[SeveralRecipe] = []
    make = SeveralRecipe.make
    monkeypatch.setattr(SeveralRecipe, "make", lambda self: made.append(self) or make(self))
    assert run(*several, "--evaluations", 0).code == 0
    (first, _, again) = recipes = made[0].recipes
    for recipe in recipes:
        draws = [draw for of_rung in recipe.calibrated_on.values() for draw in of_rung]
        drawn = np.concatenate([*draws, *recipe.judged_on.values()])
        assert len(np.unique(drawn, axis=0)) == len(drawn)
    assert not np.array_equal(first.calibrated_on["quick"], again.calibrated_on["quick"])
    assert not np.array_equal(first.judged_on["full"], again.judged_on["full"])
    assert [recipe.seed for recipe in recipes] == [0, 1, 2]


def test_a_search_on_one_model_is_as_before_there_were_several(run: Run, command: list[Any], tmp_path: Path):
    assert run(*command).code == 0
    with closing(Archive.open(tmp_path / "run" / "archive.sqlite")) as archive:
        settings = archive.get("settings")
        assert settings.pop("also") == []
        archive.set("settings", settings)
        probed = next(found for (_, rung), found in archive.evaluations().items() if rung == "probe")
        assert all(name.startswith("model.layers") for name in probed.figures["harm"])
        assert isinstance(json.loads(probed.signature), dict)
    assert run(*command).code == 0


def test_a_wrong_further_model_is_one_line(run: Run, command: list[Any], tmp_path: Path):
    ran = run(*command, "--also", tmp_path / "nowhere")
    assert ran.code == 2
    assert str(tmp_path / "nowhere") in ran.error
    short = tiny.save(tmp_path / "short", max_position_embeddings=16)
    ran = run(*command, "--also", short)
    assert ran.code == 2
    assert f"{short}: --length 24 is more than the 16 positions" in ran.error
    odd = tiny.save(tmp_path / "odd", intermediate_size=46)
    command[command.index("--sparsity") : command.index("--sparsity") + 2] = ["--pattern", "2:4"]
    ran = run(*command, "--also", odd)
    assert ran.code == 2
    assert f"{odd}, model.layers.0.mlp.down_proj: 46 inputs do not divide into groups of 4" in ran.error


# ---------------------------------------------------------------- ends of the process


def started(command: list[Any], **environment: str) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-m", "autoprune", *map(str, command)]
    return subprocess.Popen(
        arguments, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_interrupted_it_says_how_to_go_on_and_leaves_no_process(command: list[Any], tmp_path: Path):
    command[command.index("--workers") + 1], command[command.index("--evaluations") + 1] = 1, 100_000
    with started(command) as search:
        deadline = time.monotonic() + 60
        while not list((tmp_path / "run" / "logs").glob("*")) and time.monotonic() < deadline:
            time.sleep(0.1)
        search.send_signal(signal.SIGTERM)  # as Ctrl-C; that signal may be ignored where tests run in the background
        _, err = search.communicate(timeout=60)
    assert search.returncode == 130
    assert "the same command goes on from here" in err
    assert "Traceback" not in err
    left = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True).stdout
    assert left == ""
    assert Archive.open(tmp_path / "run" / "archive.sqlite").is_sound()


def test_the_key_is_in_no_file_of_the_run(
    run: Run, command: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    key = "sk-verysecret0123456789abcdef"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    command[command.index("--workers") + 1] = 1
    command[command.index("--proposer") + 1] = "openai:any"
    ran = run(*command, "--base-url", "http://127.0.0.1:9/v1", "--timeout-s", 2)
    assert ran.code == 2
    assert key not in ran.err + ran.out
    for file in (tmp_path / "run").rglob("*"):
        assert file.is_dir() or key.encode() not in file.read_bytes()
