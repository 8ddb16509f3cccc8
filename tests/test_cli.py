"""The command line in-process: one line for whatever is wrong, nothing left behind, one JSON object where asked."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import autoprune
import tiny
from autoprune import algorithms, discover, inputs
from autoprune.cli.main import cli
from autoprune.models.shards import ShardsCopy
from command import Ran, Run


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder; outputs go to `out` in it."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def small(text: Path, *more: str) -> list[str]:
    return ["--calibration", f"file:{text}", "--sequences", "4", "--length", "16", *more]


def assert_refused(ran: Ran, message: str, work: Path) -> None:
    assert ran.code == 2, ran.err
    assert re.search(message, ran.error), ran.error
    assert ran.out == ""
    assert list(work.iterdir()) == []


# ---------------------------------------------------------------- what works


def test_prune_writes_a_checkpoint_and_says_how_to_load_it(run: Run, checkpoint: Path, text: Path, work: Path):
    ran = run("prune", checkpoint, "--out", "out", "--sparsity", "0.5", *small(text))
    assert ran.code == 0
    assert "50.0000%" in ran.out
    assert "AutoModelForCausalLM.from_pretrained('out')" in ran.out
    assert [path.name for path in work.iterdir()] == ["out"]
    assert AutoModelForCausalLM.from_pretrained(work / "out").config.model_type == "llama"


def test_prune_calibrates_by_itself(run: Run, checkpoint: Path, work: Path):
    ran = run("prune", checkpoint, "--out", "out", "--pattern", "2:4", "--sequences", "4", "--length", "16")
    assert ran.code == 0
    assert json.loads((work / "out" / "autoprune.json").read_text())["settings"]["calibration"]["source"] == "self"


def test_chosen_calibration_amounts_are_told(run: Run, checkpoint: Path, text: Path, work: Path):
    ran = run("prune", checkpoint, "--out", "out", "--sparsity", "0.5", "--calibration", f"file:{text}")
    assert ran.code == 0
    assert "--sequences 32 --length 128" in ran.err


def test_json_prints_one_object_and_nothing_else(run: Run, checkpoint: Path, text: Path, work: Path):
    ran = run("prune", checkpoint, "--out", "out", "--sparsity", "0.5", "--json", *small(text))
    record = json.loads(ran.out)
    assert ran.code == 0
    assert record["sparsity"] == {"requested": 0.5, "achieved": 0.5}
    assert record["out"] == "out"
    assert ran.out.count("\n") == 1


def test_eval_prints_perplexity(run: Run, checkpoint: Path, text: Path, work: Path):
    ran = run("eval", checkpoint, "--data", f"file:{text}", "--sequences", "3", "--length", "16")
    assert ran.code == 0
    assert re.search(r"perplexity +\d+\.\d{4}", ran.out)
    assert "45 scored, 3 sequences of 16" in ran.out


def test_eval_json_compares_two_models(run: Run, checkpoint: Path, text: Path, work: Path):
    assert run("prune", checkpoint, "--out", "out", "--sparsity", "0.5", *small(text)).code == 0
    data = ["--data", f"file:{text}", "--sequences", "3", "--length", "16"]
    ran = run("eval", "out", *data, "--against", checkpoint, "--json")
    record = json.loads(ran.out)
    assert ran.code == 0
    assert ran.out.count("\n") == 1
    assert record["against"] == str(checkpoint)
    (result,) = record["results"]
    assert result["model"] == "out"
    assert result["against"]["kl_nats_per_token"] > 0
    assert result["tokens"] == 45
    assert result["tasks"] == []


def test_eval_against_prints_the_comparison(run: Run, checkpoint: Path, text: Path, work: Path):
    data = ["--data", f"file:{text}", "--sequences", "3", "--length", "16"]
    ran = run("eval", checkpoint, *data, "--against", checkpoint)
    assert ran.code == 0
    assert "KL(ref || model) 0.00000" in ran.out
    assert "100.00%" in ran.out


def test_algorithms_lists_the_library(run: Run):
    ran = run("algorithms")
    assert ran.code == 0
    listed = [line.split()[0] for line in ran.out.splitlines() if line.startswith("  ")]
    assert listed == [*algorithms.names("score"), *algorithms.names("allocate")]


@pytest.mark.parametrize("name", algorithms.names())
def test_algorithms_prints_a_text(run: Run, name: str):
    ran = run("algorithms", name)
    assert (ran.code, ran.out) == (0, algorithms.load(name).text)


@pytest.mark.parametrize("name", algorithms.names())
def test_check_explains_library_programs(run: Run, name: str):
    ran = run("check", name)
    assert ran.code == 0
    assert name in ran.out


def test_check_explains_a_file(run: Run, work: Path):
    (work / "mine.prune").write_text(algorithms.load("wanda").text)
    ran = run("check", "mine.prune")
    assert ran.code == 0
    assert algorithms.load("wanda").digest in ran.out


def test_check_prints_the_language(run: Run):
    assert "inverse_gram_diagonal" in run("check", "wanda", "--language").out


@pytest.mark.parametrize("command", [[], *([name] for name in cli.commands)])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_command_has_help(run: Run, command: list[str], flag: str):
    ran = run(*command, flag)
    assert ran.code == 0
    assert ran.out.startswith("Usage: ")
    assert ran.err == ""


def test_help_tells_how_much_text_is_taken_unless_told(run: Run):
    for module, command in ((inputs, "prune"), (inputs, "sweep"), (discover, "search")):
        told = " ".join(run(command, "--help").out.split())
        for place, (elsewhere, here) in enumerate(zip(module._WITH_ACCELERATOR, module._ON_CPU, strict=True)):
            option = told[told.index(("--sequences", "--length")[place]) :]
            assert option[option.index("[default") :].startswith(f"[default: {elsewhere}; on a CPU {here}]"), command
    assert sum(discover._DRAWS.values()) == 5  # as --sequences says


def test_help_waits_for_no_large_library():
    """Importing torch takes seconds."""
    script = (
        "import sys; from autoprune.cli.main import cli\n"
        "for name in cli.commands: cli([name, '--help'], standalone_mode=False)\n"
        "print({'torch', 'transformers', 'numpy', 'rich'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "set()"


def test_the_package_names_what_it_has():
    assert {*autoprune.__all__} <= {*dir(autoprune)}
    assert all(getattr(autoprune, name).__name__ == name for name in autoprune.__all__)
    with pytest.raises(AttributeError, match="no attribute 'prunne'"):
        _ = autoprune.prunne


def test_version(run: Run):
    ran = run("--version")
    assert ran.code == 0
    assert re.search(r"\d+\.\d+", ran.out)


def test_prune_says_what_became_of_mask_and_weights(run: Run, checkpoint: Path, text: Path, work: Path):
    options = ("--refine", "swaps", "--max-swaps", "3", "--protect", "0.25", "--update", "least_squares")
    ran = run("prune", checkpoint, "--out", "out", "--pattern", "2:4", *options, *small(text))
    assert ran.code == 0
    assert "refine     swaps of the mask" in ran.out
    assert "update     least_squares of the weights that stay" in ran.out
    record = json.loads((work / "out" / "autoprune.json").read_text())
    assert record["method"] == {
        "compare": "row", "refine": "swaps", "max_swaps": 3, "protect": 0.25, "update": "least_squares",
        "towards_dense": 0.0,
    }  # fmt: skip


def test_prune_says_how_sparsity_was_shared_out(run: Run, checkpoint: Path, text: Path, work: Path):
    ran = run("prune", checkpoint, "--out", "out", "--sparsity", "0.5", "--allocation", "atp", *small(text))
    assert ran.code == 0
    assert "allocation atp: layers lose 40.0% to 60.0%" in " ".join(ran.out.split())


def test_diagnose_draws_and_writes_figures(run: Run, checkpoint: Path, text: Path, work: Path):
    before = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    ran = run("diagnose", checkpoint, "--out", "out", *small(text))
    assert ran.code == 0, ran.err
    assert "model.layers.1" in ran.out
    record = json.loads((work / "out" / "autoprune.json").read_text())["diagnosis"]
    assert len(record["skewness"]) == len(record["damage"]) == len(record["sparsity"]) == tiny.BLOCKS
    assert len(record["linear_skewness"]) == 7 * tiny.BLOCKS
    assert record["mean_skewness"][0] == pytest.approx(sum(record["linear_skewness"][:7]) / 7)
    assert sum(record["sparsity"]) / tiny.BLOCKS == pytest.approx(0.7)
    for name in ("skewness", "sensitivity", "allocation"):
        assert (work / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name: path.read_bytes() for path in checkpoint.iterdir()} == before


def test_diagnose_replaces_its_own_results_only(run: Run, checkpoint: Path, text: Path, work: Path):
    assert run("diagnose", checkpoint, "--out", "out", *small(text)).code == 0
    assert run("diagnose", checkpoint, "--out", "out", *small(text)).code == 2
    ran = run("diagnose", checkpoint, "--out", "out", "--json", "--force", *small(text))
    assert ran.code == 0
    assert json.loads(ran.out)["allocation"] == "sdsa"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--allocation", "auto"], "auto cannot be drawn"),
        (["--allocation", "none"], "unknown allocation"),
        (["--sparsity", "2"], "outside"),
        (["--sequences", "1"], "at least 2"),
    ],
)
def test_a_diagnosis_that_cannot_be_made_is_one_line(
    run: Run, checkpoint: Path, text: Path, work: Path, arguments: list[str], message: str
):
    assert_refused(run("diagnose", checkpoint, "--out", "out", *small(text), *arguments), message, work)


def test_diagnose_without_matplotlib_says_what_to_install(
    run: Run, checkpoint: Path, text: Path, work: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert_refused(run("diagnose", checkpoint, "--out", "out", *small(text)), r"autoprune\[figures\]", work)


# ---------------------------------------------------------------- wrong requests


REQUESTS: dict[str, tuple[list[str], str]] = {
    "sparsity of one": (["--sparsity", "1.0"], r"outside \[0, 1\)"),
    "negative sparsity": (["--sparsity", "-0.1"], r"outside \[0, 1\)"),
    "nan sparsity": (["--sparsity", "nan"], r"outside \[0, 1\)"),
    "sparsity that is no number": (["--sparsity", "abc"], "'abc' is not a valid float"),
    "more kept than there are": (["--pattern", "5:4"], "pattern '5:4' is not n:m"),
    "pattern that tiles no layer": (["--pattern", "2:5"], "q_proj: 32 inputs do not divide into groups of 5"),
    "neither": ([], "give a sparsity or a pattern"),
    "both": (["--sparsity", "0.5", "--pattern", "2:4"], "a sparsity and a pattern were given"),
    "unknown algorithm": (["--sparsity", "0.5", "--algorithm", "wandda"], "did you mean 'wanda'"),
    "missing program": (["--sparsity", "0.5", "--algorithm", "./no.prune"], "no.prune: cannot read the program"),
    "unknown option": (["--sparsity", "0.5", "--sparcity", "0.5"], "No such option.*--sparcity"),
    "unknown compare": (["--sparsity", "0.5", "--compare", "column"], "compare cannot be 'column'; use row, layer"),
    "unknown refine": (["--sparsity", "0.5", "--refine", "swap"], "refine cannot be 'swap'; use none, swaps, dsnot"),
    "unknown update": (["--sparsity", "0.5", "--update", "lsq"], "update cannot be 'lsq'; use none, least_squares"),
    "protect without swaps": (["--sparsity", "0.5", "--protect", "0.5"], "protect is for refine=swaps, not none"),
    "refine beside admm": (
        ["--sparsity", "0.5", "--refine", "swaps", "--update", "admm"],
        "update=admm chooses the mask itself",
    ),
    "too many swaps": (["--sparsity", "0.5", "--refine", "swaps", "--max-swaps", "-1"], "max_swaps cannot be -1"),
    "unknown propagation": (["--sparsity", "0.5", "--propagation", "x"], "unknown propagation 'x'"),
    "unknown dtype": (["--sparsity", "0.5", "--dtype", "int8"], "unknown dtype 'int8'"),
    "unknown device": (["--sparsity", "0.5", "--device", "tpu9"], "device 'tpu9' is not available"),
    "no sequences": (["--sparsity", "0.5", "--sequences", "0"], "--sequences 0 is less than 1"),
    "short length": (["--sparsity", "0.5", "--length", "1"], "--length 1 is less than 2"),
    "length beyond the context": (["--sparsity", "0.5", "--length", "129"], "128 positions"),
    "text too short": (["--sparsity", "0.5", "--sequences", "99999"], "99,999 sequences of 16 were asked for"),
    "unknown allocation": (["--sparsity", "0.5", "--allocation", "sdas"], "unknown allocation 'sdas'; did you mean"),
    "no allocation": (["--sparsity", "0.5", "--allocation", "wanda"], "wanda: the program defines no allocate"),
    "no score": (["--sparsity", "0.5", "--algorithm", "sdsa"], "sdsa: the program defines no score"),
    "strength of uniform": (["--sparsity", "0.5", "--strength", "0.3"], "'uniform' has no strength"),
    "shift of nothing": (["--sparsity", "0.5", "--allocation", "sdsa", "--max-shift", "-1"], "max_shift cannot be -1"),
    "judging one sequence": (["--sparsity", "0.5", "--allocation", "auto", "--sequences", "1"], "at least 2"),
    "no such text": (["--sparsity", "0.5", "--calibration", "file:no.txt"], "no.txt: cannot read the text"),
    "no text source": (["--sparsity", "0.5", "--calibration", "text.txt"], "is not a text source"),
    "text of an unknown user": (["--sparsity", "0.5", "--calibration", "file:~nobody-here/a.txt"], "nobody-here"),
}


@pytest.mark.parametrize("request_", REQUESTS)
def test_a_wrong_request_is_one_line(run: Run, request_: str, checkpoint: Path, text: Path, work: Path):
    arguments, message = REQUESTS[request_]
    assert_refused(run("prune", checkpoint, "--out", "out", *small(text), *arguments), message, work)


def test_an_unknown_command_is_one_line(run: Run, work: Path):
    assert_refused(run("prun", "demo"), "No such command 'prun'", work)


@pytest.mark.parametrize("command", [["prune", "x", "--sparsity", "0.5"], ["prune"], ["eval"], ["check"]])
def test_a_missing_argument_is_one_line(run: Run, command: list[str], work: Path):
    assert_refused(run(*command), "Missing", work)


def test_no_command_at_all_shows_help(run: Run, work: Path):
    ran = run()
    assert ran.code == 0
    assert "Usage" in ran.out


def test_a_program_with_a_type_error_names_the_place(run: Run, checkpoint: Path, text: Path, work: Path):
    program = work.parent / "bad.prune"
    program.write_text("def score(weight, gram):\n    return weight + gram\n")
    options = ["--sparsity", "0.5", "--algorithm", program, *small(text)]
    assert_refused(run("prune", checkpoint, "--out", "out", *options), r"bad\.prune, line 2, column \d+: ", work)
    assert_refused(run("check", program), r"bad\.prune, line 2, column \d+: ", work)


def test_check_names_the_nearest_algorithm(run: Run, work: Path):
    assert_refused(run("check", "magnitud"), "did you mean 'magnitude'", work)
    assert_refused(run("algorithms", "magnitud"), "did you mean 'magnitude'", work)


# ---------------------------------------------------------------- wrong models


def copied(checkpoint: Path, work: Path) -> Path:
    return Path(shutil.copytree(checkpoint, work.parent / "copy"))


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def reconfigure(folder: Path, **options: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | options))


def truncated(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def garbage(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not a tensor file")


def empty_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def no_dictionary(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def unknown_model_type(folder: Path) -> None:
    reconfigure(folder, model_type="no-such-model")


def encoder_decoder(folder: Path) -> None:
    reconfigure(folder, model_type="t5")


def missing_tensor(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))


def misshapen_tensor(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.update({"model.layers.1.mlp.up_proj.weight": torch.zeros(3, 3)}))


def not_finite(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors["model.layers.1.mlp.up_proj.weight"].fill_(torch.nan))


def gptq(folder: Path) -> None:
    reconfigure(folder, quantization_config={"quant_method": "gptq", "bits": 4})


def fp8(folder: Path) -> None:
    reconfigure(folder, quantization_config={"quant_method": "fp8"})
    name = "model.layers.1.mlp.up_proj.weight"
    rewrite(folder, lambda tensors: tensors.update({name: tensors[name].to(torch.float8_e4m3fn)}))


def broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")


DAMAGES: dict[Callable[[Path], Any], str] = {
    truncated: "copy/model.safetensors: a safetensors file is corrupt",
    garbage: "copy/model.safetensors: a safetensors file is corrupt",
    empty_weights: "copy/model.safetensors: a safetensors file is corrupt",
    without_weights: "copy: ",
    without_config: "copy: the folder has no config.json",
    broken_config: "copy: ",
    no_dictionary: "copy: ",
    unknown_model_type: "copy: .*no-such-model",
    encoder_decoder: "copy: ",
    missing_tensor: r"1 of the model's tensors, among them model\.layers\.1\.mlp\.up_proj\.weight",
    misshapen_tensor: r"1 of the model's tensors, among them model\.layers\.1\.mlp\.up_proj\.weight",
    not_finite: r"model\.layers\.1\.mlp\.up_proj\.weight: the weights hold NaN",
    gptq: r"quantised \(gptq\)",
    fp8: r"quantised \(fp8\)",
    broken_tokenizer: "copy: ",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_wrong_checkpoint_is_one_line(
    run: Run, damage: Callable[[Path], Any], checkpoint: Path, text: Path, work: Path
):
    folder = copied(checkpoint, work)
    damage(folder)
    assert_refused(run("prune", folder, "--out", "out", "--sparsity", "0.5", *small(text)), DAMAGES[damage], work)


@pytest.mark.parametrize(
    "name", ["./nowhere", "/no/where", "a/b/c", "", " ", "no.gguf", "~nobody-here/model", "n" * 300, "a b"]
)
def test_a_model_that_is_nowhere_is_one_line(run: Run, name: str, text: Path, work: Path, offline: None):
    assert_refused(run("prune", name, "--out", "out", "--sparsity", "0.5", *small(text)), ".", work)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """HF_HUB_OFFLINE=1 and an empty cache; the hub's client reads them when it is imported."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def test_a_hub_name_without_network_is_one_line(run: Run, text: Path, work: Path, offline: None):
    ran = run("prune", "someone/no-such-model", "--out", "out", "--sparsity", "0.5", *small(text))
    assert_refused(ran, "someone/no-such-model: no such folder here, and no such model", work)


