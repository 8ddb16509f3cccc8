"""What the page shows of one thing: a prune, a diagnosis, a sweep, a search."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from autoprune.figures.picture import Picture, Table

T = TypeVar("T")


def short_name(model: str) -> str:
    """A model as a title names it: the last part of a path or hub id."""
    return model.rstrip("/").rsplit("/", 1)[-1]


DAMAGED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)
"""What reading a record raises that is not as it was written."""


class Parts:
    """Makes the parts of a section one by one: what cannot be made is told in `missing`, and the rest is shown."""

    def __init__(self, missing: Sequence[str] = ()):
        self.missing = list(missing)

    def attempt(self, what: str, make: Callable[[], T], otherwise: T) -> T:
        try:
            return make()
        except DAMAGED as error:
            self.missing.append(f"{what} cannot be shown: the record is damaged ({type(error).__name__}: {error}).")
            return otherwise


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page; what it lacks is not shown. `missing` says what could not be read, or was not finished;
    `graph` is the data of an interactive graph (see `report.graph`), `samples` that of texts (see `report.samples`)."""

    kind: str
    title: str
    says: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    missing: Sequence[str] = ()
    commands: Mapping[str, str] = field(default_factory=dict)
    programs: Mapping[str, str] = field(default_factory=dict)
    graph: Mapping[str, Any] | None = None
    samples: Sequence[Any] = ()
    samples_say: str = ""
    notes: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
