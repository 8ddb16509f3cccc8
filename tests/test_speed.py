"""What pruning buys: exact counts, words that follow from figures. No test depends on how long anything takes."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard
from hypothesis import given
from hypothesis import strategies as st

import autoprune
import tiny
from autoprune.errors import AutopruneError
from autoprune.models import InMemoryBlocks, all_linears, weight_files
from autoprune.progress import Silent
from autoprune.speed import Facts, Files, Measured, Model, Pair, Payoff, Zeros, child, process
from autoprune.speed import compare as compare_models
from autoprune.speed.disk import compressed_parts, measure_files
from autoprune.speed.runtimes import PLAIN, RUNTIMES, use_two_of_four
from autoprune.speed.stopwatch import prompt_tokens, time_once
from autoprune.speed.words import in_words
from autoprune.speed.zeros import count, count_zeros
from command import Run

# ---------------------------------------------------------------- zeros


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral"])
@pytest.mark.parametrize("target", [{"sparsity": 0.6}, {"pattern": "2:4"}], ids=str)
def test_zeros_are_those_that_the_prune_reports(architecture: str, target: dict[str, Any]):
    model = tiny.model(architecture)
    report = autoprune.prune(model, algorithm="magnitude", **target)
    zeros = count_zeros(all_linears(InMemoryBlocks(model)))
    assert (zeros.zeros, zeros.weights, zeros.matrices) == (report.zeros, report.weights, len(report.layers))
    assert zeros.two_of_four == (zeros.matrices if "pattern" in target else 0)


def test_a_model_with_random_weights_has_no_zeros():
    zeros = count_zeros(all_linears(InMemoryBlocks(tiny.model())))
    assert (zeros.zeros, zeros.two_of_four) == (0, 0)


@given(st.lists(st.lists(st.sampled_from([0.0, -0.0, 1.0, -2.0]), min_size=8, max_size=8), min_size=1, max_size=5))
def test_the_count_is_that_of_going_through_all(rows: list[list[float]]):
    groups = [row[start : start + 4] for row in rows for start in (0, 4)]
    expected = sum(value == 0 for row in rows for value in row), all(group.count(0) >= 2 for group in groups)
    assert count(torch.tensor(rows, dtype=torch.bfloat16)) == expected


def test_inputs_that_do_not_divide_by_four_have_no_pattern():
    assert count(torch.zeros(3, 6)) == (18, False)


# ---------------------------------------------------------------- files


def test_bytes_are_those_of_the_files(tmp_path: Path):
    tiny.model(dtype=torch.bfloat16).save_pretrained(tmp_path, max_shard_size="20KB")
    shards = list(tmp_path.glob("*.safetensors"))
    found = measure_files(weight_files(tmp_path), 3, Silent())
    assert found.files == len(shards) > 1
    assert found.bytes == sum(path.stat().st_size for path in shards)
    assert (found.format, found.bytes_per_weight) == ("safetensors", 2)
    assert found.compressed == sum(len(part) for path in shards for part in compressed_parts(path, 3, Silent()))


def test_what_was_compressed_is_the_file(checkpoint: Path):
    file = checkpoint / "model.safetensors"
    compressed = b"".join(compressed_parts(file, 3, Silent()))
    assert zstandard.ZstdDecompressor().decompress(compressed) == file.read_bytes()


def test_a_gguf_file_is_its_own_weights(tmp_path: Path):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF" * 100)
    found = measure_files(weight_files(file), 1, Silent())
    assert (found.format, found.files, found.bytes, found.bytes_per_weight) == ("gguf", 1, 400, None)


# ---------------------------------------------------------------- stopwatch


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "mixtral", "mamba", "jamba", "gemma3_text"])
def test_every_step_is_timed_also_where_a_model_wants_to_end(architecture: str):
    model = tiny.model(architecture)
    seen = []

    def only_the_end(module: Any, inputs: Any, output: Any) -> None:
        seen.append(inputs[0].shape[1])
        output.copy_(torch.nn.functional.one_hot(torch.tensor(tiny.EOS), tiny.VOCABULARY))

    model.get_output_embeddings().register_forward_hook(only_the_end)
    model.generation_config.max_new_tokens = 1
    before = model.generation_config
    prefill_s, decode_s = time_once(model, tiny.tokens(2, 8), 5)
    assert prefill_s > 0
    assert decode_s > 0
    assert len(seen) == 6
    assert model.generation_config is before


def test_prompts_are_the_same_each_time_and_ordinary():
    model = tiny.model()
    tokens_BL = prompt_tokens(model, 3, 200, tiny.VOCABULARY)
    assert tokens_BL.shape == (3, 200)
    assert torch.equal(tokens_BL, prompt_tokens(model, 3, 200, tiny.VOCABULARY))
    assert not set(tokens_BL.unique().tolist()) & {tiny.BOS, tiny.EOS}


# ---------------------------------------------------------------- ratios


@given(st.integers(1, 40))
def test_the_interval_holds_the_median_as_often_as_it_says(rounds: int):
    """By counting all ways in which values can lie above and below the median."""
    ratios = [2.0 + number for number in range(rounds)]
    pair = Pair.of([1.0] * rounds, ratios)
    left_out = int(pair.low - 2)

    def missed(cut: int) -> float:
        return 2 * sum(math.comb(rounds, below) for below in range(cut + 1)) / 2**rounds

    if rounds < 6:
        assert pair.verdict == "unknown"
        assert (pair.low, pair.high) == (ratios[0], ratios[-1])
    else:
        assert pair.verdict == "more"
        assert pair.low + pair.high == ratios[0] + ratios[-1]
        assert missed(left_out) <= 0.05 < missed(left_out + 1)


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ([1.2, 1.3, 1.1, 1.4, 1.2, 1.3], "more"),
        ([0.8, 0.7, 0.9, 0.6, 0.8, 0.7], "less"),
        ([0.9, 1.3, 1.1, 1.4, 1.2, 1.3], "noise"),
        ([1.001, 1.002, 1.004, 1.003, 1.002, 1.005], "same"),
        ([0.95, 1.001, 1.0, 1.0, 1.0, 1.0], "noise"),
        ([1.5, 1.5, 1.5, 1.5, 1.5], "unknown"),
        ([1.0], "unknown"),
    ],
)
def test_verdicts(ratios: list[float], verdict: str):
    assert Pair.of([10.0] * len(ratios), [10 * ratio for ratio in ratios]).verdict == verdict


def test_a_ratio_is_taken_within_rounds():
    """A machine that is slow in some rounds is so for both models."""
    speed = [100.0, 10.0, 50.0, 20.0, 80.0, 30.0]
    pair = Pair.of(speed, [1.5 * value for value in speed])
    assert (pair.ratio, pair.low, pair.high) == (1.5, 1.5, 1.5)


# ---------------------------------------------------------------- words


def pair(ratio: float = 1.0, spread: float = 0.2, rounds: int = 6) -> Pair:
    steps = [spread * (2 * number / max(1, rounds - 1) - 1) for number in range(rounds)]
    return Pair.of([10.0] * rounds, [10 * (ratio + step) for step in steps])


def measured(runtime: str = PLAIN, prefill: Pair | None = None, decode: Pair | None = None) -> Measured:
    return Measured(
        runtime=runtime, prefill=prefill or pair(), decode=decode or pair(), resident=None, peak=None, device=None
    )


def made_up(
    *runs: Measured,
    zeros: int = 600,
    two_of_four: int = 0,
    device: str = "cpu",
    cpu_flags: tuple[str, ...] = (),
    compressed: int = 900,
    **of_pruned: Any,
) -> Payoff:
    facts = Facts(
        dtype="bfloat16",
        device=device,
        device_name="",
        capability=None,
        threads=1,
        parameters=1200,
        parameter_bytes=2400,
        zeros=Zeros(weights=1000, zeros=0, matrices=4, two_of_four=0),
    )
    files = Files(format="safetensors", files=1, bytes=2500, bytes_per_weight=2, compressed=1800)
    pruned = replace(facts, zeros=Zeros(weights=1000, zeros=zeros, matrices=4, two_of_four=two_of_four))
    in_files = {name: of_pruned.pop(name) for name in ("bytes", "bytes_per_weight", "format") if name in of_pruned}
    return in_words(
        Payoff(
            dense=Model(name="dense", files=files, facts=facts),
            pruned=Model(
                name="pruned",
                files=replace(files, compressed=compressed, **in_files),
                facts=replace(pruned, **of_pruned),
            ),
            measured=list(runs or [measured()]),
            not_measured={},
            settings={},
            cpu_flags=list(cpu_flags),
            words=[],
        )
    )


def said(payoff: Payoff) -> str:
    return "\n".join(payoff.words)


def test_a_stock_runtime_without_a_gain_is_said_to_give_none():
    words = said(made_up())
    assert "60.0% of the 1,000 prunable weights" in words
    assert "as large as before" in words
    assert "take 0.50 of what the dense ones take compressed" in words
    assert "the same memory" in words
    assert "transformers, prefill: no difference beyond noise (1.00 times the dense speed, 0.80 to 1.20)." in words
    assert "they buy no speed in it" in words
    assert "MACKO" in words


@pytest.mark.parametrize(
    ("found", "phrase"),
    [
        (pair(1.5, 0.1), "decode: faster (1.50"),
        (pair(0.5, 0.1), "decode: slower (0.50"),
        (pair(1.0, 0.001), "decode: the same speed to within 1%"),
        (pair(1.5, 0.1, rounds=3), "decode: too few rounds"),
    ],
)
def test_speed_is_put_as_it_was_measured(found: Pair, phrase: str):
    assert phrase in said(made_up(measured(decode=found)))


def test_noise_that_hides_much_is_named():
    assert "The machine is noisy" in said(made_up(measured(decode=pair(1.0, 0.2))))
    calm = measured(prefill=pair(1.0, 0.05), decode=pair(2.0, 0.5))
    assert "The machine is noisy" not in said(made_up(calm))


def test_a_faster_stock_runtime_is_not_credited_to_zeros():
    words = said(made_up(measured(prefill=pair(1.5, 0.1))))
    assert "The zeros are not why it is faster" in words
    assert "buy no speed" not in words


def test_a_runtime_that_uses_zeros_is_named_where_it_gains():
    name = next(name for name, runtime in RUNTIMES.items() if runtime.uses_zeros)
    gain = said(made_up(measured(), measured(name, prefill=pair(1.5, 0.1)), two_of_four=4, device="cuda"))
    assert f"The zeros buy speed in {name}." in gain
    assert "MACKO" not in gain
    none = said(made_up(measured(), measured(name), two_of_four=4, device="cuda"))
    assert "The zeros buy speed" not in none
    assert "MACKO" in none


@pytest.mark.parametrize(
    ("case", "phrase"),
    [
        ({"two_of_four": 4}, "The zeros have the 2:4 pattern: on an NVIDIA GPU"),
        ({"device": "cuda"}, "prune with --pattern 2:4"),
        ({"cpu_flags": ("amx_int8",)}, "CPU with AMX, as this one"),
        ({"cpu_flags": ("avx2",)}, "this has none"),
    ],
)
def test_advice_depends_on_the_case(case: dict[str, Any], phrase: str):
    assert phrase in said(made_up(**case))
    others = {"two_of_four": 0, "device": "cpu", "cpu_flags": ("sse",)} | dict.fromkeys(case)
    if "cpu_flags" not in case:
        assert phrase not in said(made_up(**{name: value for name, value in others.items() if value is not None}))


def test_a_pattern_that_only_some_matrices_have_is_said_so():
    words = said(made_up(two_of_four=3))
    assert "of its 4 matrices 3 have the 2:4 pattern" in words
    assert "The zeros have the 2:4 pattern" not in words


def test_without_more_zeros_nothing_is_said_of_what_they_buy():
    words = said(made_up(zeros=0, compressed=1800))
    assert "It has no more zeros than the dense model" in words
    assert "as large as the compressed dense ones too" in words
    assert "MACKO" not in words
    assert "By arithmetic" not in words


def test_a_bitmask_is_computed_for_weights_of_one_width():
    # 2500 bytes, of which 600 zeros of 2 bytes go, and 1000 bits come.
    payoff = made_up(zeros=600)
    assert f"would take {(2500 - 1200 + 125) / 1e6:,.1f} MB" in said(payoff)
    assert "By arithmetic" not in said(made_up(bytes_per_weight=None))
    assert "By arithmetic" not in said(made_up(zeros=50))  # more bits than bytes saved


@pytest.mark.parametrize("other", [{"format": "gguf", "bytes_per_weight": None}, {"bytes_per_weight": 4}])
def test_sizes_of_numbers_stored_otherwise_are_not_compared(other: dict[str, Any]):
    words = said(made_up(**other))
    assert "store numbers differently" in words
    assert "as before" not in words


def test_another_dtype_and_another_size_are_said():
    words = said(made_up(dtype="float32", parameters=600, parameter_bytes=1200, bytes=1250))
    assert "give --dtype" in words
    assert "600 parameters" in words
    assert "take 0.50 of the dense one's memory" in words
    assert "take 0.50 of what the dense ones take." in words


# ---------------------------------------------------------------- processes


def test_a_process_tells_the_facts(checkpoint: Path):
    facts = process.measure({"model": str(checkpoint), "dtype": "auto", "device": "cpu", "runtime": None})
    assert facts["device"] == "cpu"
    assert facts["parameters"] == sum(parameter.numel() for parameter in tiny.model().parameters())


def test_a_process_tells_what_is_wrong(tmp_path: Path):
    with pytest.raises(AutopruneError, match=r"no config.json"):
        process.measure({"model": str(tmp_path), "dtype": "auto", "device": "cpu", "runtime": None})


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """The processes that were started."""
    found = []

    class Noted(subprocess.Popen):
        def __init__(self, *arguments: Any, **options: Any):
            super().__init__(*arguments, **options)
            found.append(self)

    monkeypatch.setattr(process.subprocess, "Popen", Noted)
    return found


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs timers")
def test_no_process_is_left_when_interrupted(started: list[subprocess.Popen[bytes]], checkpoint: Path):
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(KeyboardInterrupt):
            process.measure({"model": str(checkpoint), "dtype": "auto", "device": "cpu", "runtime": None})
    finally:
        signal.signal(signal.SIGALRM, before)
    assert [one.poll() is not None for one in started] == [True]


def test_a_process_that_dies_is_explained(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(AutopruneError, match=r"m: the process that measured it ended with: no message"):
        process.measure({"model": "m", "runtime": None})


# ---------------------------------------------------------------- both models


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Measure here, each turn once; the tasks that were done."""
    tasks: list[dict[str, Any]] = []

    def measure(task: dict[str, Any]) -> dict[str, Any]:
        tasks.append(task)
        answer = child.look(task) if task["runtime"] is None else child.take_turn(task)
        return json.loads(json.dumps(answer))

    monkeypatch.setattr(child, "_ENOUGH_S", 0.0)
    monkeypatch.setattr("autoprune.speed.turns.measure", measure)
    return tasks


