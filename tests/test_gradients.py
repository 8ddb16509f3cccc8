"""Gradients of the loss against autograd, one sequence at a time, and the programs that name them.

Legend: B sequences, L tokens per sequence, R output rows, C input columns.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import autoprune
import tiny
from autoprune import algorithms, gradients
from autoprune.errors import AutopruneError
from autoprune.gradients import loss_gradients
from autoprune.language import read_program
from autoprune.layer import Method
from autoprune.models import InMemoryBlocks, all_linears, fingerprint
from autoprune.progress import Silent
from autoprune.prune_blocks import Recipe, prune_blocks
from autoprune.sparsity import Target, keep_mask
from autoprune.statistics import Gradient
from autoprune.stream import walk

PRUNER_ZERO = algorithms.load("pruner-zero").require("score")
GBLM = algorithms.load("gblm").require("score")
WANDA = algorithms.load("wanda").require("score")
TOKENS = tiny.tokens()


def collected(model: Any, tokens_BL: Tensor = TOKENS, micro_batch_tokens: int | None = None) -> dict[str, Gradient]:
    return loss_gradients(InMemoryBlocks(model), PRUNER_ZERO.collects, tokens_BL, Silent(), micro_batch_tokens)


def by_autograd(model: Any, tokens_BL: Tensor = TOKENS) -> dict[str, Tensor]:
    """Root mean square (R, C), in float64, of what autograd gives for each sequence's own mean cross-entropy."""
    linears = all_linears(InMemoryBlocks(model))
    weights = [linear.parameter.requires_grad_() for linear in linears]
    squares = [torch.zeros(linear.shape, dtype=torch.float64) for linear in linears]
    for tokens_L in tokens_BL:
        logits_LV = model(input_ids=tokens_L[None], use_cache=False).logits[0]
        loss = nn.functional.cross_entropy(logits_LV[:-1].float(), tokens_L[1:])
        found = torch.autograd.grad(loss, weights, allow_unused=True)
        for linear, square_RC, gradient in zip(linears, squares, found, strict=True):
            if gradient is not None:
                square_RC += (gradient.T if isinstance(linear.module, Conv1D) else gradient).double().square()
    for weight in weights:
        weight.requires_grad_(False)
    return {linear.name: (square / len(tokens_BL)).sqrt() for linear, square in zip(linears, squares, strict=True)}


