"""Models whose blocks stay in their files: the same result as in memory, to the bit, whatever ends the process."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

import autoprune
import tiny
from autoprune import prune_blocks
from autoprune.errors import AutopruneError
from autoprune.journal import folder_of
from autoprune.lines import files_of_lines
from autoprune.models import InMemoryBlocks, all_linears, open_model, open_on_disk

EVERY = [*tiny.ARCHITECTURES, *tiny.SPECIAL]


def settings(text: str, **given: Any) -> dict[str, Any]:
    return {"calibration": f"file:{text}", "sequences": 3, "length": 24, "sparsity": 0.5} | given


def in_memory(folder: Path, **given: Any) -> Any:
    opened = open_model(folder)
    autoprune.prune(opened.model, tokenizer=opened.tokenizer, **given)
    return opened.model


def tensors(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype
        assert torch.equal(tensor, other[name]), name


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".safetensors"}


@pytest.mark.parametrize("architecture", EVERY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_architecture_comes_out_as_from_memory(architecture: str, dtype: torch.dtype, text: str, tmp_path: Path):
    source = tiny.save(tmp_path / "dense", architecture, dtype=dtype)
    before = files(source)
    report = autoprune.prune(source, out=tmp_path / "out", **settings(text))
    expected = in_memory(source, **settings(text))
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert_same(found.state_dict(), expected.state_dict())
    assert report.sparsity == pytest.approx(0.5, abs=1e-3)
    assert report.zeros >= report.requested
    assert files(source) == before
    with torch.no_grad():
        logits = found.eval()(input_ids=tiny.tokens()).logits
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("architecture", EVERY)
def test_the_model_computes_what_masks_by_hand_give(architecture: str, text: str, tmp_path: Path):
    source = tiny.save(tmp_path / "dense", architecture)
    autoprune.prune(source, out=tmp_path / "out", **settings(text))
    dense = AutoModelForCausalLM.from_pretrained(source).eval()
    pruned = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    of_pruned = {linear.name: linear for linear in all_linears(InMemoryBlocks(pruned))}
    with torch.no_grad():
        for linear in all_linears(InMemoryBlocks(dense)):
            linear.weight_RC.mul_(of_pruned[linear.name].weight_RC != 0)
        tokens_BL = tiny.tokens()
        assert torch.equal(dense(input_ids=tokens_BL).logits, pruned(input_ids=tokens_BL).logits)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_what_is_not_loaded_cannot_be_computed_with_unnoticed(architecture: str, tmp_path: Path):
    opened, source = opened_on_disk(tiny.save(tmp_path / "dense", architecture))
    with torch.no_grad():
        assert not torch.isfinite(opened.model(input_ids=tiny.tokens()).logits).all()
    source.close()


def opened_on_disk(folder: Path) -> Any:
    found = open_on_disk(folder)
    assert found
    return found


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "deepseek_v3", "gpt_oss"])
def test_shards_keep_their_layout_and_what_is_not_pruned_its_bytes(architecture: str, text: str, tmp_path: Path):
    source = tmp_path / "dense"
    tiny.model(architecture).save_pretrained(source, max_shard_size="20KB")
    tiny.tokenizer().save_pretrained(source)
    report = autoprune.prune(source, out=tmp_path / "out", **settings(text))
    assert len(files(source)) > 2
    old, new = files(source), files(tmp_path / "out")
    assert {name: len(content) for name, content in old.items()} == {n: len(content) for n, content in new.items()}
    assert (source / "model.safetensors.index.json").read_bytes() == (
        tmp_path / "out" / "model.safetensors.index.json"
    ).read_bytes()
    for name in old:
        with safe_open(source / name, "pt") as one, safe_open(tmp_path / "out" / name, "pt") as other:
            assert one.metadata() == other.metadata()
            for tensor in one.keys():  # noqa: SIM118  not a dict
                if "embed" in tensor or "norm" in tensor or "head" in tensor or "wte" in tensor:
                    assert torch.equal(one.get_tensor(tensor), other.get_tensor(tensor)), tensor
    assert report.sparsity == pytest.approx(0.5, abs=1e-3)


def ended_after(layers: int, solve: Any) -> Any:
    """A `solve` that is interrupted after so many layers."""
    calls = []

    def ended(*args: Any, **more: Any) -> Any:
        calls.append(0)
        if len(calls) > layers:
            raise KeyboardInterrupt
        return solve(*args, **more)

    return ended


METHODS: dict[str, dict[str, Any]] = {
    "one_pass": {"algorithm": "ria"},
    "block": {"propagation": "block", "algorithm": "wanda", "update": "least_squares"},
    "dense": {"propagation": "dense", "algorithm": "sparsegpt"},
    "twins": {"algorithm": "wanda", "update": "least_squares", "towards_dense": 0.5, "allocation": "sdsa"},
    "gradient": {"algorithm": "best"},
    "permuted": {"sparsity": None, "pattern": "2:4", "refine": "permute", "update": "least_squares"},
    "magnitude": {"algorithm": "magnitude"},
    "float32": {"dtype": "float32", "algorithm": "alps"},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ["llama", "mixtral", "zamba2"])
def test_a_prune_that_was_ended_goes_on_to_the_same_bits(
    method: str, architecture: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if method == "permuted" and architecture != "llama":
        pytest.skip("free for no layer")
    deep = {"num_hidden_layers": 5}
    if architecture == "zamba2":
        deep = {"num_hidden_layers": 6, "layers_block_type": ["mamba", "hybrid"] * 3, "hybrid_layer_ids": [1, 3, 5]}
    source = tiny.save(
        tmp_path / "dense", architecture, dtype=torch.bfloat16 if method == "float32" else torch.float32, **deep
    )
    given = settings(text, **METHODS[method])
    autoprune.prune(source, out=tmp_path / "whole", **given)
    solve, out = prune_blocks.solve, tmp_path / "out"
    ends = 0
    while not out.exists():
        monkeypatch.setattr(prune_blocks, "solve", ended_after(19, solve))  # two blocks of llama, one of others
        try:
            autoprune.prune(source, out=out, **given)
        except KeyboardInterrupt:
            ends += 1
            assert not out.exists()
    assert ends
    assert files(out) == files(tmp_path / "whole")
    one, other = (json.loads((folder / "autoprune.json").read_text()) for folder in (out, tmp_path / "whole"))
    assert one["layers"] == other["layers"]
    assert not folder_of(out).exists()


def _prune(source: str, out: str, given: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    autoprune.prune(source, out=out, **given)


def test_kills_at_random_instants(text: str, tmp_path: Path):
    source = tiny.save(tmp_path / "dense", "llama", num_hidden_layers=6)
    given, out = settings(text, algorithm="sparsegpt"), tmp_path / "out"
    start = time.monotonic()
    _prune(str(source), str(tmp_path / "whole"), given)
    seconds, rng, kills = time.monotonic() - start, random.Random(0), 0
    context = multiprocessing.get_context("fork")
    while not out.exists() and kills < 30:
        process = context.Process(target=_prune, args=(str(source), str(out), given))
        process.start()
        process.join(rng.uniform(0, seconds) if kills < 8 else None)
        if process.is_alive():
            assert process.pid
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            kills += 1
        elif process.exitcode:
            pytest.fail("the continued prune failed")
    assert files(out) == files(tmp_path / "whole")


def unfinished(source: Path, out: Path, monkeypatch: pytest.MonkeyPatch, after: int, **given: Any) -> None:
    """Leave a prune that was ended after some layers."""
    with monkeypatch.context() as patched:
        patched.setattr(prune_blocks, "solve", ended_after(after, prune_blocks.solve))
        with pytest.raises(KeyboardInterrupt):
            autoprune.prune(source, out=out, **given)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"sparsity": 0.6}, "target"),
        ({"algorithm": "ria"}, "algorithm"),
        ({"update": "least_squares"}, "method"),
        ({"sequences": 2}, "settings"),
        ({"allocation": "sdsa"}, "allocation"),
    ],
)
def test_another_prune_into_an_unfinished_one_is_refused_with_what_differs(
    change: dict[str, Any], named: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source, out = tiny.save(tmp_path / "dense"), tmp_path / "out"
    unfinished(source, out, monkeypatch, 8, **settings(text))
    with pytest.raises(AutopruneError, match=named) as caught:
        autoprune.prune(source, out=out, **settings(text, **change))
    assert "--force" in caught.value.remedy
    autoprune.prune(source, out=out, force=True, **settings(text, **change))
    autoprune.prune(source, out=tmp_path / "other", **settings(text, **change))
    assert files(out) == files(tmp_path / "other")


def test_a_changed_checkpoint_is_another_one(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source, out = tiny.save(tmp_path / "dense"), tmp_path / "out"
    unfinished(source, out, monkeypatch, 8, **settings(text))
    os.utime(source / "model.safetensors", (0, 0))
    with pytest.raises(AutopruneError, match="model"):
        autoprune.prune(source, out=out, **settings(text))


def test_nothing_is_left_where_nothing_was_finished(text: str, tmp_path: Path):
    source, out = tiny.save(tmp_path / "dense"), tmp_path / "out"
    with pytest.raises(AutopruneError):
        autoprune.prune(source, out=out, **settings(text, allocation="sensitivity", sequences=1))
    assert sorted(tmp_path.iterdir()) == [source]


def test_a_line_that_power_loss_has_cut_off_is_done_again(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source, out = tiny.save(tmp_path / "dense"), tmp_path / "out"
    autoprune.prune(source, out=tmp_path / "whole", **settings(text))
    unfinished(source, out, monkeypatch, 8, **settings(text))
    files_of_steps = files_of_lines(folder_of(out) / "journal.jsonl", chained=True)
    content = files_of_steps[0].read_bytes()
    for cut in range(0, len(content), max(1, len(content) // 9)):
        for steps in files_of_steps:
            steps.write_bytes(content[:cut])
        copy = tmp_path / f"out{cut}"
        shutil.copytree(folder_of(out), folder_of(copy))
        autoprune.prune(source, out=copy, **settings(text))
        assert files(copy) == files(tmp_path / "whole")


def test_what_a_kill_at_the_last_moment_leaves_is_removed_by_the_next_run(text: str, tmp_path: Path):
    """The journal in a finished output; the older result, moved aside, with the new one in place or not yet."""
    source, out = tiny.save(tmp_path / "dense"), tmp_path / "out"
    autoprune.prune(source, out=out, **settings(text))
    whole = sorted(path.name for path in out.iterdir())
    for name in ("copy.journal.jsonl", "journal.lock"):  # the first of three is gone already
        (out / name).write_text("")
    shutil.copytree(out, tmp_path / ".out.replaced")
    with pytest.raises(AutopruneError, match="not empty"):
        autoprune.prune(source, out=out, **settings(text))
    assert sorted(path.name for path in out.iterdir()) == whole
    assert sorted(tmp_path.iterdir()) == [source, out]
    out.rename(tmp_path / ".out.replaced")
    with pytest.raises(AutopruneError, match="not empty"):
        autoprune.prune(source, out=out, **settings(text))
    assert sorted(tmp_path.iterdir()) == [source, out]


def test_half_a_text_of_a_killed_process_does_not_get_into_the_output(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source, out = tiny.save(tmp_path / "dense"), tmp_path / "out"
    unfinished(source, out, monkeypatch, 8, **settings(text))
    (folder_of(out) / ".autoprune.json.partial-1").write_text("{")
    autoprune.prune(source, out=out, **settings(text))
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]


def test_a_flipped_bit_in_the_journal_is_not_believed(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Digits would be believed: how many zeros a layer has, say, or its sparsity."""
    source, out = tiny.save(tmp_path / "dense"), tmp_path / "out"
    autoprune.prune(source, out=tmp_path / "whole", **settings(text))
    unfinished(source, out, monkeypatch, 8, **settings(text))
    for steps in files_of_lines(folder_of(out) / "journal.jsonl", chained=True):
        content = steps.read_bytes()
        assert content.count(b'"zeros": 512') >= 1
        steps.write_bytes(content.replace(b'"zeros": 512', b'"zeros": 513', 1))
    autoprune.prune(source, out=out, **settings(text))
    one, other = (json.loads((folder / "autoprune.json").read_text()) for folder in (out, tmp_path / "whole"))
    assert one["layers"] == other["layers"]
    assert files(out) == files(tmp_path / "whole")


