"""The library programs against their formulas, written here with plain torch on the inputs themselves.

Legend: T tokens, R output rows, C input columns of the layer y = W x.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from autoprune import algorithms
from autoprune.errors import AutopruneError, ProgramError
from autoprune.language import Program, interpret, read_program
from autoprune.sparsity import Target, keep_mask
from autoprune.statistics import InputStatistics

GOOD = "def score(weight):\n    return abs(weight)\n"


def gradient_of(weight_RC: Tensor) -> Tensor:
    """Some gradient (R, C): programs take it as it is."""
    return torch.rand(weight_RC.shape, generator=torch.Generator().manual_seed(7)).to(weight_RC.dtype)


def score(program: Program, weight_RC: Tensor, input_TC: Tensor, gradient_RC: Tensor | None = None) -> Tensor:
    """The score as a run computes it, collecting only what the program asks for."""
    tape = program.require("score")
    stream = InputStatistics(tape.collects, weight_RC.shape[1], weight_RC.device)
    stream.add(input_TC)
    gradient_RC = gradient_of(weight_RC.float()) if gradient_RC is None else gradient_RC
    given = {"gradient": gradient_RC, "output_gradient": gradient_RC[:, :1], "sparsity": torch.tensor([[0.6]])}
    named = {name: given[name] if name in given else stream.statistic(name, weight_RC, 0.5) for name in tape.statistics}
    return interpret(tape, named)


def magnitude(weight_RC: Tensor, input_TC: Tensor) -> Tensor:
    return weight_RC.abs()


def wanda(weight_RC: Tensor, input_TC: Tensor) -> Tensor:
    return weight_RC.abs() * input_TC.square().mean(0).sqrt()


def ria(weight_RC: Tensor, input_TC: Tensor) -> Tensor:
    magnitude_RC = weight_RC.abs()
    relative_RC = magnitude_RC / magnitude_RC.sum(0) + magnitude_RC / magnitude_RC.sum(1, keepdim=True)
    return relative_RC * input_TC.square().mean(0).sqrt().sqrt()


def obs(weight_RC: Tensor, input_TC: Tensor) -> Tensor:
    gram_CC = input_TC.T @ input_TC / len(input_TC)
    return weight_RC.square() / torch.linalg.inv(gram_CC + 0.01 * gram_CC.diag().diag()).diag()


def pruner_zero(weight_RC: Tensor, input_TC: Tensor) -> Tensor:
    """mul(abs(mul(W, W)), mms(G)); where all gradients are equal, mms has no value and the score has none of it."""
    gradient_RC = gradient_of(weight_RC.float()).to(weight_RC.dtype)
    low, high = gradient_RC.min(), gradient_RC.max()
    return (weight_RC * weight_RC).abs() * ((gradient_RC - low) / (high - low) if high > low else 1)


def gblm(weight_RC: Tensor, input_TC: Tensor) -> Tensor:
    """The released code on 128 sequences of 2048 tokens, over sqrt(2048): the square root of the sum over all tokens
    divided by the number of sequences; gradients times 100, root of the sum of squares over sequences."""
    sequences, length = 128, 2048
    norm_C = (input_TC.square().mean(0) * sequences * length / sequences).sqrt()
    gradient_RC = ((100 * gradient_of(weight_RC.float()).to(weight_RC.dtype)).square() * sequences).sqrt()
    return (weight_RC.abs() * norm_C + weight_RC.abs() * gradient_RC) / length**0.5


def best(weight_RC: Tensor, input_TC: Tensor) -> Tensor:
    """Wanda's, times the root of what an error of the output costs."""
    return wanda(weight_RC, input_TC) * gradient_of(weight_RC.float())[:, :1].to(weight_RC.dtype).sqrt()


FORMULAS = {
    "magnitude": magnitude,
    "wanda": wanda,
    "ria": ria,
    "obs": obs,
    "pruner-zero": pruner_zero,
    "gblm": gblm,
    "sparsegpt": obs,
    "alps": wanda,
    "dsnot": wanda,
    "swaps-wanda": wanda,
    "best": best,
}
DISCOVERED = ("cancel",)
"""Found by searches: they have no formula but their own, and properties instead."""
BY_LAYER = {"magnitude", "ria", "sparsegpt", "alps", "best", "cancel"}
STAGES = {"sparsegpt": "sparsegpt", "alps": "admm", "best": "admm", "dsnot": "dsnot", "swaps-wanda": "swaps"}


