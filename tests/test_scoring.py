"""The scorer's rungs against direct computations on tiny models, and that a model is as it was after each."""

from __future__ import annotations

import itertools
import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from autoprune import algorithms
from autoprune.errors import AutopruneError
from autoprune.gradients import loss_gradients
from autoprune.language import STATISTICS, read_program
from autoprune.language.statistics import GRADIENTS
from autoprune.layer import Method
from autoprune.models import InMemoryBlocks, OpenModel, all_linears, open_model
from autoprune.progress import Silent
from autoprune.prune_blocks import Recipe, prune_blocks
from autoprune.scoring.parts import part_of, spread
from autoprune.scoring.scorer import ModelRecipe, ModelScorer
from autoprune.scoring.several import SeveralRecipe, SeveralScorer, labels
from autoprune.scoring.signature import agreement, alike, joined, signature
from autoprune.scoring.store import Part, Store
from autoprune.search.protocol import Task
from autoprune.sparsity import Target, keep_mask
from autoprune.stream import micro_batches, walk

TOKENS = tiny.tokens(32, 24).numpy()
CALIBRATION, HELD = TOKENS[:8], {"quick": TOKENS[8:10], "full": TOKENS[10:13], "fresh": TOKENS[13:16]}
CALIBRATED = {"quick": [CALIBRATION], "full": [TOKENS[16:20], TOKENS[20:24]], "fresh": [TOKENS[24:]]}
TARGET = Target.of(0.5)
ALWAYS = tuple(name for name in STATISTICS if name != "sparsity")
"""What is known of a layer before it is settled how much it loses."""
ALL_SUMS = frozenset(need for row in STATISTICS.values() for need in row.collects) - GRADIENTS


def recipe(target: Target = TARGET, **given: Any) -> ModelRecipe:
    settings = {"model": "none", "dtype": "auto", "device": "cpu", "propagation": "one_pass", "seed": 0}
    tokens = {"calibrated_on": CALIBRATED, "judged_on": HELD}
    return ModelRecipe(**settings | given, **tokens, target=target, timeout_s={})  # pyright: ignore[reportArgumentType]


def scorer_of(model: Any, target: Target = TARGET, **given: Any) -> ModelScorer:
    opened = OpenModel(model=model, tokenizer=tiny.tokenizer(), name="tiny", stored_dtype=model.dtype)
    return ModelScorer(recipe(target, **given), opened, Silent())


@pytest.fixture(scope="module")
def scorer() -> ModelScorer:
    return scorer_of(tiny.model())


def damage(scorer: ModelScorer, rung: str, text: str) -> float:
    outcome = scorer.score(Task(rung, text))
    assert outcome.damage is not None, outcome.error
    assert outcome.damage == pytest.approx(np.mean(outcome.parts))
    return outcome.damage


def weights(model: Any) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def assert_unchanged(before: dict[str, Tensor], model: Any) -> None:
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def probabilities(model: Any, tokens_BL: np.ndarray) -> Tensor:
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(tokens_BL), use_cache=False).logits[:, :-1].double().softmax(-1)


def divergence_B(dense_BTV: Tensor, own_BTV: Tensor, top: int = 256) -> np.ndarray:
    """KL of the likeliest tokens and all others as one, mean over the positions of each sequence."""
    likely = dense_BTV.topk(top, dim=-1).indices
    p, q = (x.gather(-1, likely) for x in (dense_BTV, own_BTV))
    p, q = (torch.cat([x, 1 - x.sum(-1, keepdim=True)], -1) for x in (p, q))
    return (p * (p / q).log()).sum(-1).mean(-1).numpy()


# ---------------------------------------------------------------- what is kept of the unpruned model


@pytest.mark.parametrize("architecture", ["llama", "opt", "gpt2", "falcon"])
def test_the_store_has_what_a_walk_finds(architecture: str):
    source = InMemoryBlocks(tiny.model(architecture))
    tokens_BL = torch.from_numpy(CALIBRATION)
    store = Store(source, tokens_BL, Silent())
    names = [name for name in ALWAYS if name not in GRADIENTS]
    for visit in walk(source, micro_batches(tokens_BL, torch.device("cpu")), collects=ALL_SUMS, propagation="dense"):
        found = store.visit(visit.linear, frozenset()).statistics(names)
        for name, expected in visit.statistics(names).items():
            torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-6)


