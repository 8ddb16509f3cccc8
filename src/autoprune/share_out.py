"""The sparsity of every linear layer of a model, by any allocation, and the record of how it came about."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from autoprune.allocate import shares
from autoprune.allocation import AUTO, UNIFORM, Allocation
from autoprune.auto import choose
from autoprune.language import Program
from autoprune.layer import Method
from autoprune.layer_statistics import group_name
from autoprune.measurements import Measurements, Unpruned
from autoprune.models import BlockSource
from autoprune.progress import Progress
from autoprune.sparsity import Target


def share_out(
    source: BlockSource,
    program: Program,
    method: Method,
    target: Target,
    allocation: Allocation,
    tokens_BL: Tensor | None,
    propagation: str,
    progress: Progress,
    unpruned: Unpruned | None = None,
) -> tuple[list[float] | None, dict[str, Any]]:
    """The sparsity of every linear layer (None where it is uniform), and what is recorded of how it came about.
    `unpruned` is for several calls with the same model and text."""
    record: dict[str, Any] = {"name": allocation.name}
    if allocation.is_named(UNIFORM) or target.fraction == 0:  # nothing to share out
        return None, record
    record |= {name: getattr(allocation, name) for name in ("granularity", "max_shift", "least_kept")}
    if allocation.tape:
        record |= {name: getattr(allocation, name) for name in ("strength", "temperature", "digest", "text")}
    measurements = Measurements(
        source, method, target, tokens_BL, judge=allocation.needs_judge, progress=progress, unpruned=unpruned
    )
    judged, bounds = measurements.judged, (allocation.max_shift, allocation.least_kept)
    at = "" if judged == target else f" at {float(judged.fraction):.1%}, where masks alone harm layers as much"
    record |= {"judged_at": float(judged.fraction)} if allocation.needs_judge else {}
    if allocation.is_named(AUTO):
        own = Allocation.of(program) if program.allocate else None
        choice = choose(measurements, allocation, own, propagation)
        uniform = next(row for row in reversed(choice.tried) if row["allocation"] == UNIFORM)
        progress.note(
            f"auto: {choice.name} (KL {choice.damage:.3f} nats/token in one-shot trials{at}; "
            f"uniform {uniform['kl_nats_per_token']:.3f})"
        )
        sparsity_N = measurements.at_target(choice.sparsity_N, "linear", *bounds)
        return list(sparsity_N), record | {"chosen": choice.name, "tried": choice.tried}
    found = shares(allocation, measurements)
    groups = measurements.groups(allocation.granularity)
    sparsity_L = measurements.at_target(found.sparsity_L, allocation.granularity, *bounds)
    record["layers"] = [
        {"name": group_name(group), "sparsity": float(share)}
        | {name: float(values[index]) for name, values in found.statistics.items()}
        for index, (group, share) in enumerate(zip(groups, sparsity_L, strict=True))
    ]
    return list(measurements.per_linear(sparsity_L, allocation.granularity)), record