def assert_close(found: dict[str, Gradient], expected: dict[str, Tensor], rtol: float = 1e-5) -> None:
    assert found.keys() == expected.keys()
    for name, expected_RC in expected.items():
        value_RC = found[name].gradient
        assert value_RC.dtype == torch.float32
        atol = rtol * float(expected_RC.max())
        torch.testing.assert_close(
            value_RC.double(), expected_RC, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_gradients_are_those_of_autograd(architecture: str):
    found = collected(tiny.model(architecture))
    assert_close(found, by_autograd(tiny.model(architecture)))
    assert {gradient.tokens for gradient in found.values()} == {TOKENS.numel()}
    assert all(gradient.gradient.max() > 0 for gradient in found.values())


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("micro_batch_tokens", [1, 48, 10_000])
def test_micro_batches_change_nothing(architecture: str, micro_batch_tokens: int):
    expected = {name: gradient.gradient.double() for name, gradient in collected(tiny.model(architecture)).items()}
    assert_close(collected(tiny.model(architecture), TOKENS, micro_batch_tokens), expected)


OUTPUTS = read_program(
    "def score(weight, output_gradient):\n    return abs(weight) * output_gradient\n", name="outputs"
).require("score")


@pytest.mark.parametrize("micro_batch_tokens", [None, 16])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_gradients_by_outputs_are_those_of_autograd(architecture: str, micro_batch_tokens: int | None):
    model = tiny.model(architecture)
    linears = all_linears(InMemoryBlocks(model))
    squares = {linear.name: torch.zeros(linear.shape[0], 1, dtype=torch.float64) for linear in linears}
    for tokens_L in TOKENS:
        outputs: dict[str, Tensor] = {}

        def keep(name: str, y: Tensor, into: dict[str, Tensor] = outputs) -> Tensor:
            into[name] = y.detach().requires_grad_() if not y.requires_grad else y
            return into[name]

        hooks = [
            linear.module.register_forward_hook(lambda module, args, y, name=linear.name: keep(name, y))
            for linear in linears
        ]
        logits_LV = model(input_ids=tokens_L[None], use_cache=False).logits[0]
        loss = nn.functional.cross_entropy(logits_LV[:-1].float(), tokens_L[1:])
        for name, delta in zip(outputs, torch.autograd.grad(loss, list(outputs.values())), strict=True):
            squares[name] += delta.reshape(-1, delta.shape[-1]).double().square().sum(0)[:, None]
        for hook in hooks:
            hook.remove()
    found = loss_gradients(InMemoryBlocks(model), OUTPUTS.collects, TOKENS, Silent(), micro_batch_tokens)
    for name, square_R1 in squares.items():
        assert found[name].gradient is None
        value_R1 = found[name].output_gradient
        assert value_R1 is not None
        torch.testing.assert_close(value_R1.double(), (square_R1 / TOKENS.numel()).sqrt(), rtol=1e-4, atol=1e-9)


def test_memory_is_bounded_by_slices(monkeypatch: pytest.MonkeyPatch):
    expected, sizes = by_autograd(tiny.model()), []
    own = tiny.model()
    own.register_forward_pre_hook(lambda module, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True)
    monkeypatch.setattr(gradients, "_PRODUCTS_AT_ONCE", 3000)
    monkeypatch.setattr(gradients, "TOKENS_AT_ONCE", 5)
    monkeypatch.setattr(gradients, "LOGITS_AT_ONCE", 2 * TOKENS.shape[1] * tiny.VOCABULARY)
    assert_close(collected(own), expected)
    assert sizes == [2, 2, 1]


@pytest.mark.parametrize(("architecture", "forwards"), [("llama", 1), ("gpt2", 1), ("opt", 1 + len(TOKENS))])
def test_a_micro_batch_takes_one_pass_with_every_block_run_twice(architecture: str, forwards: int):
    """Blocks keep their inputs only. OPT flattens sequences, so that after a look at it each goes by itself."""
    model, calls = tiny.model(architecture), {"model": 0, "last block": 0}

    def counted(name: str) -> Callable[..., None]:
        def count(*_: Any) -> None:
            calls[name] += 1

        return count

    model.register_forward_pre_hook(counted("model"))
    linear = all_linears(InMemoryBlocks(model))[-1]
    inner = linear.module.forward

    def forward(x: Tensor) -> Tensor:
        calls["last block"] += 1
        return inner(x)

    linear.module.forward = forward
    collected(model)
    assert calls["model"] == forwards
    finished = forwards if architecture != "opt" else forwards - 1
    # Recomputing stops where nothing more is needed, which may be before the last layer computes.
    assert finished < calls["last block"] <= 2 * finished


def test_activations_of_one_block_only_are_kept():
    """Inside a block no tensor outlives the forward pass."""
    model, alive, at_logits = tiny.model(num_hidden_layers=4), [], []
    linears = [linear.module for linear in all_linears(InMemoryBlocks(model)) if linear.name.endswith("down_proj")]
    for module in linears:
        module.register_forward_pre_hook(lambda module, args: alive.append(weakref.ref(args[0])))
    model.lm_head.register_forward_pre_hook(
        lambda module, args: at_logits.append(sum(tensor() is not None for tensor in alive))
    )
    collected(model)
    assert len(alive) > 4
    assert at_logits == [0]


# ---------------------------------------------------------------- weights and forwards that are not the usual


@pytest.mark.parametrize("how", ["tied weights", "same block twice", "same layer twice"])
def test_gradients_of_all_uses_of_a_weight_add_up(how: str):
    model = tiny.model(num_hidden_layers=3)
    layers = model.model.layers
    match how:
        case "tied weights":
            layers[2].mlp.up_proj.weight = layers[0].mlp.up_proj.weight
            layers[2].mlp.down_proj.weight = layers[0].mlp.down_proj.weight
        case "same block twice":
            layers[2] = layers[0]
        case "same layer twice":
            layers[1].mlp.up_proj = layers[1].mlp.gate_proj
    assert_close(collected(model), by_autograd(model))


def test_a_linear_layer_with_a_forward_of_its_own():
    class Doubled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    model = tiny.model()
    model.model.layers[1].mlp.up_proj.__class__ = Doubled
    assert_close(collected(model), by_autograd(model))


class Experts(nn.Module):
    """Routes tokens, without their sequences, to experts; the last never gets any, and is called if `eager`."""

    def __init__(self, eager: bool):
        super().__init__()
        self.experts, self.eager = nn.ModuleList(nn.Linear(8, 8) for _ in range(4)), eager

    def forward(self, x: Tensor, route: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            if self.eager or (route == index).any():
                y[route == index] = torch.tanh(expert(x[route == index]))
        return x + y


class ExpertModel(nn.Module):
    def __init__(self, eager: bool):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(64, 8), nn.Linear(8, 64)
        self.blocks = nn.ModuleList(Experts(eager) for _ in range(3))

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> SimpleNamespace:
        x = self.embedding(input_ids)
        for block in self.blocks:
            x = block(x, route=input_ids % 3)
        return SimpleNamespace(logits=self.head(x))


@pytest.mark.parametrize("eager", [True, False])
@pytest.mark.parametrize("tokens_per_batch", [1, 12, 24, None])
def test_experts_and_layers_that_no_token_reaches(eager: bool, tokens_per_batch: int | None):
    """As many tokens may reach an expert as there are: their number does not say whose they are."""
    model = ExpertModel(eager)
    tokens_BL = torch.cat([torch.full((2, 12), 3), torch.randint(0, 64, (4, 12))])
    found = collected(model, tokens_BL, tokens_per_batch)
    expected = by_autograd(model, tokens_BL)
    for index in range(3):
        unreached = f"blocks.{index}.experts.3"
        assert found[unreached].tokens == 0
        assert found[unreached].gradient.eq(1).all()
        assert expected[unreached].eq(0).all()
        expected[unreached] += 1
        assert sum(found[f"blocks.{index}.experts.{expert}"].tokens for expert in range(4)) == tokens_BL.numel()
    assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_half_precision_is_close(architecture: str, dtype: torch.dtype):
    found = collected(tiny.model(architecture, dtype=dtype))
    expected = by_autograd(tiny.model(architecture, dtype=dtype).float())
    for name, expected_RC in expected.items():
        difference_RC = found[name].gradient - expected_RC
        assert difference_RC.square().mean().sqrt() < 0.05 * expected_RC.square().mean().sqrt(), name


def test_gradients_that_are_not_finite_name_the_layer():
    model = tiny.model()
    model.model.layers[1].input_layernorm.weight.data[3] = torch.inf
    with pytest.raises(AutopruneError, match="the gradient of the loss is not finite; try --dtype float32") as caught:
        collected(model)
    assert caught.value.where == "model.layers.0.self_attn.q_proj"


# ---------------------------------------------------------------- what is left behind


def state(model: nn.Module) -> tuple[Any, ...]:
    flags = [parameter.requires_grad for parameter in model.parameters()]
    forwards = {name: module.__dict__.get("forward") for name, module in model.named_modules()}
    return fingerprint(model), flags, forwards


@pytest.mark.parametrize("fails", ["never", "forward", "backward"])
def test_the_model_is_left_as_it_was(fails: str, monkeypatch: pytest.MonkeyPatch):
    model = tiny.model()
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(index % 2 == 0)
    linear = model.model.layers[0].mlp.up_proj
    own = linear.forward
    linear.forward = lambda x: own(x)
    before, random = state(model), torch.random.get_rng_state()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if fails == "forward":
        model.lm_head.register_forward_pre_hook(interrupt)
    if fails == "backward":
        monkeypatch.setattr(gradients._Sum, "add", interrupt)
    if fails == "never":
        collected(model)
    else:
        with pytest.raises(KeyboardInterrupt):
            collected(model)
    assert state(model) == before
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), random)


