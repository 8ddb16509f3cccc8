"""The commands that faults happen to: what they leave, and which of their steps are finished and done again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openai import _base_client

import tiny
from autoprune import prune_blocks
from autoprune.bench import Bench
from autoprune.journal import folder_of
from autoprune.lines import files_of_lines, read_lines
from autoprune.search.archive import Archive
from autoprune.search.executors.in_process import InProcess
from autoprune.search.proposers import openai as openai_proposer
from autoprune.search.proposers.genetic import Genetic
from autoprune.search.proposers.openai import OpenAI
from fake_search import contents
from faults.processes import Ended, Prepare, Process

BLOCKS = 4


@dataclass(frozen=True)
class Inputs:
    """A tiny model and a text, which no command changes."""

    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def text(self) -> str:
        return f"file:{self.folder / 'text.txt'}"

    @classmethod
    def make(cls, folder: Path) -> Inputs:
        folder.mkdir(parents=True)
        tiny.save(folder / "model", num_hidden_layers=BLOCKS)
        (folder / "text.txt").write_text(tiny.text(), "utf-8")
        return cls(folder)


class Command:
    """A command with its output in a folder of its own, `place`. What a run has finished is written to a tally."""

    name = ""
    unit = ""
    """What one step is called."""

    weight = 1
    """How much quicker it is than the slowest: so many times as many faults."""

    in_flight = 1
    """Steps that may be under way at one instant."""

    def __init__(self, inputs: Inputs, place: Path):
        self.inputs, self.place = inputs, place
        place.mkdir(parents=True, exist_ok=True)
        self.tally = place.parent / f"{place.name}.tally"

    def at(self, place: Path) -> Command:
        """The same command with another place."""
        return type(self)(self.inputs, place)

    @property
    def arguments(self) -> list[object]:
        raise NotImplementedError

    def result(self) -> Any:
        """What the output says, but for what clocks have said; the same after an undisturbed run."""
        raise NotImplementedError

    def litter(self) -> list[str]:
        """What is in the place and does not belong to a finished output."""
        raise NotImplementedError

    def kept(self) -> list[Path]:
        """Files that a run which goes on reads, the ones that say what is finished."""
        raise NotImplementedError

    @property
    def is_finished(self) -> bool:
        """Whether the command would be refused, since its output is there."""
        return False

    def _tallied(self) -> None:
        """In the child: let every step that is finished write a line to the tally."""
        raise NotImplementedError

    # ---------------------------------------------------------------- running

    def start(self, prepare: Prepare = lambda: None, logs: Path | None = None) -> Process:
        return Process(self.arguments, logs or self.logs, self.prepared(prepare))

    def run(self, prepare: Prepare = lambda: None) -> Ended:
        return self.start(prepare).wait()

    def prepared(self, prepare: Prepare) -> Prepare:
        def all_of_it() -> None:
            os.environ["AUTOPRUNE_CACHE"] = str(self.inputs.folder / "cache")
            self._tallied()
            prepare()

        return all_of_it

    @property
    def logs(self) -> Path:
        return self.place.parent / f"{self.place.name}.logs"

    def note(self, key: str) -> None:
        """In the child: a step is finished. One write, whole or not at all."""
        descriptor = os.open(self.tally, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(descriptor, f"{key}\n".encode())
        os.close(descriptor)

    def done(self) -> Counter[str]:
        """How often each step was finished, over all runs."""
        return Counter(self.tally.read_text().split("\n")[:-1]) if self.tally.exists() else Counter()

    @property
    def again(self) -> int:
        """Steps that were done again."""
        return sum(self.done().values()) - len(self.done())

    def forget(self) -> None:
        """Remove the output and all about it."""
        for path in (self.place, self.logs):
            shutil.rmtree(path, ignore_errors=True)
        self.tally.unlink(missing_ok=True)


class Prune(Command):
    name, unit = "prune", "layers"
    weight = 4
    in_flight = 2 * 7  # one block computes while the one before it is written

    @property
    def out(self) -> Path:
        return self.place / "out"

    @property
    def arguments(self) -> list[object]:
        return ["prune", self.inputs.model, "--out", self.out, "--algorithm", "sparsegpt", "--sparsity", 0.5,
                "--calibration", self.inputs.text, "--sequences", 3, "--length", 24]  # fmt: skip

    @property
    def is_finished(self) -> bool:
        return self.out.exists()

    def result(self) -> Any:
        layers = json.loads((self.out / "autoprune.json").read_text())["layers"]
        return _sums(self.out.glob("*.safetensors")), _sums(self.out.glob("*token*")), layers

    def litter(self) -> list[str]:
        beside = [path.name for path in self.place.iterdir() if path != self.out]
        known = {path.name for path in self.inputs.model.iterdir()} | {"autoprune.json", "README.md"}
        within = [path.name for path in self.out.iterdir()] if self.out.exists() else []
        return beside + [name for name in within if name not in known]

    def kept(self) -> list[Path]:
        return files_of_lines(folder_of(self.out) / "journal.jsonl", chained=True)

    def _tallied(self) -> None:
        solve = prune_blocks.solve

        def tallied(visit: Any, *arguments: Any, **settings: Any) -> Any:
            found = solve(visit, *arguments, **settings)
            self.note(visit.linear.name)
            return found

        prune_blocks.solve = tallied


class Replace(Prune):
    """A prune that takes the place of an older result."""

    name = "prune --force"

    def __init__(self, inputs: Inputs, place: Path):
        super().__init__(inputs, place)
        older = Older(inputs, inputs.folder / "older")
        if not older.out.exists():
            ended = older.run()
            assert ended.code == 0, ended.err
        if not self.out.exists():
            shutil.copytree(older.out, self.out)

    @property
    def arguments(self) -> list[object]:
        return [*super().arguments, "--force"]

    @property
    def is_finished(self) -> bool:
        return self.out.exists() and json.loads((self.out / "autoprune.json").read_text())["target"] == "0.5"


class Older(Prune):
    @property
    def arguments(self) -> list[object]:
        return [0.25 if argument == 0.5 else argument for argument in super().arguments]


class Search(Command):
    name, unit = "search", "answers and evaluations"

    @property
    def proposer(self) -> Sequence[object]:
        return ("genetic",)

    @property
    def folder(self) -> Path:
        return self.place / "run"

    @property
    def arguments(self) -> list[object]:
        return ["search", self.inputs.model, "--run", self.folder, "--proposer", *self.proposer, "--evaluations", 8,
                "--workers", 0, "--sparsity", 0.5, "--roots", "magnitude,wanda", "--freeze",
                "update=none,refine=none,allocate=uniform", "--calibration", self.inputs.text, "--sequences", 2,
                "--length", 16]  # fmt: skip

    def result(self) -> Any:
        with closing(Archive.open(self.folder / "archive.sqlite")) as archive:
            assert archive.is_sound()
            winner = (self.folder / "winner.prune").read_text()
            return contents(archive), winner

    def litter(self) -> list[str]:
        known = {"archive.sqlite", "winner.prune", "lock"}
        return [path.name for path in self.folder.iterdir() if path.name not in known]

    def kept(self) -> list[Path]:
        return [self.folder / "archive.sqlite", self.folder / "archive.sqlite-wal"]

    def _tallied(self) -> None:
        measure, propose = InProcess.run, Genetic.propose

        def measured(executor: InProcess, tasks: Any) -> Any:
            for task, outcome in measure(executor, tasks):
                self.note(f"{task.rung} {hashlib.sha256(task.program.encode()).hexdigest()[:16]}")
                yield task, outcome

        def proposed(proposer: Genetic, requests: Any) -> Any:
            for request, answer in propose(proposer, requests):
                self.note(f"answer {request.step} {request.round}")
                yield request, answer

        InProcess.run, Genetic.propose = measured, proposed


class Asked(Search):
    """A search whose proposer is behind a server (`faults.endpoint`)."""

    name, url = "search --proposer openai:", ""

    @property
    def arguments(self) -> list[object]:
        return [*super().arguments, "--base-url", self.url, "--timeout-s", 0.5, "--concurrency", 2]

    @property
    def proposer(self) -> Sequence[object]:
        return ("openai:m",)

    def silent(self) -> int:
        """Steps for which no answer came."""
        with closing(Archive.open(self.folder / "archive.sqlite")) as archive:
            return sum(proposal.outcome == "silent" for proposal in archive.proposals())

    def _tallied(self) -> None:
        super()._tallied()
        propose = OpenAI.propose

        def proposed(proposer: OpenAI, requests: Any) -> Any:
            for request, answer in propose(proposer, requests):
                self.note(f"answer {request.step} {request.round}")
                yield request, answer

        OpenAI.propose = proposed
        openai_proposer._PAUSE_S = 0.001
        _base_client.INITIAL_RETRY_DELAY = 0.001
        _base_client.MAX_RETRY_DELAY = 0.002


class Sweep(Command):
    name, unit, weight = "sweep", "points", 2

    @property
    def folder(self) -> Path:
        return self.place / "run"

    @property
    def arguments(self) -> list[object]:
        return ["sweep", self.inputs.model, "--run", self.folder, "--algorithms", "magnitude,wanda", "--sparsities",
                "0.3,0.5,2:4", "--data", self.inputs.text, "--eval-sequences", 3, "--eval-length", 24, "--calibration",
                self.inputs.text, "--sequences", 2, "--length", 24]  # fmt: skip

    def result(self) -> Any:
        """A point that was measured again is at another place."""
        lines = [{key: value for key, value in line.items() if key != "crc32"} for line in self._lines()]
        return sorted({json.dumps(_without_seconds(line), sort_keys=True) for line in lines})

    def _lines(self) -> list[dict[str, Any]]:
        return read_lines(self.folder / "sweep.jsonl")

    def litter(self) -> list[str]:
        return [path.name for path in self.folder.iterdir() if path.name not in ("sweep.jsonl", "sweep.lock")]

    def kept(self) -> list[Path]:
        return [self.folder / "sweep.jsonl"]

    def _tallied(self) -> None:
        dense, measure = Bench.dense, Bench.measure

        def dense_tallied(bench: Bench) -> Any:
            found = dense(bench)
            self.note("dense")
            return found

        def tallied(bench: Bench, cell: Any, name: str) -> Any:
            found = measure(bench, cell, name)
            self.note(str(cell))
            return found

        Bench.dense, Bench.measure = dense_tallied, tallied


def _sums(paths: Iterable[Path]) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(paths)}


def _without_seconds(line: dict[str, Any]) -> dict[str, Any]:
    return {key: {k: v for k, v in value.items() if k != "seconds"} if isinstance(value, dict) else value
            for key, value in line.items()}  # fmt: skip


class Undisturbed:
    """What a command gives, and how long it takes, where nothing happens."""

    def __init__(self, command: Command):
        begun = time.monotonic()
        ended = command.run()
        self.seconds = time.monotonic() - begun
        assert ended.code == 0, ended.err
        assert not command.litter(), command.litter()
        self.result, self.steps = command.result(), len(command.done())
        assert not command.again
