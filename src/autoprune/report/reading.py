"""What a path holds: a prune (also an unfinished one), a diagnosis, a sweep or a search; or what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from autoprune.card import command
from autoprune.diagnosis import Diagnosis
from autoprune.discover import ARCHIVE
from autoprune.errors import AutopruneError
from autoprune.files import SIDECAR
from autoprune.journal import folder_of, steps_of
from autoprune.report.diagnosing import diagnosing
from autoprune.report.pruning import pruning
from autoprune.report.searching import searching
from autoprune.report.section import DAMAGED, Section
from autoprune.report.sweeping import sweeping
from autoprune.scoring.scorer import FRESH, RUNGS
from autoprune.sweeps import LINES, read_sweep

WANTED = "give the --out of prune or diagnose, or the --run of search or sweep"


def record_of(path: Path) -> dict[str, Any] | None:
    """The record of a finished prune or diagnosis in a folder; None where there is none. Refused where it cannot be
    read."""
    file = path if path.name == SIDECAR else path / SIDECAR
    try:
        record = json.loads(file.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise AutopruneError(
            f"cannot be read ({error})", where=str(file), remedy="prune again, or restore it"
        ) from None
    if isinstance(record, dict) and "figures_of" in record:
        raise AutopruneError("are the figures of a page", where=str(path), remedy=WANTED)
    if not isinstance(record, dict) or not ({"layers", "diagnosis"} & set(record)):
        raise AutopruneError("is not a record of autoprune", where=str(file), remedy=WANTED)
    return record


def read(path: Path) -> Section:
    """The section of what a path holds. Raises AutopruneError where nothing of it can be shown."""
    try:
        if (record := record_of(path)) is not None:
            return diagnosing(_diagnosis(record)) if "diagnosis" in record else pruning(record)
        if (archive := path if path.name == ARCHIVE else path / ARCHIVE).is_file():
            return searching(archive, RUNGS, FRESH)
        folder = path.parent if path.name == LINES else path
        if (folder / LINES).is_file():
            return sweeping(read_sweep(folder))
        if folder_of(path).is_dir():
            return _unfinished(path)
    except AutopruneError:
        raise
    except DAMAGED as error:
        reason = f"its record is not as autoprune writes it ({type(error).__name__}: {error})"
        raise AutopruneError(reason, where=str(path), remedy="make it again with this version") from None
    if not path.exists():
        raise AutopruneError("there is nothing at this path", where=str(path), remedy=WANTED)
    empty = path.is_dir() and not any(path.iterdir())
    what = "the folder is empty" if empty else "no prune, diagnosis, sweep or search"
    raise AutopruneError(what, where=str(path), remedy=WANTED)


def _diagnosis(record: Mapping[str, Any]) -> Diagnosis:
    found = dict(record["diagnosis"])
    found.pop("mean_skewness", None)
    return Diagnosis(**found)


def _unfinished(path: Path) -> Section:
    """A prune that was ended: the blocks that its journal has."""
    head, *steps = steps_of(path) or [{}]
    if "fingerprint" not in head:
        raise AutopruneError("an unfinished prune without a journal", where=str(folder_of(path)), remedy="prune again")
    plan = next((step for step in steps if step.get("step") == "plan"), None)
    if plan is None:
        raise AutopruneError("a prune that was ended before its first block", where=str(path), remedy="prune again")
    blocks = [step for step in steps if step.get("step") == "block"]
    layers = [
        {**layer, "sparsity": {"achieved": layer["zeros"] / (layer["shape"][0] * layer["shape"][1])}}
        for step in blocks
        for layer in step["layers"]
    ]
    asked = head["fingerprint"]
    record = {
        "model": plan["model"],
        "algorithm": plan["algorithm"],
        "allocation": plan["shared"],
        "method": asked["method"],
        "target": asked["target"],
        "settings": asked["settings"],
        "layers": layers,
        "blocks": [step["cost"] for step in blocks],
    }
    said = f"Unfinished: {len(blocks)} blocks are pruned. The command below continues it."
    return replace(pruning(record, missing=[said]), commands={"To continue": command(record, str(path))})