def test_every_library_program_has_a_formula():
    assert algorithms.names("score") == sorted([*FORMULAS, *DISCOVERED])


@pytest.mark.parametrize("name", FORMULAS)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 12), st.integers(1, 12)),
    seed=st.integers(0, 2**32),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
)
def test_score_equals_the_formula(name: str, shape: tuple[int, int, int], seed: int, scale: float):
    T, R, C = shape
    generator = torch.Generator().manual_seed(seed)
    weight_RC = torch.randn(R, C, generator=generator) / scale
    input_TC = torch.randn(T, C, generator=generator) * scale
    expected = FORMULAS[name](weight_RC.double(), input_TC.double()).float()
    torch.testing.assert_close(score(algorithms.load(name), weight_RC, input_TC), expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", FORMULAS)
def test_bfloat16_layers_are_scored_in_float32(name: str):
    generator = torch.Generator().manual_seed(0)
    weight_RC = torch.randn(6, 9, generator=generator).bfloat16()
    input_TC = torch.randn(50, 9, generator=generator).bfloat16()
    result = score(algorithms.load(name), weight_RC, input_TC)
    torch.testing.assert_close(result, FORMULAS[name](weight_RC.double(), input_TC.double()).float(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", [*FORMULAS, *DISCOVERED])
def test_zero_weights_and_dead_inputs_give_finite_scores(name: str):
    weight_RC = torch.zeros(4, 5)
    weight_RC[0, 0] = 1.0
    input_TC = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    input_TC[:, 2] = 0
    for inputs in (input_TC, torch.zeros(20, 5), torch.zeros(0, 5)):
        result = score(algorithms.load(name), weight_RC, inputs)
        assert result.isfinite().all()
        assert result[0, 0] == result.max()


@pytest.mark.parametrize("name", ["pruner-zero", "gblm"])
def test_where_gradients_say_nothing_weights_decide(name: str):
    """A layer that no token reached: its gradient is neutral, and so is its input."""
    weight_RC = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    result = score(algorithms.load(name), weight_RC, torch.zeros(0, 9), torch.ones(6, 9))
    assert torch.equal(result.argsort(1), weight_RC.abs().argsort(1))


@pytest.mark.parametrize("name", [*FORMULAS, *DISCOVERED])
def test_options_of_library_programs(name: str):
    program = algorithms.load(name)
    assert program.compare == ("layer" if name in BY_LAYER else "row")
    assert STAGES.get(name, "none") in (program.options["refine"], program.options["update"])


@pytest.mark.parametrize("name", [*FORMULAS, *DISCOVERED])
def test_library_programs_are_described(name: str):
    program = algorithms.load(name)
    assert program.name == name
    assert program.doc
    assert read_program(program.canonical).digest == program.digest


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e2])
@pytest.mark.parametrize("seed", range(3))
def test_cancel_leaves_less_error_than_wanda_where_inputs_are_correlated(seed: int, scale: float):
    generator = torch.Generator().manual_seed(seed)
    weight_RC = torch.randn(32, 64, generator=generator)
    input_TC = torch.randn(500, 8, generator=generator) @ torch.randn(8, 64, generator=generator)
    input_TC += torch.randn(500, 64, generator=generator) + 2
    input_TC = scale * input_TC

    def error(name: str) -> float:
        score_RC = score(algorithms.load(name), weight_RC, input_TC, torch.ones(32, 64))
        keep_RC = keep_mask(score_RC, Target.of(0.6), int(0.6 * weight_RC.numel()), algorithms.load(name).compare)
        return float((input_TC @ (weight_RC * ~keep_RC).T).square().mean())

    assert error("cancel") < 0.5 * error("wanda")


@pytest.mark.parametrize("name", DISCOVERED)
def test_a_discovered_program_is_the_one_that_its_chain_of_reasoning_ends_with(name: str):
    chain = (Path(__file__).parents[1] / "results" / "chains" / f"{name}.txt").read_text("utf-8")
    last = chain[chain.rindex("  gave ") :].split()[1].rstrip(":")
    assert last == algorithms.load(name).digest


def test_only_magnitude_needs_no_text():
    scores = {name: algorithms.load(name).score for name in algorithms.names()}
    assert [name for name, tape in scores.items() if tape and not tape.collects] == ["magnitude"]


def test_digests_differ():
    assert len({algorithms.load(name).digest for name in algorithms.names()}) == len(algorithms.names())


@pytest.mark.parametrize(("name", "near"), [("wandaa", "wanda"), ("Wanda", "wanda"), ("mag", "magnitude")])
def test_an_unknown_name_suggests_the_nearest(name: str, near: str):
    with pytest.raises(AutopruneError, match=f"unknown algorithm '{name}'; did you mean '{near}'"):
        algorithms.load(name)


@pytest.mark.parametrize("name", ["", "xyzzy", "..", "a\0b"])
def test_a_name_like_no_other_lists_all(name: str):
    with pytest.raises(AutopruneError, match=f"known: {', '.join(algorithms.names('score'))}"):
        algorithms.load(name)


def test_a_file_is_named_by_its_stem(tmp_path: Path):
    path = tmp_path / "mine.prune"
    path.write_text(GOOD)
    for given_path in (path, str(path)):
        program = algorithms.load(given_path)
        assert program.name == "mine"
        assert program.digest == algorithms.load_file(path).digest


def test_a_file_without_a_suffix_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("mine").write_text(GOOD)
    assert algorithms.load("mine").name == "mine"


def test_a_file_cannot_hide_a_library_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("wanda").write_text(GOOD)
    assert algorithms.load("wanda").require("score").collects
    assert not algorithms.load("./wanda").require("score").collects


@pytest.mark.parametrize("name", ["missing.prune", "folder/missing"])
def test_a_missing_file_is_named(name: str, tmp_path: Path):
    path = tmp_path / name
    with pytest.raises(AutopruneError, match="No such file") as caught:
        algorithms.load(path)
    assert caught.value.where == str(path)
    assert caught.value.remedy


def test_a_folder_is_no_program(tmp_path: Path):
    with pytest.raises(AutopruneError, match="directory"):
        algorithms.load(tmp_path)


def test_a_file_that_is_not_utf8_is_named(tmp_path: Path):
    path = tmp_path / "latin.prune"
    path.write_bytes(b"# \xe9\n" + GOOD.encode())
    with pytest.raises(AutopruneError, match="not UTF-8") as caught:
        algorithms.load_file(path)
    assert caught.value.where == str(path)


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        ("def score(weight):\n    return foo(weight)\n", 2, 12),
        ("def score(weight, gram):\n    t = abs(weight)\n    return t + gram\n", 3, 12),
        ("def score(weight):\n    return (weight\n", 2, 12),
        ("", 1, 1),
    ],
)
def test_an_error_in_a_file_names_file_line_and_column(text: str, line: int, column: int, tmp_path: Path):
    path = tmp_path / "mine.prune"
    path.write_text(text)
    with pytest.raises(ProgramError) as caught:
        algorithms.load(path)
    assert (caught.value.place.line, caught.value.place.column) == (line, column)
    assert str(caught.value).startswith(f"{path}, line {line}, column {column}: ")
    assert caught.value.remedy


def test_a_program_text_in_place_of_a_name_is_refused():
    with pytest.raises(AutopruneError):
        algorithms.load(GOOD + "# this comment is long" * 20)


def test_a_path_with_a_null_byte_is_refused():
    with pytest.raises(AutopruneError):
        algorithms.load("a\0b.prune")


def test_a_byte_order_mark_is_skipped(tmp_path: Path):
    path = tmp_path / "windows.prune"
    path.write_text(GOOD, encoding="utf-8-sig")
    assert algorithms.load_file(path).digest == read_program(GOOD).digest
