"""Activations that wait in a file instead of in memory.

A micro-batch that waits holds the tensors that its forward will need. They are known to it as tensors, wherever they
are kept; so their storages are emptied, and filled again before it goes on. What it makes is observed at the level of
operators, since the variables of a model's code are not ours to look at.
"""

from __future__ import annotations

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


class Waiting(TorchDispatchMode):
    """The activations of one micro-batch. While it runs, this is the dispatch mode that sees what it makes."""

    def __init__(self, spill: Spill):
        super().__init__()
        self.spill, self.paused = spill, False
        self._made: list[weakref.ref[Tensor]] = []
        self._resident = 0
        self._file: IO[bytes] | None = None
        self._out: list[tuple[torch.UntypedStorage, int]] = []  # storages that are in the file, with their bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if not self.paused:
            self._made += [weakref.ref(leaf) for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        return output

    @contextmanager
    def not_its_own(self) -> Iterator[None]:
        """What is made in this context is not the micro-batch's."""
        self.paused = True
        try:
            yield
        finally:
            self.paused = False

    def fetch(self) -> None:
        """Before it goes on: all in memory."""
        if self._out and self._file:
            self._file.seek(0)
            for storage, size in self._out:
                storage.resize_(size)
                self._file.readinto(_content(storage))  # pyright: ignore[reportAttributeAccessIssue]
                self.spill.spilled -= size
            self._out = []
        self.spill.resident -= self._resident
        self._resident = 0

    def leave(self, others: Iterable[Tensor]) -> None:
        """When it waits: into the file, if memory is short. `others` are tensors that are not its own."""
        foreign = {tensor.untyped_storage().data_ptr() for tensor in others}
        storages: dict[int, torch.UntypedStorage] = {}
        alive = []
        for reference in self._made:
            tensor = reference()
            if tensor is None or tensor.device.type != "cpu":
                continue
            alive.append(reference)
            storage = tensor.untyped_storage()
            if storage.nbytes() >= _WORTH and storage.resizable() and storage.data_ptr() not in foreign:
                storages[storage.data_ptr()] = storage
        self._made = alive
        size = sum(storage.nbytes() for storage in storages.values())
        if self.spill.resident + size <= self.spill.limit:
            self._resident = size
            self.spill.resident += size
            return
        self._file = self._file or tempfile.TemporaryFile(dir=self.spill.folder)
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


def _content(storage: torch.UntypedStorage) -> memoryview:
    content: Any = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()  # pyright: ignore[reportArgumentType, reportCallIssue]
    return memoryview(content)
