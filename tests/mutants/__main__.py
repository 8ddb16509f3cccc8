"""All mutants, and the table of what became of them. It fails where one lets an unsafe program through, or breaks down
at one, and no ordinary test notices."""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from mutants.edits import edits
from mutants.judge import BAD, DANGEROUS, Found, Mutant, by_tests, by_verdicts
from mutants.loading import tree_of
from mutants.programs import drawn
from mutants.workers import each

NUMBERS = frozenset(
    {"_held", "_divide", "_power", "_compare", "_sum", "_mean", "_std", "_norm", "_quantile", "_median", "__call__"}
    | {"_standardize", "_minmax", "_rank", "_cumulative_sum", "_matmul", "LIMIT", "_LOG1P_FLOOR"}
)
"""What operators compute: no program is refused for it, and each has an oracle in float64 of its own."""

MODULES: dict[str, frozenset[str]] = {
    "parse": frozenset(),
    "program": frozenset(),
    "reader": frozenset(),
    "types": frozenset(),
    "check": frozenset(),
    "canonical": frozenset(),
    "operators": NUMBERS,
    "statistics": frozenset(),
    "space": frozenset(),
    "flaws": frozenset(),
}
"""What decides on a program, and what is left alone there."""

QUICK = ("test_unsafe_programs.py", "test_language.py")
SLOW = (*QUICK, "test_hostile_replies.py", "test_sample.py", "test_algorithms.py", "test_grammar.py")


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="mutants", description=__doc__)
    parser.add_argument("modules", nargs="*", choices=[*MODULES, []], help="of src/autoprune/language; all if none")
    parser.add_argument("--seed", type=int, default=0, help="of the programs that are drawn")
    parser.add_argument("--programs", type=int, default=1500, help="how many are drawn")
    parser.add_argument("--share", type=float, default=1.0, help="of the mutants, drawn evenly: for a quick look")
    parser.add_argument("--all-tests", action="store_true", help="also for mutants that no program tells from harmless")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, help="a line of JSON for each verdict; who was noticed is not judged again")
    given = parser.parse_args(arguments)
    mutants = [mutant for name in given.modules or MODULES for mutant in _mutants(name)]
    mutants = random.Random(given.seed).sample(mutants, round(given.share * len(mutants)))
    control = replace(mutants[0], edit=None)
    known = _read(given.out) if given.out and given.out.exists() else {}
    found = {one: known[str(one)] for one in mutants if str(one) in known and known[str(one)].noticed}
    for one, verdict in judged(mutants, control, found, given):
        found[one] = verdict
        if given.out:
            with given.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"mutant": str(one), **asdict(verdict)}) + "\n")
    if found[control] != Found(""):
        print(f"without any mistake there is one: {found[control]}")
        return 2
    print(_table({one: found[one] for one in mutants}))
    bad = [f"{one}\n    {found[one].example}" for one in mutants if _is_bad(found[one])]
    print(*bad, sep="\n")
    return bool(bad)


def _read(path: Path) -> dict[str, Found]:
    """The last verdict of each mutant."""
    records = map(json.loads, path.read_text("utf-8").splitlines())
    return {record.pop("mutant"): Found(**record) for record in records}


def _mutants(name: str) -> list[Mutant]:
    module = f"autoprune.language.{name}"
    spec = find_spec(module)
    assert spec
    assert spec.origin
    path = Path(spec.origin)
    return [Mutant(module, path, at, edit) for at, edit in enumerate(edits(tree_of(path), MODULES[name]))]


def judged(
    mutants: Sequence[Mutant], control: Mutant, known: Mapping[Mutant, Found], given: argparse.Namespace
) -> Iterator[tuple[Mutant, Found]]:
    """By the table and by drawn programs; who is left and dangerous, by the ordinary tests, the quick ones first. The
    last verdict on a mutant counts."""
    import hypothesis  # noqa: F401
    import pytest  # noqa: F401
    import torch

    import tiny  # noqa: F401 - what is imported now need not be imported in each process

    torch.set_num_threads(1)
    cases = drawn(given.seed, given.programs)
    print(f"{len(mutants)} mutants; {sum(real.passed is False for _, real in cases)} drawn programs to refuse")
    found: dict[Mutant, Found] = {}
    asked = [control, *(one for one in mutants if one not in known)]
    for one, result in each({one: partial(by_verdicts, one, cases) for one in asked}, given.workers):
        found[one] = result if isinstance(result, Found) else Found(f"table: {result}")
        yield one, found[one]
    for files, which, limit_s in ((QUICK, "not hypothesis", 120), (SLOW, "not real", 1200)):
        every = given.all_tests and files is QUICK
        left = [one for one in asked[1:] if not found[one].noticed and (every or found[one].kind in BAD)]
        left += [control] * bool(left)
        jobs = {one: partial(by_tests, one, files, which, limit_s) for one in left}
        for one, result in each(jobs, given.workers):
            noticed = result.noticed if isinstance(result, Found) else str(result)
            found[one] = replace(found[one], noticed=noticed)
            yield one, found[one]


def _is_bad(found: Found) -> bool:
    return found.kind in BAD and not found.noticed


def _table(found: Mapping[Mutant, Found]) -> str:
    """A line for each module: mutants; noticed by the table, by another test; unnoticed and harmless, and not."""
    rows: dict[str, Counter[str]] = {}
    for mutant, one in found.items():
        how = "table" if one.noticed.startswith(("table", "import")) else "tests" if one.noticed else "left"
        row = rows.setdefault(mutant.path.stem, Counter())
        row.update(["mutants", "bad" if _is_bad(one) else how, f"would {one.kind}"])
    columns = ("mutants", "table", "tests", "left", "bad", f"would {DANGEROUS}")
    heads = (
        "mutants",
        "killed by the table",
        "killed by other tests",
        "alive, harmless",
        "alive, dangerous",
        "seen to",
    )
    total = sum(rows.values(), Counter())
    lines = [f"| module | {' | '.join(heads)} {DANGEROUS} |", f"|---|{'---|' * len(heads)}"]
    for name, row in [*((f"`{name}.py`", row) for name, row in sorted(rows.items())), ("all", total)]:
        lines.append(f"| {name} | " + " | ".join(str(row[column]) for column in columns) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
