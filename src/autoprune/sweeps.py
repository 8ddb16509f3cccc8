"""How perplexity and divergence grow with the sparsity, algorithm by algorithm: the figures behind the curves of every
paper on pruning.

Each point, an algorithm at a target, is the model pruned as `prune` would prune it with the same settings, and measured
against the unpruned model on one text. RUN/sweep.jsonl has a line for all that is finished, so that the same call goes
on after any end of the process, and one with more algorithms or sparsities adds what is missing. What depends on the
unpruned model alone is computed once: calibration text, gradients, statistics for allocations, and with propagation
dense the walk over the blocks. With one_pass and block a layer's inputs depend on what was pruned before it, so that
each point takes a walk of its own.

In memory are the unpruned model and one copy of it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from autoprune.algorithms import load
from autoprune.api import choose_allocation, versions
from autoprune.bench import Bench, Cell, Measured
from autoprune.data import check_source
from autoprune.errors import AutopruneError
from autoprune.evaluation import Evaluation
from autoprune.files import exclusive, write_text, writing_to
from autoprune.inputs import SELF, calibration_tokens, evaluation_mode, evaluation_tokens, opened_model
from autoprune.language import Program
from autoprune.layer import Method
from autoprune.lines import Lines, as_line, difference, read_lines
from autoprune.models import fingerprint, input_device
from autoprune.progress import Progress, Silent
from autoprune.prune_blocks import Recipe
from autoprune.side_by_side import Pruning, can_share
from autoprune.sparsity import Target
from autoprune.stream import check_propagation

_FORMAT, _KIND = 1, "sweep"
LINES, _LOCK, _SOLVED = "sweep.jsonl", "sweep.lock", "solved"
_MOST = 1000  # targets of a range


@dataclass(frozen=True, kw_only=True)
class Point:
    """One algorithm at one target ("0.6" or "2:4"), measured; or the `error` that came instead, and nothing else.

    `sparsity` is the share of zeros over all prunable weights. Divergence (KL from the unpruned model), agreement of
    the likeliest token and the difference of the loss with its 95 % interval are those of `Evaluation`. `fallbacks`
    counts layers that could not be solved, and were pruned by score alone. `seconds` is what pruning and measuring
    took, without what was computed for all points.
    """

    algorithm: str
    hash: str
    target: str
    sparsity: float | None = None
    perplexity: float | None = None
    nats_per_token: float | None = None
    kl_nats_per_token: float | None = None
    top1_agreement: float | None = None
    difference_nats_per_token: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    fallbacks: int | None = None
    seconds: float | None = None
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types: the figures, or the error."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What a sweep has measured so far: the unpruned model (None where that is to come), and points in the order in
    which they were finished; `asked` are all that were wanted, without figures."""

    model: str
    settings: dict[str, Any]
    dense: Evaluation | None
    points: list[Point]
    asked: list[Point]
    damaged: int = 0

    @property
    def waiting(self) -> list[Point]:
        """What was wanted and is not measured yet."""
        finished = {(point.hash, point.target) for point in self.points}
        return [point for point in self.asked if (point.hash, point.target) not in finished]

    @property
    def names(self) -> dict[tuple[str, str], str]:
        """What to call each program, by its name and hash, in the order in which they come: a program file that was
        changed meanwhile is another one."""
        keys = list(dict.fromkeys((point.algorithm, point.hash) for point in self.points))
        known = [name for name, _ in keys]
        return {key: key[0] if known.count(key[0]) == 1 else f"{key[0]} {key[1][:6]}" for key in keys}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        dense = asdict(self.dense) if self.dense else None
        points = [point.to_dict() for point in self.points]
        return {"model": self.model, "settings": self.settings, "dense": dense, "points": points}


