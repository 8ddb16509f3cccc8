"""The lockstep walk against the model's own forward: every statistic, every order, every way to stop.

Legend: T tokens, R output rows, C input columns.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny
from autoprune import stream
from autoprune.errors import AutopruneError
from autoprune.language import interpret, read_program
from autoprune.models import InMemoryBlocks, Linear
from autoprune.stream import DENSE_GRAM, PROPAGATION, Visit, micro_batches, walk

EVERYTHING = frozenset({"sum", "sum_of_squares", "max", "gram"})
WANDA = frozenset({"sum_of_squares"})
STATISTICS = ("input_norm", "input_mean", "input_std", "input_max", "gram")

architectures = pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)


# ---------------------------------------------------------------- oracles: plain hooks on a plain forward


def inputs_of(model: nn.Module, names: list[str], tokens_BL: Tensor) -> dict[str, Tensor]:
    """What the named layers receive in one forward of the whole model, in the order in which they run."""
    seen: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[..., None]:
        return lambda module, args: seen.__setitem__(name, args[0])

    handles = [model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in names]
    with torch.no_grad():
        model(input_ids=tokens_BL, use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


def formulas(x: Tensor) -> dict[str, Tensor]:
    x_TC = x.reshape(-1, x.shape[-1]).double()
    return {
        "input_norm": x_TC.square().mean(0, keepdim=True).sqrt(),
        "input_mean": x_TC.mean(0, keepdim=True),
        "input_std": x_TC.std(0, unbiased=False, keepdim=True),
        "input_max": x_TC.abs().amax(0, keepdim=True),
        "gram": x_TC.T @ x_TC / len(x_TC),
    }


def assert_statistics(visit: Visit, x: Tensor, names: tuple[str, ...] = STATISTICS) -> None:
    assert visit.inputs.tokens == x.numel() // x.shape[-1]
    expected, seen = formulas(x), visit.statistics(names)
    for name in names:
        torch.testing.assert_close(
            seen[name].double(), expected[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


def wanda_mask(weight_RC: Tensor, input_norm: Tensor) -> Tensor:
    """True for the larger half of every row."""
    score_RC = weight_RC.abs() * input_norm.reshape(1, -1).float()
    keep_RC = torch.zeros_like(score_RC, dtype=torch.bool)
    return keep_RC.scatter_(1, score_RC.topk(score_RC.shape[1] // 2, dim=1).indices, True)


def halve(visit: Visit) -> Tensor:
    keep_RC = wanda_mask(visit.linear.weight_RC, visit.inputs.input_norm)
    visit.linear.weight_RC.mul_(keep_RC)
    return keep_RC


def names_of(source: InMemoryBlocks) -> list[str]:
    return [linear.name for index in range(len(source.blocks)) for linear in source.linears(index)]


def same_layer(model: nn.Module, linear: Linear) -> Linear:
    """The layer of that name in another copy of the model."""
    return Linear(linear.name, model.get_submodule(linear.name), linear.block)


def hooks_left(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


# ---------------------------------------------------------------- what a layer is judged by


@architectures
def test_dense_statistics_are_those_of_the_unpruned_model(architecture: str):
    model, tokens_BL = tiny.model(architecture), tiny.tokens()
    source = InMemoryBlocks(model)
    expected = inputs_of(copy.deepcopy(model), names_of(source), tokens_BL)
    for visit in walk(
        source, micro_batches(tokens_BL, torch.device("cpu"), 48), collects=EVERYTHING, propagation="dense"
    ):
        assert_statistics(visit, expected[visit.linear.name])
        halve(visit)


@architectures
def test_one_pass_statistics_are_those_of_the_model_pruned_so_far(architecture: str):
    model, tokens_BL = tiny.model(architecture), tiny.tokens()
    shadow = copy.deepcopy(model)
    for visit in walk(InMemoryBlocks(model), tokens_BL.split(2), collects=EVERYTHING):
        assert_statistics(visit, inputs_of(shadow, [visit.linear.name], tokens_BL)[visit.linear.name])
        same_layer(shadow, visit.linear).weight_RC.mul_(halve(visit))


@architectures
@pytest.mark.parametrize("propagation", PROPAGATION)
def test_twins_bring_the_inputs_of_the_unpruned_model(architecture: str, propagation: str):
    """X_d^T X, with X what the layer is judged by and X_d what the unpruned model gives it at the same tokens."""
    model, tokens_BL = tiny.model(architecture), tiny.tokens()
    names = names_of(InMemoryBlocks(model))
    dense = inputs_of(copy.deepcopy(model), names, tokens_BL)
    shadow = copy.deepcopy(model)
    known, judged, waiting, block = 0, {}, [], -1
    for visit in walk(
        InMemoryBlocks(model),
        micro_batches(tokens_BL, torch.device("cpu"), 48),
        collects=EVERYTHING | {DENSE_GRAM},
        propagation=propagation,
    ):
        name = visit.linear.name
        if visit.linear.block != block or propagation == "one_pass":
            for linear, mask_RC in waiting:
                same_layer(shadow, linear).weight_RC.mul_(mask_RC)
            waiting, block = [], visit.linear.block
            judged = dense if propagation == "dense" else inputs_of(shadow, names, tokens_BL)
        dense_CC = visit.inputs.dense_gram
        if dense_CC is not None:
            known += 1
            assert judged[name].shape[:-1].numel() == tokens_BL.numel()
            x_TC, dense_TC = (x[name].reshape(visit.inputs.tokens, -1).double() for x in (judged, dense))
            torch.testing.assert_close(dense_CC.double(), dense_TC.T @ x_TC / len(x_TC), rtol=1e-3, atol=1e-5)
        waiting.append((visit.linear, halve(visit)))
    assert known == sum("expert" not in name for name in names)


WRITERS = dict.fromkeys(tiny.ARCHITECTURES, ("self_attn.o_proj", "mlp.down_proj")) | {
    "opt": ("self_attn.out_proj", "fc2"),
    "gpt2": ("attn.c_proj", "mlp.c_proj"),
    "gpt_neox": ("attention.dense", "mlp.dense_4h_to_h"),
    "bloom": ("self_attention.dense", "mlp.dense_4h_to_h"),
    "falcon": ("self_attention.dense", "mlp.dense_4h_to_h"),
    **dict.fromkeys(("gemma2", "gemma3_text", "olmo2", "olmo3"), ()),  # a norm stands between
    **dict.fromkeys(("mixtral", "qwen3_moe", "granitemoe"), ("self_attn.o_proj",)),  # experts are no layers
}
"""What is added to the residual stream, in order."""


def streams_of(
    model: nn.Module, source: InMemoryBlocks, writers: tuple[str, ...], tokens_BL: Tensor
) -> dict[str, Tensor]:
    """The residual stream (T, R) before each writer's output is added, by the writer's name."""
    names = {
        index: [linear.name for linear in source.linears(index) if writers and linear.name.endswith(writers)]
        for index in range(len(source.blocks))
    }
    entering, outputs = {}, {}
    paths = {id(module): path for path, module in source.model.named_modules()}
    handles = []
    for block, module in enumerate(source.blocks):
        own = model.get_submodule(paths[id(module)])
        handles.append(own.register_forward_pre_hook(lambda _, args, kwargs, block=block: entering.__setitem__(
            block, args[0] if args else kwargs["hidden_states"]), with_kwargs=True))  # fmt: skip
        for name in names[block]:
            handles.append(model.get_submodule(name).register_forward_hook(
                lambda _, args, output, name=name: outputs.__setitem__(name, output.clone())))  # fmt: skip
    with torch.no_grad():
        model(input_ids=tokens_BL, use_cache=False)
    for handle in handles:
        handle.remove()
    found = {}
    for block, of_it in names.items():
        stream_TR = entering[block].flatten(0, -2)
        for name in of_it:
            found[name] = stream_TR
            stream_TR = stream_TR + outputs[name].flatten(0, -2)
    return found


@pytest.mark.parametrize("architecture", WRITERS)
@pytest.mark.parametrize("propagation", ["one_pass", "block"])
def test_layers_that_write_into_the_residual_stream_know_what_it_lacks(architecture: str, propagation: str):
    """L^T X, with L the unpruned model's stream less the pruned one's where the layer's output is added."""
    model, tokens_BL = tiny.model(architecture), tiny.tokens()
    writers = WRITERS[architecture]
    source = InMemoryBlocks(model)
    names = [name for name in names_of(source) if "expert" not in name]
    dense = streams_of(copy.deepcopy(model), source, writers, tokens_BL)
    shadow = copy.deepcopy(model)
    known, inputs, streams, waiting, block = [], {}, {}, [], -1
    for visit in walk(source, tokens_BL.split(2), collects=EVERYTHING | {DENSE_GRAM}, propagation=propagation):
        name = visit.linear.name
        if visit.linear.block != block or propagation == "one_pass":
            for linear, mask_RC in waiting:
                same_layer(shadow, linear).weight_RC.mul_(mask_RC)
            waiting, block = [], visit.linear.block
            inputs = inputs_of(shadow, names, tokens_BL)
            streams = streams_of(shadow, source, writers, tokens_BL)
        if visit.writes:
            known.append(name)
            assert visit.writes == 1
            x_TC, lack_TR = inputs[name].flatten(0, -2), dense[name] - streams[name]
            expected_RC = lack_TR.double().T @ x_TC.double() / len(x_TC)
            assert visit.inputs.lack is not None
            torch.testing.assert_close(visit.inputs.lack.double(), expected_RC, rtol=1e-3, atol=1e-6)
        if name in names:
            waiting.append((visit.linear, halve(visit)))
    expected = [name for name in names if writers and name.endswith(writers)]
    if propagation == "block":  # the last alone, since none sees what the others have made up for
        expected = [name for name in expected if name.endswith(writers[-1])]
    assert sorted(known) == sorted(expected)


