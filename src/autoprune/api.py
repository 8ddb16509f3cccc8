"""The public functions: prune a model, evaluate a model. The command line is a thin layer over these."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from autoprune import algorithms
from autoprune.allocation import AUTO, NOT_PROGRAMS, Allocation
from autoprune.budget import estimate, fit, parse_bytes, require_room_to_write
from autoprune.card import CARD, card
from autoprune.channels import free_channels
from autoprune.data import check_source
from autoprune.diagnosis import Diagnosis, diagnose_model
from autoprune.errors import AutopruneError
from autoprune.evaluate_each import evaluate_each
from autoprune.evaluation import Evaluation
from autoprune.figures.diagnosing import pictures
from autoprune.figures.picture import check_matplotlib
from autoprune.files import SIDECAR, bytes_on_disk, check_output, check_space, finished_folder
from autoprune.gradients import loss_gradients
from autoprune.inputs import (
    SELF,
    calibration_tokens,
    evaluation_mode,
    opened_blocks,
    opened_model,
)
from autoprune.journal import folder_of, settle
from autoprune.language import Program
from autoprune.layer import Method
from autoprune.measurements import Measurements
from autoprune.models import (
    BlockSource,
    DiskBlocks,
    InMemoryBlocks,
    all_linears,
    input_device,
    local_files,
    weight_bytes,
)
from autoprune.output import BlockCost, output_to
from autoprune.progress import Progress, Silent
from autoprune.prune_blocks import NONE_FREE, PrunedLayer, Recipe, prune_blocks
from autoprune.ranks import joined, local_device
from autoprune.share_out import share_out
from autoprune.sparsity import Target
from autoprune.spill import Spill
from autoprune.stream import check_propagation
from autoprune.tasks import TaskResult


@dataclass(frozen=True, kw_only=True)
class PruneReport:
    """What was done. `sparsity` is the share of zeros over all prunable weights, as measured afterwards."""

    model: str
    algorithm: dict[str, str]
    allocation: dict[str, Any]
    target: str
    method: dict[str, str | float]
    requested: int
    zeros: int
    weights: int
    settings: dict[str, Any]
    layers: list[PrunedLayer]
    blocks: list[BlockCost]
    skipped: dict[str, str]
    notes: list[str]
    durations_s: dict[str, float]
    out: str | None = None

    @property
    def sparsity(self) -> float:
        return self.zeros / self.weights

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, with the requested and achieved sparsity of every layer."""
        record = asdict(self)
        record["sparsity"] = {"requested": self.requested / self.weights, "achieved": self.sparsity}
        for layer in record["layers"]:
            size = layer["shape"][0] * layer["shape"][1]
            layer["sparsity"] = {"requested": layer["requested"] / size, "achieved": layer["zeros"] / size}
        return record


