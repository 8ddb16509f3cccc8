"""The fault campaign: every kind of fault so many times, and a table of what was lost.

python tests/faults/campaign.py --times 2 --seed 0 --out benchmarks/results/faults.json
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cache
from multiprocessing import get_context
from pathlib import Path

HERE = Path(__file__).parent
if __name__ == "__main__":  # as a script; in the tests the path is set
    sys.path[0] = str(HERE.parent)

from faults import clock, damage, disk, ending, endpoint, rivals  # noqa: E402
from faults.commands import Asked, Command, Prune, Replace, Search, Sweep  # noqa: E402
from faults.trial import Bench, Trial  # noqa: E402

ALL = (Prune, Search, Sweep)


@dataclass(frozen=True)
class Kind:
    """A kind of fault and the commands it happens to."""

    name: str
    trial: Callable[[Bench, type[Command]], Trial]
    commands: tuple[type[Command], ...] = ALL
    needs: Callable[[], bool] = lambda: True
    may_be_lost: int | None = None
    """Finished steps that one may cost, if not those in flight."""


KINDS = [
    Kind("kill -9 at any instant", ending.killed),
    Kind("kill -9 before a change of the disk", disk.killed_before_a_change, (*ALL, Replace)),
    Kind("SIGINT", ending.interrupted),
    Kind("SIGTERM", ending.terminated),
    Kind("SIGINT or SIGTERM, several in a row", ending.interrupted_again),
    Kind("disk full (small tmpfs)", disk.full, needs=disk.can_mount),
    Kind("disk full (ENOSPC from a change on)", disk.full_from_a_change_on),
    Kind("file size limit (RLIMIT_FSIZE)", disk.too_large),
    Kind("read-only disk (mount)", disk.read_only, needs=disk.can_mount),
    Kind("disk turns read-only (EROFS from a change on)", disk.failing_from_a_change_on),
    Kind("safetensors file cut off", damage.cut_checkpoint),
    Kind("bit flipped in a safetensors file", damage.flipped_checkpoint),
    Kind("bit flipped in journal, archive or sweep.jsonl", damage.flipped),
    Kind("wall clock jumps by days", clock.jumped),
    Kind("two processes, one output", rivals.two, may_be_lost=0),
    Kind("server stalls, hangs up, garbage, 429, 500, 503", endpoint.flaky, (Asked,), may_be_lost=0),
    Kind("server is out for good", endpoint.out, (Asked,), may_be_lost=2),
]


@dataclass
class Row:
    """A fault and a command in the table: faults that struck, what was lost by one at most, and how the runs ended."""

    fault: str
    command: str
    unit: str
    may_be_lost: int
    times: int = 0
    lost_at_most: int = 0
    refused: int = 0
    problems: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, kind: Kind, command: type[Command]) -> Row:
        most = command.in_flight if kind.may_be_lost is None else kind.may_be_lost
        return cls(kind.name, command.name, command.unit, most)

    def add(self, trial: Trial) -> None:
        self.times += trial.faults
        self.lost_at_most = max([self.lost_at_most, *trial.lost])
        self.refused += trial.refused
        self.problems += trial.problems
        if self.lost_at_most > self.may_be_lost:
            self.problems.append(f"lost {self.lost_at_most} {self.unit}")


def cell(kind: Kind, command: type[Command], times: int, seed: int, folder: Path) -> Row:
    """One kind until it has struck so often; chance depends on the seed and the cell alone."""
    row, bench = Row.of(kind, command), _bench(folder / str(os.getpid()))
    bench.random.seed(f"{seed} {kind.name} {command.name}")
    for _ in range(3 * times if kind.needs() else 0):  # some strike when all is done
        if row.times < times:
            row.add(kind.trial(bench, command))
    return row


def _numbered(number: int, command: type[Command], times: int, seed: int, folder: Path) -> Row:
    """`cell`, for another process: a kind has functions that cannot be sent there."""
    return cell(KINDS[number], command, times, seed, folder)


@cache
def _bench(folder: Path) -> Bench:
    return Bench(folder)


def table(rows: list[Row]) -> str:
    """As Markdown."""
    lines = ["| fault | command | times | refused | lost by one fault, at most | wrong |", "|---|---|---|---|---|---|"]
    for row in rows:
        lost = f"{row.lost_at_most} {row.unit}" if row.times else "not tried"
        cells = (row.fault, row.command, row.times, row.refused, lost, len(row.problems))
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--times",
        type=int,
        default=2,
        help="faults of each kind, with each command, for searches; sweeps get twice and prunes four times as many",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="trials at a time")
    parser.add_argument("--only", default="", help="kinds whose name has this")
    parser.add_argument("--out", type=Path, help="where the figures go, as JSON")
    parser.add_argument("--folder", type=Path, help="where to work; trials that went wrong stay there")
    given = parser.parse_args()
    if given.folder:
        given.folder.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=given.folder, prefix="faults-"))
    begun = time.monotonic()

    def tell(row: Row) -> None:
        print(f"{time.monotonic() - begun:5.0f} s  {row.fault} | {row.command}: {row.times}, lost {row.lost_at_most}, "
              f"refused {row.refused}, wrong {len(row.problems)}", *row.problems[:3], sep="\n    ", file=sys.stderr,
              flush=True)  # fmt: skip

    cells = [(kind, command) for kind in KINDS for command in kind.commands if given.only.lower() in kind.name.lower()]
    rows = []
    with ProcessPoolExecutor(given.jobs, get_context("fork")) as pool:
        asked = [pool.submit(_numbered, KINDS.index(kind), command, given.times * command.weight, given.seed, folder)
                 for kind, command in cells]  # fmt: skip
        for waiting in asked:
            rows.append(waiting.result())
            tell(rows[-1])
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True).stdout.strip()
    record = {
        "command": shlex.join(["python", "tests/faults/campaign.py", *sys.argv[1:]]),
        "seed": given.seed,
        "commit": commit,
        "faults": sum(row.times for row in rows),
        "wrong": sum(len(row.problems) for row in rows),
        "seconds": round(time.monotonic() - begun),
        "rows": [asdict(row) for row in rows],
    }
    print(table(rows))
    print(f"{record['faults']} faults, {record['wrong']} wrong, {record['seconds']} s")
    if given.out:
        given.out.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    sys.exit(1 if record["wrong"] else 0)


if __name__ == "__main__":
    main()