@pytest.fixture(scope="module")
def pruned(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pruned") / "model"
    autoprune.prune(str(checkpoint), algorithm="magnitude", sparsity=0.6, out=out)
    return out


def test_models_take_turns(in_process: list[dict[str, Any]], checkpoint: Path, pruned: Path):
    payoff = compare_models(checkpoint, pruned, prompt=8, new=3, rounds=2, device="cpu")
    order = [(task["model"], task["runtime"]) for task in in_process]
    dense_first = [(str(checkpoint), PLAIN), (str(pruned), PLAIN)]
    assert order == [(str(checkpoint), None), (str(pruned), None), *dense_first, *reversed(dense_first)]
    assert payoff.pruned.facts.zeros.zeros == json.loads((pruned / "autoprune.json").read_text())["zeros"]
    assert payoff.measured[0].prefill.verdict == "unknown"
    assert "torch 2:4" in payoff.not_measured


def test_the_command_prints_a_table_and_sentences(
    run: Run, in_process: list[dict[str, Any]], checkpoint: Path, pruned: Path
):
    ran = run("speed", checkpoint, pruned, "--prompt", "8", "--new", "3", "--rounds", "1", "--device", "cpu")
    assert ran.code == 0, ran.err
    for line in ("files, MB", "zeros of the prunable weights", "prefill, tokens/s", "decode, tokens/s", "60.0%"):
        assert line in ran.out
    assert "- On disk the files are as large as before" in ran.out


def test_the_command_prints_json(run: Run, in_process: list[dict[str, Any]], checkpoint: Path, pruned: Path):
    ran = run("speed", checkpoint, pruned, "--rounds", "1", "--device", "cpu", "--json")
    record = json.loads(ran.out)
    assert ran.code == 0
    assert record["settings"]["prompt"] + record["settings"]["new"] <= 128  # the model's context
    assert record["pruned"]["files"]["bytes"] == (pruned / "model.safetensors").stat().st_size
    assert record["pruned"]["facts"]["zeros"]["share"] == pytest.approx(0.6, abs=1e-3)
    assert {"runtime", "prefill", "decode"} <= set(record["measured"][0])
    assert any("as large as before" in sentence for sentence in record["words"])


@pytest.mark.parametrize("positions", [2, 5, 16])
def test_a_short_context_is_enough(in_process: list[dict[str, Any]], tmp_path: Path, positions: int):
    folder = tiny.save(tmp_path / "model", max_position_embeddings=positions)
    settings = compare_models(folder, folder, rounds=1, device="cpu").settings
    assert settings["prompt"] >= 1 <= settings["new"]
    assert settings["prompt"] + settings["new"] <= positions


def test_bad_input_is_refused_in_one_line(run: Run, checkpoint: Path, tmp_path: Path):
    other = tiny.save(tmp_path / "other", "qwen2")
    empty = tmp_path / "empty"
    empty.mkdir()
    weightless = tiny.save(tmp_path / "weightless")
    (weightless / "model.safetensors").unlink()
    for arguments, message in [
        ((checkpoint, tmp_path / "missing"), "no such model folder"),
        ((checkpoint, empty), "no config.json"),
        ((checkpoint, weightless), "weightless: there are no files with weights"),
        ((checkpoint, other), "is a llama and .* a qwen2"),
        ((checkpoint, checkpoint, "--prompt", "100", "--new", "29"), "more than the 128 positions"),
        ((checkpoint, checkpoint, "--rounds", "0"), "--rounds is 0"),
        ((checkpoint, checkpoint, "--level", "23"), "level 23 of zstd"),
        ((checkpoint, checkpoint, "--dtype", "int3"), "unknown dtype"),
    ]:
        ran = run("speed", *arguments)
        assert ran.code == 2
        assert ran.out == ""
        assert message.split(".*")[0] in ran.error, (arguments, ran.error)


def test_without_zstandard_the_extra_is_named(run: Run, checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    ran = run("speed", checkpoint, checkpoint)
    assert ran.code == 2
    assert "pip install 'autoprune[speed]'" in ran.error


# ---------------------------------------------------------------- torch 2:4


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_kernels_that_take_no_matrix_are_refused():
    model = tiny.model()
    with pytest.raises(AutopruneError, match="take none of the model's matrices"):
        use_two_of_four(model)


def test_the_kernels_need_the_pattern_and_the_device():
    facts = made_up(two_of_four=4).pruned.facts
    lacks = RUNTIMES["torch 2:4"].lacks
    assert "NVIDIA" in lacks(facts)
    assert "8.0" in lacks(replace(facts, capability=(7, 5)))
    assert "--dtype" in lacks(replace(facts, capability=(9, 0), dtype="float32"))
    assert lacks(replace(facts, capability=(9, 0))) == ""
    assert "2 of every 4" in lacks(made_up().pruned.facts)
    assert asdict(facts)["capability"] is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_kernels_compute_what_the_dense_ones_do():
    model = tiny.model(hidden_size=128, intermediate_size=256, dtype=torch.bfloat16)
    autoprune.prune(model, algorithm="magnitude", pattern="2:4")
    model = model.cuda()
    tokens_BL = tiny.tokens(2, 16).cuda()
    with torch.no_grad():
        expected = model(tokens_BL).logits.float()
        use_two_of_four(model)
        found = model(tokens_BL).logits.float()
    assert (found - expected).norm() < 0.02 * expected.norm()
