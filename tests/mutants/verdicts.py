"""What each gate of the language says of a text, as the modules are that are in place now."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from unsafe_programs import ACCEPTED, FITTING, FREEZES, INSIDE, OUTSIDE, REFUSED, SENSELESS, SENSIBLE, UNFITTING

DIGESTS = Path(__file__).parent.parent / "golden" / "digests.json"
"""Of the programs that are accepted: results are kept under them."""


@dataclass(frozen=True)
class Case:
    """A text that a gate is asked about: "language"; "space" and "fitted", with what is frozen and whether n:m as an
    option; "freeze"; "flaws", with where weights compete."""

    gate: str
    text: str
    option: tuple[str, bool] | str = ""


@dataclass(frozen=True)
class Verdict:
    """`passed` is None where the checker failed itself. `what` is the digest of what passes, the reason of what does
    not, the name of the error of a failure."""

    passed: bool | None
    what: str

    def differs(self, real: Verdict) -> str:
        """How it is worse than the real one: "lets through", "fails", "refuses", "changes"; "" where it is not.
        Another reason for a refusal is no difference."""
        if self.passed is None:
            return "" if real.passed is None else "fails"
        if self.passed and not real.passed:
            return "lets through"
        if real.passed and not self.passed:
            return "refuses"
        return "changes" if self.passed and self.what != real.what else ""


def verdict(case: Case) -> Verdict:
    from autoprune.errors import AutopruneError

    try:
        return _GATES[case.gate](case)
    except AutopruneError as error:
        return Verdict(False, error.what)
    except Exception as error:  # a checker that fails is what is looked for
        return Verdict(None, type(error).__name__)


def _language(case: Case) -> Verdict:
    from autoprune.language.reader import read_program

    program = read_program(case.text)
    return Verdict(True, f"{program.digest} {program.doc}")


def _space(case: Case) -> Verdict:
    from autoprune.language.reader import read_program
    from autoprune.language.space import Space

    assert not isinstance(case.option, str)
    freeze, pattern = case.option
    space, program = Space.of(freeze, pattern=pattern), read_program(case.text)
    refusal, fitted = space.refusal(program), space.fitted(program)
    return Verdict(not refusal, refusal or f"{program.digest} {fitted and fitted.digest}")


def _fitted(case: Case) -> Verdict:
    from autoprune.language.reader import read_program
    from autoprune.language.space import Space

    assert not isinstance(case.option, str)
    freeze, pattern = case.option
    fitted = Space.of(freeze, pattern=pattern).fitted(read_program(case.text))
    return Verdict(fitted is not None, fitted.canonical.replace("\n\n", "\n") if fitted else "")


def _freeze(case: Case) -> Verdict:
    from autoprune.language.space import Space

    return Verdict(True, repr(Space.of(case.text)))


def _flaws(case: Case) -> Verdict:
    from autoprune.language.flaws import flaws
    from autoprune.language.reader import read_program

    found = list(flaws(read_program(case.text).functions, str(case.option)))
    return Verdict(not found, "; ".join(found))


_GATES: dict[str, Callable[[Case], Verdict]] = {
    "language": _language,
    "space": _space,
    "fitted": _fitted,
    "freeze": _freeze,
    "flaws": _flaws,
}


@dataclass(frozen=True)
class Row:
    """A case of the table, and what has to be said of it; the reason is a part of the words, or the digest."""

    case: Case
    passed: bool
    reason: str = ""

    def holds(self, verdict: Verdict) -> bool:
        return verdict.passed is self.passed and self.reason in verdict.what


def table() -> dict[str, Row]:
    """The rows of `unsafe_programs`, by gate and name."""
    rows = {f"refused: {name}": Row(Case("language", text), False, why) for name, (text, why) in REFUSED.items()}
    digests = json.loads(DIGESTS.read_text("utf-8"))
    rows |= {f"accepted: {name}": Row(Case("language", text), True, digests[name]) for name, text in ACCEPTED.items()}
    for name, (freeze, pattern, text, why) in OUTSIDE.items():
        rows[f"outside: {name}"] = Row(Case("space", text, (freeze, pattern)), False, why)
    for name, (freeze, pattern, text) in INSIDE.items():
        rows[f"inside: {name}"] = Row(Case("space", text, (freeze, pattern)), True)
    for name, (freeze, pattern, text) in UNFITTING.items():
        rows[f"unfitting: {name}"] = Row(Case("fitted", text, (freeze, pattern)), False)
    for name, (freeze, pattern, text, made) in FITTING.items():
        rows[f"fitting: {name}"] = Row(Case("fitted", text, (freeze, pattern)), True, made)
    rows |= {f"freeze: {text}": Row(Case("freeze", text), False, why) for text, why in FREEZES.items()}
    for name, (text, compare, why) in SENSELESS.items():
        rows[f"senseless: {name}"] = Row(Case("flaws", text, compare), False, why)
    for name, (text, compare) in SENSIBLE.items():
        rows[f"sensible: {name}"] = Row(Case("flaws", text, compare), True)
    return rows