def test_it_is_measured_once(monkeypatch: pytest.MonkeyPatch):
    model, tokens_BL = tiny.model(seed=5), torch.from_numpy(CALIBRATION)
    linear = all_linears(source := InMemoryBlocks(model))[0]
    first = Store(source, tokens_BL, Silent()).visit(linear, GRADIENTS).statistics(ALWAYS)
    monkeypatch.setattr(type(model), "forward", lambda *_, **__: pytest.fail("the model ran"))
    again = Store(InMemoryBlocks(model), tokens_BL, Silent()).visit(linear, GRADIENTS).statistics(ALWAYS)
    assert all(torch.equal(first[name], again[name]) for name in ALWAYS)


def test_other_weights_or_tokens_are_measured_anew():
    tokens_BL = torch.from_numpy(CALIBRATION)
    folders = {
        Store(InMemoryBlocks(tiny.model(seed=seed)), tokens, Silent()).folder
        for seed, tokens in ((0, tokens_BL), (1, tokens_BL), (0, tokens_BL[:4]))
    }
    assert len(folders) == 3


def test_a_part_is_rows_and_columns_of_the_whole(scorer: ModelScorer):
    linear = scorer.bench.store.linears[1]
    part = Part(torch.tensor([3, 5, 6]), torch.tensor([0, 2, 7, 9]))
    whole = scorer.bench.store.visit(linear, GRADIENTS).statistics(ALWAYS)
    found = scorer.bench.store.visit(linear, GRADIENTS, part).statistics(ALWAYS)
    for name in ALWAYS:
        row = STATISTICS[name]
        value = whole[name]
        expected = {
            "RC": lambda x: x[part.rows][:, part.columns],
            "R": lambda x: x[part.rows],
            "C": lambda x: x[:, part.columns],
            "CC": lambda x: x[part.columns][:, part.columns],
            "scalar": lambda x: x,
        }[row.type](value)
        torch.testing.assert_close(found[name], expected)


def test_parts_are_bounded_and_of_whole_groups():
    linear = all_linears(InMemoryBlocks(tiny.model()))[0]
    part = part_of(linear, 8, 10, 4, seed=0)
    assert len(part.rows) == 8
    assert part.columns.reshape(-1, 4)[:, 0].remainder(4).eq(0).all()
    assert part.columns.reshape(-1, 4).diff(dim=1).eq(1).all()
    assert torch.equal(part.columns, part_of(linear, 8, 10, 4, seed=0).columns)
    assert spread(range(10), 3) == [1, 5, 8]  # pyright: ignore[reportArgumentType]
    assert spread(range(2), 5) == [0, 1]  # pyright: ignore[reportArgumentType]


