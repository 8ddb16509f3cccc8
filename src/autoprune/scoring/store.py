"""What is measured of the unpruned model once, for all programs of a search: statistics of every layer's inputs, and
gradients. Kept on disk by content, read a layer at a time.

Legend: B sequences, L tokens per sequence, R output rows, C input columns.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from autoprune.files import cache_folder, cached_file, check_space
from autoprune.gradients import loss_gradients
from autoprune.judge import Judge
from autoprune.language.statistics import GRADIENT, GRADIENTS, STATISTICS
from autoprune.models import BlockSource, Linear, all_linears, config_text, input_device
from autoprune.progress import Progress
from autoprune.statistics import Gradient, InputStatistics
from autoprune.stream import Visit, micro_batches, walk

_OF_INPUTS = ("input_norm", "input_mean", "input_std", "input_max", "gram", "inverse_gram_diagonal")
_OUTPUT_NORM = "output_norm"
_SUMS = frozenset(need for row in STATISTICS.values() for need in row.collects) - GRADIENTS
_INDEX, _LIKELY = "index.json", "likely.safetensors"
_LAYOUT = "3"  # of what is measured and how it is kept; what has another stays in the cache unused


@dataclass(frozen=True)
class Part:
    """Some rows and columns of a layer, by index: a smaller layer."""

    rows: Tensor
    columns: Tensor


class Store:
    """Statistics of a model on tokens (B, L), measured when they are first asked for, if they are not in the cache."""

    def __init__(self, source: BlockSource, tokens_BL: Tensor, progress: Progress):
        self.source, self.tokens_BL, self.progress = source, tokens_BL, progress
        content = [_LAYOUT, source.fingerprint(), config_text(source.model), str(sorted(_SUMS))]
        content.append(hashlib.sha256(tokens_BL.numpy().tobytes()).hexdigest())
        self.folder = cache_folder("search") / hashlib.sha256("\n".join(content).encode()).hexdigest()[:32]
        self.linears = all_linears(source)

    def visit(self, linear: Linear, gradients: frozenset[str], part: Part | None = None) -> Visit:
        """A layer as a walk over the unpruned model would hand it out, or a part of it, with some of the GRADIENTS."""
        own = self._inputs[linear.name]
        inputs = _Stored(self.folder / "inputs" / _file(linear.block), own["key"], own["tokens"], linear, part)
        gradient = self._gradient(linear, gradients, own["tokens"], part)
        if part is not None:
            module = nn.Linear(len(part.columns), len(part.rows), bias=False, device="meta")
            weight_RC = _of(linear.weight_RC, part, columns=True)
            module.weight = nn.Parameter(weight_RC.contiguous(), requires_grad=False)
            linear = Linear(linear.name, module, linear.block)
        return Visit(linear, inputs, own["depth"], gradient)

    def gradients(self, names: frozenset[str]) -> dict[str, Gradient]:
        """Some of the GRADIENTS of all layers, by name; empty for none."""
        if not names:
            return {}
        tokens = json.loads((self._gradients(min(names)) / _INDEX).read_text("utf-8"))
        return {linear.name: self._gradient(linear, names, tokens[linear.name]) for linear in self.linears}

    def _gradient(self, linear: Linear, names: frozenset[str], tokens: int, part: Part | None = None) -> Gradient:
        rms = {}
        for name in names:
            value = _read(self._gradients(name) / _file(linear.block), f"{linear.name}/{name}").float()
            rms[name] = _of(value, part, columns=name == GRADIENT).to(linear.weight_RC.device)
        return Gradient(tokens, **rms)

    @cached_property
    def _inputs(self) -> dict[str, dict[str, Any]]:
        """By name of the layer: under which key its inputs' statistics are, of how many tokens they are, its depth."""
        return json.loads(self._cached("inputs", self._measure_inputs).read_text("utf-8"))

    def _cached(self, name: str, make: Callable[[Path], None]) -> Path:
        """The index of a folder of the store, which `make` fills if it is not there."""

        def waits() -> None:
            self.progress.note("waiting for another process, which is measuring the same")

        return cached_file(self.folder / name / _INDEX, make, waits)

    def _measure_inputs(self, folder: Path) -> None:
        check_space(self.folder, sum(4 * linear.shape[1] ** 2 for linear in self.linears))
        self.progress.stage("statistics of the unpruned model", len(self.linears))
        index: dict[str, dict[str, Any]] = {}
        batches = micro_batches(self.tokens_BL, input_device(self.source.model))
        found: dict[str, Tensor] = {}
        seen: dict[InputStatistics, str] = {}  # of this block: layers that read the same inputs share what is known
        block = 0
        for visit in walk(self.source, batches, collects=_SUMS, propagation="dense"):
            linear, inputs = visit.linear, visit.inputs
            if linear.block != block:
                save_file(found, folder / _file(block))
                block, found, seen = linear.block, {}, {}
            if inputs not in seen:
                seen[inputs] = linear.name
                found |= {f"{linear.name}/{name}": _plain(getattr(inputs, name)) for name in _OF_INPUTS}
            output_norm = inputs.statistic(_OUTPUT_NORM, linear.weight_RC, visit.depth)
            found[f"{linear.name}/{_OUTPUT_NORM}"] = _plain(output_norm)
            index[linear.name] = {"key": seen[inputs], "tokens": inputs.tokens, "depth": visit.depth}
            self.progress.advance(1)
        save_file(found, folder / _file(block))
        (folder / _INDEX).write_text(json.dumps(index), "utf-8")

    def _gradients(self, name: str) -> Path:
        """The folder with one of the GRADIENTS."""
        return self._cached(name, partial(self._measure_gradients, name)).parent

    def _measure_gradients(self, name: str, folder: Path) -> None:
        bytes_each = 2 if name == GRADIENT else 0
        check_space(self.folder, sum(bytes_each * linear.size for linear in self.linears))
        gradients = loss_gradients(self.source, frozenset([name]), self.tokens_BL, self.progress)
        for block in range(len(self.source.blocks)):
            found = {
                # Three digits say as much as so few sequences can.
                f"{linear.name}/{name}": _plain(getattr(gradients[linear.name], name)).bfloat16()
                for linear in self.source.linears(block)
            }
            save_file(found, folder / _file(block))
        tokens = {name: gradient.tokens for name, gradient in gradients.items()}
        (folder / _INDEX).write_text(json.dumps(tokens), "utf-8")


