"""The demonstration: SmolLM2-135M pruned two ways, measured, and saved, without network or text.

The model writes its own calibration text, and with another seed the text on which all are measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from autoprune.api import prune
from autoprune.evaluate import Evaluation, evaluate_tokens
from autoprune.files import check_output
from autoprune.generate import Sampling, self_calibration
from autoprune.models import DEMO, open_model
from autoprune.progress import Progress

ALGORITHMS = ("magnitude", "wanda")
SPARSITY = 0.6
CALIBRATION_SEQUENCES, HELD_OUT_SEQUENCES, LENGTH = 32, 16, 256
SEED, HELD_OUT_SEED = 0, 1


@dataclass(frozen=True)
class DemoRow:
    """A line of the table; `folder` is empty for the dense model."""

    name: str
    sparsity: float
    evaluation: Evaluation
    folder: str = ""


def run_demo(out: Path, *, force: bool, progress: Progress) -> list[DemoRow]:
    """Prune the demo model at 60 % with each algorithm into `out`/NAME; the dense model is the first row."""
    for name in ALGORITHMS:
        check_output(out / name, force=force)
    progress.stage("opening the demo model", 1)
    dense = open_model(DEMO)
    sampling = Sampling(sequences=HELD_OUT_SEQUENCES, length=LENGTH, seed=HELD_OUT_SEED)
    progress.stage("the dense model writes a text to measure on", HELD_OUT_SEQUENCES * (LENGTH - 1))
    held_out_BL = self_calibration(dense.model, dense.tokenizer, sampling, progress.advance)

    def measured(model: object) -> Evaluation:
        progress.stage("measuring", len(held_out_BL))
        return evaluate_tokens(model, held_out_BL, against=dense.model, on_sequence=lambda: progress.advance(1))

    rows = [DemoRow("dense", 0.0, measured(dense.model))]
    for name in ALGORITHMS:
        folder = out / name
        report = prune(
            DEMO,
            algorithm=name,
            sparsity=SPARSITY,
            sequences=CALIBRATION_SEQUENCES,
            length=LENGTH,
            seed=SEED,
            out=folder,
            force=force,
            progress=progress,
        )
        # what was written is what is measured
        rows.append(DemoRow(name, report.sparsity, measured(open_model(folder).model), str(folder)))
    return rows
