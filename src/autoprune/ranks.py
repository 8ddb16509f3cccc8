"""Processes that prune one model together, as `torchrun` starts them: each has a part of the tokens."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from autoprune.errors import AutopruneError

_PATIENCE = timedelta(hours=2)  # a rank may solve a large layer while others wait

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process is number `rank` of `world`. Every call is one that all of them make."""

    rank: int = 0
    world: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def own(self, tokens_BL: Tensor) -> Tensor:
        """This process's sequences."""
        if len(tokens_BL) < self.world:
            raise AutopruneError(
                f"{len(tokens_BL)} calibration sequences for {self.world} processes",
                remedy="give more --sequences, or start fewer processes",
            )
        return tokens_BL[self.rank :: self.world]

    def add_(self, total: Tensor) -> None:
        """Add up a tensor over all, in place."""
        self._all_reduce(total, dist.ReduceOp.SUM)

    def maximum_(self, largest: Tensor) -> None:
        self._all_reduce(largest, dist.ReduceOp.MAX)

    def least(self, value: int) -> int:
        if self.world == 1:
            return value
        found = torch.tensor(value)
        self._all_reduce(found, dist.ReduceOp.MIN)
        return int(found)

    def send_(self, tensor: Tensor, source: int) -> None:
        """Give all what one has, in place, to the bit."""
        if self.world == 1:
            return
        content = tensor.contiguous()
        _together(lambda: dist.broadcast(content.view(torch.uint8), source))
        if content.data_ptr() != tensor.data_ptr():
            tensor.copy_(content)

    def tell(self, value: T, source: int = 0) -> T:
        """What one process has, in all."""
        if self.world == 1:
            return value
        box: list[Any] = [value]
        _together(lambda: dist.broadcast_object_list(box, source))
        return box[0]

    def meet(self) -> None:
        """Wait for all."""
        self.least(0)

    def _all_reduce(self, tensor: Tensor, operation: Any) -> None:
        if self.world > 1:
            _together(lambda: dist.all_reduce(tensor, operation))


ALONE = Ranks()


@contextmanager
def joined() -> Iterator[Ranks]:
    """The processes that torchrun has started with this one; none where it has not, or where the caller has processes
    of its own."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or "MASTER_ADDR" not in os.environ or dist.is_initialized():
        yield ALONE
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    _together(lambda: dist.init_process_group(backend, timeout=_PATIENCE))
    try:
        yield Ranks(dist.get_rank(), world)
    finally:
        dist.destroy_process_group()


def local_device(device: str) -> str:
    """The GPU of this process, where torchrun has started several on a machine."""
    if device in ("auto", "cuda") and torch.cuda.is_available() and "LOCAL_RANK" in os.environ:
        return f"cuda:{os.environ['LOCAL_RANK']}"
    return device


def _together(call: Callable[[], object]) -> None:
    try:
        call()
    except RuntimeError as error:
        message = " ".join(str(error).split())[:200]
        raise AutopruneError(
            f"another process of this prune was lost ({message})",
            where="torchrun",
            remedy="start all of them again with the same command",
        ) from ConnectionError(message)
