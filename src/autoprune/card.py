"""The README.md of a pruned model: a model card as the hub has it, with the command that makes the model again."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from huggingface_hub.repocard import metadata_load
from yaml import YAMLError

from autoprune import algorithms
from autoprune.allocation import NOT_PROGRAMS, Allocation
from autoprune.inputs import amount_of_text
from autoprune.language import read_program
from autoprune.layer import Method

CARD = "README.md"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_INHERITED = ("license", "license_name", "license_link", "language")
"""What holds for a pruned model as it does for the model it was made from."""


def card(record: Mapping[str, Any], base: Path | None) -> str:
    """The card of a prune, from what autoprune.json has of it; `base` is the folder of the unpruned model, if it has
    one, whose card says under which licence it is."""
    name = _cell(Path(record["model"]).name or record["model"])
    percent = f"{record['sparsity']['achieved']:.1%}"
    algorithm, settings = record["algorithm"], record["settings"]
    shares = [layer["sparsity"]["achieved"] for layer in record["layers"]]
    text = settings["calibration"]
    rows = {
        "algorithm": f"{algorithm['name']} (`{algorithm['hash']}`)",
        "target": f"{record['target']}: {record['zeros']:,} of {record['weights']:,} prunable weights are zero",
        "layers": f"{len(shares)} linear layers, {min(shares):.1%} to {max(shares):.1%}" if shares else "none",
        "mask refined by": record["method"]["refine"],
        "weights updated by": record["method"]["update"],
        "sparsity shared out by": record["allocation"]["name"],
        "inputs seen": f"{settings['propagation']} propagation" if text else "none: the weights alone",
        "calibration": f"{amount_of_text(text)}, seed {settings['seed']}" if text else "none",
        "versions": ", ".join(f"{package} {version}" for package, version in record["versions"].items()),
    }
    lines = [
        f"# {name}, pruned to {record['target']}",
        "",
        f"{name} with {percent} of the weights of its decoder blocks set to zero by autoprune, without retraining. The",
        "checkpoint is a dense one, which loads everywhere:",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM",
        "",
        'model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")',
        "```",
        "",
        "| | |",
        "|---|---|",
        *(f"| {heading} | {_cell(value)} |" for heading, value in rows.items()),
        "",
        "Every layer's figures and all settings: `autoprune.json`. A page about them: `autoprune report FOLDER`.",
        "",
        "## Made by",
        "",
        "```",
        command(record),
        "```",
        "",
        *_programs(record),
        "Zeros are no faster in a stock runtime, and take the same room until the files are compressed: `autoprune",
        "speed` measures both. How much quality is left: `autoprune eval FOLDER --against BASE --data file:text.txt`.",
        "",
    ]
    return f"---\n{_metadata(record, base)}\n---\n\n" + "\n".join(lines)


def command(record: Mapping[str, Any], out: str = "pruned") -> str:
    """The command line of a prune; texts of programs that are not in the library are expected in files."""
    model = record["model"]
    given = [f"./{model}" if model.startswith("-") else model, "--out", out, "--algorithm", _named(record["algorithm"])]
    target = record["target"]
    given += ["--pattern" if ":" in target else "--sparsity", target]
    own = Method.of(read_program(record["algorithm"]["text"])).options
    given += _options({name: value for name, value in record["method"].items() if own[name] != value})
    given += _allocation(record)
    settings = record["settings"]
    if text := settings["calibration"]:
        given += ["--calibration", text["source"]]
        given += ["--sequences", str(text["sequences"]), "--length", str(text["length"])]
        given += ["--seed", str(settings["seed"]), "--propagation", settings["propagation"]]
    return shlex.join(["autoprune", "prune", *given, "--dtype", settings["dtype"]])


def _allocation(record: Mapping[str, Any]) -> list[str]:
    algorithm, found = read_program(record["algorithm"]["text"]), record["allocation"]
    if found.get("text"):
        allocation = Allocation.of(read_program(found["text"], name=found["name"]))
        own = algorithm.digest == allocation.digest
    else:
        allocation = Allocation.named(found["name"])
        own = not algorithm.allocate and found["name"] == Allocation.own(algorithm).name
    options = {name: value for name in ("granularity", "strength", "max_shift", "temperature")
               if (value := found.get(name, getattr(allocation, name))) != getattr(allocation, name)}  # fmt: skip
    name = found["name"] if found["name"] in NOT_PROGRAMS else _allocation_name(record)
    return ([] if own else ["--allocation", name]) + _options(options)


def _allocation_name(record: Mapping[str, Any]) -> str:
    """As `_named`; another one than the algorithm's, where the texts differ."""
    found, algorithm = record["allocation"], record["algorithm"]
    name = _named({"hash": found["digest"], **found})
    same = name == _named(algorithm) and found["text"] != algorithm["text"]
    return f"{found['name']}-allocation.prune" if same else name


def _options(values: Mapping[str, Any]) -> list[str]:
    words = []
    for name, value in values.items():
        whole = isinstance(value, float) and value.is_integer()
        words += [f"--{name.replace('_', '-')}", str(int(value) if whole else value)]
    return words


def _named(program: Mapping[str, str]) -> str:
    """A program as the command line takes it: a name of the library, or a file."""
    name = program["name"]
    known = name in algorithms.names() and algorithms.load(name).digest == program["hash"]
    return name if known else f"{name}.prune"


def _programs(record: Mapping[str, Any]) -> list[str]:
    """The texts that the command wants in files."""
    found = {_named(record["algorithm"]): record["algorithm"]["text"]}
    if text := record["allocation"].get("text"):
        found[_allocation_name(record)] = text
    lines = []
    for name, text in found.items():
        if name.endswith(".prune"):
            fence = "`" * (max([2, *(len(run) for run in re.findall("`+", text))]) + 1)
            lines += [f"with `{name}`:", "", f"{fence}python", *text.rstrip().splitlines(), fence, ""]
    return lines


def _metadata(record: Mapping[str, Any], base: Path | None) -> str:
    model = record["model"]
    data = ModelCardData(
        base_model=model if _HUB_ID.fullmatch(model) and not Path(model).exists() else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["autoprune", "pruned", "sparse"],
        **_inherited(base),
    )
    return data.to_yaml()


def _inherited(base: Path | None) -> dict[str, Any]:
    try:
        metadata = (metadata_load(base / CARD) if base else None) or {}
    except (OSError, ValueError, YAMLError):  # none there, or not readable: then it says nothing
        return {}
    return {name: metadata[name] for name in _INHERITED if _is_plain(metadata.get(name))}


def _is_plain(value: Any) -> bool:
    """A line of text, or several."""
    lines = value if isinstance(value, list) else [value]
    return all(isinstance(line, str) and line.isprintable() for line in lines)


def _cell(text: str) -> str:
    return " ".join(str(text).replace("|", "\\|").split())