def _file(block: int) -> str:
    return f"{block:05d}.safetensors"


def _stored(name: str) -> Any:
    return cached_property(lambda inputs: inputs.read(name))


class _Stored(InputStatistics):
    """Statistics of inputs that are read from a file when they are asked for."""

    input_norm, input_mean, input_std = _stored("input_norm"), _stored("input_mean"), _stored("input_std")
    input_max, gram = _stored("input_max"), _stored("gram")
    inverse_gram_diagonal = _stored("inverse_gram_diagonal")
    dense_gram = cached_property(lambda inputs: None)  # the unpruned model's inputs are these

    def __init__(self, file: Path, key: str, tokens: int, linear: Linear, part: Part | None):
        self.file, self.key, self.tokens, self.part = file, key, tokens, part
        self.name, self.device = linear.name, linear.weight_RC.device

    def read(self, name: str) -> Tensor:
        value = _read(self.file, f"{self.key}/{name}")
        if self.part is not None:
            columns = self.part.columns.cpu()
            value = value[columns][:, columns] if name == "gram" else value[:, columns]
        return value.contiguous().to(self.device)

    def statistic(self, name: str, weight_RC: Tensor, depth: float) -> Tensor:
        if name == _OUTPUT_NORM:  # of the whole layer, also where this is a part of one
            return _of(_read(self.file, f"{self.name}/{name}"), self.part, columns=False).to(self.device)
        return super().statistic(name, weight_RC, depth)


def _read(file: Path, key: str) -> Tensor:
    with safe_open(file, "pt") as tensors:
        return tensors.get_tensor(key)


def _of(value: Tensor, part: Part | None, *, columns: bool) -> Tensor:
    """The part's rows of a value, and its columns."""
    if part is None:
        return value
    value = value[part.rows.to(value.device)]
    return value[:, part.columns.to(value.device)] if columns else value


def _plain(value: Tensor) -> Tensor:
    """As a file of tensors takes it: on the CPU, with memory of its own."""
    return value.detach().cpu().contiguous().clone()


def kept_judge(source: BlockSource, tokens_BL: Tensor, folder: Path) -> Judge:
    """The judge of an unpruned model on tokens (B, L). What that model says of them is kept in a folder."""

    def make(unfinished: Path) -> None:
        judge = Judge(source, tokens_BL)
        values = {f"{index}/{name}": _plain(value) for index, pair in enumerate(judge.likely)
                  for name, value in zip(("tokens", "logs"), pair, strict=True)}  # fmt: skip
        save_file(values, unfinished / _LIKELY)

    known = load_file(cached_file(folder / _LIKELY, make, lambda: None))
    likely = [(known[f"{index}/tokens"], known[f"{index}/logs"]) for index in range(len(known) // 2)]
    return Judge(source, tokens_BL, likely)
