"""Activations that wait in a file instead of in memory.

A micro-batch that waits holds the tensors that its forward will need. They are known to it as tensors, wherever they
are kept; so their storages are emptied, and filled again before it goes on. What it makes is observed at the level of
operators, since the variables of a model's code are not ours to look at.
"""

from __future__ import annotations

import ctypes
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_WORTH = 1 << 16  # bytes; smaller tensors stay


class Spill:
    """Keeps the activations of all micro-batches together within `limit` bytes; the others are in a file."""

    def __init__(self, limit: int, folder: str | None = None):
        self.limit, self.folder = limit, folder
        self.resident = 0
        self.spilled = 0
        """Bytes that are in the file now."""

    def waiting(self) -> Waiting:
        """The activations of one micro-batch."""
        return Waiting(self)


class Waiting:
    """The activations of one micro-batch, which are in memory in this context, and may be in the file outside it."""

    def __init__(self, spill: Spill):
        self.spill, self.paused = spill, False
        self._made: list[weakref.ref[Tensor]] = []
        self._own: set[int] = set()  # storages that it has made
        self._mode: _Seeing | None = None
        self._resident = 0
        self._file: IO[bytes] | None = None
        self._out: list[tuple[torch.UntypedStorage, int]] = []  # storages that are in the file, with their bytes

    def __enter__(self) -> None:
        self._fetch()
        self._mode = _Seeing(self)
        self._mode.__enter__()

    def __exit__(self, *error: Any) -> None:
        assert self._mode
        self._mode.__exit__(*error)
        self._leave()

    @contextmanager
    def not_its_own(self) -> Iterator[None]:
        """What is made in this context is not the micro-batch's."""
        self.paused = True
        try:
            yield
        finally:
            self.paused = False

    @contextmanager
    def fetched(self) -> Iterator[None]:
        """In memory for something else to look at."""
        self._fetch()
        try:
            yield
        finally:
            self._leave()

    def _fetch(self) -> None:
        """Before it goes on: all in memory."""
        if self._out and self._file:
            self._file.seek(0)
            for storage, size in self._out:
                storage.resize_(size)
                _content(storage)[:] = self._file.read(size)
                self.spill.spilled -= size
            self._out = []
        self.spill.resident -= self._resident
        self._resident = 0

    def saw(self, inputs: Iterable[Any], outputs: Iterable[Any]) -> None:
        """An operator has run. What it made anew is the micro-batch's own, and so is a view of what was."""
        given = {_id(each) for each in inputs if isinstance(each, Tensor)}
        for tensor in outputs:
            if isinstance(tensor, Tensor) and ((key := _id(tensor)) not in given or key in self._own):
                self._own.add(key)
                self._made.append(weakref.ref(tensor))

    def _leave(self) -> None:
        """When it waits: into the file, if memory is short."""
        storages: dict[int, torch.UntypedStorage] = {}
        alive = []
        for reference in self._made:
            tensor = reference()
            if tensor is None or tensor.device.type != "cpu":
                continue
            alive.append(reference)
            storages[_id(tensor)] = tensor.untyped_storage()
        self._made, self._own = alive, set(storages)
        storages = {key: storage for key, storage in storages.items()
                    if storage.nbytes() >= _WORTH and storage.resizable()}  # fmt: skip
        size = sum(storage.nbytes() for storage in storages.values())
        if self.spill.resident + size <= self.spill.limit:
            self._resident = size
            self.spill.resident += size
            return
        self._file = self._file or tempfile.TemporaryFile(dir=self.spill.folder)  # noqa: SIM115  closed by `close`
        self._file.seek(0)
        for storage in storages.values():
            self._file.write(_content(storage))
            self._out.append((storage, storage.nbytes()))
            self.spill.spilled += storage.nbytes()
            storage.resize_(0)
        self._file.flush()

    def close(self) -> None:
        """Forget what waits."""
        if self._file:
            self._file.close()


class _Seeing(TorchDispatchMode):
    """Sees what a micro-batch makes."""

    def __init__(self, waiting: Waiting):
        super().__init__()
        self.waiting = waiting

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if not self.waiting.paused:
            self.waiting.saw(tree_leaves((args, kwargs)), tree_leaves(output))
        return output


def _id(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _content(storage: torch.UntypedStorage) -> memoryview:
    """Its bytes. A view by numpy would make torch refuse to resize it ever after."""
    return memoryview((ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr())).cast("B")