def prune(
    model: Any,
    *,
    tokenizer: Any = None,
    algorithm: str | Path | Program = "wanda",
    sparsity: float | None = None,
    pattern: str | None = None,
    compare: str | None = None,
    refine: str | None = None,
    max_swaps: int | None = None,
    protect: float | None = None,
    update: str | None = None,
    towards_dense: float | None = None,
    allocation: str | Path | Program | None = None,
    granularity: str | None = None,
    strength: float | None = None,
    max_shift: float | None = None,
    temperature: float | None = None,
    calibration: str = SELF,
    sequences: int | None = None,
    length: int | None = None,
    seed: int = 0,
    propagation: str = "one_pass",
    dtype: str = "auto",
    device: str = "auto",
    memory: str | None = None,
    out: str | Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> PruneReport:
    """Remove weights from a causal LM, in place, and save it where `out` names a folder.

    `model` is a hub id, a folder, a .gguf file or "demo", or a live transformers model (then with its `tokenizer`;
    `dtype` and `device` are left as they are). Give `sparsity` in [0, 1) or `pattern` n:m (n kept of m).
    `algorithm` is a library name, a program file or a Program; `compare`, `refine`, `max_swaps`, `protect`,
    `update` and `towards_dense` override the options of its score (see `autoprune.language.program.OPTIONS`).
    `allocation` says how layers share out the sparsity: "uniform", "sensitivity", "auto", or a program that defines
    `allocate`; without it the algorithm's own is used, or else uniform. `granularity`, `strength`, `max_shift` and
    `temperature` override the allocation's options (see `autoprune.language.program.OPTIONS`).
    A checkpoint of safetensors files is read, pruned and written block by block; `memory` ("8GiB") is what the prune
    may take then: activations beyond that wait in a file. What was ended is continued by the same call.
    Processes that torchrun has started share the calibration sequences and the layers; the first one writes.
    Raises AutopruneError, before anything is written, where the request cannot be met; a live model may then be
    pruned in part.
    """
    progress = progress or Silent()
    clock = _Clock()
    program = algorithm if isinstance(algorithm, Program) else algorithms.load(algorithm)
    target = Target.of(sparsity, pattern)
    method = Method.of(
        program,
        compare=compare,
        refine=refine,
        max_swaps=max_swaps,
        protect=protect,
        update=update,
        towards_dense=towards_dense,
    )
    method.check(target)
    sharing = choose_allocation(allocation, program).with_options(
        granularity=granularity, strength=strength, max_shift=max_shift, temperature=temperature
    )
    check_propagation(propagation)
    device = local_device(device)
    limit = parse_bytes(memory) if memory is not None else None
    if method.towards_dense and propagation == "dense":
        progress.note("with propagation dense every layer has the unpruned model's inputs: towards_dense is not used")
        method = method.undamaged
    needs_text = bool(method.collects) or sharing.needs_text
    folder = Path(out) if out is not None else None
    if folder is not None:
        settle(folder)
        check_output(folder, force=force, inputs=local_files(model))
    if needs_text and calibration != SELF:
        check_source(calibration)
    opened, source = opened_blocks(model, tokenizer, dtype, device, progress, on_disk=folder is not None)
    if folder is not None:
        whole = source.shards.bytes if isinstance(source, DiskBlocks) else weight_bytes(opened.model)
        check_space(folder, max(0, whole - bytes_on_disk(folder_of(folder))))
    for linear in all_linears(source):
        target.check_layer(linear.name, linear.shape[1])
    channels = NONE_FREE
    if method.refine == "permute":
        with evaluation_mode(opened.model):
            channels = free_channels(source)
        channels.require_any()
    clock.lap("open")

    tokens_BL, text = None, None
    if needs_text:
        writer = opened
        if calibration == SELF and isinstance(source, DiskBlocks):  # it writes token by token, with all blocks for each
            require_room_to_write(source, limit)
            writer = opened_model(model, tokenizer, dtype, device, progress)
        tokens_BL, text = calibration_tokens(writer, calibration, sequences, length, seed, progress)
        del writer
        clock.lap("calibration")
    elif calibration != SELF:
        progress.note(f"{program.name} reads the weights only: {calibration} is not used")
    if compare and target.group:
        progress.note(f"a pattern compares weights within its groups: compare={compare} is not used")
    total = sum(linear.size for linear in all_linears(source))
    needed = estimate(source, method, propagation, tokens_BL.numel() if tokens_BL is not None else 0)
    room = fit(needed, limit, source)
    progress.note(f"takes {needed}" + ("" if room is None else f"; activations beyond {room / 1e9:.2f} wait in a file"))
    settings = {
        "calibration": text,
        "propagation": propagation,
        "seed": seed,
        "dtype": str(opened.model.dtype).removeprefix("torch."),
        "device": str(input_device(opened.model)),
    }
    asked = {
        "model": source.fingerprint() if isinstance(source, DiskBlocks) else opened.name,
        "algorithm": program.digest,
        "method": method.options,
        "target": str(target),
        "allocation": asdict(replace(sharing, tape=None)),
        "settings": settings,
        "versions": versions(),
    }
    with (
        joined() as ranks,
        evaluation_mode(opened.model),
        output_to(folder, opened, source, asked, force=force, progress=progress, ranks=ranks) as output,
    ):
        if (plan := ranks.tell(output.recall("plan"))) is None:
            sparsity_N, shared = share_out(source, program, method, target, sharing, tokens_BL, propagation, progress)
            sparsity_N, shared = ranks.tell((sparsity_N, shared))
            output.remember("plan", sparsity=sparsity_N, shared=shared, model=opened.name, algorithm=_text(program))
        else:
            sparsity_N, shared = plan["sparsity"], plan["shared"]
        clock.lap("allocation")
        recipe = Recipe(method=method, target=target, propagation=propagation, sparsity_N=sparsity_N)
        gradients = loss_gradients(source, method.score.collects, tokens_BL, progress)
        output.begin()
        progress.stage(f"pruning with {program.name} to {target}", total)
        progress.advance(sum(linear.size for index in range(output.finished) for linear in source.linears(index)))

        def on_layer(layer: PrunedLayer) -> None:
            output.layer(layer)
            progress.advance(layer.shape[0] * layer.shape[1])

        prune_blocks(
            source,
            recipe,
            tokens_BL,
            on_layer,
            gradients,
            channels,
            finished=output.finished,
            on_block=output.block,
            folded=output.folded,
            spill=Spill(room, str(folder.resolve().parent) if folder else None) if room is not None else None,
            ranks=ranks,
        )
        layers = output.layers
        clock.lap("prune")

        notes = [f"{layer.name}: no calibration token reached it; scored by weights alone" for layer in layers
                 if method.collects and layer.calibration_tokens == 0]  # fmt: skip
        notes += [f"{layer.name}: {layer.fallback}" for layer in layers if layer.fallback]
        notes += _own_orders(layers)
        for line in notes:
            progress.note(line)
        report = PruneReport(
            model=opened.name,
            algorithm=_text(program),
            allocation=shared,
            target=str(target),
            method=method.options,
            requested=sum(layer.requested for layer in layers),
            zeros=sum(layer.zeros for layer in layers),
            weights=total,
            settings=settings,
            layers=layers,
            blocks=output.blocks,
            skipped=source.skipped,
            notes=notes,
            durations_s=clock.laps,
            out=str(folder) if folder else None,
        )
        if folder is not None:
            progress.stage(f"writing {folder}", 1)
            record = _sidecar(report)
            output.finish({SIDECAR: json.dumps(record, indent=1) + "\n", CARD: card(record, _base(model, source))})
            clock.lap("save")
    return report


def evaluate(
    model: Any,
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
) -> Evaluation:
    """Perplexity of a causal LM on `data` ("file:PATH" or "hub:NAME"), the field's way (see `autoprune.data`), and its
    accuracy at `tasks` (names that lm-eval knows, "seven" for the field's, "file:PATH"; see `autoprune.tasks`).

    `length` is 2048 unless given, or the model's context where that is shorter. Of each task the first `limit`
    questions are asked (all, if None), with `shots` solved ones before each, `batch` prompts (or "auto") at a time.
    `model` and `against` are names or live models; with `against` the result compares the two on the same tokens and
    questions. Raises AutopruneError where the request cannot be met.
    """
    measured = evaluate_each(
        [model],
        data=data,
        tasks=tasks,
        tokenizer=tokenizer,
        length=length,
        sequences=sequences,
        shots=shots,
        limit=limit,
        batch=batch,
        against=against,
        bos=bos,
        dtype=dtype,
        device=device,
        progress=progress,
    )
    return next(measured)


def diagnose(
    model: Any,
    *,
    out: str | Path,
    tokenizer: Any = None,
    algorithm: str | Path | Program = "wanda",
    sparsity: float = 0.7,
    allocation: str | Path | Program = "sdsa",
    calibration: str = SELF,
    sequences: int | None = None,
    length: int | None = None,
    seed: int = 0,
    dtype: str = "auto",
    device: str = "auto",
    force: bool = False,
    progress: Progress | None = None,
) -> Diagnosis:
    """Measure skewness and sensitivity of a model's blocks, and draw them with an allocation, without pruning it.

    The folder `out` gets autoprune.json and five figures, each as PNG and SVG. Arguments as in `prune`.
    """
    progress = progress or Silent()
    check_matplotlib()
    program = algorithm if isinstance(algorithm, Program) else algorithms.load(algorithm)
    method, target = Method.of(program), Target.of(sparsity)
    sharing = choose_allocation(allocation, program)
    if sharing.is_named(AUTO):
        raise AutopruneError("auto cannot be drawn before a model is pruned", remedy="name another --allocation")
    if calibration != SELF:
        check_source(calibration)
    folder = Path(out)
    check_output(folder, force=force, inputs=local_files(model))
    opened = opened_model(model, tokenizer, dtype, device, progress)
    source = InMemoryBlocks(opened.model)
    tokens_BL, text = calibration_tokens(opened, calibration, sequences, length, seed, progress)
    with evaluation_mode(opened.model):
        measurements = Measurements(source, method, target, tokens_BL, judge=True, progress=progress)
        result = diagnose_model(measurements, sharing, model=opened.name, algorithm=program.name)
    record = {"format": 1, "diagnosis": result.to_dict(), "settings": {"calibration": text, "seed": seed}}
    progress.stage(f"writing {folder}", 1)
    with finished_folder(folder) as unfinished:
        for picture in pictures(result):
            picture.save(unfinished)
        (unfinished / SIDECAR).write_text(json.dumps(record | {"versions": versions()}, indent=1) + "\n", "utf-8")
    return result


def choose_allocation(given: str | Path | Program | None, program: Program) -> Allocation:
    """The allocation that is meant: what is given, else the program's own, else uniform."""
    if given is None:
        return Allocation.own(program)
    if str(given) in NOT_PROGRAMS:
        return Allocation.named(str(given))
    return Allocation.of(
        given if isinstance(given, Program) else algorithms.load(given, kind="allocation", others=NOT_PROGRAMS)
    )


def _text(program: Program) -> dict[str, str]:
    return {"name": program.name, "hash": program.digest, "text": program.text, "canonical": program.canonical}


def _base(model: Any, source: BlockSource) -> Path | None:
    """The folder of the unpruned model, where it has one."""
    if isinstance(source, DiskBlocks):
        return source.shards.folder
    return next((path for path in local_files(model) if path.is_dir()), None)


def _own_orders(layers: list[PrunedLayer]) -> list[str]:
    """A line for each reason why layers were not permuted, with the kinds of layers it holds for."""
    by_reason: dict[str, list[str]] = {}
    for layer in layers:
        if layer.own_order:
            by_reason.setdefault(layer.own_order, []).append(layer.name.rsplit(".", 1)[-1])
    return [
        f"columns of {len(names)} layers not permuted ({', '.join(dict.fromkeys(names))}): {reason}"
        for reason, names in by_reason.items()
    ]


class _Clock:
    """Seconds between laps, by name."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = round(now - self._last, 3)
        self._last = now


def _sidecar(report: PruneReport) -> dict[str, Any]:
    return {"format": 1, **report.to_dict(), "versions": versions()}


def versions() -> dict[str, str]:
    """Versions of what results depend on, by name."""
    packages = ("autoprune", "torch", "transformers", "tokenizers", "safetensors", "numpy", "greenlet")
    found = {"python": platform.python_version()} | {name: metadata.version(name) for name in packages}
    found["torch"] = str(torch.__version__)  # says which build it is, too
    return found


__all__ = [
    "Diagnosis",
    "Evaluation",
    "Progress",
    "PruneReport",
    "TaskResult",
    "diagnose",
    "evaluate",
    "evaluate_each",
    "prune",
]
