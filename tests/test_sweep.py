"""Sweeps of tiny models: a point is what prune and evaluate give, nothing is measured twice, and nothing is lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import autoprune
import tiny
from autoprune import bench, measurements
from autoprune.bench import Bench
from autoprune.errors import AutopruneError
from autoprune.evaluation import Evaluation
from autoprune.files import exclusive
from autoprune.language import read_program
from autoprune.lines import Lines, difference, read_lines
from autoprune.sweeps import Point, read_sweep, sweep, targets
from command import Run

CALIBRATION: dict[str, Any] = {"sequences": 8, "length": 24}
WANDA = ["wanda"]


@pytest.fixture(scope="module")
def data(text: Path) -> str:
    return f"file:{text}"


def swept(run: Path, data: str, /, *, model: Any = None, **options: Any) -> autoprune.Sweep:
    settings = {
        "algorithms": WANDA,
        "sparsities": [0.5],
        "data": data,
        "eval_sequences": 3,
        "eval_length": 32,
        "tokenizer": tiny.tokenizer(),
        "calibration": data,
    }
    return sweep(model or tiny.model(), run=run, **settings | CALIBRATION | options)


def figures(found: autoprune.Sweep) -> list[dict[str, Any]]:
    """All but the time it took."""
    return [{name: value for name, value in point.to_dict().items() if name != "seconds"} for point in found.points]


def count(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[Any]:
    """The first arguments of all calls of a function."""
    calls, function = [], getattr(owner, name)

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments[0])
        return function(*arguments, **options)

    monkeypatch.setattr(owner, name, counted)
    return calls


# ---------------------------------------------------------------- which points


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["0.3:0.8:0.1"], "0.3 0.4 0.5 0.6 0.7 0.8"),
        (["0.3:0.75:0.1"], "0.3 0.4 0.5 0.6 0.7"),
        (["0.6", " 0.5:0.7:0.05", "2:4"], "0.6 0.5 0.55 0.65 0.7 2:4"),
        (["2:4", "2: 4", "4:8", "0.50", "5e-1"], "2:4 4:8 0.5"),
        ([0.5, "0:0.001:0.0005", 0], "0.5 0 0.0005 0.001"),
        (["0.9:0.9:0.3"], "0.9"),
    ],
)
def test_shares_ranges_and_patterns_are_told_apart(given: list[Any], expected: str):
    assert " ".join(map(str, targets(given))) == expected


def test_ranges_are_exact_decimals():
    for target, tenths in zip(targets(["0.1:0.9:0.1"]), range(1, 10), strict=True):
        assert target.fraction * 10 == tenths


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("1", "outside"),
        ("-0.1", "outside"),
        ("half", "neither a share"),
        ("nan", "neither a share"),
        ("", "neither a share"),
        ("0.3:0.8:0.1:1", "neither a share"),
        ("0.3:x:0.1", "neither a share"),
        ("0.3:0.8", "not n:m"),
        ("4:2", "not n:m"),
        ("0.8:0.3:0.1", "no range"),
        ("0.3:0.8:0", "no range"),
        ("0.3:0.8:-0.1", "no range"),
        ("0.3:1:0.1", "no range"),
        ("0:0.9:1e-999999", "no range"),
    ],
)
def test_what_is_none_of_them_is_refused(given: str, message: str):
    with pytest.raises(AutopruneError, match=message):
        targets([given])


def test_each_point_is_there_once_in_the_order_asked_for(data: str, tmp_path: Path):
    same = read_program(autoprune.algorithms.load("wanda").text, name="copy")
    found = swept(tmp_path / "run", data, algorithms=["magnitude", "wanda", same], sparsities=["2:4", "0.5", 0.5])
    assert [(point.algorithm, point.target) for point in found.points] == [
        ("magnitude", "2:4"),
        ("magnitude", "0.5"),
        ("wanda", "2:4"),
        ("wanda", "0.5"),
    ]


# ---------------------------------------------------------------- what a point is


@pytest.mark.parametrize("propagation", ["one_pass", "block", "dense"])
@pytest.mark.parametrize(
    ("architecture", "names"),
    [
        ("llama", ["wanda", "dsnot", "gblm", "best"]),
        ("gpt2", ["wanda", "sparsegpt"]),
        ("mixtral", ["wanda", "sparsegpt"]),
    ],
)
def test_a_point_is_what_prune_and_evaluate_give(
    architecture: str, names: list[str], propagation: str, data: str, tmp_path: Path
):
    asked = ["0.5", "2:4"]
    options = {"propagation": propagation, "seed": 5}
    found = swept(tmp_path / "run", data, model=tiny.model(architecture), algorithms=names, sparsities=asked, **options)
    assert found.dense
    for point in found.points:
        model = tiny.model(architecture)
        target = {"pattern": "2:4"} if point.target == "2:4" else {"sparsity": float(point.target)}
        report = autoprune.prune(
            model,
            tokenizer=tiny.tokenizer(),
            algorithm=point.algorithm,
            calibration=data,
            **target | options | CALIBRATION,
        )
        expected = autoprune.evaluate(
            model, data=data, tokenizer=tiny.tokenizer(), sequences=3, length=32, against=tiny.model(architecture)
        )
        assert expected.against
        assert (point.perplexity, point.nats_per_token) == (expected.perplexity, expected.nats_per_token)
        assert point.kl_nats_per_token == expected.against.kl_nats_per_token
        assert point.top1_agreement == expected.against.top1_agreement
        assert (point.difference_low, point.difference_high) == (
            expected.against.difference_low,
            expected.against.difference_high,
        )
        assert point.sparsity == report.sparsity
        assert point.fallbacks == sum(bool(layer.fallback) for layer in report.layers)
        assert found.dense.perplexity == expected.against.reference_perplexity


@pytest.mark.parametrize("allocation", ["owl", "sensitivity", "auto"])
def test_a_point_has_the_allocation_that_it_has_alone(allocation: str, data: str, tmp_path: Path):
    found = swept(
        tmp_path / "run",
        data,
        algorithms=["wanda", "swaps-wanda", "sparsegpt"],
        sparsities=[0.5, 0.7, "2:4"],
        allocation=allocation,
    )
    for point in found.points:
        model = tiny.model()
        target = {"pattern": "2:4"} if point.target == "2:4" else {"sparsity": float(point.target)}
        settings = {"tokenizer": tiny.tokenizer(), "calibration": data, "allocation": allocation}
        autoprune.prune(model, algorithm=point.algorithm, **settings | target | CALIBRATION)
        expected = autoprune.evaluate(model, data=data, tokenizer=tiny.tokenizer(), sequences=3, length=32)
        assert point.nats_per_token == expected.nats_per_token, (point.algorithm, point.target)


@pytest.mark.parametrize("propagation", ["one_pass", "dense"])
def test_columns_may_be_permuted(propagation: str, data: str, tmp_path: Path):
    permuting = read_program('refine = "permute"\n\n' + "def score(weight):\n    return abs(weight)", name="permuting")
    options = {"algorithms": [permuting, "magnitude"], "sparsities": ["2:4", 0.5], "propagation": propagation}
    found = {(point.algorithm, point.target): point for point in swept(tmp_path / "run", data, **options).points}
    assert "refine=permute" in str(found["permuting", "0.5"].error)
    model = tiny.model()
    autoprune.prune(model, algorithm=permuting, pattern="2:4", propagation=propagation)
    expected = autoprune.evaluate(model, data=data, tokenizer=tiny.tokenizer(), sequences=3, length=32)
    assert found["permuting", "2:4"].nats_per_token == expected.nats_per_token
    after = swept(tmp_path / "other", data, **options | {"algorithms": ["magnitude"], "sparsities": ["2:4"]})
    assert found["magnitude", "2:4"].nats_per_token == after.points[0].nats_per_token  # the copy was restored


def test_the_model_is_left_as_it_is(data: str, tmp_path: Path):
    model = tiny.model("gpt2").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for propagation in ("one_pass", "dense"):
        swept(
            tmp_path / propagation,
            data,
            model=model,
            algorithms=["wanda", "sparsegpt"],
            allocation="auto",
            propagation=propagation,
        )
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training


# ---------------------------------------------------------------- what is computed once


def test_what_belongs_to_the_unpruned_model_is_computed_once(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    gradients, dense = count(monkeypatch, bench, "loss_gradients"), count(monkeypatch, Bench, "dense")
    observed = count(monkeypatch, measurements, "observe")
    many: dict[str, Any] = {"algorithms": ["gblm", "wanda", "pruner-zero"], "sparsities": ["0.5:0.7:0.1"]}
    swept(tmp_path / "run", data, allocation="owl", **many)
    assert [len(calls) for calls in (gradients, dense, observed)] == [1, 1, 1]


def test_an_allocation_by_measurement_ranks_weights_once_for_all_shares(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    observed = count(monkeypatch, measurements, "observe")
    swept(tmp_path / "run", data, allocation="auto", sparsities=["0.5:0.7:0.1", "2:4"])
    assert len(observed) == 2


def test_without_gradients_none_are_computed(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bench, "loss_gradients", lambda *_: pytest.fail("nothing names them"))
    for propagation in ("one_pass", "dense"):
        swept(tmp_path / propagation, data, algorithms=["wanda", "magnitude"], propagation=propagation)


# ---------------------------------------------------------------- going on

MANY: dict[str, Any] = {"algorithms": ["wanda", "sparsegpt"], "sparsities": [0.5, 0.6, "3:5"]}


@pytest.mark.parametrize("propagation", ["one_pass", "dense"])
def test_wherever_it_was_cut_off_it_goes_on_from_there(propagation: str, data: str, tmp_path: Path):
    whole = swept(tmp_path / "whole", data, propagation=propagation, **MANY)
    path = tmp_path / "whole" / "sweep.jsonl"
    content = path.read_bytes()
    head = content.index(b"\n") + 1
    for cut in range(head, len(content), max(1, (len(content) - head) // 5)):
        run = tmp_path / f"run{cut}"
        run.mkdir()
        (run / "sweep.jsonl").write_bytes(content[:cut])
        assert figures(swept(run, data, propagation=propagation, **MANY)) == figures(whole)
        assert sorted(file.name for file in run.iterdir()) == ["sweep.jsonl", "sweep.lock"]


@pytest.mark.parametrize("propagation", ["one_pass", "dense"])
def test_nothing_that_is_finished_is_done_again(
    propagation: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    measured = count(monkeypatch, bench, "evaluate_tokens")
    solved = count(monkeypatch, bench, "solve_side_by_side")
    evaluate = Bench._measured
    left = 2

    def interrupted(self: Bench, *arguments: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return evaluate(self, *arguments)

    monkeypatch.setattr(Bench, "_measured", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        swept(tmp_path / "run", data, propagation=propagation, **MANY)
    assert "the same command continues it" in caught.value.__notes__[0]
    assert len(read_sweep(tmp_path / "run").points) == 3  # one is an error
    left = 100
    found = swept(tmp_path / "run", data, propagation=propagation, **MANY)
    assert len(measured) == 1 + 4
    assert len(solved) == (propagation == "dense")
    monkeypatch.setattr(Bench, "_measured", evaluate)
    assert figures(found) == figures(swept(tmp_path / "whole", data, propagation=propagation, **MANY))
    del measured[:]
    assert figures(swept(tmp_path / "run", data, propagation=propagation, **MANY)) == figures(found)
    assert not measured


def test_results_that_wait_in_files_are_made_again_where_they_are_gone(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        patch.setattr(Bench, "measure_solved", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            swept(tmp_path / "run", data, propagation="dense", **MANY)
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    assert len(list((tmp_path / "run" / "solved").iterdir())) == 4
    shutil.rmtree(tmp_path / "other" / "solved")
    with monkeypatch.context() as patch:
        patch.setattr(bench, "solve_side_by_side", lambda *_: pytest.fail("all is solved"))
        first = swept(tmp_path / "run", data, propagation="dense", **MANY)
    assert figures(first) == figures(swept(tmp_path / "other", data, propagation="dense", **MANY))


def test_algorithms_and_sparsities_are_added(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = tmp_path / "run"
    swept(run, data, algorithms=["magnitude"], sparsities=[0.5])
    measured = count(monkeypatch, Bench, "measure")
    found = swept(run, data, algorithms=["wanda", "magnitude"], sparsities=[0.4, 0.5])
    assert len(measured) == 3
    names = [(point.algorithm, point.target) for point in found.points]
    assert names == [("magnitude", "0.5"), ("wanda", "0.4"), ("wanda", "0.5"), ("magnitude", "0.4")]
    assert read_sweep(run) == found
    assert swept(run, data, algorithms=["magnitude"], sparsities=[0.5]) == found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": tiny.model(seed=1)}, "weights"),
        ({"eval_sequences": 4}, r"data \(sequences, sha256\)"),
        ({"eval_length": 16}, "data"),
        ({"sequences": 4}, "calibration"),
        ({"seed": 1}, "seed .was 0, is 1"),
        ({"propagation": "block"}, 'was "one_pass", is "block"'),
        ({"allocation": "sdsa"}, "allocation"),
        ({"calibration": "self"}, "calibration"),
    ],
)
def test_another_sweep_is_refused_with_what_differs(change: dict[str, Any], message: str, data: str, tmp_path: Path):
    swept(tmp_path / "run", data)
    before = (tmp_path / "run" / "sweep.jsonl").read_bytes()
    with pytest.raises(AutopruneError, match=f"begun with something else: .*{message}"):
        swept(tmp_path / "run", data, **change)
    assert (tmp_path / "run" / "sweep.jsonl").read_bytes() == before


def test_only_one_process_at_a_time(data: str, tmp_path: Path):
    swept(tmp_path / "run", data)
    with (
        exclusive(tmp_path / "run" / "sweep.lock", "first"),
        pytest.raises(AutopruneError, match="another sweep is at work"),
    ):
        swept(tmp_path / "run", data)


@pytest.mark.parametrize("content", [b"", b"not ours", b'{"format": 2, "kind": "sweep"}\n', b'{"format": 1}\n'])
def test_a_file_of_something_else_is_left_alone(content: bytes, data: str, tmp_path: Path):
    path = tmp_path / "sweep.jsonl"
    path.write_bytes(content)
    with pytest.raises(AutopruneError, match="this is no sweep"):
        swept(tmp_path, data)
    with pytest.raises(AutopruneError, match="this is no sweep"):
        read_sweep(tmp_path)
    assert path.read_bytes() == content


# ---------------------------------------------------------------- what cannot be


@pytest.mark.parametrize("propagation", ["one_pass", "dense"])
def test_a_point_that_cannot_be_is_an_error_in_its_place(
    propagation: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    options: dict[str, Any] = {"algorithms": ["wanda", "magnitude"], "sparsities": ["3:5", 0.5]}
    found = swept(tmp_path / "run", data, propagation=propagation, **options)
    assert [bool(point.error) for point in found.points] == [True, False, True, False]
    assert set(found.points[0].to_dict()) == {"algorithm", "hash", "target", "error"}
    assert "do not divide into groups of 5" in str(found.points[0].error)
    monkeypatch.setattr(Bench, "measure", lambda *_: pytest.fail("it was tried before"))
    assert swept(tmp_path / "run", data, propagation=propagation, **options) == found


def test_one_calibration_sequence_is_enough_where_nothing_is_judged(data: str, tmp_path: Path):
    marginal = read_program(
        autoprune.algorithms.load("wanda").text + "\n" + autoprune.algorithms.load("marginal").canonical, name="judged"
    )
    found = swept(tmp_path / "run", data, algorithms=["wanda", marginal], sequences=1)
    assert [point.error is None for point in found.points] == [True, False]


def test_a_full_disk_is_no_property_of_a_point(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise AutopruneError("cannot write") from OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Bench, "measure", fail)
        with pytest.raises(AutopruneError, match="cannot write"):
            swept(tmp_path / "run", data)
    assert read_sweep(tmp_path / "run").points == []
    assert len(swept(tmp_path / "run", data).points) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"algorithms": []}, "no algorithm"),
        ({"algorithms": ["wonda"]}, "unknown algorithm 'wonda'"),
        ({"algorithms": ["sdsa"]}, "defines no score"),
        ({"sparsities": []}, "no sparsity"),
        ({"data": "text.txt"}, "not a text source"),
        ({"data": "self"}, "not a text source"),
        ({"calibration": "text.txt"}, "not a text source"),
        ({"propagation": "twice"}, "unknown propagation"),
        ({"allocation": "wonda"}, "unknown allocation"),
        ({"eval_sequences": 0}, "--eval-sequences 0 is less than 1"),
        ({"eval_length": 1}, "--eval-length 1 is less than 2"),
        ({"eval_length": 129}, "--eval-length 129 is more than the 128 positions"),
        ({"length": 129}, "--length 129 is more than the 128 positions"),
        ({"eval_sequences": 10**6}, "the text has"),
    ],
)
def test_what_cannot_be_measured_at_all_leaves_nothing(change: dict[str, Any], message: str, data: str, tmp_path: Path):
    with pytest.raises(AutopruneError, match=message):
        swept(tmp_path / "run", data, **change)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- reading


def test_a_sweep_that_is_not_finished_is_read(data: str, tmp_path: Path):
    found = swept(tmp_path / "run", data, **MANY)
    path = tmp_path / "run" / "sweep.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0])
    assert (read_sweep(tmp_path / "run").dense, read_sweep(tmp_path / "run").points) == (None, [])
    first = next(index for index, line in enumerate(lines) if b'"point"' in line)
    cut = b"".join(lines[: first + 2]) + lines[first + 2][:20]
    path.write_bytes(cut)
    assert read_sweep(tmp_path / "run").points == found.points[:2]
    assert read_sweep(tmp_path / "run").dense == found.dense
    assert path.read_bytes() == cut  # whoever reads it mends nothing


def test_where_there_is_no_sweep_it_says_so(tmp_path: Path):
    with pytest.raises(AutopruneError, match="there is no sweep here"):
        read_sweep(tmp_path)
    with pytest.raises(AutopruneError, match="there is no sweep here"):
        read_sweep(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(AutopruneError, match="cannot read the sweep"):
        read_sweep(tmp_path / "file")


def test_a_damaged_sweep_is_refused(data: str, tmp_path: Path):
    swept(tmp_path / "run", data)
    with (tmp_path / "run" / "sweep.jsonl").open("a") as file:
        file.write('{"point": {"algorithm": "wanda"}}\n')
    assert read_sweep(tmp_path / "run").damaged == 1
    with pytest.raises(AutopruneError, match="damaged"):
        swept(tmp_path / "run", data)


def test_lines_that_are_cut_off_are_removed(tmp_path: Path):
    path = tmp_path / "lines"
    assert Lines(path).found == read_lines(path) == []
    lines = Lines(path)
    lines.add({"a": 1})
    lines.add({"b": [None]})
    whole = path.read_bytes()
    copy = tmp_path / "copy.lines"
    for rest in (b'{"c"', b'{"c": 1}', b"[]\n", b"\0\0\n{}\n"):
        path.write_bytes(whole + rest)
        assert read_lines(path, chained=True) == lines.found
        assert path.read_bytes() == whole + rest
        assert Lines(path, chained=True).found == [{"a": 1}, {"b": [None]}]
        assert path.read_bytes() == copy.read_bytes() == whole
    assert difference({"a": 1, "b": {"c": [1], "d": 2}}, {"a": 1, "b": {"c": (1,), "d": 3}}) == "b (d)"


def test_a_flipped_bit_is_not_believed(tmp_path: Path):
    """Wherever it is: one line is passed over, or two where it was the break between them."""
    path, content = tmp_path / "lines", [{"a": 1e-05}, {"b": [None]}, {"c": "ä"}]
    lines = Lines(path)
    for each in content:
        lines.add(each)
    assert read_lines(path) == content
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        found = [{name: line[name] for name in "abc" if name in line} for line in read_lines(path)]
        found = [line for line in found if line]
        assert [line for line in content if line in found] == found
        assert len(found) >= 1
        chained = [{name: line[name] for name in "abc" if name in line} for line in read_lines(path, chained=True)]
        assert chained == content[: len(chained)]


def test_lines_that_follow_from_one_another_outlive_damage_to_either_file(tmp_path: Path):
    path, copy, content = tmp_path / "lines", tmp_path / "copy.lines", [{"a": 0.5}, {"b": [None]}, {"c": 3}]
    lines = Lines(path, chained=True)
    for each in content:
        lines.add(each)
    whole = path.read_bytes()
    assert copy.read_bytes() == whole
    for file in (path, copy):
        for bit in range(8 * len(whole)):
            changed = bytearray(whole)
            changed[bit // 8] ^= 1 << bit % 8
            file.write_bytes(changed)
            assert read_lines(path, chained=True) == content
            assert Lines(path, chained=True).found == content
            assert path.read_bytes() == copy.read_bytes() == whole
        file.unlink()  # as before there was a copy, or between the two writes of the first line
        assert Lines(path, chained=True).found == content
        assert file.read_bytes() == whole
        file.write_bytes(whole[:-10])  # killed between the two writes of a line
        assert Lines(path, chained=True).found == content
    for file in (path, copy):
        file.write_bytes(whole.replace(b"null", b"true"))
    assert Lines(path, chained=True).found == content[:1]
    copy.unlink()
    path.write_text("".join(json.dumps(line) + "\n" for line in content))  # from before there were checksums
    assert Lines(path, chained=True).found == content
    assert path.read_bytes() == copy.read_bytes() == whole


# ---------------------------------------------------------------- the command


def arguments(checkpoint: Path, text: Path, run: Path, *more: str) -> list[str]:
    sizes = ["--sequences", "4", "--length", "16", "--eval-sequences", "3", "--eval-length", "16"]
    texts = ["--data", f"file:{text}", "--calibration", f"file:{text}"]
    return ["sweep", str(checkpoint), "--run", str(run), *texts, *sizes, *more]


def test_the_command_ends_with_a_table(run: Run, checkpoint: Path, text: Path, tmp_path: Path):
    asked = ("--algorithms", "wanda, magnitude", "--sparsities", "2:4,0.5:0.6:0.1,3:5")
    ran = run(*arguments(checkpoint, text, tmp_path / "run", *asked))
    assert ran.code == 0, ran.err
    lines = ran.out.splitlines()
    assert lines[2].split() == ["perplexity", "0.5", "0.6", "2:4", "3:5"]
    found = read_sweep(tmp_path / "run")
    shown = {(point.algorithm, point.target): point.perplexity for point in found.points}
    for line, name in zip(lines[3:5], ("wanda", "magnitude"), strict=True):
        *cells, failed = line.split()[1:]
        assert line.split()[0] == name
        assert list(map(float, cells)) == pytest.approx([shown[name, at] for at in ("0.5", "0.6", "2:4")], rel=1e-3)
        assert failed == "-"
    assert lines[6].startswith("KL, nats/token")
    assert sum("do not divide" in line for line in lines) == 2
    assert "wanda to 0.5: perplexity" in ran.err
    assert "measured on the text it is calibrated on" in ran.err
    again = run(*arguments(checkpoint, text, tmp_path / "run", *asked))
    assert (again.code, again.out) == (0, ran.out)


def test_the_command_prints_one_object(run: Run, checkpoint: Path, text: Path, tmp_path: Path):
    asked = ("--algorithms", "wanda", "--sparsities", "0.5", "--json")
    ran = run(*arguments(checkpoint, text, tmp_path / "run", *asked))
    record = json.loads(ran.out)
    found = read_sweep(tmp_path / "run")
    assert record == json.loads(json.dumps(found.to_dict()))
    assert found.dense == Evaluation(**{**record["dense"], "tasks": ()})
    assert found.points == [Point(**row) for row in record["points"]]
    assert ran.out.count("\n") == 1


def test_program_files_with_one_name_are_told_apart(run: Run, checkpoint: Path, text: Path, tmp_path: Path):
    program = tmp_path / "mine.prune"
    for score in ("abs(weight)", "weight"):
        program.write_text(f"def score(weight):\n    return {score}\n")
        ran = run(*arguments(checkpoint, text, tmp_path / "run", "--algorithms", str(program), "--sparsities", "0.5"))
        assert ran.code == 0, ran.err
    first, second = read_sweep(tmp_path / "run").points
    assert f"mine {first.hash[:6]}" in ran.out
    assert f"mine {second.hash[:6]}" in ran.out


def test_the_command_refuses_in_one_line(run: Run, checkpoint: Path, text: Path, tmp_path: Path):
    ran = run(*arguments(checkpoint, text, tmp_path / "run", "--algorithms", "wanda", "--sparsities", "0.5:x"))
    assert ran.code == 2
    assert "0.5:x" in ran.error
    (tmp_path / "file").write_text("")
    ran = run(*arguments(checkpoint, text, tmp_path / "file", "--algorithms", "wanda", "--sparsities", "0.5"))
    assert (ran.code, "file" in ran.error) == (2, True)


def test_an_interrupt_keeps_what_is_finished(
    run: Run, checkpoint: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Bench, "measure", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    ran = run(*arguments(checkpoint, text, tmp_path / "run", "--algorithms", "wanda", "--sparsities", "0.5"))
    assert ran.code == 130
    assert "the same command continues it" in ran.error
    assert read_sweep(tmp_path / "run").dense
