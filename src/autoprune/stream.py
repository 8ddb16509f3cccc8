"""One pass over the blocks of a model, all calibration micro-batches in lockstep.

Every micro-batch is a coroutine that runs the model's own forward and stops at each linear layer until all
micro-batches have arrived. Then `walk` hands the layer to its caller, who may change the weights, and the
micro-batches go on through what is there now. So each block is computed once, a layer is seen with the inputs it
will really receive, and nothing about a model's masks, positions or caches has to be known here.

Coroutines are greenlets, because the place to stop lies deep inside code that is not ours.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from autoprune.attention import faster_attention
from autoprune.errors import AutopruneError
from autoprune.language import STATISTICS, interpret
from autoprune.language.program import Tape
from autoprune.language.statistics import GRADIENTS
from autoprune.language.types import Type
from autoprune.memory import reuse_freed_memory
from autoprune.models import BlockSource, Linear, input_device
from autoprune.ranks import ALONE, Ranks
from autoprune.residual import parts_of, some_tokens, writers
from autoprune.sparsity import some_rows
from autoprune.spill import Spill, Waiting
from autoprune.statistics import Gradient, InputStatistics

DENSE_GRAM = "dense_gram"
"""The running sum that needs the unpruned model's inputs beside the pruned one's."""

PROPAGATION = {
    "one_pass": "a layer sees inputs from layers that are already pruned, its own block's included",
    "block": "a block's layers are all measured before any is pruned, then it runs once more (Wanda's scheme)",
    "dense": "every layer sees the inputs of the unpruned model",
}


def check_propagation(name: str) -> None:
    """Refuse what is none of PROPAGATION."""
    if name not in PROPAGATION:
        raise AutopruneError(f"unknown propagation '{name}'", remedy=f"use {', '.join(PROPAGATION)}")


MICRO_BATCH_TOKENS = {"cpu": 4096}
"""Tokens that go through a layer at once, by device type: small enough for a CPU's caches."""
_MICRO_BATCH_TOKENS_ELSEWHERE = 32_768

_SCORED_AT_ONCE = 1 << 20  # weights

NO_GRADIENTS: Mapping[str, Gradient] = MappingProxyType({})
NOTHING_MORE: Mapping[int, frozenset[str]] = MappingProxyType({})


