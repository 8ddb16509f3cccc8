"""The fault campaign, in short: every kind of fault strikes once. `make faults` is the long one (docs/faults.md)."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("openai")
if not hasattr(os, "fork"):
    pytest.skip("needs fork", allow_module_level=True)

from faults.campaign import KINDS, Kind, Row
from faults.commands import Command, Replace, Search, Sweep
from faults.trial import Bench

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

MORE = {
    "kill -9 before a change of the disk": (Replace, Sweep),
    "disk full (small tmpfs)": (Search,),
    "file size limit (RLIMIT_FSIZE)": (Search,),
    "bit flipped in journal, archive or sweep.jsonl": (Search, Sweep),
}
CASES = [(kind, command) for kind in KINDS for command in (kind.commands[0], *MORE.get(kind.name, ()))]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("faults"), seed=0)


@pytest.mark.parametrize(
    ("kind", "command"), CASES, ids=[f"{kind.name}: {command.__name__}" for kind, command in CASES]
)
def test_nothing_is_lost_but_the_step_in_flight(kind: Kind, command: type[Command], bench: Bench):
    if not kind.needs():
        pytest.skip("not possible here")
    row = Row.of(kind, command)
    row.add(kind.trial(bench, command))
    assert not row.problems, row.problems[0]
