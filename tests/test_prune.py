"""The whole prune on tiny models: exact counts, untouched survivors, and checkpoints that load anywhere."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import autoprune
import tiny
from autoprune.api import SIDECAR
from autoprune.errors import AutopruneError
from autoprune.files import finished_folder
from autoprune.language import interpret, read_program
from autoprune.layer import Method
from autoprune.models import InMemoryBlocks, find_blocks
from autoprune.prune_blocks import Recipe, all_linears, prune_blocks
from autoprune.sparsity import Target

SMALL: dict[str, Any] = {"sequences": 4, "length": 16}
TEXTLESS: dict[str, Any] = {"algorithm": "magnitude", "sparsity": 0.5}

architectures = pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(tiny.text(), "utf-8")
    return f"file:{path}"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("llama"))


def weights(model: Any) -> dict[str, Tensor]:
    return {linear.name: linear.weight_RC.clone() for linear in all_linears(InMemoryBlocks(model))}


def zeros(weight_RC: Tensor) -> int:
    return int((weight_RC == 0).sum())


def prune_live(model: Any, text: str, **options: Any) -> autoprune.PruneReport:
    return autoprune.prune(model, tokenizer=tiny.tokenizer(), calibration=text, **SMALL | options)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=tiny.tokens(seed=7)).logits


# ---------------------------------------------------------------- exact counts


@architectures
@pytest.mark.parametrize("options", [{"sparsity": 0.5}, {"sparsity": 0.37, "compare": "layer"}, {"pattern": "2:4"}])
def test_counts_are_exact_for_every_architecture(architecture: str, options: dict[str, Any], text: str):
    model = tiny.model(architecture)
    report = prune_live(model, text, **options)
    for layer in report.layers:
        assert zeros(weights(model)[layer.name]) == layer.requested == layer.zeros, layer.name
    fraction = Target.of(**{key: options[key] for key in options if key != "compare"}).fraction
    assert sum(map(zeros, weights(model).values())) == int(fraction * report.weights) == report.zeros


@pytest.mark.parametrize("sparsity", [0.0, 0.001, 1 / 3, 0.333, 0.61803, 0.999])
@pytest.mark.parametrize("compare", ["row", "layer"])
def test_odd_fractions_are_exact_in_total_and_nearly_so_per_layer(sparsity: float, compare: str, text: str):
    model = tiny.model()
    report = prune_live(model, text, sparsity=sparsity, compare=compare)
    assert report.zeros == int(Fraction(repr(sparsity)) * report.weights)
    for layer in report.layers:
        assert abs(layer.zeros - sparsity * layer.shape[0] * layer.shape[1]) < 1


def test_compared_by_row_every_row_loses_as_much(text: str):
    model = tiny.model()
    prune_live(model, text, sparsity=0.4, compare="row")
    for name, weight_RC in weights(model).items():
        per_row = (weight_RC == 0).sum(1)
        assert per_row.max() - per_row.min() <= 1, name


def test_compared_by_layer_the_lowest_scores_go():
    model = tiny.model()
    before = weights(model)
    autoprune.prune(model, algorithm="magnitude", compare="layer", sparsity=0.5)
    for name, weight_RC in weights(model).items():
        gone = weight_RC == 0
        assert before[name].abs()[gone].max() <= before[name].abs()[~gone].min()


@pytest.mark.parametrize(("pattern", "keep", "group"), [("2:4", 2, 4), ("1:4", 1, 4), ("3:8", 3, 8), ("1:16", 1, 16)])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_pattern_holds_in_every_group_of_inputs(architecture: str, pattern: str, keep: int, group: int, text: str):
    model = tiny.model(architecture)
    prune_live(model, text, pattern=pattern)
    for name, weight_RC in weights(model).items():
        kept = (weight_RC != 0).reshape(-1, group).sum(1)
        assert (kept == keep).all(), name


def test_a_pattern_that_tiles_no_layer_is_refused_before_any_text_is_read():
    with pytest.raises(AutopruneError, match="do not divide into groups of 5") as caught:
        autoprune.prune(tiny.model(), tokenizer=tiny.tokenizer(), calibration="file:/nowhere.txt", pattern="2:5")
    assert caught.value.where == "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize("algorithm", ["magnitude", "wanda", "ria", "obs", "pruner-zero", "gblm"])
@pytest.mark.parametrize("propagation", ["one_pass", "block", "dense"])
def test_every_algorithm_and_propagation_is_exact(algorithm: str, propagation: str, text: str):
    model = tiny.model()
    report = prune_live(model, text, algorithm=algorithm, propagation=propagation, sparsity=0.5)
    assert report.zeros * 2 == report.weights == sum(map(torch.numel, weights(model).values()))


# ---------------------------------------------------------------- what is left alone


@architectures
def test_kept_weights_are_unchanged_bit_for_bit(architecture: str, text: str):
    model = tiny.model(architecture, dtype=torch.bfloat16)
    before = weights(model)
    prune_live(model, text, sparsity=0.5)
    for name, weight_RC in weights(model).items():
        kept = weight_RC != 0
        assert torch.equal(weight_RC[kept].view(torch.int16), before[name][kept].view(torch.int16)), name


@architectures
def test_all_other_parameters_are_unchanged(architecture: str, text: str):
    model, dense = tiny.model(architecture), tiny.model(architecture)
    prune_live(model, text, sparsity=0.5)
    pruned = {f"{layer}.weight" for layer in weights(model)}
    for name, parameter in model.named_parameters():
        assert (name in pruned) != torch.equal(parameter, dense.get_parameter(name)), name


def test_removed_weights_are_positive_zero(text: str):
    model = tiny.model(dtype=torch.bfloat16)
    prune_live(model, text, sparsity=0.5)
    for weight_RC in weights(model).values():
        assert (weight_RC[weight_RC == 0].view(torch.int16) == 0).all()


@pytest.mark.parametrize("training", [True, False])
def test_the_training_mode_is_restored(training: bool, text: str):
    model = tiny.model("gpt2").train(training)
    prune_live(model, text, sparsity=0.5)
    assert model.training == training


def test_modules_keep_their_own_training_mode(text: str):
    model = tiny.model("gpt2").train()
    model.transformer.h[0].eval()
    before = {name: module.training for name, module in model.named_modules()}
    prune_live(model, text, sparsity=0.5)
    assert {name: module.training for name, module in model.named_modules()} == before


def test_dropout_is_off_while_pruning(text: str):
    trained, evaluated = tiny.model("gpt2").train(), tiny.model("gpt2").eval()
    prune_live(trained, text, sparsity=0.5)
    prune_live(evaluated, text, sparsity=0.5)
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), evaluated.parameters(), strict=True))


@pytest.mark.parametrize("learns", [True, False])
def test_whether_parameters_learn_is_unchanged(learns: bool, text: str):
    model = tiny.model().requires_grad_(learns)
    prune_live(model, text, sparsity=0.5)
    assert {parameter.requires_grad for parameter in model.parameters()} == {learns}


def test_pruning_twice_gives_the_same_result(text: str):
    first, second = tiny.model(), tiny.model()
    prune_live(first, text, sparsity=0.5)
    prune_live(second, text, sparsity=0.5)
    assert torch.equal(logits(first), logits(second))


def test_the_global_random_state_is_untouched(text: str):
    before = torch.random.get_rng_state()
    prune_live(tiny.model(), text, sparsity=0.5)
    autoprune.prune(tiny.model(), tokenizer=tiny.tokenizer(), sparsity=0.5, **SMALL)
    assert torch.equal(torch.random.get_rng_state(), before)


# ---------------------------------------------------------------- what is needed


@architectures
def test_magnitude_needs_no_tokenizer_and_no_text(architecture: str):
    model = tiny.model(architecture)
    assert autoprune.prune(model, **TEXTLESS).zeros == sum(map(zeros, weights(model).values()))


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_magnitude_is_the_lowest_half_of_each_matrix(architecture: str):
    model = tiny.model(architecture)
    before = weights(model)
    autoprune.prune(model, **TEXTLESS)
    for name, weight_RC in weights(model).items():
        threshold = before[name].abs().flatten().kthvalue(weight_RC.numel() // 2).values
        assert torch.equal(weight_RC == 0, before[name].abs() <= threshold), name


def test_magnitude_runs_no_forward():
    model = tiny.model()

    def refuse(*_: Any) -> None:
        raise AssertionError("a forward was run")

    model.register_forward_pre_hook(refuse)
    autoprune.prune(model, **TEXTLESS)


def test_a_live_model_without_tokenizer_can_be_saved(tmp_path: Path):
    model = tiny.model()
    autoprune.prune(model, out=tmp_path / "out", **TEXTLESS)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), logits(model))


def test_calibration_without_a_tokenizer_is_refused(text: str):
    with pytest.raises(AutopruneError, match="tokenizer") as caught:
        autoprune.prune(tiny.model(), calibration=text, sparsity=0.5, **SMALL)
    assert caught.value.remedy


def test_a_tokenizer_of_another_model_is_refused(text: str):
    with pytest.raises(AutopruneError, match="the model has 100"):
        prune_live(tiny.model(vocab_size=100), text, sparsity=0.5)


def test_sequences_longer_than_the_context_are_refused(text: str):
    with pytest.raises(AutopruneError, match="128 positions"):
        prune_live(tiny.model(), text, sparsity=0.5, length=129)


@pytest.mark.parametrize("option", ["propagation", "compare"])
def test_unknown_options_are_refused(option: str, text: str):
    with pytest.raises(AutopruneError, match=f"(unknown {option}|{option} cannot be) 'column'") as caught:
        prune_live(tiny.model(), text, sparsity=0.5, **{option: "column"})
    assert caught.value.remedy


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(bad: float):
    model = tiny.model()
    model.model.layers[1].mlp.up_proj.weight.data[3, 5] = bad
    with pytest.raises(AutopruneError, match="NaN or infinite") as caught:
        autoprune.prune(model, **TEXTLESS)
    assert caught.value.where == "model.layers.1.mlp.up_proj.weight"


def test_a_score_that_is_not_finite_names_the_layer(text: str, monkeypatch: pytest.MonkeyPatch):
    calls = []

    def broken(tape: Any, statistics: Any) -> Tensor:
        calls.append(statistics)
        return interpret(tape, statistics) * (float("nan") if len(calls) == 3 else 1.0)

    monkeypatch.setattr("autoprune.stream.interpret", broken)
    with pytest.raises(AutopruneError, match="the score is not finite") as caught:
        prune_live(tiny.model(), text, sparsity=0.5)
    assert caught.value.where == "model.layers.0.self_attn.v_proj"
    assert caught.value.remedy


# ---------------------------------------------------------------- the loop


def test_prune_blocks_tells_of_every_layer_as_it_is_done():
    model, told = tiny.model(), []
    program = read_program("def score(weight):\n    return abs(weight)\n", name="mine")
    recipe = Recipe(method=Method.of(program), target=Target.of(0.5))
    layers = prune_blocks(InMemoryBlocks(model), recipe, None, told.append)
    assert told == layers
    assert [layer.name for layer in layers] == list(weights(model))


def test_micro_batch_size_does_not_change_the_masks():
    program = read_program("def score(weight, input_norm):\n    return abs(weight) * input_norm\n", name="mine")
    results = []
    for size in (1, 48, None):
        model = tiny.model()
        recipe = Recipe(method=Method.of(program), target=Target.of(0.5), micro_batch_tokens=size)
        prune_blocks(InMemoryBlocks(model), recipe, tiny.tokens(), lambda layer: None)
        results.append({name: weight_RC == 0 for name, weight_RC in weights(model).items()})
    for name, mask in results[0].items():
        assert torch.equal(mask, results[1][name]), name
        assert torch.equal(mask, results[2][name]), name


def test_zeros_count_what_was_zero_before():
    model = tiny.model()
    for _, parameter in find_blocks(model)[1][0].named_parameters():
        parameter.data.zero_()
    report = autoprune.prune(model, **TEXTLESS)
    first = [layer for layer in report.layers if ".layers.0." in layer.name]
    assert all(layer.zeros == layer.shape[0] * layer.shape[1] == 2 * layer.requested for layer in first)


# ---------------------------------------------------------------- what is written


@architectures
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_checkpoint_loads_with_stock_transformers_and_equals_the_live_model(
    architecture: str, dtype: torch.dtype, text: str, tmp_path: Path
):
    model = tiny.model(architecture, dtype=dtype)
    prune_live(tiny.model(architecture, dtype=dtype), text, sparsity=0.5, out=tmp_path / "out")
    prune_live(model, text, sparsity=0.5)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.dtype == model.dtype == dtype
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_saving_does_not_change_the_live_model(architecture: str, tmp_path: Path):
    # in bfloat16, where the rotary frequencies of a llama are float32 buffers
    saved, unsaved = (tiny.model(architecture, dtype=torch.bfloat16) for _ in range(2))
    autoprune.prune(saved, tokenizer=tiny.tokenizer(), out=tmp_path / "out", **TEXTLESS)
    autoprune.prune(unsaved, **TEXTLESS)
    assert torch.equal(logits(saved), logits(unsaved))


@pytest.mark.parametrize("kind", tiny.TOKENIZERS)
def test_the_checkpoint_has_its_tokenizer(kind: str, text: str, tmp_path: Path):
    source = tiny.save(tmp_path / "model", kind=kind)
    autoprune.prune(source, calibration=text, sparsity=0.5, out=tmp_path / "out", **SMALL)
    expected, loaded = AutoTokenizer.from_pretrained(source), AutoTokenizer.from_pretrained(tmp_path / "out")
    assert loaded(tiny.text(50)).input_ids == expected(tiny.text(50)).input_ids
    assert loaded.special_tokens_map == expected.special_tokens_map


@pytest.mark.parametrize("computed_in", ["auto", "float32", "bfloat16"])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_the_checkpoint_keeps_its_own_dtype(computed_in: str, stored: torch.dtype, text: str, tmp_path: Path):
    source = tiny.save(tmp_path / "model", dtype=stored)
    report = autoprune.prune(
        source, calibration=text, sparsity=0.5, dtype=computed_in, out=tmp_path / "out", device="cpu", **SMALL
    )
    assert report.settings["dtype"] == (str(stored).removeprefix("torch.") if computed_in == "auto" else computed_in)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {stored}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == str(stored).removeprefix("torch.")


def test_computing_in_float32_leaves_kept_weights_of_a_bfloat16_checkpoint_bit_for_bit(text: str, tmp_path: Path):
    source = tiny.save(tmp_path / "model", dtype=torch.bfloat16)
    autoprune.prune(source, calibration=text, sparsity=0.5, dtype="float32", out=tmp_path / "out", **SMALL)
    before, after = load_file(source / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    for name, weight in after.items():
        kept = weight != 0
        assert torch.equal(weight[kept].view(torch.int16), before[name][kept].view(torch.int16)), name


def test_the_input_checkpoint_is_not_touched(checkpoint: Path, text: str, tmp_path: Path):
    before = {file.name: file.read_bytes() for file in checkpoint.iterdir()}
    autoprune.prune(checkpoint, calibration=text, sparsity=0.5, out=tmp_path / "out", **SMALL)
    assert {file.name: file.read_bytes() for file in checkpoint.iterdir()} == before


def test_the_sidecar_says_what_was_done(checkpoint: Path, text: str, tmp_path: Path):
    report = autoprune.prune(checkpoint, calibration=text, sparsity=0.5, seed=3, out=tmp_path / "out", **SMALL)
    record = json.loads((tmp_path / "out" / SIDECAR).read_text("utf-8"))
    assert record["format"] == 1
    assert record["model"] == str(checkpoint)
    assert record["out"] == str(tmp_path / "out")
    assert record["algorithm"]["name"] == "wanda"
    assert "input_norm" in record["algorithm"]["text"]
    assert record["algorithm"]["hash"] == report.algorithm["hash"]
    assert (record["target"], record["method"]["compare"]) == ("0.5", "row")
    assert record["sparsity"] == {"requested": 0.5, "achieved": 0.5}
    assert record["settings"] == report.settings
    assert record["settings"]["seed"] == 3
    calibration = record["settings"]["calibration"]
    assert calibration.pop("sha256") == report.settings["calibration"]["sha256"]
    assert calibration == {"source": text, "sequences": 4, "length": 16, "bos": "start"}
    assert record["versions"]["torch"] == torch.__version__
    assert [layer["name"] for layer in record["layers"]] == [layer.name for layer in report.layers]
    assert all(layer["calibration_tokens"] == 64 for layer in record["layers"])
    assert all(layer["sparsity"] == {"requested": 0.5, "achieved": 0.5} for layer in record["layers"])


def test_the_report_agrees_with_the_written_tensors(checkpoint: Path, text: str, tmp_path: Path):
    report = autoprune.prune(checkpoint, calibration=text, sparsity=0.37, out=tmp_path / "out", **SMALL)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert {layer.name: layer.zeros for layer in report.layers} == {
        layer.name: zeros(written[f"{layer.name}.weight"]) for layer in report.layers
    }


def test_textless_algorithms_record_no_calibration(checkpoint: Path, tmp_path: Path):
    report = autoprune.prune(checkpoint, out=tmp_path / "out", **TEXTLESS)
    assert report.settings["calibration"] is None
    assert all(layer.calibration_tokens == 0 for layer in report.layers)
    assert report.notes == []


def test_force_replaces_the_folder_and_leaves_nothing_else(checkpoint: Path, tmp_path: Path):
    out = tmp_path / "out"
    (out / "old").mkdir(parents=True)
    (out / "old" / "file").write_text("old")
    (out / "autoprune.json").write_text("{}")
    autoprune.prune(checkpoint, out=out, force=True, **TEXTLESS)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not (out / "old").exists()
    assert (out / "model.safetensors").is_file()


def test_force_does_not_replace_a_folder_of_something_else(checkpoint: Path, tmp_path: Path):
    (tmp_path / "thesis").write_text("precious")
    with pytest.raises(AutopruneError, match="not a result"):
        autoprune.prune(checkpoint, out=tmp_path, force=True, **TEXTLESS)
    assert (tmp_path / "thesis").read_text() == "precious"


def test_generation_settings_that_transformers_would_not_save_are_kept(checkpoint: Path, tmp_path: Path):
    model = tiny.model()
    model.generation_config.temperature = 0.6  # without do_sample
    autoprune.prune(model, tokenizer=tiny.tokenizer(), out=tmp_path / "out", **TEXTLESS)
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["temperature"] == 0.6
    assert model.generation_config.temperature == 0.6


def test_a_failed_swap_brings_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old")
    rename, calls = Path.rename, []

    def interrupted(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), finished_folder(out):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (out / "old").read_text() == "old"


def test_what_a_killed_process_has_written_in_part_is_taken_over(tmp_path: Path):
    for process in range(2):
        (tmp_path / ".out.partial").mkdir()
        (tmp_path / ".out.partial" / "half").write_text("")
        with finished_folder(tmp_path / "out") as folder:
            (folder / "whole").write_text(str(process))
            with (
                pytest.raises(AutopruneError, match="another process is writing this output"),
                finished_folder(tmp_path / "out"),
            ):
                pass
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        assert [(path.name, path.read_text()) for path in (tmp_path / "out").iterdir()] == [("whole", str(process))]


def test_weights_that_blocks_share_are_pruned_once():
    model = tiny.model()
    model.model.layers[1].mlp = model.model.layers[0].mlp
    report = autoprune.prune(model, algorithm="magnitude", sparsity=0.5)
    names = {layer.name for layer in report.layers}
    assert "model.layers.0.mlp.up_proj" in names
    assert "model.layers.1.mlp.up_proj" not in names
    assert report.skipped["model.layers.1.mlp.up_proj"] == "shares the weight of model.layers.0.mlp.up_proj"


def test_without_force_a_filled_folder_is_refused(checkpoint: Path, tmp_path: Path):
    (tmp_path / "old").write_text("old")
    with pytest.raises(AutopruneError, match="not empty"):
        autoprune.prune(checkpoint, out=tmp_path, **TEXTLESS)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_an_empty_folder_is_filled(checkpoint: Path, tmp_path: Path):
    (tmp_path / "out").mkdir()
    autoprune.prune(checkpoint, out=tmp_path / "out", **TEXTLESS)
    assert (tmp_path / "out" / SIDECAR).is_file()


def test_all_files_are_as_readable_as_the_config(checkpoint: Path, tmp_path: Path):
    autoprune.prune(checkpoint, out=tmp_path / "out", **TEXTLESS)
    assert len({file.stat().st_mode for file in (tmp_path / "out").iterdir()}) == 1


def test_generation_settings_of_the_checkpoint_survive(checkpoint: Path, tmp_path: Path):
    source = tiny.save(tmp_path / "model")
    settings = source / "generation_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"do_sample": True, "temperature": 0.6}))
    autoprune.prune(source, out=tmp_path / "out", **TEXTLESS)
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["temperature"] == 0.6


def test_a_checkpoint_whose_generation_settings_transformers_would_not_save_is_saved(tmp_path: Path):
    source = tiny.save(tmp_path / "model")
    settings = source / "generation_config.json"
    # as Llama-2-7b has it: a temperature without do_sample
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"temperature": 0.6, "top_p": 0.9}))
    autoprune.prune(source, out=tmp_path / "out", **TEXTLESS)
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_pruned_checkpoint_can_be_pruned_again(checkpoint: Path, tmp_path: Path):
    autoprune.prune(checkpoint, out=tmp_path / "half", **TEXTLESS)
    report = autoprune.prune(tmp_path / "half", algorithm="magnitude", sparsity=0.75, out=tmp_path / "more")
    assert report.zeros * 4 == report.weights * 3


def test_sharded_checkpoints_are_read(tmp_path: Path):
    model = tiny.model()
    model.save_pretrained(tmp_path / "model", max_shard_size="40KB")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
    autoprune.prune(tmp_path / "model", out=tmp_path / "out", **TEXTLESS)
    autoprune.prune(model, **TEXTLESS)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), logits(model))


def test_tied_embeddings_stay_tied(tmp_path: Path):
    source = tiny.save(tmp_path / "model", tie_word_embeddings=True)
    autoprune.prune(source, out=tmp_path / "out", **TEXTLESS)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")


def test_a_folder_without_tokenizer_is_enough_for_magnitude(tmp_path: Path):
    tiny.model().save_pretrained(tmp_path / "model")
    report = autoprune.prune(tmp_path / "model", out=tmp_path / "out", **TEXTLESS)
    assert report.zeros * 2 == report.weights
