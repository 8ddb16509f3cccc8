"""A little of every fuzz target, and what fuzzing has found: `make fuzz` does a million inputs."""

from __future__ import annotations

import builtins
import json
import os
import pickle
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from random import Random
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import tiny
from autoprune.errors import AutopruneError, ProgramError
from autoprune.language import interpret, read_program
from autoprune.models import copy_files, open_model
from autoprune.models.disk import open_on_disk
from autoprune.models.shards import Shards
from autoprune.search.archive import Archive
from command import Run
from fuzz import archive, gguf, program, reply, running, shards
from fuzz.outcome import refused

INPUTS = 40
"""For each example: a hundred examples make 4,000 inputs."""


def inputs(target: ModuleType, seed: int, count: int) -> list[bytes]:
    """Seeds of the target after one change or several."""
    rng = Random(seed)
    made = []
    for _ in range(count):
        data = rng.choice(target.seeds())
        for _ in range(rng.choice((1, 1, 2, 4))):
            data = target.mutated(data, rng)
        made.append(data)
    return made


@pytest.mark.parametrize("target", [program, reply, running, archive, shards, gguf], ids=lambda target: target.__name__)
def test_seeds_are_accepted_or_refused(target: ModuleType):
    for data in target.seeds():
        target.check(data)


@given(st.integers(0, 2**32))
def test_programs(seed: int):
    for data in inputs(program, seed, INPUTS):
        program.check(data)