@architectures
def test_block_masks_are_those_of_the_plain_two_pass_loop(architecture: str):
    model, tokens_BL = tiny.model(architecture), tiny.tokens()
    plain = copy.deepcopy(model)
    source, plain_source = InMemoryBlocks(model), InMemoryBlocks(plain)
    expected = {}
    for index in range(len(plain_source.blocks)):
        linears = plain_source.linears(index)
        inputs = inputs_of(plain, [linear.name for linear in linears], tokens_BL)
        for linear in linears:
            mask = wanda_mask(linear.weight_RC, formulas(inputs[linear.name])["input_norm"])
            linear.weight_RC.mul_(mask)
            expected[linear.name] = mask
    found = {v.linear.name: halve(v) for v in walk(source, tokens_BL.split(2), collects=WANDA, propagation="block")}
    assert found.keys() == expected.keys()
    for name, mask in expected.items():
        assert torch.equal(found[name], mask), name


@architectures
def test_after_a_pruning_walk_the_model_computes_with_what_is_left(architecture: str):
    model, tokens_BL = tiny.model(architecture), tiny.tokens()
    shadow = copy.deepcopy(model)
    for visit in walk(InMemoryBlocks(model), tokens_BL.split(2), collects=WANDA):
        same_layer(shadow, visit.linear).weight_RC.mul_(halve(visit))
    with torch.no_grad():
        assert torch.equal(model(input_ids=tokens_BL).logits, shadow(input_ids=tokens_BL).logits)