def _damage_shard(source: Path) -> None:
    (source / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes()[:-100])


def _empty_file(source: Path) -> None:
    (source / "model.safetensors").write_bytes(b"")


def _garbage(source: Path) -> None:
    (source / "model.safetensors").write_bytes(os.urandom(4096))


def _wrong_shape(source: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"intermediate_size": 40}))


def _more_blocks(source: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))


def _not_finite(source: Path) -> None:
    _change(source, "model.layers.1.mlp.up_proj.weight")


def _not_finite_outside(source: Path) -> None:
    _change(source, "lm_head.weight")


def _change(source: Path, name: str) -> None:
    from safetensors.torch import save_file

    content = tensors(source)
    content[name][1, 2] = float("nan")
    save_file(content, source / "model.safetensors", {"format": "pt"})


def _quantised(source: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_damage_shard, "ends within the tensor"),
        (_empty_file, "cut off"),
        (_garbage, "corrupt"),
        (_wrong_shape, "in another shape"),
        (_more_blocks, "lacks"),
        (_not_finite, "NaN or infinite"),
        (_not_finite_outside, "NaN or infinite"),
        (_quantised, "quantised"),
    ],
)
def test_bad_checkpoints_are_refused_and_left_alone(spoil: Any, message: str, text: str, tmp_path: Path):
    source = tiny.save(tmp_path / "dense")
    spoil(source)
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    with pytest.raises(AutopruneError, match=message) as caught:
        autoprune.prune(source, out=tmp_path / "out", **settings(text))
    assert caught.value.where
    assert caught.value.remedy
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda index: {**index, "nothing": min(index.values())}, "no such tensor"),
        (lambda index: dict.fromkeys(index, "missing.safetensors"), "missing"),
        (lambda index: {name: f"../{file}" for name, file in index.items()}, "not a safetensors file of this folder"),
        (lambda index: {}, "cannot be read"),
        (lambda index: [], "cannot be read"),
    ],
)
def test_bad_indices_are_refused(spoil: Any, message: str, text: str, tmp_path: Path):
    source = tmp_path / "dense"
    tiny.model().save_pretrained(source, max_shard_size="40KB")
    tiny.tokenizer().save_pretrained(source)
    index = source / "model.safetensors.index.json"
    whole = json.loads(index.read_text())
    index.write_text(json.dumps(whole | {"weight_map": spoil(whole["weight_map"])}))
    with pytest.raises(AutopruneError, match=message):
        autoprune.prune(source, out=tmp_path / "out", **settings(text))


