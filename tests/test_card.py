"""The card of a pruned model: metadata that the hub reads, and a command that makes the model again."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

import autoprune
import tiny
from autoprune.card import CARD, card, command
from autoprune.files import SIDECAR
from command import Run

FREE = '"""Mine: ```fenced``` | barred."""\n\ncompare = "layer"\n\ndef score(weight):\n    return abs(weight)\n'
SHARED = "strength = 0.1\n\ndef allocate(depth):\n    return depth\n"

CASES: dict[str, dict[str, Any]] = {
    "plain": {"algorithm": "wanda", "sparsity": 0.5},
    "pattern": {"algorithm": "ria", "pattern": "2:4", "seed": 3, "propagation": "block"},
    "weights only": {"algorithm": "magnitude", "sparsity": 0.123},
    "options": {"algorithm": "wanda", "sparsity": 0.5, "refine": "swaps", "max_swaps": 7, "update": "least_squares"},
    "own allocation": {"algorithm": "best", "sparsity": 0.5},
    "no allocation": {"algorithm": "best", "sparsity": 0.5, "allocation": "uniform"},
    "allocation": {"algorithm": "wanda", "sparsity": 0.5, "allocation": "sdsa", "strength": 0.3, "max_shift": 0.05},
    "not a program": {"algorithm": "wanda", "sparsity": 0.5, "allocation": "sensitivity", "granularity": "linear"},
    "files": {"algorithm": "mine.prune", "sparsity": 0.5, "allocation": "shared.prune"},
}


@pytest.mark.parametrize("case", CASES)
def test_the_command_makes_the_same_model_again(
    case: str, text: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.prune").write_text(FREE)
    (tmp_path / "shared.prune").write_text(SHARED)
    source = tiny.save(tmp_path / "dense", "llama")
    given = {"calibration": f"file:{text}", "sequences": 4, "length": 16} | CASES[case]
    autoprune.prune(source, out=tmp_path / "first", **given)
    words = shlex.split(command(json.loads((tmp_path / "first" / SIDECAR).read_text())))
    assert words[:2] == ["autoprune", "prune"]
    ran = run(*words[1:])
    assert ran.code == 0, ran.err
    assert (tmp_path / "pruned" / CARD).read_text() == (tmp_path / "first" / CARD).read_text()
    for file in (tmp_path / "first").glob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "pruned" / file.name).read_bytes()


def test_the_hub_reads_the_metadata_and_the_licence_is_the_base_s(text: Path, tmp_path: Path):
    source = tiny.save(tmp_path / "dense", "llama")
    (source / CARD).write_text("---\nlicense: apache-2.0\nlanguage: [en, de]\ntags: [chat]\n---\n\nDense.\n")
    autoprune.prune(source, out=tmp_path / "out", algorithm="magnitude", sparsity=0.5)
    made = ModelCard.load(tmp_path / "out" / CARD)
    assert made.data.license == "apache-2.0"
    assert made.data.to_dict()["language"] == ["en", "de"]
    assert made.data.tags == ["autoprune", "pruned", "sparse"]
    assert "Dense." not in made.text
    assert "| target | 0.5:" in made.text


def record(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    autoprune.prune(tiny.save(tmp_path / "dense", "llama"), out=tmp_path / "out", algorithm="magnitude", sparsity=0.5)
    return json.loads((tmp_path / "out" / SIDECAR).read_text()) | changes


def test_a_hub_id_is_named_as_the_base_and_a_path_is_not(tmp_path: Path):
    found = record(tmp_path)
    assert "base_model" not in card(found, None)
    assert "base_model: someone/model-7B\n" in card(found | {"model": "someone/model-7B"}, None)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"---\n: : :\n---\n", b"---\n- a\n---\n", b"no metadata"])
def test_a_card_that_cannot_be_read_says_nothing(content: bytes, tmp_path: Path):
    found = record(tmp_path)
    (tmp_path / CARD).write_bytes(content)
    assert card(found, tmp_path) == card(found, None)


def test_a_program_with_fences_is_fenced(tmp_path: Path):
    algorithm = {"name": "mine", "hash": "0", "text": FREE, "canonical": ""}
    assert "\n````python\n" in card(record(tmp_path, algorithm=algorithm), None)