@given(st.integers(0, 2**32))
def test_replies(seed: int):
    for data in inputs(reply, seed, INPUTS // 2):
        reply.check(data)


@given(st.integers(0, 2**32))
def test_running_programs(seed: int):
    for data in inputs(running, seed, INPUTS // 20):
        running.check(data)


@given(st.integers(0, 2**32))
def test_safetensors(seed: int):
    for data in inputs(shards, seed, INPUTS // 2):
        shards.check(data)


@settings(max_examples=20)
@given(st.integers(0, 2**32))
def test_gguf_files(seed: int):
    for data in inputs(gguf, seed, INPUTS // 4):
        gguf.check(data)


@settings(max_examples=40)
@given(st.integers(0, 2**32))
def test_archives(seed: int):
    for data in inputs(archive, seed, INPUTS // 20):
        archive.check(data)


@given(st.binary(max_size=400))
def test_any_bytes(data: bytes):
    for target in (program, reply, archive, shards, gguf):
        target.check(data)


# ---------------------------------------------------------------- what was found: programs


def test_a_description_cannot_write_to_a_terminal():
    text = '"""a\\x1b]0;owned\\x07b\u202e"""\ndef score(weight):\n    return weight\n'
    assert read_program(text).doc == "a ]0;owned b"


@pytest.mark.parametrize("value", ["-True", "-False", "True"])
def test_truth_is_no_number_of_an_option(value: str):
    with pytest.raises(ProgramError, match=r"plain value|cannot be"):
        read_program(f"max_shift = {value}\ndef allocate(depth):\n    return depth\n")


def test_a_refusal_is_short_however_many_names_there_are():
    lines = "".join(f"    x{number} = 1\n" for number in range(800))
    with pytest.raises(ProgramError) as caught:
        read_program(f"def score(weight):\n{lines}    return nothing\n")
    assert len(str(caught.value)) < 1_500


def test_a_place_of_a_quantile_that_is_not_a_number_gives_none():
    tape = read_program("def score(weight, depth):\n    return weight - quantile(weight, depth)\n").require("score")
    score_RC = interpret(tape, {"weight": torch.ones(2, 3), "depth": torch.tensor([[torch.nan]])})
    assert score_RC.isnan().all()


# ---------------------------------------------------------------- checkpoints


class Trap:
    """Pickled, it makes a file when it is unpickled."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.file), "w")


@pytest.mark.parametrize("how", ["pickle", "zip"])
def test_weights_that_would_run_code_are_refused_and_not_run(how: str, tmp_path: Path):
    source, trap = tiny.save(tmp_path / "model"), tmp_path / "trap"
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    if how == "pickle":
        (source / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(trap), protocol=2) + bytes(100_000))
    else:
        torch.save({**tensors, "more": Trap(trap)}, source / "pytorch_model.bin")
    assert open_on_disk(source) is None
    with pytest.raises(AutopruneError, match=r"holds other things than tensors"):
        open_model(source)
    assert not trap.exists()


@pytest.mark.parametrize("settings", [
    {"num_attention_heads": 0},
    {"hidden_size": "a"},
    {"hidden_size": float("inf")},
    {"num_hidden_layers": 2**31},
    {"num_hidden_layers": 10**12},
    {"vocab_size": 2**31},
    {"intermediate_size": 2**40},
    {"rope_scaling": {"rope_type": "nothing"}},
    {"model_type": 3},
    {"hidden_act": "nothing"},
])  # fmt: skip
@pytest.mark.parametrize("opened", [open_model, open_on_disk], ids=lambda function: function.__name__)
def test_settings_that_make_no_such_model_are_one_line(
    settings: dict[str, object], opened: Callable[[Path], object], tmp_path: Path
):
    source = tiny.save(tmp_path / "model")
    config = json.loads((source / "config.json").read_text("utf-8"))
    (source / "config.json").write_text(json.dumps(config | settings), "utf-8")
    with pytest.raises(AutopruneError) as caught:
        opened(source)
    refused(caught.value)


def test_weights_in_a_subfolder_and_a_link_to_nowhere_are_no_fault(tmp_path: Path):
    source = tiny.save(tmp_path / "model")
    (source / "shards").mkdir()
    (source / "model.safetensors").rename(source / "shards/model-1.safetensors")
    names = dict.fromkeys(load_file(source / "shards/model-1.safetensors"), "shards/model-1.safetensors")
    (source / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}), "utf-8")
    (source / "flax_model.msgpack").symlink_to(tmp_path / "nowhere")
    assert open_model(source).model.num_parameters() > 0


@pytest.mark.parametrize(("file", "setting", "value"), [
    ("tokenizer_config.json", "model_max_length", []),
    ("tokenizer_config.json", "bos_token", 3),
    ("tokenizer.json", "post_processor", {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x",
     "type_id": 0}}], "pair": [], "special_tokens": {}}),  # at which the tokenizers library panics
    ("tokenizer.json", "model", {"type": "BPE", "vocab": {}, "merges": [["a", "b"]]}),
])  # fmt: skip
def test_a_tokenizer_that_cannot_be_used_is_one_line(file: str, setting: str, value: object, tmp_path: Path):
    source = tiny.save(tmp_path / "model")
    (source / file).write_text(json.dumps(json.loads((source / file).read_text("utf-8")) | {setting: value}), "utf-8")
    with pytest.raises(AutopruneError) as caught:
        open_model(source)
    refused(caught.value)


@pytest.mark.parametrize(("place", "value"), [
    (16, (2**60).to_bytes(8, "little")),  # so many values
    (8, (2**60).to_bytes(8, "little")),  # so many tensors
    (4, (9).to_bytes(4, "little")),  # a version to come
    (0, b"GGML"),
], ids=["values", "tensors", "version", "magic"])  # fmt: skip
def test_a_gguf_header_that_says_more_than_there_is(place: int, value: bytes, tmp_path: Path):
    data = bytearray(gguf.seeds()[0])
    data[place : place + len(value)] = value
    refused_gguf(bytes(data), tmp_path)


def test_the_length_of_a_gguf_array_is_held_against_the_file(tmp_path: Path):
    data = gguf.seeds()[0]
    place = data.index(b"tokenizer.ggml.token_type") + len(b"tokenizer.ggml.token_type") + 8
    assert data[place : place + 8] == (96).to_bytes(8, "little")
    # The gguf package reads on past the end of the file, without end.
    refused_gguf(data[:place] + (2**60).to_bytes(8, "little") + data[place + 8 :], tmp_path)


def refused_gguf(data: bytes, folder: Path) -> None:
    file = folder / "model.gguf"
    file.write_bytes(data)
    with pytest.raises(AutopruneError, match=r"no sound GGUF file") as caught:
        open_model(file)
    refused(caught.value)


def test_a_bin_file_of_tensors_is_opened(tmp_path: Path):
    source = tiny.save(tmp_path / "model")
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    torch.save(tensors, source / "pytorch_model.bin")
    state = open_model(source).model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_a_checkpoints_own_code_is_not_run_nor_asked_about(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source, trap = tiny.save(tmp_path / "model"), tmp_path / "trap"
    (source / "own.py").write_text(f"open({str(trap)!r}, 'w')\nclass Own: pass\n")
    known = json.loads((source / file).read_text())
    known |= {"auto_map": {"AutoConfig": "own.Own", "AutoTokenizer": ["own.Own", None]}}
    known |= {"model_type": "own"} if file == "config.json" else {"tokenizer_class": "Own"}
    (source / file).write_text(json.dumps(known))

    def asked(*_: object) -> str:
        raise AssertionError("the user was asked whether to run it")

    monkeypatch.setattr(builtins, "input", asked)
    with pytest.raises(AutopruneError, match="code of its own"):
        open_model(source)
    assert not trap.exists()


def test_links_out_of_a_checkpoint_are_not_copied_with_it(tmp_path: Path):
    source, out = tiny.save(tmp_path / "model"), tmp_path / "out"
    out.mkdir()
    (source / "within.txt").symlink_to(source / "config.json")
    copy_files(source, out)
    assert (out / "within.txt").read_bytes() == (source / "config.json").read_bytes()
    (tmp_path / "secret").write_text("secret")
    (source / "LICENSE").symlink_to(tmp_path / "secret")
    with pytest.raises(AutopruneError, match="link out of the checkpoint's folder"):
        copy_files(source, out)
    assert not (out / "LICENSE").exists()


def test_files_of_the_hubs_cache_are_copied(tmp_path: Path):
    blobs, snapshot, out = (tmp_path / "models--a--b" / name for name in ("blobs", "snapshots/1", "out"))
    for folder in (blobs, snapshot, out):
        folder.mkdir(parents=True)
    (blobs / "0a1b").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/0a1b")
    copy_files(snapshot, out)
    assert (out / "config.json").read_text() == "{}"


@pytest.mark.parametrize("kind", ["pipe", "folder", "long name"])
def test_a_shard_that_is_no_file_is_refused(kind: str, tmp_path: Path):
    name = f"{'x' * 300 if kind == 'long name' else 'x'}.safetensors"
    if kind == "pipe":
        os.mkfifo(tmp_path / name)
    elif kind == "folder":
        (tmp_path / name).mkdir()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(AutopruneError, match="missing, or cannot be read"):
        Shards(tmp_path)


@pytest.mark.parametrize(
    "entry",
    [
        {"shape": [0, 2**40, 2**40], "data_offsets": [0, 0]},
        {"shape": [1] * 65, "data_offsets": [0, 4]},
        {"shape": "1", "data_offsets": [0, 4]},
        {"shape": [1.5], "data_offsets": [0, 4]},
        {"shape": [True], "data_offsets": [0, 4]},
        {"shape": [1], "data_offsets": ["0", "4"]},
        {"shape": [-1, -1], "data_offsets": [0, 4]},
        {"dtype": "F" * 5_000, "shape": [1], "data_offsets": [0, 4]},
    ],
)
def test_tensors_of_impossible_shapes_are_refused(entry: dict[str, object], tmp_path: Path):
    header = json.dumps({"a": {"dtype": "F32"} | entry}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(AutopruneError, match="corrupt") as caught:
        Shards(tmp_path)
    assert len(str(caught.value)) < 2_000


# ---------------------------------------------------------------- archives

ENDLESS = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x, x, x, x, x FROM c"

HOSTILE = {
    "an endless view": f"DROP TABLE node; CREATE VIEW node(digest, canonical, traits, step, same_as) AS {ENDLESS}",
    "a trigger": "CREATE TRIGGER more AFTER INSERT ON run BEGIN DELETE FROM node; END",
    "bytes for text": "UPDATE node SET canonical = x'ff00'",
    "text for a number": "UPDATE evaluation SET seconds = 'long'",
    "deep JSON": f"UPDATE node SET traits = '{'[' * 5_000}'",
    "another type of JSON": "INSERT OR REPLACE INTO run VALUES ('names', '5')",
    "a long number": f"INSERT OR REPLACE INTO run VALUES ('finalists', '[{'9' * 5_000}]')",
}


@pytest.fixture
def search(tmp_path: Path) -> Path:
    """The folder of a search."""
    (tmp_path / "archive.sqlite").write_bytes(archive.seeds()[0])
    return tmp_path


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("command", [("explain",), ("algorithms", "--run")])
def test_a_hostile_archive_is_refused_in_one_line(kind: str, command: tuple[str, ...], search: Path, run: Run):
    with closing(sqlite3.connect(search / "archive.sqlite")) as connection:
        connection.executescript(HOSTILE[kind])
    ran = run(*command, search)
    if ran.code:
        assert ran.code == 2
        assert ran.err.startswith("error: ")
        assert len(ran.err.splitlines()) == 1
    else:  # explain has no need of names and finalists
        assert kind in ("another type of JSON", "a long number")
    with pytest.raises(AutopruneError), Archive.snapshot(search / "archive.sqlite") as read:
        archive._read(read)


def test_a_name_of_a_table_that_is_no_text_is_refused(search: Path):
    file = search / "archive.sqlite"
    file.write_bytes(file.read_bytes().replace(b"CREATE TABLE node", b"CREATE TABLE \xffode"))
    with pytest.raises(AutopruneError, match="cannot be used as an archive"):
        Archive.open(file)
    with pytest.raises(AutopruneError, match="cannot be used as an archive"), Archive.snapshot(file):
        pass


def test_texts_of_an_archive_cannot_write_to_a_terminal(search: Path, run: Run):
    with closing(sqlite3.connect(search / "archive.sqlite")) as connection, connection:
        connection.execute("UPDATE edge SET diagnosis = ?, operator = ?", ("\x1b]0;owned\x07", "a\x1b[2J"))
        connection.execute("UPDATE node SET canonical = ?", ("def\x1b[2J\n    x",))
        connection.execute("UPDATE proposal SET outcome = ?", ("\x1b[2J",))
        digest = connection.execute("SELECT child FROM edge ORDER BY step DESC").fetchone()[0]
    for command in (
        ("explain", search, digest),
        ("algorithms", "--run", search),
        ("algorithms", "--run", search, digest),
    ):
        ran = run(*command)
        assert ran.code == 0
        assert "\x1b" not in ran.out
        assert all(line.isprintable() for line in ran.out.splitlines())


def test_looking_at_a_search_does_not_write_to_it(search: Path, run: Run):
    before = {path.name: path.read_bytes() for path in search.iterdir()}
    assert run("explain", search).code == 0
    assert {path.name: path.read_bytes() for path in search.iterdir()} == before
