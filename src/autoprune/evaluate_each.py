"""Several models on the same text and the same tasks, one after another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from autoprune.data import check_size, check_source
from autoprune.errors import AutopruneError
from autoprune.evaluation import Evaluation, evaluate_tokens
from autoprune.inputs import (
    check_length,
    check_vocabulary,
    evaluation_mode,
    evaluation_tokens,
    opened_model,
    require_same_vocabulary,
)
from autoprune.models import OpenModel
from autoprune.progress import Progress, Silent
from autoprune.tasks import TaskResult, check_sizes, task_names


def evaluate_each(
    models: Sequence[Any],
    *,
    data: str | None = None,
    tasks: str | Sequence[str] = (),
    tokenizer: Any = None,
    length: int | None = None,
    sequences: int | None = None,
    shots: int = 0,
    limit: int | None = None,
    batch: int | str | None = None,
    against: Any = None,
    bos: str = "auto",
    dtype: str = "auto",
    device: str = "auto",
    progress: Progress | None = None,
) -> Iterator[Evaluation]:
    """The figures of each model as soon as they are known, compared with `against`, or else with the first model.

    Arguments as in `autoprune.evaluate`. One model is open at a time; where a text is given, the reference too.
    """
    progress = progress or Silent()
    names = task_names(tasks) if tasks else []
    if data is None and not names:
        raise AutopruneError("nothing to evaluate on", remedy="give --data, --tasks or both")
    if data is not None:
        check_source(data)
        check_size(sequences, 2 if length is None else length)
    check_sizes(shots, limit, batch)
    harness = _harness() if names else None
    loaded = harness.load(names, shots=shots, progress=progress) if harness else {}

    def at_tasks(opened: OpenModel) -> tuple[TaskResult, ...]:
        if harness is None:
            return ()
        _require_tokenizer(opened)
        with evaluation_mode(opened.model):
            return harness.measure(opened, loaded, limit=limit, batch=batch, progress=progress)

    def on_text(opened: OpenModel, reference: OpenModel | None, source: str, length: int | None) -> Evaluation:
        tokens_BL, _ = evaluation_tokens(opened, source, sequences, length, bos)
        if reference:
            _require_same_tokens(reference, opened, tokens_BL)
        other = reference.model if reference else None
        progress.stage(f"evaluating {opened.name}", len(tokens_BL))
        with evaluation_mode(opened.model), evaluation_mode(other or opened.model):
            return evaluate_tokens(opened.model, tokens_BL, against=other, on_sequence=lambda: progress.advance(1))

    reference, reference_tasks = None, None
    if against is not None:
        reference = opened_model(against, tokenizer, dtype, device, progress)
        reference_tasks = at_tasks(reference)
    for model in models:
        if data is None:
            reference = None  # its answers are known: room for the next one
        opened = opened_model(model, tokenizer, dtype, device, progress)
        evaluation = Evaluation()
        if data is not None:
            evaluation = on_text(opened, reference, data, length)
            length = evaluation.length  # the same for all
        results = at_tasks(opened)
        if reference_tasks is None:
            reference, reference_tasks = opened, results
        else:
            pairs = zip(results, reference_tasks, strict=True)
            results = tuple(own.compared_with(other) for own, other in pairs)
        yield replace(evaluation, tasks=results)
        del opened


def _harness() -> Any:
    """The file that knows lm-eval, which takes seconds to import."""
    try:
        from autoprune import harness
    except ImportError as error:
        raise AutopruneError(
            f"tasks need lm-eval ({error})", where="--tasks", remedy="run: pip install 'autoprune[tasks]'"
        ) from None
    return harness


def _require_tokenizer(opened: OpenModel) -> None:
    if opened.tokenizer is None:
        raise AutopruneError("evaluation needs the model's tokenizer", remedy="pass tokenizer=")


def _require_same_tokens(reference: OpenModel, opened: OpenModel, tokens_BL: Tensor) -> None:
    """Refuse two models of which one cannot read the other's tokens."""
    check_length(reference, tokens_BL.shape[1])
    require_same_vocabulary(reference, opened)
    check_vocabulary(reference.model, tokens_BL, reference.name)
