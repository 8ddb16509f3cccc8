"""One mutant: what it says otherwise than the real checker, and which ordinary test notices."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

from mutants.edits import Edit
from mutants.loading import put_in_place
from mutants.verdicts import Case, Verdict, table, verdict

TESTS = Path(__file__).parent.parent
LIMIT_S = 60
"""For the table and the drawn programs, which take less than one. A mutant that takes longer is noticed."""

DANGEROUS, FAILS = "lets through", "fails"
BAD = (DANGEROUS, FAILS)
_WORST = (*BAD, "refuses", "changes", "")


@dataclass(frozen=True)
class Mutant:
    module: str
    path: Path
    number: int
    edit: Edit | None
    """None changes nothing: by it, what judges is judged."""

    def __str__(self) -> str:
        what = f":{self.edit.line}: {self.edit.what}" if self.edit else " as it is"
        return f"{self.path.name}{what} (#{self.number})"


@dataclass(frozen=True)
class Found:
    """`noticed` is the test that fails, "" if there is none; `kind` how the worst verdict is worse, with an example."""

    noticed: str
    kind: str = ""
    example: str = ""


def by_verdicts(mutant: Mutant, drawn: list[tuple[Case, Verdict]]) -> Found:
    """By the table, which is an ordinary test; what the table does not notice, also by drawn programs."""
    signal.alarm(LIMIT_S)
    put_in_place(mutant.module, mutant.path, mutant.edit, "autoprune.language")
    try:
        import autoprune.language.flaws
        import autoprune.language.reader  # noqa: F401
    except Exception as error:  # it cannot even be imported
        return Found(f"import: {type(error).__name__}")
    for name, row in table().items():
        said = verdict(row.case)
        if not row.holds(said):
            return Found(f"table: {name}", said.differs(Verdict(row.passed, row.reason)))
    worst = Found("")
    for case, real in drawn:
        if case.gate != "flaws" or "flaws" in mutant.module:
            worst = _worse(worst, verdict(case).differs(real), case)
            if worst.kind == DANGEROUS:
                break
    return worst


def _worse(worst: Found, kind: str, case: Case) -> Found:
    if _WORST.index(kind) < _WORST.index(worst.kind):
        return Found("", kind, f"{case.gate} {case.option}: {case.text[:300]!r}")
    return worst


def by_tests(mutant: Mutant, files: tuple[str, ...], which: str, limit_s: int) -> Found:
    """By the ordinary tests of some files, until the first that fails."""
    import pytest

    signal.alarm(limit_s)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    put_in_place(mutant.module, mutant.path, mutant.edit, "autoprune", "test_", "conftest", "tiny", "mutants.verdicts")
    failures = _Failures()
    options = ["-x", "-q", "-n0", "-p", "no:cacheprovider", "--assert=plain", "-m", which]
    code = pytest.main([*options, *(str(TESTS / file) for file in files)], plugins=[failures])
    return Found(failures.first or (f"pytest ended with {int(code)}" if code else ""))


class _Failures:
    def __init__(self):
        self.first = ""

    def pytest_runtest_logreport(self, report) -> None:
        if report.failed:
            self.first = self.first or report.nodeid.rpartition("/")[2]

    def pytest_collectreport(self, report) -> None:
        if report.failed:
            self.first = self.first or f"{report.nodeid} cannot be collected"