def test_experts_see_the_tokens_that_the_router_sent_them(text: str):
    """Counted by hand from the router's own choices."""
    model = tiny.model("mixtral", num_hidden_layers=1)
    sent = []
    router = model.model.layers[0].mlp.gate
    router.register_forward_hook(lambda module, args, output: sent.append(output[-1]))
    report = autoprune.prune(model, tokenizer=tiny.tokenizer(), propagation="dense", **settings(text))
    chosen = torch.cat([indices.reshape(-1) for indices in sent])
    for layer in report.layers:
        if "experts" in layer.name:
            assert layer.calibration_tokens == int((chosen == int(layer.name.rsplit(".", 1)[1])).sum())


def test_experts_that_saw_no_token_are_pruned_by_their_weights_and_named(text: str):
    model = tiny.model("mixtral", num_hidden_layers=1, num_local_experts=8)
    report = autoprune.prune(model, tokenizer=tiny.tokenizer(), **settings(text, sequences=1, length=2))
    unseen = [layer.name for layer in report.layers if not layer.calibration_tokens]
    assert unseen
    assert all(any(note.startswith(name) for note in report.notes) for name in unseen)
    assert report.sparsity == pytest.approx(0.5, abs=1e-3)


_VISION = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 4, "image_size": 16, "patch_size": 8}
_TEXT = tiny.ARCHITECTURES["llama"] | {"vocab_size": tiny.VOCABULARY}
SEEING: dict[str, dict[str, Any]] = {
    "llava": {
        "text_config": {"model_type": "llama", **_TEXT},
        "vision_config": {"model_type": "clip_vision_model", "num_hidden_layers": 4, **_VISION},
        "image_token_index": 383,
    },
    "qwen2_5_vl": {
        "text_config": {**_TEXT, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}},
        "vision_config": {
            "depth": 4,
            "hidden_size": 64,
            "intermediate_size": 256,
            "num_heads": 4,
            "out_hidden_size": 32,
        },
        "image_token_id": 383,
        "video_token_id": 382,
    },
    "gemma3": {
        "text_config": tiny.ARCHITECTURES["gemma3_text"] | {"vocab_size": tiny.VOCABULARY},
        "vision_config": {"num_hidden_layers": 4, **_VISION},
        "mm_tokens_per_image": 4,
        "image_token_index": 383,
    },
}