def test_a_file_that_is_no_model_is_one_line(run: Run, text: Path, work: Path):
    assert_refused(run("prune", text, "--out", "out", "--sparsity", "0.5"), "not a .gguf file", work)


def test_a_corrupt_gguf_file_is_one_line(run: Run, text: Path, work: Path):
    (work.parent / "bad.gguf").write_bytes(b"GGUF but not really")
    ran = run("prune", work.parent / "bad.gguf", "--out", "out", "--sparsity", "0.5", *small(text))
    assert_refused(ran, "bad.gguf: ", work)


def test_eval_of_a_wrong_model_is_one_line(run: Run, text: Path, work: Path):
    assert_refused(run("eval", "./nowhere", "--data", f"file:{text}"), "no such model folder", work)


def test_eval_on_nothing_is_one_line(run: Run, work: Path):
    assert_refused(run("eval", "./nowhere"), "nothing to evaluate on; give --data, --tasks or both", work)


def test_eval_against_another_vocabulary_is_one_line(run: Run, checkpoint: Path, text: Path, work: Path):
    other = tiny.save(work.parent / "other", vocab_size=400)
    ran = run("eval", checkpoint, "--data", f"file:{text}", "--length", "16", "--sequences", "2", "--against", other)
    assert_refused(ran, "different vocabularies", work)