def test_own_gradients_of_a_live_model_are_not_touched():
    model = tiny.model()
    weight = model.model.layers[0].mlp.up_proj.weight
    weight.grad = torch.full_like(weight, 3)
    collected(model)
    assert weight.grad.eq(3).all()


def test_gradients_are_off_or_on_afterwards_as_before():
    with torch.no_grad():
        assert_close(collected(tiny.model()), {n: g.gradient.double() for n, g in collected(tiny.model()).items()})
        assert not torch.is_grad_enabled()


# ---------------------------------------------------------------- programs that name it


def test_only_what_is_named_is_collected():
    model = tiny.model()
    model.register_forward_pre_hook(lambda *_: pytest.fail("a forward was run"))
    source = InMemoryBlocks(model)
    assert loss_gradients(source, WANDA.collects, TOKENS, Silent()) == {}
    assert len(list(walk(source, [TOKENS], collects=PRUNER_ZERO.collects))) == len(all_linears(source))


def test_progress_counts_sequences():
    told: list[Any] = []

    class Watched(Silent):
        def stage(self, name: str, total: float) -> None:
            told.append((name, total))

        def advance(self, amount: float) -> None:
            told.append(amount)

    loss_gradients(InMemoryBlocks(tiny.model()), GBLM.collects, TOKENS, Watched(), micro_batch_tokens=48)
    assert told == [("gradients of the loss", 5), 2, 2, 1]


