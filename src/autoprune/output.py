"""Where a pruned model goes: nowhere, into a folder at the end, or into a folder block by block, so that a prune that
was ended goes on where it was."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from autoprune.files import write_text, writing_to
from autoprune.journal import Journal, folder_of, journal
from autoprune.memory import forget_peak, peak_bytes
from autoprune.models import BlockSource, DiskBlocks, OpenModel, copy_files, input_device, save
from autoprune.progress import Progress
from autoprune.prune_blocks import Orders, PrunedLayer
from autoprune.ranks import ALONE, Ranks


@dataclass(frozen=True, kw_only=True)
class BlockCost:
    """Seconds that a block took, and the most memory the process had meanwhile: of the GPU, if the model is on one,
    else resident; None where that cannot be told."""

    seconds: float
    peak_bytes: int | None


def _peak(opened: OpenModel) -> int | None:
    device = input_device(opened.model)
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_bytes()


class Output:
    """Of a model that is whole in memory: it is saved by `finish`, where there is a folder."""

    finished = 0
    """Number of blocks that an earlier run has pruned."""

    folded: Mapping[int, Orders] = MappingProxyType({})
    """By index of those blocks, the orders of columns that were folded into them."""

    def __init__(self, opened: OpenModel, folder: Path | None):
        self.opened, self.folder = opened, folder
        self.layers: list[PrunedLayer] = []
        self.blocks: list[BlockCost] = []
        self._since = time.perf_counter()

    def recall(self, kind: str) -> dict[str, Any] | None:
        """What an earlier run remembered."""
        return None

    def remember(self, kind: str, **content: Any) -> None:
        """Keep something for a later run."""

    def begin(self) -> None:
        """The unpruned model is not needed any more."""
        self._since = time.perf_counter()
        forget_peak()

    def layer(self, layer: PrunedLayer) -> None:
        """A layer has been pruned."""
        self.layers.append(layer)

    def block(self, index: int, orders: Orders) -> None:
        """A block has been pruned, and is still loaded."""
        now = time.perf_counter()
        self.blocks.append(BlockCost(seconds=round(now - self._since, 4), peak_bytes=_peak(self.opened)))
        self._since = now
        forget_peak()

    def finish(self, sidecar: Mapping[str, str]) -> None:
        """All blocks are there: write what is left, and `sidecar` texts by file name."""
        if self.folder is not None:
            save(self.opened, self.folder, dict(sidecar))


@contextmanager
def output_to(
    folder: Path | None,
    opened: OpenModel,
    source: BlockSource,
    fingerprint: Mapping[str, Any],
    *,
    force: bool,
    progress: Progress,
    ranks: Ranks = ALONE,
) -> Iterator[Output]:
    """The output of a prune, which the first of the `ranks` writes; what is in `folder` is replaced when the block
    ends."""
    if folder is None or not isinstance(source, DiskBlocks):
        yield Output(opened, folder if ranks.is_first else None)
        return
    if not ranks.is_first:
        yield _Follower(opened, folder, source, ranks)
        source.close()
        return
    with journal(folder, fingerprint, anew=force, worth=_is_work) as steps:
        output = _Stepwise(opened, folder, source, steps, ranks)
        if output.finished:
            progress.note(f"continuing: {output.finished} of {len(source.blocks)} blocks were finished")
        try:
            yield output
        finally:
            source.close()


def _is_work(step: dict[str, Any]) -> bool:
    return step["step"] == "block" or bool(step["step"] == "plan" and step["sparsity"])


class _Stepwise(Output):
    """Block by block, beside `folder`."""

    def __init__(self, opened: OpenModel, folder: Path, source: DiskBlocks, steps: Journal, ranks: Ranks):
        super().__init__(opened, folder)
        self.folder, self.source, self.steps, self.ranks = folder, source, steps, ranks
        self.layers = [_layer(row) for step in steps.steps if step["step"] == "block" for row in step["layers"]]
        self.finished = sum(step["step"] == "block" for step in steps.steps)
        self.blocks = [BlockCost(**step["cost"]) for step in steps.steps if step["step"] == "block"]
        self._open: list[PrunedLayer] = []
        self.folded = {step["index"]: step["orders"] for step in steps.steps if step["step"] == "block"}
        ranks.tell((self.finished, self.folded))

    def recall(self, kind: str) -> dict[str, Any] | None:
        return self.steps.first(kind)

    def remember(self, kind: str, **content: Any) -> None:
        self.steps.add({"step": kind, **content})

    def begin(self) -> None:
        made = self.steps.folder
        with writing_to(self.folder):
            self.source.begin_copy(made, existing=self.recall("files") is not None)
            if self.recall("files") is None:
                copy_files(self.source.shards.folder, made)
                self.remember("files")
        self.source.finished(range(self.finished))
        self.ranks.meet()
        super().begin()

    def layer(self, layer: PrunedLayer) -> None:
        super().layer(layer)
        self._open.append(layer)

    def block(self, index: int, orders: Orders) -> None:
        super().block(index, orders)
        layers, self._open = [asdict(layer) for layer in self._open], []
        step = {"step": "block", "index": index, "orders": orders, "layers": layers, "cost": asdict(self.blocks[-1])}
        with writing_to(self.folder):
            self.source.commit(index, lambda: self.steps.add(step))
            if self.ranks.world > 1:
                self.source.wait()
                self.ranks.meet()

    def finish(self, sidecar: Mapping[str, str]) -> None:
        with writing_to(self.folder):
            self.source.finish_copy()
            for name, text in sidecar.items():
                write_text(self.steps.folder / name, text)


class _Follower(Output):
    """Beside one that writes block by block: reads what that has written, on a disk that both see."""

    def __init__(self, opened: OpenModel, folder: Path, source: DiskBlocks, ranks: Ranks):
        super().__init__(opened, None)
        self.place, self.source, self.ranks = folder_of(folder), source, ranks
        self.finished, self.folded = ranks.tell((0, {}))

    def begin(self) -> None:
        self.ranks.meet()
        self.source.follow_copy(self.place)
        self.source.finished(range(self.finished))

    def block(self, index: int, orders: Orders) -> None:
        self.ranks.meet()
        self.source.finished([index])


def _layer(row: dict[str, Any]) -> PrunedLayer:
    R, C = row["shape"]
    return PrunedLayer(**{**row, "shape": (R, C)})