# ---------------------------------------------------------------- order and sharing


@architectures
@pytest.mark.parametrize("propagation", PROPAGATION)
def test_every_layer_is_visited_once_in_the_order_it_runs(architecture: str, propagation: str):
    model, tokens_BL = tiny.model(architecture), tiny.tokens()
    source = InMemoryBlocks(model)
    in_order = list(inputs_of(model, names_of(source), tokens_BL))
    visited = [v.linear.name for v in walk(source, tokens_BL.split(2), collects=WANDA, propagation=propagation)]
    assert visited == in_order
    assert sorted(visited) == sorted(names_of(source))


@architectures
def test_layers_share_statistics_exactly_where_they_read_the_same_tensor(architecture: str):
    model, tokens_BL = tiny.model(architecture), tiny.tokens()
    source = InMemoryBlocks(model)
    inputs = inputs_of(model, names_of(source), tokens_BL)
    visits = list(walk(source, tokens_BL.split(2), collects=WANDA))
    for before, after in pairwise(visits):
        same_input = inputs[before.linear.name] is inputs[after.linear.name]
        assert (before.inputs is after.inputs) == same_input, f"{before.linear.name}, {after.linear.name}"


def test_q_k_v_and_gate_up_share_one_statistics_object():
    visits = list(walk(InMemoryBlocks(tiny.model()), tiny.tokens().split(2), collects=WANDA))
    q, k, v, o, gate, up, down = (visit.inputs for visit in visits[:7])
    assert q is k is v
    assert gate is up
    assert len({id(inputs) for inputs in (q, o, gate, down)}) == 4