def sweep(
    model: Any,
    *,
    run: str | Path,
    data: str,
    algorithms: Sequence[str | Path | Program],
    sparsities: Sequence[float | str],
    tokenizer: Any = None,
    allocation: str | Path | Program | None = None,
    eval_sequences: int | None = None,
    eval_length: int | None = None,
    calibration: str = SELF,
    sequences: int | None = None,
    length: int | None = None,
    seed: int = 0,
    propagation: str = "one_pass",
    dtype: str = "auto",
    device: str = "auto",
    progress: Progress | None = None,
) -> Sweep:
    """Prune a model with each of `algorithms` to each of `sparsities`, and measure it on `data`, as `evaluate` does.

    `sparsities` are shares of weights to remove, ranges "0.3:0.8:0.1" or patterns "2:4" (see `targets`).
    `eval_sequences` (all) and `eval_length` are those of `data`. `allocation` is for all algorithms; without it each
    has its own. Other arguments as in `prune`; a live model is left as it is. What is finished is in the folder `run`:
    the same call goes on there, and one with more algorithms or sparsities adds them.
    Raises AutopruneError where nothing can be measured, and where `run` was begun with another model, text or settings;
    a point that cannot be pruned or measured is an error in its place.
    """
    progress, folder = progress or Silent(), Path(run)
    wanted = targets(sparsities)
    programs = [each if isinstance(each, Program) else load(each) for each in algorithms]
    if not programs:
        raise AutopruneError("no algorithm was given", remedy="name some, as in --algorithms wanda,sparsegpt")
    check_propagation(propagation)
    cells: dict[tuple[str, str], Cell] = {}
    for program in programs:
        method, sharing = Method.of(program), choose_allocation(allocation, program)
        if propagation == "dense":
            method = method.undamaged
        for target in wanted:
            cell = Cell(program, method, target, sharing)
            cells.setdefault(cell.key, cell)
    for text in {data, calibration} - {SELF}:
        check_source(text)
    if data == calibration:
        progress.note("measured on the text it is calibrated on, an algorithm that solves for weights looks too good")
    opened = opened_model(model, tokenizer, dtype, device, progress)
    eval_BL, judged_on = evaluation_tokens(opened, data, eval_sequences, eval_length, "auto", option="--eval-")
    tokens_BL, calibrated_on = calibration_tokens(opened, calibration, sequences, length, seed, progress)
    sharing = next(iter(cells.values())).sharing if allocation is not None else None
    head = {
        "format": _FORMAT,
        "kind": _KIND,
        "model": opened.name,
        "settings": {
            "data": judged_on,
            "calibration": calibrated_on,
            "allocation": asdict(replace(sharing, tape=None)) if sharing else None,
            "propagation": propagation,
            "seed": seed,
            "dtype": str(opened.model.dtype).removeprefix("torch."),
            "device": str(input_device(opened.model)),
        },
        "fingerprint": fingerprint(opened.model),
        "versions": versions(),
    }
    with evaluation_mode(opened.model), _begun(folder, head) as lines:
        bench = Bench(opened, tokens_BL, eval_BL, propagation, list(cells.values()), folder, progress)
        _measure(bench, lines, progress)
        return _swept(lines.found, lines.path)