@pytest.mark.parametrize("bos", ["sometimes", "every"])
def test_eval_with_an_impossible_bos_rule_is_one_line(run: Run, bos: str, text: Path, work: Path):
    model = tiny.save(work.parent / "model", kind="no_bos")
    ran = run("eval", model, "--data", f"file:{text}", "--length", "16", "--bos", bos)
    assert_refused(ran, "bos", work)


# ---------------------------------------------------------------- wrong outputs


def test_an_output_folder_that_is_not_empty_is_refused(run: Run, checkpoint: Path, text: Path, work: Path):
    (work / "out").mkdir()
    (work / "out" / "mine").write_text("mine")
    ran = run("prune", checkpoint, "--out", "out", "--sparsity", "0.5", *small(text))
    assert ran.code == 2
    assert "out: the folder is not empty" in ran.error
    assert [path.name for path in work.rglob("*")] == ["out", "mine"]


def test_an_output_that_is_a_file_is_refused(run: Run, checkpoint: Path, text: Path, work: Path):
    (work / "out").write_text("mine")
    ran = run("prune", checkpoint, "--out", "out", "--sparsity", "0.5", "--force", *small(text))
    assert ran.code == 2
    assert "is a file" in ran.error
    assert (work / "out").read_text() == "mine"


def test_an_output_below_a_file_is_refused(run: Run, checkpoint: Path, text: Path, work: Path):
    (work / "file").write_text("mine")
    ran = run("prune", checkpoint, "--out", "file/out", "--sparsity", "0.5", *small(text))
    assert ran.code == 2
    assert "cannot write" in ran.error


