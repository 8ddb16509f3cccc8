"""What the page shows of one thing: a prune, a diagnosis, a sweep, a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from autoprune.figures.picture import Picture, Table


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
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