def read_sweep(run: str | Path) -> Sweep:
    """What the folder of a sweep has, also of one that was ended or is at work."""
    path = Path(run) / LINES
    try:
        return _swept(read_lines(path), path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise AutopruneError(f"cannot read the sweep: {reason}", where=str(path), remedy="check the path") from None


def targets(sparsities: Sequence[float | str]) -> list[Target]:
    """The targets that are meant, each once: a number in [0, 1); "start:stop:step", in decimals, with `stop` where a
    step reaches it, so that 0.3:0.8:0.1 is 0.3, 0.4 and so on to 0.8; or a pattern "2:4"."""
    found: dict[str, Target] = {}
    for each in sparsities:
        for target in _targets(str(each).strip()):
            found.setdefault(str(target), target)
    if not found:
        raise AutopruneError("no sparsity was given", remedy="name some, as in --sparsities 0.3:0.8:0.1,2:4")
    return list(found.values())


def _targets(text: str) -> list[Target]:
    parts = text.split(":")
    if len(parts) == 2:
        return [Target.of(pattern=text)]
    try:
        numbers = [Decimal(part.strip()) for part in parts]
    except InvalidOperation:
        numbers = []
    if len(numbers) not in (1, 3) or not all(number.is_finite() for number in numbers):
        raise AutopruneError(
            f"'{text[:80]}' is neither a share of weights, nor a range, nor a pattern",
            where="--sparsities",
            remedy="write them as 0.5, 0.3:0.8:0.1 (start:stop:step) and 2:4, with commas between",
        )
    if len(numbers) == 1:
        return [Target.of(float(numbers[0]))]
    start, stop, step = numbers
    if step <= 0 or not 0 <= start <= stop < 1 or stop - start > step * _MOST:
        raise AutopruneError(
            f"'{text[:80]}' is no range of at most {_MOST} steps within [0, 1)",
            where="--sparsities",
            remedy="give start:stop:step, as in 0.3:0.8:0.1",
        )
    return [Target.of(float(start + step * index)) for index in range(int((stop - start) // step) + 1)]


def _measure(bench: Bench, lines: Lines, progress: Progress) -> None:
    """Measure the unpruned model, and all points that have no line yet."""

    def add(kind: str, **content: Any) -> None:
        with writing_to(lines.path):
            lines.add({kind: content})

    known = {_key(row) for row in _rows(lines.found, "asked")}
    for cell in bench.cells:
        if cell.key not in known:
            add("asked", **_names(cell))
    if not _rows(lines.found, "dense"):
        add("dense", **asdict(bench.dense()))
    finished = {_key(row) for row in _rows(lines.found, "point")}
    waiting = [cell for cell in bench.cells if cell.key not in finished]
    if waiting and finished:
        progress.note(f"continuing: {len(bench.cells) - len(waiting)} of {len(bench.cells)} points were finished")
    solved = _solved(bench, waiting, lines, add)
    for cell in waiting:
        name = f"{bench.cells.index(cell) + 1} of {len(bench.cells)}: {cell}"
        pruning = solved.get(cell.key)
        try:
            measured = bench.measure_solved(pruning, name) if pruning else bench.measure(cell, name)
        except AutopruneError as error:
            if isinstance(error.__cause__, OSError):  # a full disk says nothing about the point
                raise
            add("point", **_names(cell), error=str(error))
            progress.note(f"{cell}: {error}")
        else:
            add("point", **_names(cell), **_figures(measured, bench.weights))
            progress.note(f"{cell}: {_summary(measured)}")
        if pruning:
            pruning.file.unlink(missing_ok=True)
    shutil.rmtree(lines.path.parent / _SOLVED, ignore_errors=True)


def _solved(
    bench: Bench, waiting: Sequence[Cell], lines: Lines, add: Callable[..., None]
) -> dict[tuple[str, str], Pruning]:
    """Those of the points that can share a walk, solved: their weights wait in files. What an earlier run has solved
    and not measured is there already."""
    known = {_key(row): row for row in _rows(lines.found, "solved")}
    found: dict[tuple[str, str], Pruning] = {}
    new: list[Cell] = []
    for cell in waiting:
        if not can_share(cell.method, bench.propagation):
            continue
        file = lines.path.parent / _SOLVED / f"{cell.program.digest}-{str(cell.target).replace(':', 'of')}"
        row = known.get(cell.key)
        if row and file.is_file():
            recipe = Recipe(method=cell.method, target=cell.target, propagation=bench.propagation)
            found[cell.key] = Pruning(recipe=recipe, file=file, seconds=row["seconds"], fallbacks=row["fallbacks"])
            continue
        try:
            begun = time.perf_counter()
            recipe = bench.recipe(cell)
        except AutopruneError:  # it will be told when it is this point's turn
            continue
        found[cell.key] = Pruning(recipe=recipe, file=file, seconds=time.perf_counter() - begun)
        new.append(cell)
    if new:
        bench.solve([found[cell.key] for cell in new], new)
    for cell in new:
        if not (pruning := found[cell.key]).error:
            add("solved", **_names(cell), seconds=pruning.seconds, fallbacks=pruning.fallbacks)
    return found


def _names(cell: Cell) -> dict[str, str]:
    return {"algorithm": cell.program.name, "hash": cell.program.digest, "target": str(cell.target)}


def _key(row: Mapping[str, Any]) -> tuple[str, str]:
    """`Cell.key` of a line."""
    return row["hash"], row["target"]


def _figures(measured: Measured, weights: int) -> dict[str, Any]:
    evaluation, against = measured.evaluation, measured.evaluation.against
    assert against
    return {
        "sparsity": measured.zeros / weights,
        "perplexity": evaluation.perplexity,
        "nats_per_token": evaluation.nats_per_token,
        "kl_nats_per_token": against.kl_nats_per_token,
        "top1_agreement": against.top1_agreement,
        "difference_nats_per_token": against.difference_nats_per_token,
        "difference_low": against.difference_low,
        "difference_high": against.difference_high,
        "fallbacks": measured.fallbacks,
        "seconds": measured.seconds,
    }


def _summary(measured: Measured) -> str:
    against = measured.evaluation.against
    assert against
    fallbacks = f", {measured.fallbacks} layers by score alone" if measured.fallbacks else ""
    return f"perplexity {measured.evaluation.perplexity:.4g}, KL {against.kl_nats_per_token:.4f} nats/token{fallbacks}"


@contextmanager
def _begun(folder: Path, head: Mapping[str, Any]) -> Iterator[Lines]:
    """The lines of a sweep, new or one that goes on; refused where it was begun with something else."""
    path = folder / LINES
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder / _LOCK, "another sweep is at work in this folder"):
        with writing_to(folder):
            if not path.exists():
                write_text(path, as_line(head))
            found = read_lines(path)  # before `Lines`, which would mend what is something else's
            before = _head(found, path)
            if _swept(found, path).damaged:
                raise AutopruneError("the sweep is damaged", where=str(path), remedy="give another --run")
            lines = Lines(path)
        if other := difference(_content(before), _content(head)):
            raise AutopruneError(
                f"this sweep was begun with something else: {other}",
                where=str(path),
                remedy="give the same, or another --run",
            )
        try:
            yield lines
        except KeyboardInterrupt as interrupt:
            interrupt.add_note(f"what is finished is kept in {folder}; the same command continues it")
            raise


def _content(head: Mapping[str, Any]) -> dict[str, Any]:
    """What may not change while a sweep goes on."""
    return {"weights": head["fingerprint"], **head["settings"], "versions": head["versions"]}


def _head(lines: Sequence[dict[str, Any]], path: Path) -> dict[str, Any]:
    """The first line of a sweep; refused where there is none, or of another format."""
    if not lines and not path.exists():
        raise AutopruneError(
            "there is no sweep here", where=str(path.parent), remedy="give the --run of autoprune sweep"
        )
    if not lines or (lines[0].get("kind"), lines[0].get("format")) != (_KIND, _FORMAT):
        raise AutopruneError(
            "this is no sweep, or one of another version of autoprune",
            where=str(path),
            remedy="give the --run of autoprune sweep",
        )
    return lines[0]


def _rows(lines: Sequence[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [line[kind] for line in lines if isinstance(line.get(kind), dict)]


def _swept(lines: Sequence[dict[str, Any]], path: Path) -> Sweep:
    head = _head(lines, path)
    if not isinstance(head.get("model"), str) or not isinstance(head.get("settings"), dict):
        raise AutopruneError("the sweep is damaged", where=str(path), remedy="give another --run, or restore the file")
    points, asked = (_points(lines, kind) for kind in ("point", "asked"))
    damaged = sum("point" in line for line in lines) - len(points)
    dense = next((row for row in _rows(lines, "dense") if isinstance(row.get("perplexity"), float)), None)
    return Sweep(
        model=head["model"],
        settings=head["settings"],
        dense=Evaluation(**{**dense, "tasks": ()}) if dense else None,
        points=points,
        asked=asked,
        damaged=damaged,
    )


def _points(lines: Sequence[dict[str, Any]], kind: str) -> list[Point]:
    """Those that are as they were written."""
    found = []
    for row in _rows(lines, kind):
        try:
            point = Point(**row)
            targets([point.target])
        except (TypeError, AttributeError, AutopruneError):
            continue
        found.append(point)
    return found


__all__ = ["Point", "Sweep", "read_sweep", "sweep", "targets"]