def test_depth_runs_from_0_to_1():
    visits = walk(InMemoryBlocks(tiny.model(num_hidden_layers=3)), [tiny.tokens()], collects=WANDA)
    assert {visit.linear.block: visit.depth for visit in visits} == {0: 0.0, 1: 0.5, 2: 1.0}


def test_the_only_block_has_depth_0():
    visits = list(walk(InMemoryBlocks(tiny.model(num_hidden_layers=1)), [tiny.tokens()], collects=WANDA))
    assert {visit.depth for visit in visits} == {0.0}
    assert len(visits) == 7


# ---------------------------------------------------------------- micro-batches


@architectures
@pytest.mark.parametrize("propagation", PROPAGATION)
def test_micro_batch_size_does_not_matter(architecture: str, propagation: str):
    tokens_BL, found = tiny.tokens(), []
    for size in (1, 2, len(tokens_BL)):
        source = InMemoryBlocks(tiny.model(architecture))
        norms = {}
        for visit in walk(source, tokens_BL.split(size), collects=WANDA, propagation=propagation):
            norms[visit.linear.name] = visit.inputs.input_norm
            halve(visit)
        found.append(norms)
    for other in found[1:]:
        for name, norm in found[0].items():
            torch.testing.assert_close(other[name], norm, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_micro_batches_keep_order_and_every_sequence():
    tokens_BL = tiny.tokens(7, 10)
    batches = micro_batches(tokens_BL, torch.device("cpu"), 25)
    assert [len(batch) for batch in batches] == [2, 2, 2, 1]
    assert torch.equal(torch.cat(batches), tokens_BL)


def test_a_sequence_longer_than_a_micro_batch_goes_alone():
    assert [len(batch) for batch in micro_batches(tiny.tokens(3, 10), torch.device("cpu"), 4)] == [1, 1, 1]


def test_every_micro_batch_runs_the_forward_once_in_one_pass():
    model, calls = tiny.model(), []
    model.model.layers[1].mlp.register_forward_pre_hook(lambda module, args: calls.append(args[0].shape))
    for visit in walk(InMemoryBlocks(model), tiny.tokens(5).split(2), collects=WANDA):
        halve(visit)
    assert [shape[0] for shape in calls] == [2, 2, 1]


# ---------------------------------------------------------------- no text needed


@architectures
@pytest.mark.parametrize("propagation", PROPAGATION)
def test_without_statistics_nothing_is_computed(architecture: str, propagation: str):
    model = tiny.model(architecture)
    source = InMemoryBlocks(model)

    def refuse(*_: Any) -> None:
        raise AssertionError("a forward was run")

    for module in model.modules():
        module.register_forward_pre_hook(refuse)
    visits = list(walk(source, [tiny.tokens()], collects=frozenset(), propagation=propagation))
    assert [visit.linear.name for visit in visits] == names_of(source)
    assert all(visit.inputs.tokens == 0 for visit in visits)


# ---------------------------------------------------------------- leaving early


def stop_after(count: int, visits: Iterator[Visit]) -> None:
    for _ in range(count):
        next(visits)
    visits.close()  # type: ignore[attr-defined]


@architectures
@pytest.mark.parametrize("propagation", PROPAGATION)
@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_closing_early_leaves_the_model_as_it_was(architecture: str, propagation: str, count: int):
    model, tokens_BL = tiny.model(architecture), tiny.tokens()
    with torch.no_grad():
        before = model(input_ids=tokens_BL).logits
        stop_after(count, walk(InMemoryBlocks(model), tokens_BL.split(2), collects=WANDA, propagation=propagation))
        assert hooks_left(model) == 0
        assert torch.equal(model(input_ids=tokens_BL).logits, before)


@pytest.mark.parametrize("propagation", PROPAGATION)
def test_an_exception_of_the_consumer_leaves_the_model_as_it_was(propagation: str):
    model, tokens_BL = tiny.model(), tiny.tokens()
    before = model(input_ids=tokens_BL).logits
    visits = walk(InMemoryBlocks(model), tokens_BL.split(2), collects=WANDA, propagation=propagation)

    def consume() -> None:
        for visit in visits:
            _ = 1 // (visit.linear.block - 1)  # fails in the second block

    with pytest.raises(ZeroDivisionError):
        consume()
    visits.close()  # this function holds the generator; a loop's own is closed with it
    assert hooks_left(model) == 0
    assert torch.equal(model(input_ids=tokens_BL).logits, before)


@pytest.mark.parametrize("propagation", PROPAGATION)
def test_a_loop_that_fails_needs_no_closing(propagation: str):
    model, tokens_BL = tiny.model(), tiny.tokens()

    def consume() -> None:
        for visit in walk(InMemoryBlocks(model), tokens_BL.split(2), collects=WANDA, propagation=propagation):
            _ = 1 // (visit.linear.block - 1)

    with pytest.raises(ZeroDivisionError) as kept:  # the traceback is alive
        consume()
    assert kept.value
    assert hooks_left(model) == 0


def test_an_exception_inside_the_forward_reaches_the_consumer():
    model, tokens_BL = tiny.model(), tiny.tokens()

    def fail(*_: Any) -> None:
        raise ZeroDivisionError("inside")

    handle = model.model.layers[1].mlp.register_forward_pre_hook(fail)
    with pytest.raises(ZeroDivisionError, match="inside"):
        list(walk(InMemoryBlocks(model), tokens_BL.split(2), collects=WANDA))
    handle.remove()
    assert hooks_left(model) == 0


def test_a_finished_walk_leaves_no_hooks():
    model = tiny.model()
    list(walk(InMemoryBlocks(model), tiny.tokens().split(2), collects=WANDA))
    assert hooks_left(model) == 0


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("propagation", PROPAGATION)
def test_the_grad_mode_of_the_caller_is_unchanged(enabled: bool, propagation: str):
    with torch.set_grad_enabled(enabled):
        for _ in walk(InMemoryBlocks(tiny.model()), tiny.tokens().split(2), collects=WANDA, propagation=propagation):
            assert torch.is_grad_enabled() == enabled
        assert torch.is_grad_enabled() == enabled


def test_statistics_hold_no_autograd_graph():
    model = tiny.model().requires_grad_(True)
    visit = next(walk(InMemoryBlocks(model), [tiny.tokens()], collects=WANDA))
    assert not visit.inputs.input_norm.requires_grad


# ---------------------------------------------------------------- experts


class Experts(nn.Module):
    """Routes each token by its id to one of four linear experts; an expert without tokens is not called."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(8, 8)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        self.out = nn.Linear(8, 8)

    def forward(self, x: Tensor, route: Tensor) -> Tensor:
        x = x + torch.tanh(self.gate(x))
        y = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            if (route == index).any():
                y[route == index] = expert(x[route == index])
        return x + self.out(torch.tanh(y))


class ExpertModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(64, 8)
        self.blocks = nn.ModuleList(Experts() for _ in range(2))

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> Tensor:
        x = self.embedding(input_ids)
        for block in self.blocks:
            x = block(x, route=input_ids % 4)
        return x


def routed_tokens() -> Tensor:
    """Sequences for experts {0}, {2}, {0, 1}, {1, 2}, {2}; none for expert 3."""
    rows = [[0, 4, 8, 12], [2, 6, 10, 14], [0, 1, 4, 5], [1, 2, 9, 10], [18, 22, 26, 30]]
    return torch.tensor(rows)


def seen_by_layer(model: nn.Module, name: str, tokens_BL: Tensor) -> Tensor:
    """Rows (T, C) that a layer receives when each sequence is run by itself; empty if it is never called."""
    parts = [inputs_of(model, [name], row[None]).get(name, torch.empty(0, 8)) for row in tokens_BL]
    return torch.cat([part.reshape(-1, 8) for part in parts])


@pytest.mark.parametrize("propagation", PROPAGATION)
@pytest.mark.parametrize("size", [1, 2, 5])
def test_experts_that_some_batches_skip_are_all_visited(propagation: str, size: int):
    model = ExpertModel()
    source = InMemoryBlocks(model)
    visits = list(walk(source, routed_tokens().split(size), collects=WANDA, propagation=propagation))
    assert sorted(visit.linear.name for visit in visits) == sorted(names_of(source))
    tokens = {visit.linear.name: visit.inputs.tokens for visit in visits}
    assert [tokens[f"blocks.1.experts.{index}"] for index in range(4)] == [6, 4, 10, 0]
    assert tokens["blocks.1.gate"] == tokens["blocks.1.out"] == 20


@pytest.mark.parametrize("size", [1, 2, 5])
def test_experts_are_judged_by_all_tokens_routed_to_them(size: int):
    model, tokens_BL = ExpertModel(), routed_tokens()
    shadow = copy.deepcopy(model)
    for visit in walk(InMemoryBlocks(model), tokens_BL.split(size), collects=EVERYTHING):
        rows_TC = seen_by_layer(shadow, visit.linear.name, tokens_BL)
        if len(rows_TC):
            assert_statistics(visit, rows_TC)
        else:
            assert visit.inputs.tokens == 0
        same_layer(shadow, visit.linear).weight_RC.mul_(halve(visit))


def test_an_expert_that_no_token_reaches_comes_last_in_its_block():
    visits = [v.linear.name for v in walk(InMemoryBlocks(ExpertModel()), routed_tokens().split(1), collects=WANDA)]
    assert [name for name in visits if name.startswith("blocks.0.")][-1] == "blocks.0.experts.3"


def test_an_expert_that_no_token_reaches_has_neutral_statistics():
    visits = walk(InMemoryBlocks(ExpertModel()), routed_tokens().split(1), collects=WANDA)
    unreached = next(visit for visit in visits if visit.inputs.tokens == 0)
    assert torch.equal(unreached.inputs.input_norm, torch.ones(1, 8))


class SometimesFirst(nn.Module):
    """Two layers that read the very same tensor; the first is called only for even first tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.sometimes, self.always = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor, route: Tensor) -> Tensor:
        y = torch.zeros_like(x) if route[0, 0] % 2 else self.sometimes(x)
        return x + torch.tanh(y + self.always(x))