def test_a_program_without_its_gradients_is_an_error():
    recipe = Recipe(method=Method(score=PRUNER_ZERO), target=Target.of(0.5))
    with pytest.raises(AssertionError, match="not collected"):
        prune_blocks(InMemoryBlocks(tiny.model()), recipe, TOKENS, lambda layer: None)


def pruner_zero(weight_RC: Tensor, norm_C: Tensor, gradient_RC: Tensor) -> Tensor:
    low, high = gradient_RC.min(), gradient_RC.max()
    return weight_RC.square() * (gradient_RC - low) / (high - low)


def gblm(weight_RC: Tensor, norm_C: Tensor, gradient_RC: Tensor) -> Tensor:
    return weight_RC.abs() * (norm_C + 100 * (128 / 2048) ** 0.5 * gradient_RC)


@pytest.mark.parametrize(("tape", "formula"), [(PRUNER_ZERO, pruner_zero), (GBLM, gblm)])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("target", [Target.of(0.5), Target.of(pattern="2:4")], ids=str)
def test_what_is_pruned_is_what_the_formula_says(tape: Any, formula: Any, architecture: str, target: Target):
    model, seen = tiny.model(architecture), {}
    source, expected = InMemoryBlocks(model), by_autograd(tiny.model(architecture))
    hooks = [
        linear.module.register_forward_pre_hook(
            lambda module, args, name=linear.name: seen.update({name: args[0].flatten(0, -2)})
        )
        for linear in all_linears(source)
    ]
    with torch.no_grad():
        model(input_ids=TOKENS, use_cache=False)
    for hook in hooks:
        hook.remove()
    masks = {}
    for linear in all_linears(source):
        score_RC = formula(
            linear.weight_RC.double(), seen[linear.name].double().square().mean(0).sqrt(), expected[linear.name]
        )
        masks[linear.name] = keep_mask(score_RC.float(), target, linear.size // 2, "row")
    found = loss_gradients(source, tape.collects, TOKENS, Silent())
    recipe = Recipe(method=Method(score=tape), target=target, propagation="dense")
    layers = prune_blocks(source, recipe, TOKENS, lambda layer: None, found)
    for linear in all_linears(source):
        differs = (linear.weight_RC != 0) != masks[linear.name]
        assert differs.float().mean() < 2e-3, linear.name  # a tie of float32 may fall either way
    assert {layer.calibration_tokens for layer in layers} == {TOKENS.numel()}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(tiny.text(), "utf-8")
    return f"file:{path}"


@pytest.mark.parametrize("algorithm", ["pruner-zero", "gblm"])
@pytest.mark.parametrize("options", [{"sparsity": 0.5}, {"pattern": "2:4"}, {"sparsity": 0.5, "allocation": "auto"}])
def test_the_whole_prune(algorithm: str, options: dict[str, Any], text: str):
    results = []
    for _ in range(2):
        model = tiny.model("gpt2", dtype=torch.bfloat16)
        report = autoprune.prune(
            model,
            tokenizer=tiny.tokenizer(),
            algorithm=algorithm,
            calibration=text,
            sequences=8,
            length=16,
            **options,
        )
        assert report.zeros * 2 == report.weights
        assert report.notes == []
        results.append(fingerprint(model))
    assert results[0] == results[1]


def test_a_layer_no_token_reached_is_scored_by_its_weights():
    model = ExpertModel(eager=False)
    source = InMemoryBlocks(model)
    before = {linear.name: linear.weight_RC.clone() for linear in all_linears(source)}
    tokens_BL = torch.randint(0, 64, (4, 12), generator=torch.Generator().manual_seed(0))
    recipe = Recipe(method=Method(score=PRUNER_ZERO), target=Target.of(0.5))
    found = loss_gradients(source, PRUNER_ZERO.collects, tokens_BL, Silent())
    layers = prune_blocks(source, recipe, tokens_BL, lambda layer: None, found)
    for layer in layers:
        if layer.name.endswith("experts.3"):
            assert layer.calibration_tokens == 0
            kept_RC = keep_mask(before[layer.name].abs(), Target.of(0.5), 32, "row")
            weight_RC = next(linear.weight_RC for linear in all_linears(source) if linear.name == layer.name)
            assert torch.equal(weight_RC != 0, kept_RC)
        else:
            assert layer.calibration_tokens > 0


def test_a_program_that_needs_a_gradient_needs_a_text(tmp_path: Path):
    with pytest.raises(AutopruneError, match="nowhere"):
        autoprune.prune(
            tiny.model(),
            tokenizer=tiny.tokenizer(),
            algorithm="pruner-zero",
            sparsity=0.5,
            calibration=f"file:{tmp_path}/nowhere.txt",
        )