@pytest.mark.parametrize("architecture", SEEING)
def test_of_a_model_that_sees_the_language_tower_is_pruned(architecture: str, text: str, tmp_path: Path):
    """Though its vision tower has more weights."""
    config = AutoConfig.for_model(architecture, **SEEING[architecture])
    source, out = tmp_path / "dense", tmp_path / "out"
    AutoModelForImageTextToText.from_config(config).save_pretrained(source)
    tiny.tokenizer().save_pretrained(source)
    report = autoprune.prune(source, out=out, **settings(text))
    assert report.sparsity == pytest.approx(0.5, abs=1e-3)
    assert all("language_model" in layer.name for layer in report.layers)
    assert any("vision" in name or "visual" in name for name in report.skipped)
    assert_same(AutoModelForImageTextToText.from_pretrained(out).state_dict(),
                in_memory(source, **settings(text)).state_dict())  # fmt: skip


def test_a_prune_that_replaces_a_result_continues_too(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source, out = tiny.save(tmp_path / "dense", num_hidden_layers=4), tmp_path / "out"
    autoprune.prune(source, out=out, **settings(text, sparsity=0.3))
    old = files(out)
    unfinished(source, out, monkeypatch, 20, force=True, **settings(text))
    assert files(out) == old
    calls, solve = [], prune_blocks.solve
    monkeypatch.setattr(prune_blocks, "solve", lambda *args, **more: (calls.append(0), solve(*args, **more))[1])
    autoprune.prune(source, out=out, force=True, **settings(text))
    assert len(calls) == 14  # two of four blocks
    autoprune.prune(source, out=tmp_path / "other", **settings(text))
    assert files(out) == files(tmp_path / "other")


def test_what_the_file_holds_under_several_names_is_written_under_all(text: str, tmp_path: Path):
    from safetensors.torch import save_file

    source, out = tiny.save(tmp_path / "dense", "zamba2"), tmp_path / "out"
    model = AutoModelForCausalLM.from_pretrained(source)
    every = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(every, source / "model.safetensors", {"format": "pt"})
    autoprune.prune(source, out=out, **settings(text))
    assert_same(
        AutoModelForCausalLM.from_pretrained(out).state_dict(), in_memory(source, **settings(text)).state_dict()
    )


def _header(source: Path, change: Any) -> None:
    content = (source / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = change(json.loads(content[8 : 8 + length]))
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (source / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


@pytest.mark.parametrize(
    "change",
    [
        lambda header: b"[" * 200_000,
        lambda header: header | {"lm_head.weight": header["lm_head.weight"] | {"shape": [float("inf"), 1]}},
        lambda header: header | {"more": header["lm_head.weight"]},
        lambda header: {name: entry for name, entry in header.items() if "q_proj" not in name},
        lambda header: [],
        lambda header: header | {"lm_head.weight": header["lm_head.weight"] | {"dtype": "F3"}},
    ],
)
def test_strange_headers_are_refused(change: Any, text: str, tmp_path: Path):
    source = tiny.save(tmp_path / "dense")
    _header(source, change)
    with pytest.raises(AutopruneError, match="corrupt"):
        autoprune.prune(source, out=tmp_path / "out", **settings(text))
    assert not (tmp_path / "out").exists()


def test_what_goes_along_is_copied(text: str, tmp_path: Path):
    source = tiny.save(tmp_path / "dense")
    for name in ("LICENSE", "modeling_own.py", "vocab.bpe", "preprocessor_config.json"):
        (source / name).write_text(name)
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool_use.jinja").write_text("{{ messages }}")
    for name in ("pytorch_model.bin", "consolidated.00.pth", "model.gguf"):
        (source / name).write_bytes(b"weights")
    autoprune.prune(source, out=tmp_path / "out", **settings(text))
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    own = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
    assert found == own - {"pytorch_model.bin", "consolidated.00.pth", "model.gguf"} | {"autoprune.json", "README.md"}


def test_parameters_of_three_dimensions_that_are_no_experts_are_left_alone(text: str):
    model = tiny.model("llama", num_hidden_layers=1)
    model.model.layers[0].gates = torch.nn.Module()
    model.model.layers[0].gates.register_parameter("weight", torch.nn.Parameter(torch.ones(4, 8, 8)))
    report = autoprune.prune(model, tokenizer=tiny.tokenizer(), **settings(text))
    assert "model.layers.0.gates.weight" in report.skipped
    assert all("gates" not in layer.name for layer in report.layers)


def test_a_model_writes_its_own_text_where_it_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = tiny.save(tmp_path / "dense")
    given: dict[str, Any] = {"sparsity": 0.5, "sequences": 2, "length": 16}
    autoprune.prune(source, out=tmp_path / "out", **given)
    assert_same(AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict(),
                in_memory(source, **given).state_dict())  # fmt: skip
    monkeypatch.setattr("autoprune.budget.available", lambda: 1000)
    with pytest.raises(AutopruneError, match="in memory whole") as caught:
        autoprune.prune(source, out=tmp_path / "other", **given)
    assert "--calibration file:PATH" in caught.value.remedy