# ---------------------------------------------------------------- rungs


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "opt", "gpt2"])
@pytest.mark.parametrize("target", [TARGET, Target.of(pattern="2:4")], ids=str)
def test_quick_is_the_divergence_with_one_shot_masks(architecture: str, target: Target):
    model = tiny.model(architecture)
    scorer = scorer_of(model, target)
    before, dense_BTV = weights(model), probabilities(model, HELD["quick"])
    outcome = scorer.score(Task("quick", algorithms.load("wanda").canonical))
    assert_unchanged(before, model)
    batches = micro_batches(torch.from_numpy(CALIBRATION), torch.device("cpu"))
    masked = {}
    for visit in walk(InMemoryBlocks(model), batches, collects=frozenset(["sum_of_squares"]), propagation="dense"):
        score_RC = visit.linear.weight_RC.abs() * visit.inputs.input_norm
        masked[visit.linear] = keep_mask(score_RC, target, visit.linear.size // 2, "row")
    for linear, keep_RC in masked.items():
        linear.weight_RC.mul_(keep_RC)
    np.testing.assert_allclose(outcome.parts, divergence_B(dense_BTV, probabilities(model, HELD["quick"])), rtol=2e-3)


@pytest.mark.parametrize("rung", ["full", "fresh"])
@pytest.mark.parametrize("name", ["wanda", "best", "gblm"])
def test_full_is_the_divergence_after_the_real_prune(rung: str, name: str):
    model, program = tiny.model(), algorithms.load(name)
    scorer = scorer_of(model)
    before, dense_BTV = weights(model), probabilities(model, HELD[rung])
    outcome = scorer.score(Task(rung, program.canonical))
    assert_unchanged(before, model)
    if program.allocate is None:
        method, of_draws = Method.of(program), []
        for draw in CALIBRATED[rung]:
            model, tokens_BL = tiny.model(), torch.from_numpy(draw)
            store = Store(InMemoryBlocks(model), tokens_BL, Silent())
            gradients = store.gradients(GRADIENTS & method.collects)
            assert not (store.folder / "inputs").exists()  # a prune measures its own
            recipe = Recipe(method=method, target=TARGET)
            prune_blocks(InMemoryBlocks(model), recipe, tokens_BL, lambda layer: None, gradients)
            of_draws.append(divergence_B(dense_BTV, probabilities(model, HELD[rung])))
        np.testing.assert_allclose(outcome.parts, np.mean(of_draws, axis=0), rtol=2e-3)
    assert outcome.damage is not None
    assert outcome.damage > 0


def test_every_rung_tells_good_from_bad(scorer: ModelScorer):
    good = algorithms.load("wanda").canonical
    bad = "def score(weight, input_norm):\n    return -abs(weight) * input_norm\n"
    for rung in ("probe", "quick", "full"):
        assert damage(scorer, rung, good) < damage(scorer, rung, bad)


@pytest.mark.parametrize("update", ["none", "least_squares", "admm"])
def test_a_score_may_ask_for_the_sparsity_on_every_rung(scorer: ModelScorer, update: str):
    header = f'update = "{update}"\n\n' if update != "none" else ""
    at = "abs(weight) * where(abs({} - 0.5) < 0.06, input_norm, -input_norm)"
    asks, does_not = (f"{header}def score(weight, input_norm, sparsity):\n    return {at.format(share)}\n"
                      for share in ("sparsity", "(0.5 + 0 * sparsity)"))  # fmt: skip
    for rung in ("probe", "quick", "full"):
        assert damage(scorer, rung, asks) == damage(scorer, rung, does_not)


def test_an_update_is_worth_something_on_every_rung(scorer: ModelScorer):
    plain = "def score(weight, input_norm):\n    return abs(weight) * input_norm\n"
    for rung in ("probe", "quick"):
        assert damage(scorer, rung, f'update = "least_squares"\n\n{plain}') < damage(scorer, rung, plain)


def test_the_probe_counts_the_allocation(scorer: ModelScorer):
    score = "def score(weight, input_norm):\n    return abs(weight) * input_norm\n"
    shares = [f"strength = {strength}\n\n{score}\n\ndef allocate(marginal_damage):\n    return -rank(marginal_damage)\n"
              for strength in (0.2, -0.2)]  # fmt: skip
    with_it, against_it = (damage(scorer, "probe", text) for text in shares)
    assert with_it < against_it


def test_the_same_task_has_the_same_outcome(scorer: ModelScorer):
    for rung in ("probe", "quick", "full"):
        first, second = (scorer.score(Task(rung, algorithms.load("ria").canonical)) for _ in range(2))
        assert (first.damage, first.parts, first.signature) == (second.damage, second.parts, second.signature)


# ---------------------------------------------------------------- signatures


def test_what_does_the_same_has_a_signature_alike(scorer: ModelScorer):
    def of(body: str, header: str = "") -> str:
        text = f"{header}def score(weight, input_norm, input_max):\n    return {body}\n"
        return scorer.score(Task("probe", text)).signature

    wanda = of("abs(weight) * input_norm")
    assert alike(wanda, of("square(weight) * square(input_norm)"))
    assert alike(wanda, of("3 * abs(weight) * input_norm + 1"))
    assert not alike(wanda, of("abs(weight) * input_max"))
    assert not alike(wanda, of("abs(weight) * input_norm", 'update = "least_squares"\n\n'))
    assert not alike(wanda, of("abs(weight) * input_norm", 'compare = "layer"\n\n'))
    plain, towards = ('update = "sparsegpt"\n\n', 'update = "sparsegpt"\ntowards_dense = 1\n\n')
    assert not alike(of("abs(weight)", plain), of("abs(weight)", towards))


def test_another_allocation_is_not_alike(scorer: ModelScorer):
    score = "def score(weight, input_norm):\n    return abs(weight) * input_norm\n"
    first, second = (scorer.score(Task("probe", text)).signature
                     for text in (score, f"{score}\n\ndef allocate(depth):\n    return depth / 5\n"))  # fmt: skip
    assert not alike(first, second)


def test_an_allocation_that_a_pattern_cannot_follow_is_none():
    """With few small layers 2:4 leaves no room for shares that differ by so little."""
    scorer = scorer_of(tiny.model(), Target.of(pattern="2:4"))
    score = "def score(weight, input_norm):\n    return abs(weight) * input_norm\n"
    shared = f"strength = 0.01\n\n{score}\n\ndef allocate(depth):\n    return depth\n"
    for rung in ("probe", "quick", "full"):
        assert damage(scorer, rung, score) == pytest.approx(damage(scorer, rung, shared), rel=1e-6)
    assert alike(*(scorer.score(Task("probe", text)).signature for text in (score, shared)))


def test_agreement_is_the_share_of_weights_treated_alike():
    method = Method.of(algorithms.load("wanda"))
    keep_RC = torch.rand(200, 150, generator=torch.Generator().manual_seed(0)) > 0.5
    other_RC = keep_RC.clone()
    other_RC[:2] = ~other_RC[:2]  # one in a hundred
    one, other = (json.loads(signature(method, [mask], [0.5]))["kept"] for mask in (keep_RC, other_RC))
    assert agreement(one, one) == 1
    assert agreement(one, other) == pytest.approx(0.99, abs=0.002)


# ---------------------------------------------------------------- failures are outcomes


def test_a_program_that_cannot_be_measured_is_an_outcome(scorer: ModelScorer):
    for text in ("def score(weight): return weigth", "def allocate(depth): return depth", "not a program"):
        outcome = scorer.score(Task("probe", text))
        assert outcome.damage is None
        assert "\n" not in outcome.error
        assert outcome.error


def test_out_of_memory_is_an_outcome(scorer: ModelScorer, monkeypatch: pytest.MonkeyPatch):
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried\nmore")):
        monkeypatch.setattr(scorer, "_measure", lambda *_, error=error: (_ for _ in ()).throw(error))
        outcome = scorer.score(Task("probe", algorithms.load("wanda").canonical))
        assert outcome.error.startswith("out of memory")
        assert "\n" not in outcome.error


def test_other_errors_of_ours_are_not_hidden(scorer: ModelScorer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scorer, "_measure", lambda *_: (_ for _ in ()).throw(RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        scorer.score(Task("probe", algorithms.load("wanda").canonical))


def test_a_model_left_by_a_failing_prune_is_as_it_was(monkeypatch: pytest.MonkeyPatch):
    model = tiny.model()
    scorer, before = scorer_of(model), weights(model)
    monkeypatch.setattr(scorer._full.judge, "divergence", lambda *_: (_ for _ in ()).throw(MemoryError()))
    assert scorer.score(Task("full", algorithms.load("wanda").canonical)).error == "out of memory"
    assert_unchanged(before, model)


def test_a_recipe_makes_a_scorer_elsewhere(tmp_path: Path):
    folder = tiny.save(tmp_path / "model")
    made = recipe(model=str(folder)).make()
    here = scorer_of(open_model(folder).model)
    wanda = algorithms.load("wanda").canonical
    assert made.score(Task("probe", wanda)).damage == here.score(Task("probe", wanda)).damage


def test_programs_of_the_library_pass_all_rungs(scorer: ModelScorer):
    for name in algorithms.names():
        program = algorithms.load(name)
        if program.score:
            for rung in ("probe", "quick"):
                assert damage(scorer, rung, read_program(program.canonical).canonical) >= 0


# ---------------------------------------------------------------- several models


def several(*models: Any) -> SeveralScorer:
    return SeveralScorer({f"model {number}": scorer_of(model) for number, model in enumerate(models)})


@pytest.mark.parametrize("rung", ["probe", "quick", "full", "fresh"])
def test_several_models_give_the_mean_of_each(rung: str):
    """Also where the probe has fewer parts of one of them: gpt2 with one block has four layers."""
    models = tiny.model(), tiny.model("gpt2", n_layer=1)
    task = Task(rung, algorithms.load("ria").canonical)
    alone = [scorer_of(model).score(task) for model in models]
    together = several(*models).score(task)
    assert together.damage == pytest.approx(np.mean([np.mean(outcome.parts) for outcome in alone]))
    assert together.damage == pytest.approx(np.mean(together.parts))
    assert len(together.parts) == sum(len(outcome.parts) for outcome in alone)
    if len(alone[0].parts) == len(alone[1].parts):
        assert together.parts == alone[0].parts + alone[1].parts


def test_several_name_the_model_in_figures_and_errors(monkeypatch: pytest.MonkeyPatch):
    scorer, wanda = several(tiny.model(), tiny.model("gpt2")), algorithms.load("wanda").canonical
    harm = scorer.score(Task("probe", wanda)).figures["harm"]
    assert {name.partition(": ")[0] for name in harm} == {"model 0", "model 1"}
    assert len(harm) == 16
    assert scorer.score(Task("quick", wanda)).figures["judged_at"] == {"model 0": 0.5, "model 1": 0.5}
    last = scorer.scorers["model 1"]
    for failure, error in (
        (AutopruneError("too bad"), "too bad"),
        (ZeroDivisionError("oh"), "ZeroDivisionError: oh"),
        (MemoryError(), "out of memory"),
    ):
        monkeypatch.setattr(last, "_measure", lambda *_, failure=failure: (_ for _ in ()).throw(failure))
        failed = scorer.score(Task("probe", wanda))
        assert failed.error == f"{error} (on model 1)"  # executors know what to do by how it begins
        assert failed.damage is None


def test_several_are_alike_where_each_is():
    wanda, ria = (algorithms.load(name).canonical for name in ("wanda", "ria"))
    one, other = (scorer_of(tiny.model(seed=seed)) for seed in (0, 1))
    pairs = itertools.product((one, other), (wanda, ria))
    of = {(scorer, text): scorer.score(Task("probe", text)).signature for scorer, text in pairs}
    both = joined([of[one, wanda], of[other, wanda]])
    assert alike(both, joined([of[one, wanda], of[other, wanda]]))
    assert not alike(both, joined([of[one, wanda], of[other, ria]]))
    assert not alike(both, joined([of[one, ria], of[other, wanda]]))
    assert not alike(both, of[one, wanda])
    assert joined(["", ""]) == ""


def test_a_recipe_of_several_opens_a_model_that_comes_again_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tiny.save(tmp_path / "model")
    other = replace(recipe(model=str(folder)), timeout_s={"probe": 2.0})
    others = CALIBRATED | {"full": [CALIBRATION]}
    made = SeveralRecipe((replace(other, calibrated_on=others, timeout_s={"probe": 1.0}), other))
    assert made.timeout_s == {"probe": 3.0}
    opened: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(ModelRecipe, "opened", lambda self: opened.append(self.model) or open_model(self.model))
        scorer = made.make()
    assert opened == [str(folder)]
    assert list(scorer.scorers) == ["model", "model (text 2)"]
    task = Task("full", algorithms.load("best").canonical)
    alone = [damage(one.make(), task.rung, task.program) for one in made.recipes]
    assert alone[0] != alone[1]
    assert scorer.score(task).damage == pytest.approx(np.mean(alone), rel=1e-9)


def test_of_two_that_want_the_same_statistics_at_once_one_measures(monkeypatch: pytest.MonkeyPatch):
    measured: list[str] = []
    measure = Store._measure_inputs

    def slow(store: Store, folder: Path) -> None:
        time.sleep(0.3)
        measured.append(folder.name)
        measure(store, folder)

    monkeypatch.setattr(Store, "_measure_inputs", slow)
    source, tokens_BL = InMemoryBlocks(tiny.model(seed=11)), torch.from_numpy(CALIBRATION)
    both = [Store(source, tokens_BL, Silent()) for _ in range(2)]
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda store: store.visit(store.linears[0], frozenset()).inputs.input_norm, both))
    assert len(measured) == 1
    assert torch.equal(*found)


def test_gradients_of_a_store_know_their_tokens():
    model, tokens_BL = tiny.model(seed=12), torch.from_numpy(CALIBRATION)
    wanted = loss_gradients(InMemoryBlocks(model), GRADIENTS, tokens_BL, Silent())
    for names in (GRADIENTS, frozenset(["output_gradient"])):
        found = Store(InMemoryBlocks(model), tokens_BL, Silent()).gradients(names)
        assert {name: each.tokens for name, each in found.items()} == {
            name: each.tokens for name, each in wanted.items()
        }
    assert min(each.tokens for each in wanted.values()) == tokens_BL.numel()


def test_labels_tell_models_apart():
    assert labels(["a/one", "two", "a/one"]) == ["one", "two", "one (text 2)"]
    assert labels(["a/one", "b/one", "demo"]) == ["a/one", "b/one", "demo"]