@pytest.mark.parametrize("propagation", PROPAGATION)
def test_statistics_are_not_shared_where_some_batches_skipped_the_first_layer(propagation: str):
    model = ExpertModel()
    model.blocks = nn.ModuleList([SometimesFirst()])
    tokens_BL = torch.arange(12).reshape(4, 3)
    visits = list(walk(InMemoryBlocks(model), tokens_BL.split(1), collects=WANDA, propagation=propagation))
    seen = {visit.linear.name: visit.inputs.tokens for visit in visits}
    assert seen == {"blocks.0.sometimes": 6, "blocks.0.always": 12}


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor, route: Tensor) -> Tensor:
        x += self.linear(x)
        return x


def test_a_block_that_changes_its_input_is_not_run_twice():
    model = ExpertModel()
    model.blocks = nn.ModuleList([InPlace(), InPlace()])
    with pytest.raises(AutopruneError, match="one_pass"):
        list(walk(InMemoryBlocks(model), [routed_tokens()], collects=WANDA, propagation="block"))
    assert hooks_left(model) == 0


@pytest.mark.parametrize("body", ["abs(weight) * input_norm", "where(weight > 0, weight, input_norm - weight)"])
@pytest.mark.parametrize("rows", [1, 5, 1000])
def test_scores_a_few_rows_at_a_time_are_the_same(body: str, rows: int, monkeypatch: pytest.MonkeyPatch):
    program = read_program(f'"""It."""\n\n\ndef score(weight, input_norm):\n    return {body}\n')
    tape = program.require("score")
    source = InMemoryBlocks(tiny.model(dtype=torch.bfloat16))
    for visit in walk(source, [tiny.tokens()], collects=tape.collects):
        monkeypatch.setattr(stream, "_SCORED_AT_ONCE", rows * visit.linear.shape[1])
        whole = interpret(tape, visit.statistics(tape.statistics))
        assert torch.equal(visit.score(tape), whole)