@pytest.mark.parametrize("out", ["model", "model/out", ".", "model/deep/out"])
def test_an_output_that_overlaps_the_model_is_refused(run: Run, out: str, checkpoint: Path, text: Path, work: Path):
    shutil.copytree(checkpoint, work / "model")
    before = sorted(work.rglob("*"))
    ran = run("prune", "model", "--out", out, "--sparsity", "0.5", "--force", *small(text))
    assert ran.code == 2
    assert "overlap" in ran.error
    assert sorted(work.rglob("*")) == before


def test_parent_folders_are_made_on_success(run: Run, checkpoint: Path, text: Path, work: Path):
    ran = run("prune", checkpoint, "--out", "a/b/out", "--sparsity", "0.5", *small(text))
    assert ran.code == 0
    assert (work / "a" / "b" / "out" / "config.json").is_file()


def test_parent_folders_are_not_left_after_a_refusal(run: Run, checkpoint: Path, work: Path):
    ran = run("prune", checkpoint, "--out", "a/b/out", "--sparsity", "0.5", "--calibration", "file:no.txt")
    assert_refused(ran, "no.txt", work)


# ---------------------------------------------------------------- interrupted


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_ctrl_c_while_pruning_leaves_nothing(
    run: Run, checkpoint: Path, text: Path, work: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("autoprune.prune_blocks.solve", interrupt)
    ran = run("prune", checkpoint, "--out", "out", "--sparsity", "0.5", *small(text))
    assert ran.code == 130
    assert ran.error == "error: interrupted; no unfinished output was left behind"
    assert list(work.iterdir()) == []


def test_ctrl_c_while_writing_leaves_nothing(
    run: Run, checkpoint: Path, text: Path, work: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ShardsCopy, "write", interrupt)
    ran = run("prune", checkpoint, "--out", "out", "--sparsity", "0.5", *small(text))
    assert ran.code == 130
    assert list(work.iterdir()) == []


def test_ctrl_c_while_replacing_keeps_what_was_there(
    run: Run, checkpoint: Path, text: Path, work: Path, monkeypatch: pytest.MonkeyPatch
):
    (work / "out").mkdir()
    (work / "out" / "autoprune.json").write_text("old")
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if (self / "config.json").exists():  # the finished folder is about to take its place
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", interrupted)
        ran = run("prune", checkpoint, "--out", "out", "--sparsity", "0.5", "--force", *small(text))
    assert ran.code == 130
    assert "the same command continues it" in ran.error
    assert [path.name for path in (work / "out").iterdir()] == ["autoprune.json"]


def test_sigterm_is_as_ctrl_c(run: Run, checkpoint: Path, text: Path, work: Path, monkeypatch: pytest.MonkeyPatch):
    def terminate(*_: Any, **__: Any) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("autoprune.prune_blocks.solve", terminate)
    ran = run("prune", checkpoint, "--out", "out", "--sparsity", "0.5", *small(text))
    assert ran.code == 130
    assert list(work.iterdir()) == []


# ---------------------------------------------------------------- disk full


def fail(*_: Any, **__: Any) -> None:
    raise OSError(28, "No space left on device")


def test_a_full_disk_is_one_line_and_leaves_nothing(
    run: Run, checkpoint: Path, text: Path, work: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ShardsCopy, "write", fail)
    ran = run("prune", checkpoint, "--out", "out", "--sparsity", "0.5", *small(text))
    assert_refused(ran, "out: cannot write: No space left on device", work)


def test_a_full_disk_leaves_what_was_in_the_output_folder(
    run: Run, checkpoint: Path, text: Path, work: Path, monkeypatch: pytest.MonkeyPatch
):
    (work / "out").mkdir()
    (work / "out" / "autoprune.json").write_text("old")
    monkeypatch.setattr(ShardsCopy, "write", fail)
    ran = run("prune", checkpoint, "--out", "out", "--sparsity", "0.5", "--force", *small(text))
    assert ran.code == 2
    assert "No space left on device" in ran.error
    assert sorted(path.name for path in work.rglob("*")) == ["autoprune.json", "out"]
    assert (work / "out" / "autoprune.json").read_text() == "old"


def test_too_little_space_is_known_before_any_work(
    run: Run, checkpoint: Path, text: Path, work: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(1000, 990, 10))  # type: ignore[attr-defined]
    ran = run("prune", checkpoint, "--out", "out", "--sparsity", "0.5", *small(text))
    assert_refused(ran, "GB are needed and", work)
