"""A model whose blocks stay in their files but for those that compute: for models of any size.

What is not in a block (embeddings, the last norm, the head) is mapped into memory, so that of it only what is used is
read. A parameter that is not loaded has its shape, and NaN for every element, in the memory of one.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.core_model_loading import build_glob_alternation

from autoprune.models.facts import require_finite
from autoprune.models.layout import Layout
from autoprune.models.linears import Linear
from autoprune.models.opening import (
    DTYPES,
    OpenModel,
    local_folder,
    locate,
    read_settings,
    resolve_device,
)
from autoprune.models.shards import Shards, ShardsCopy, is_sharded
from autoprune.models.soundness import readable
from autoprune.models.structure import Structure


def empty_model(make: Callable[[torch.dtype], Any], dtype: torch.dtype, device: torch.device) -> Any:
    """A model as `make` constructs it, with buffers, and with parameters that are not loaded."""
    with torch.random.fork_rng(devices=[]), _parameters_on_meta():
        model = make(dtype)
    plan = model._get_dtype_plan(dtype)
    pattern, groups, _ = build_glob_alternation(list(plan)) if plan else (None, {}, None)
    made: dict[nn.Parameter, nn.Parameter] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if parameter not in made:
                match = pattern.search(f"{prefix}.{name}".lstrip(".")) if pattern else None
                kept = plan[groups[match.lastgroup]] if match else None
                wanted = kept or (dtype if parameter.is_floating_point() else parameter.dtype)
                made[parameter] = nn.Parameter(_not_loaded(parameter.shape, wanted, device), requires_grad=False)
            module._parameters[name] = made[parameter]
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(device)
    return model.eval()


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """New modules have their parameters on the meta device: nothing is allocated, nothing initialised."""
    register = nn.Module.register_parameter

    def on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta:
            param = nn.Parameter(param.to("meta"), requires_grad=param.requires_grad)
        register(self, name, param)

    nn.Module.register_parameter = on_meta
    try:
        yield
    finally:
        nn.Module.register_parameter = register


def _not_loaded(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    value = torch.nan if dtype.is_floating_point else 0
    return torch.full((1,), value, dtype=dtype, device=device).expand(shape)


def open_on_disk(name: str | Path, *, dtype: str = "auto", device: str = "auto") -> tuple[OpenModel, DiskBlocks] | None:
    """Open a hub id or a local folder without reading its blocks; None where its weights are not safetensors files."""
    location, options = locate(str(name))
    folder = local_folder(location)
    if options or folder is None or not is_sharded(folder):
        return None
    shards = Shards(folder)
    settings = read_settings(str(name), str(folder), {}, dtype)
    stored = settings.stored_dtype
    if not isinstance(stored, torch.dtype):  # the config does not say
        stored = next((place.dtype for place in shards.places.values() if place.dtype.is_floating_point), torch.float32)
    with readable(str(name), location):
        made = empty_model(settings.make, DTYPES.get(dtype, stored), resolve_device(device))
    opened = OpenModel(model=made, tokenizer=settings.tokenizer, name=str(name), stored_dtype=stored)
    source = DiskBlocks(made, shards, str(name))
    if source.layout.left_out:  # what the checkpoint lacks by design, transformers knows how to make
        source.close()
        return None
    return opened, source


class DiskBlocks:
    """The blocks of an `empty_model`: `load` reads one, `release` forgets it, `commit` writes it into a copy of the
    checkpoint, from which it is read from then on. While one computes, the next is read and the last is written.

    `skipped` names the matrices inside blocks that are not pruned, with the reason.
    """

    def __init__(self, model: Any, shards: Shards, where: str):
        self.model, self.shards = model, shards
        self.copy: ShardsCopy | None = None
        structure = Structure.of(model)
        self.blocks: Sequence[nn.Module] = structure.blocks
        self.skipped, self._linears = structure.skipped, structure.linears
        self.layout = Layout(model, shards, where)
        self._written: set[str] = set()  # tensors that are in the copy
        self._use = Counter[nn.Parameter]()
        names: dict[nn.Parameter, str] = {}
        self._aliases: dict[str, list[str]] = {}  # a file may hold a shared parameter under several names
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if name in self.layout:
                self._aliases.setdefault(names.setdefault(parameter, name), []).append(name)
        self._names = [
            {names[parameter]: parameter for parameter in block.parameters() if parameter in names}
            for block in self.blocks
        ]
        within = {name for block in self._names for name in block}
        self._reader, self._writer, self._carrier = (ThreadPoolExecutor(max_workers=1) for _ in range(3))
        self._ahead: tuple[int, int, Future[dict[str, Tensor]]] | None = None  # block, tensors written before, values
        self._commit: Future[None] | None = None
        self._stopped = threading.Event()
        for name, parameter in ((name, parameter) for parameter, name in names.items() if name not in within):
            parameter.data = self._outside(name, parameter)
        for name, buffer in model.named_buffers():
            if name in self.layout:
                buffer.copy_(self.layout.load([name], shards.read)[name])

    def _outside(self, name: str, parameter: nn.Parameter) -> Tensor:
        read = self.shards.mapped if self.layout.is_single(name) else self.shards.read
        return self.layout.load([name], read)[name].to(parameter.device, parameter.dtype)

    def load(self, index: int, *, unpruned: bool = False) -> None:
        """Read block `index`, from the copy where it is finished unless it is to be `unpruned`."""
        parameters = self._names[index]
        if not unpruned and all(self._use[parameter] for parameter in parameters.values()):
            self._use.update(parameters.values())
            return
        values = None if unpruned else self._read_ahead(index)
        values = values or self._read(index, unpruned)
        for name, parameter in parameters.items():
            if unpruned or not self._use[parameter]:
                parameter.data = values[name]
        self._use.update(parameters.values())
        if index + 1 < len(self.blocks) and not unpruned:
            self._ahead = index + 1, len(self._written), self._reader.submit(self._read, index + 1, False)

    def _read_ahead(self, index: int) -> dict[str, Tensor] | None:
        """What was read ahead of a block, unless its tensors have been written since, as shared ones may have been."""
        ahead, self._ahead = self._ahead, None
        if not ahead or ahead[0] != index:
            return None
        _, written, values = ahead
        if len(self._written) > written and not self._written.isdisjoint(self.layout.tensors(self._names[index])):
            return None
        return values.result()

    def release(self, index: int) -> None:
        for parameter in self._names[index].values():
            self._use[parameter] -= 1
            if self._use[parameter] <= 0:
                parameter.data = _not_loaded(parameter.shape, parameter.dtype, parameter.device)

    def linears(self, index: int) -> list[Linear]:
        return self._linears[index]

    def fingerprint(self) -> str:
        return json.dumps(self.shards.identity())

    def stored(self, linear: Linear) -> torch.dtype:
        """The dtype of a weight in the checkpoint."""
        name = next(name for name, parameter in self._names[linear.block].items() if parameter is linear.parameter)
        return self.shards.places[self.layout.tensors([name])[0]].dtype

    def tensors(self, index: int) -> list[str]:
        """Names of the checkpoint's tensors that `commit` of a block writes."""
        return self.layout.tensors(self._changed(index))

    def _changed(self, index: int) -> list[str]:
        modules = {linear.module for linear in self._linears[index]}
        own = {parameter for module in modules for parameter in module.parameters(recurse=False)}
        return [
            alias for name, parameter in self._names[index].items() if parameter in own for alias in self._aliases[name]
        ]

    def commit(self, index: int, done: Callable[[], None]) -> None:
        """Write the layers of a loaded block into the copy, in the background, then call `done`."""
        self.wait()
        assert self.copy is not None
        copy, wanted = self.copy, self.tensors(index)
        if self._carried.done():
            self._carried.result()  # what it has found wrong is not told only at the end
        values = {
            alias: parameter.data for name, parameter in self._names[index].items() for alias in self._aliases[name]
        }

        def write() -> None:
            tensors = self.layout.store(values)
            for name in wanted:
                copy.write(name, tensors[name])
            copy.flush()
            done()

        self._written.update(wanted)
        self._commit = self._writer.submit(write)

    def begin_copy(self, folder: Path, *, existing: bool) -> None:
        """Start the copy that `commit` writes to, or take one up again."""
        self.copy = ShardsCopy(folder) if existing else ShardsCopy.begin(self.shards, folder)
        committed = {name for index in range(len(self.blocks)) for name in self.tensors(index)}
        others = [name for name in self.shards.places if name not in committed]
        self._carried = self._carrier.submit(self.copy.carry_over, self.shards, others, self._stopped)

    def follow_copy(self, folder: Path) -> None:
        """Read finished blocks from a copy that another process makes."""
        self.copy = ShardsCopy(folder)

    def finish_copy(self) -> None:
        """Everything is in the copy and on the disk when this returns."""
        assert self.copy is not None
        self.wait()
        self._carried.result()
        self.copy.flush()

    def finished(self, indices: Iterable[int]) -> None:
        """Blocks that are in the copy already, from an earlier run."""
        for index in indices:
            self._written.update(self.tensors(index))

    def wait(self) -> None:
        """Until what was committed is on disk."""
        if self._commit is not None:
            self._commit.result()
            self._commit = None

    def close(self) -> None:
        """Forget what was read ahead; what is being written is written."""
        self._stopped.set()
        for threads in (self._reader, self._writer, self._carrier):
            threads.shutdown(wait=True, cancel_futures=threads is self._reader)

    def _read(self, index: int, unpruned: bool) -> dict[str, Tensor]:
        own = set(self.tensors(index)) if unpruned else ()  # what an earlier block shares with it is pruned by then

        def read(name: str) -> Tensor:
            if name in self._written and name not in own:
                assert self.copy is not None
                if (pending := self._commit) is not None:
                    pending.result()
                return self.copy.read(name)
            tensor = self.shards.read(name)
            require_finite(tensor, self.shards.where(name))
            return tensor

        parameters = self._names[index]
        values = self.layout.load(parameters, read)
        return {name: self._placed(value, parameters[name]) for name, value in values.items()}

    def _placed(self, value: Tensor, parameter: nn.Parameter) -> Tensor:
        """A tensor where its parameter is. To a GPU it is copied beside what computes there."""
        value = value.to(parameter.dtype)
        if parameter.device.type != "cuda":
            return value.to(parameter.device)
        stream = torch.cuda.Stream(parameter.device)
        with torch.cuda.stream(stream):
            value = value.pin_memory().to(parameter.device, non_blocking=True)
        stream.synchronize()
        value.record_stream(torch.cuda.default_stream(parameter.device))
        return value
