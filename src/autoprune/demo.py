"""The demonstration: SmolLM2-135M pruned two known ways and one of its own design, measured, and saved, without network
or text.

The model writes its own calibration text, and with another seed the text on which all are measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from autoprune.api import prune
from autoprune.discover import discover
from autoprune.evaluation import Evaluation, evaluate_tokens
from autoprune.files import check_output
from autoprune.generate import Sampling, self_calibration
from autoprune.models import DEMO, open_model
from autoprune.progress import Progress
from autoprune.search.loop import Watch

ALGORITHMS = ("magnitude", "wanda")
SPARSITY = 0.6
CALIBRATION_SEQUENCES, HELD_OUT_SEQUENCES, LENGTH = 32, 16, 256
SEED, HELD_OUT_SEED = 0, 1

DISCOVERED, SEARCH = "discovered", "search"
EVALUATIONS, SEARCH_SEQUENCES, SEARCH_LENGTH = 20, 16, 128
FROZEN = "update=none,refine=none,allocate=uniform"  # as the two it is compared with, and so that it is done in minutes


@dataclass(frozen=True)
class DemoRow:
    """A line of the table; `folder` is empty for the dense model."""

    name: str
    sparsity: float
    evaluation: Evaluation
    folder: str = ""


def run_demo(out: Path, *, force: bool, progress: Progress, watch: Watch) -> list[DemoRow]:
    """Prune the demo model at 60 % with each algorithm, and with one that the model itself designs in a short search,
    into `out`/NAME; the dense model is the first row."""
    for name in (*ALGORITHMS, DISCOVERED):
        check_output(out / name, force=force)
    progress.stage("opening the demo model", 1)
    dense = open_model(DEMO)
    sampling = Sampling(sequences=HELD_OUT_SEQUENCES, length=LENGTH, seed=HELD_OUT_SEED)
    progress.stage("the dense model writes a text to measure on", HELD_OUT_SEQUENCES * (LENGTH - 1))
    held_out_BL = self_calibration(dense.model, dense.tokenizer, sampling, progress.advance)

    def measured(model: object) -> Evaluation:
        progress.stage("measuring", len(held_out_BL))
        return evaluate_tokens(model, held_out_BL, against=dense.model, on_sequence=lambda: progress.advance(1))

    def pruned(name: str, algorithm: str | Path) -> DemoRow:
        folder = out / name
        report = prune(
            DEMO,
            algorithm=algorithm,
            sparsity=SPARSITY,
            sequences=CALIBRATION_SEQUENCES,
            length=LENGTH,
            seed=SEED,
            out=folder,
            force=force,
            progress=progress,
        )
        # what was written is what is measured
        return DemoRow(name, report.sparsity, measured(open_model(folder).model), str(folder))

    rows = [DemoRow("dense", 0.0, measured(dense.model)), *(pruned(name, name) for name in ALGORITHMS)]
    found = discover(
        DEMO,
        run=out / SEARCH,
        evaluations=EVALUATIONS,
        sparsity=SPARSITY,
        sequences=SEARCH_SEQUENCES,
        length=SEARCH_LENGTH,
        seed=SEED,
        freeze=FROZEN,
        progress=progress,
        watch=watch,
    )
    if found.winner:
        rows.append(pruned(DISCOVERED, found.winner))
    return rows
