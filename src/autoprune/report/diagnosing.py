"""How the layers of a model differ."""

from __future__ import annotations

from autoprune.diagnosis import Diagnosis
from autoprune.figures.diagnosing import pictures
from autoprune.report.section import Section, short_name


def diagnosing(diagnosis: Diagnosis) -> Section:
    """The section of a diagnosis."""
    return Section(
        kind="diagnosis",
        title=f"How the layers of {short_name(diagnosis.model)} differ",
        facts={
            "Model": diagnosis.model,
            "Blocks": f"{len(diagnosis.blocks)}, with {len(diagnosis.linears)} linear layers",
            "Allocation": f"{diagnosis.allocation} at {diagnosis.target:.0%}",
        },
        pictures=pictures(diagnosis),
    )