@dataclass(frozen=True)
class Visit:
    """A linear layer whose input statistics are complete. `depth` is its block's position in [0, 1]; `gradient` is
    there where the walk was given one; `more` counts the visits that follow before any micro-batch goes on; `sparsity`
    is the share of weights that it loses, once that is settled (`at`). `writes` is the factor by which its output is
    added to the residual stream, where it is to make up for what that lacks, else 0."""

    linear: Linear
    inputs: InputStatistics
    depth: float
    gradient: Gradient | None = None
    more: int = 0
    sparsity: float | None = None
    writes: float = 0.0

    def at(self, sparsity: float) -> Visit:
        """The same, for a score that is asked at this sparsity."""
        return replace(self, sparsity=sparsity)

    @property
    def tokens(self) -> int:
        """How many tokens of the text tell something about this layer."""
        return self.inputs.tokens or (self.gradient.tokens if self.gradient else 0)

    def statistics(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The named statistics of the language, for this layer."""
        return {name: self._statistic(name) for name in names}

    def _statistic(self, name: str) -> Tensor:
        if name in GRADIENTS:
            value = getattr(self.gradient, name, None)
            assert value is not None, "the program names a statistic that was not collected"
            return value
        if name == "sparsity":
            assert self.sparsity is not None, "a score is asked at a sparsity"
            return torch.tensor([[self.sparsity]], device=self.linear.weight_RC.device)
        return self.inputs.statistic(name, self.linear.weight_RC, self.depth)

    def score(self, tape: Tape) -> Tensor:
        """What a program's `score` gives the weights of this layer: float32 (R, C), refused where not finite."""
        parts = [score_rC for _, score_rC in self.score_by_rows(tape)]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def score_by_rows(self, tape: Tape) -> Iterator[tuple[slice, Tensor]]:
        """The score, some rows at a time: as many as a CPU's caches hold where each weight is scored on its own, which
        takes a third of the time; else all."""
        weight_RC = self.linear.weight_RC
        on_its_own = tape.is_elementwise and all(STATISTICS[name].type is not Type.CC for name in tape.statistics)
        if weight_RC.device.type != "cpu" or not on_its_own:
            yield slice(None), self._finite(interpret(tape, self.statistics(tape.statistics)))
            return
        others = self.statistics(name for name in tape.statistics if name != "weight")
        for some in some_rows(weight_RC, _SCORED_AT_ONCE):
            given = {name: _rows(name, value, some) for name, value in others.items()}
            yield some, self._finite(interpret(tape, {**given, "weight": weight_RC[some].float()}))

    def scorer(self, tape: Tape) -> Callable[..., Tensor]:
        """The score as a function of other weights (R, C), for what asks it again and again; or of some `columns` and
        their weights, with their own `curvature_1C` as inverse_gram_diagonal. Other statistics stay as they are; what
        a program reduces over columns it then reduces over those."""
        known = self.statistics(tape.statistics)

        def score(weight_RC: Tensor, curvature_1C: Tensor | None = None, columns: slice = slice(None)) -> Tensor:
            given = {name: _columns(name, value, columns) for name, value in known.items()}
            given["weight"] = weight_RC
            if curvature_1C is not None:
                given["inverse_gram_diagonal"] = curvature_1C
            return self._finite(interpret(tape, given))

        return score

    def _finite(self, score_RC: Tensor) -> Tensor:
        if not torch.isfinite(torch.stack(score_RC.aminmax())).all():
            raise AutopruneError(
                "the score is not finite", where=self.linear.name, remedy="check the program and the text"
            )
        return score_RC


def _columns(name: str, statistic: Tensor, columns: slice) -> Tensor:
    """A statistic of some columns only."""
    match STATISTICS[name].type:
        case Type.RC | Type.C:
            return statistic[:, columns]
        case Type.CC:
            return statistic[columns, columns]
    return statistic


def _rows(name: str, statistic: Tensor, rows: slice) -> Tensor:
    """A statistic of some rows only."""
    return statistic[rows] if STATISTICS[name].type in (Type.R, Type.RC) else statistic


def micro_batches(tokens_BL: Tensor, device: torch.device, tokens: int | None = None) -> list[Tensor]:
    """Split sequences so that about `tokens` tokens (default: by device) go through at once."""
    tokens = tokens or MICRO_BATCH_TOKENS.get(device.type, _MICRO_BATCH_TOKENS_ELSEWHERE)
    return list(tokens_BL.split(max(1, tokens // tokens_BL.shape[1])))


def walk(
    source: BlockSource,
    batches: Sequence[Tensor],
    *,
    collects: frozenset[str],
    propagation: str = "one_pass",
    gradients: Mapping[str, Gradient] = NO_GRADIENTS,
    more: Mapping[int, frozenset[str]] = NOTHING_MORE,
    finished: int = 0,
    on_block: Callable[[int], None] = lambda index: None,
    on_pass: Callable[[int], None] = lambda index: None,
    spill: Spill | None = None,
    ranks: Ranks = ALONE,
) -> Iterator[Visit]:
    """Every prunable layer of the model, once, in the order in which it is reached.

    `batches` are token ids (B, L). `collects` names the running sums to keep, `more` further ones for the layers of
    some blocks, by index; where `collects` is empty nothing has to be computed and `batches` are not used. A layer
    that no token reaches comes last in its block, with no tokens. The first `finished` blocks are computed and not
    visited, as `on_pass` leaves them; `on_block` is told of each other one, by index, when all micro-batches have left
    it. With `spill` what micro-batches hold while they wait may be in a file. All `ranks` walk together, each with its
    own `batches`, and see the same visits.
    Gradients are no running sum of the walk: `gradients` has them, by name of the layer.
    """
    collects -= GRADIENTS
    if collects and input_device(source.model).type == "cpu":
        reuse_freed_memory()
    lockstep = _Lockstep(source, batches if collects else [], collects, propagation, gradients, more, spill, ranks)
    try:
        lockstep.pass_by(finished, on_pass)
        yield from lockstep.visits(finished, on_block)
    finally:
        lockstep.close()


def walk_blocks(
    source: BlockSource, batches: Sequence[Tensor], finish: Callable[[int, Tensor], None]
) -> Generator[int]:
    """The index of every block, each before any micro-batch enters it: its weights may be changed until the next one
    is asked for. At the end, `finish` is told the logits (B, L, V) of each micro-batch, by index."""

    def forward(index: int, tokens_BL: Tensor) -> None:
        finish(index, _forward(source.model, tokens_BL).logits)

    def stop(block: nn.Module, args: tuple[Any, ...]) -> None:
        batch = by_greenlet.get(getcurrent())
        if batch is None:
            return
        if batch.position >= len(source.blocks) or source.blocks[batch.position] is not block:
            raise _out_of_order(block)
        batch.position += 1
        batch.stop(None)

    waiting = [_Batch(partial(forward, index, tokens_BL)) for index, tokens_BL in enumerate(batches)]
    by_greenlet = {batch.greenlet: batch for batch in waiting}
    hooks = [block.register_forward_pre_hook(stop) for block in dict.fromkeys(source.blocks)]
    try:
        for batch in waiting:
            batch.run()  # to the first block
        for index, block in enumerate(source.blocks):
            source.load(index)
            yield index
            for batch in waiting:
                batch.run()
                if batch.position <= index or batch.greenlet.dead != (index == len(source.blocks) - 1):
                    raise _out_of_order(block)
            source.release(index)
    finally:
        for hook in hooks:
            hook.remove()
        for batch in waiting:
            batch.close()


def _out_of_order(block: nn.Module) -> AutopruneError:
    return AutopruneError(
        "the blocks are not run once each, in order, so one-shot trials would not mask what runs",
        where=type(block).__name__,
        remedy="use --allocation uniform, sdsa, atp, owl, dlp or alpha",
    )


def _hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """What a block is given to go on with: its first argument, or the one of that name."""
    first = args[0] if args else kwargs.get("hidden_states")
    return first if isinstance(first, Tensor) else None


def _forward(model: nn.Module, tokens_BL: Tensor) -> Any:
    return model(input_ids=tokens_BL.to(input_device(model)), use_cache=False)


class _Batch:
    """One micro-batch: a greenlet in the middle of `forward`, a call of the model.

    `at` is the linear layer it waits at, None at the end of a block. `inputs` are the statistics its last input was
    counted in; `complete` says that those are complete already: all micro-batches brought the very same tensor to an
    earlier layer, as to q before k.
    """

    def __init__(self, forward: Callable[[], object], waiting: Waiting | None = None):
        self.waiting = waiting
        self.at: Linear | None = None
        self.inputs: InputStatistics | None = None
        self.complete = False
        self.has_left = False  # whether it stands at the end of the open block, as a twin
        self.position = 0  # blocks entered, where `walk_blocks` runs it
        self.x: Tensor | None = None  # what the layer it stands at will receive
        self.residual: Tensor | None = None  # the residual stream of the open block, as far as it was added up
        self.entered: list[tuple[Tensor, int]] = []
        self._seen: tuple[weakref.ref[Tensor], int] | None = None
        self.driver = getcurrent()
        self.greenlet = greenlet(forward)

    def run(self) -> None:
        """Go on to the next stop. Gradients are off here only: modes must not leak to the caller."""
        with torch.no_grad(), faster_attention(), self.waiting or nullcontext():
            self.greenlet.switch()

    def stop(self, at: Linear | None) -> None:
        """Called inside the greenlet: wait until `run` is called again."""
        self.at = at
        self.driver.switch()

    def has_counted(self, x: Tensor) -> bool:
        """Whether this very tensor, unchanged, is the last input that was counted."""
        return self._seen is not None and self._seen[0]() is x and self._seen[1] == x._version

    def count(self, x: Tensor, inputs: InputStatistics) -> None:
        with self.apart():
            inputs.add(x)
        self.inputs, self._seen = inputs, (weakref.ref(x), x._version)

    def apart(self) -> AbstractContextManager[None]:
        """What is made in this context is not the micro-batch's own."""
        return self.waiting.not_its_own() if self.waiting else nullcontext()

    def close(self) -> None:
        if self.waiting:
            self.waiting.close()
        if not self.greenlet.dead:
            self.greenlet.throw()


class _Lockstep:
    def __init__(
        self,
        source: BlockSource,
        batches: Sequence[Tensor],
        collects: frozenset[str],
        propagation: str,
        gradients: Mapping[str, Gradient],
        more: Mapping[int, frozenset[str]],
        spill: Spill | None,
        ranks: Ranks,
    ):
        self.source, self.collects, self.propagation, self.gradients = source, collects, propagation, gradients
        self.more, self.ranks = more, ranks
        forwards = [partial(_forward, source.model, tokens_BL) for tokens_BL in batches]
        self.batches = [_Batch(forward, spill and spill.waiting()) for forward in forwards]
        self.by_greenlet = {batch.greenlet: batch for batch in self.batches}
        # Each micro-batch once more, through the unpruned model: it follows the first from stop to stop.
        self.twins: dict[_Batch, _Batch] = {}
        if DENSE_GRAM in collects:
            self.twins = {
                batch: _Batch(forward, spill and spill.waiting())
                for batch, forward in zip(self.batches, forwards, strict=True)
            }
        self.tokens = {batch: tokens_BL.numel() for batch, tokens_BL in zip(self.batches, batches, strict=True)}
        self.followed = {twin.greenlet: batch for batch, twin in self.twins.items()}
        self.unpruned: dict[Linear, Tensor] = {}  # weights of the open block as they were, for the twins
        self.writers: dict[Linear, float] | None = None  # into the residual stream of the open block, once known
        self.tried: list[tuple[Linear | None, Tensor]] | None = None  # while a block is run to find them: what it makes
        self.pending: dict[Linear, None] = {}  # layers of the open block that were not visited yet
        self.collecting: dict[Linear, InputStatistics] = {}
        self.stack = ExitStack()  # what is hooked into the open block

    def pass_by(self, finished: int, on_pass: Callable[[int], None]) -> None:
        """Run everything through the first blocks, as they are now, and `on_pass` leaves them."""
        for index, block in enumerate(self.source.blocks[:finished] if self.batches else []):
            for linear in self.source.linears(index):  # experts one by one, as in `visits`: other ways round otherwise
                self.stack.enter_context(linear.replaced(linear.forward))
            self.hook(block.register_forward_hook(self._stop, with_kwargs=True))
            for unpruned, batches in ((self.propagation == "dense", self.batches), (True, self.twins.values())):
                if batches:
                    self.source.load(index, unpruned=unpruned)
                    if not unpruned:
                        on_pass(index)
                    for batch in batches:
                        batch.run()
                    self.source.release(index)
            self.stack.close()

    def visits(self, finished: int, on_block: Callable[[int], None]) -> Iterator[Visit]:
        last = len(self.source.blocks) - 1
        for index, block in enumerate(self.source.blocks):
            if index < finished:
                continue
            self.source.load(index)
            for twin in self.twins.values():
                twin.has_left = False
            self.writers = None
            self.pending = dict.fromkeys(self.source.linears(index))
            for linear in self.pending:
                self.stack.enter_context(linear.replaced(partial(self._compute, linear, linear.forward)))
            if self.propagation == "block":
                self.hook(block.register_forward_pre_hook(self._enter, with_kwargs=True))
            if self.twins:
                self.hook(block.register_forward_pre_hook(self._begin, with_kwargs=True))
            self.hook(block.register_forward_hook(self._leave, with_kwargs=True))
            depth = index / max(last, 1)
            visits = (
                Visit(linear, inputs, depth, self.gradients.get(linear.name), writes=self._makes_up(linear))
                for linear, inputs in self._complete()
            )
            if self.propagation == "one_pass":
                yield from self._remembering(visits)
            else:
                found = list(visits)
                yield from (replace(visit, more=len(found) - 1 - place) for place, visit in enumerate(found))
            if self.propagation == "block" and index < last:
                for batch in self.batches:
                    batch.run()  # through the block once more, now that it is pruned
            self.stack.close()
            self.unpruned = {}
            on_block(index)
            self.source.release(index)

    def _complete(self) -> Iterator[tuple[Linear, InputStatistics]]:
        """Layers of the open block, each as soon as its statistics are complete."""
        linears = list(self.pending)
        order = {linear: position for position, linear in enumerate(linears)}
        ready = self.batches
        while self.batches:
            for batch in ready:
                batch.run()
                while batch.at and batch.complete:  # as k after q: nothing to wait for
                    assert batch.inputs is not None
                    yield self._visited(batch.at), batch.inputs
                    batch.run()
                self._follow(batch)
            if self.twins and self.ranks.world > 1 and self.pending.keys() == order.keys():
                found = self.writers or {}  # which count where all have found them
                ranks = torch.tensor([int(linear in found) for linear in linears])
                self.ranks.add_(ranks)
                agreed = {linear for linear, count in zip(linears, ranks.tolist(), strict=True)
                          if count == self.ranks.world}  # fmt: skip
                self.writers = {linear: factor for linear, factor in found.items() if linear in agreed}
            # All stand at a layer or at the end of the block. Where experts have scattered them, the first layer in
            # order of definition is next: the order in which experts are called.
            waiting = [(batch.at, batch) for batch in self.batches if batch.at]
            place = self.ranks.least(min((order[linear] for linear, _ in waiting), default=len(order)))
            if place == len(order):
                break
            first = linears[place]
            ready = [batch for linear, batch in waiting if linear is first]
            inputs = self.collecting.pop(first, None) or self._statistics(first)
            if self.ranks.world > 1:
                inputs.gather(self.ranks)
            yield self._visited(first), inputs
        for linear in list(self.pending):  # no token reached these
            yield self._visited(linear), self._statistics(linear)

    def _remembering(self, visits: Iterator[Visit]) -> Iterator[Visit]:
        """The visits. Of each layer's weight as it was a copy is kept for the twins."""
        for visit in visits:
            if self.twins:
                self.unpruned[visit.linear] = visit.linear.weight_RC.clone()
            yield visit

    def _follow(self, batch: _Batch) -> None:
        """Let a twin go on to where its micro-batch stands."""
        if (twin := self.twins.get(batch)) and not twin.has_left:
            pruned = {linear: linear.exchange(weight_RC) for linear, weight_RC in self.unpruned.items()}
            try:
                twin.run()
            finally:
                for linear, weight_RC in pruned.items():
                    linear.exchange(weight_RC)

    def _visited(self, linear: Linear) -> Linear:
        del self.pending[linear]
        return linear

    def _statistics(self, linear: Linear) -> InputStatistics:
        collects = self.collects | self.more.get(linear.block, frozenset())
        lacking = linear.shape[0] if self._makes_up(linear) else 0
        return InputStatistics(collects, linear.shape[1], linear.weight_RC.device, lacking=lacking)

    def _compute(self, linear: Linear, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """A linear layer's forward: before it computes, its micro-batch waits for the others."""
        if self.tried is not None:
            output = forward(x)
            twin = self._current()
            if twin and twin.residual is not None and twin.residual.numel() == output.numel():
                self.tried.append((linear, some_tokens(output)))
            return output
        self._arrive(linear, x)
        output = forward(x)
        if self.writers and linear in self.writers:
            self._write(linear, self.writers, output)
        return output

    def _write(self, linear: Linear, writers: dict[Linear, float], output: Tensor) -> None:
        """Keep account of the residual stream as a layer's output is added to it."""
        batch = self._current()
        if batch is None or batch.residual is None:
            return
        if linear == next(reversed(writers)) or output.numel() != batch.residual.numel():
            batch.residual = None  # no other layer asks; or this one's output is not of all tokens
            return
        factor = writers[linear]
        batch.residual = batch.residual.to(output.device) + factor * output.reshape(batch.residual.shape)

    def _current(self) -> _Batch | None:
        """The micro-batch, or twin, that runs."""
        current = getcurrent()
        if followed := self.followed.get(current):
            return self.twins[followed]
        return self.by_greenlet.get(current)

    def _begin(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a block computes, where there are twins. The first of them runs it once more, to see which layers
        write into the residual stream."""
        batch = self._current()
        if batch is None:
            return
        batch.residual = entering = _hidden(args, kwargs)
        if self.writers is not None or getcurrent() not in self.followed or entering is None:
            return
        copied = {id(entering): entering.clone()}  # it may be changed in place
        args = tuple(copied.get(id(value), value) for value in args)
        kwargs = {name: copied.get(id(value), value) for name, value in kwargs.items()}
        self.tried = []
        try:
            with parts_of(block, self.tried):
                output = block.forward(*args, **kwargs)
            leaving = output[0] if isinstance(output, tuple) else output
            self.writers = {}
            if isinstance(leaving, Tensor):
                self.writers = writers(some_tokens(entering), self.tried, some_tokens(leaving))
        finally:
            self.tried = None

    def _makes_up(self, linear: Linear) -> float:
        """The factor by which a layer's output is added to the residual stream, where it is to make up for what that
        lacks: with one_pass any that writes, else the last, as they do not see what the others have made up for."""
        writers = self.writers or {}
        if self.propagation != "one_pass" and linear != next(reversed(writers), None):
            return 0.0
        return writers.get(linear, 0.0)

    def _arrive(self, linear: Linear, x: Tensor) -> None:
        current = getcurrent()
        if (followed := self.followed.get(current)) and followed.at is linear and linear in self.pending:
            self._add_dense(followed, x)
            self.twins[followed].stop(linear)
        batch = self.by_greenlet.get(current)
        if batch is None or linear not in self.pending:
            return
        known = batch.inputs if batch.has_counted(x) else None
        # Where ranks walk together each layer is waited for by all: which ones share an input may differ by expert.
        batch.complete = self.ranks.world == 1 and known is not None and known.additions == len(self.batches)
        if self._makes_up(linear):  # what the stream lacks may have changed since another layer had the same input
            batch.complete = False
        if not batch.complete:
            if linear not in self.collecting:
                with batch.apart():
                    self.collecting[linear] = self._statistics(linear)
            batch.count(x, self.collecting[linear])
        if self.twins:
            batch.x = x
        batch.stop(linear)

    def _add_dense(self, followed: _Batch, dense: Tensor) -> None:
        """Count the twin's input beside that of its micro-batch, where both are of all its tokens: experts are sent
        others in the unpruned model."""
        assert followed.inputs is not None
        assert followed.x is not None
        if all(x.shape[:-1].numel() == self.tokens[followed] for x in (dense, followed.x)):
            here = followed.waiting.fetched() if followed.waiting else nullcontext()
            twin = self.twins[followed]
            with twin.apart(), here:
                followed.inputs.add_dense(dense, followed.x)
                there, here_too = twin.residual, followed.residual
                if followed.at and self._makes_up(followed.at) and there is not None and here_too is not None:
                    followed.inputs.add_lack(there, here_too, followed.x)

    def _enter(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a block computes."""
        if batch := self.by_greenlet.get(getcurrent()):
            batch.entered = [(x, x._version) for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]

    def _leave(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """After a block has computed."""
        if followed := self.followed.get(getcurrent()):
            self.twins[followed].residual = None
            self.twins[followed].has_left = True
            self.twins[followed].stop(None)
        batch = self.by_greenlet.get(getcurrent())
        if batch is None:
            return None
        batch.x = batch.residual = None
        batch.stop(None)
        if self.propagation == "block":
            if any(tensor._version != version for tensor, version in batch.entered):
                raise AutopruneError(
                    "a block changes its input in place, so it cannot be run twice",
                    where=type(block).__name__,
                    remedy="use --propagation one_pass",
                )
            output = block.forward(*args, **kwargs)
            batch.stop(None)
        return output

    def _stop(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """After a finished block has computed."""
        current = getcurrent()
        batch = self.by_greenlet.get(current)
        if batch is None and (followed := self.followed.get(current)):
            batch = self.twins[followed]
        if batch is not None:
            batch.stop(None)

    def hook(self, handle: RemovableHandle) -> None:
        self.stack.callback(handle.remove)

    def close(self) -> None:
        self.stack.close()
        for batch in (*self.batches, *self.twins.values()):
            batch.close()
