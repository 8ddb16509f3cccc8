"""Runtimes: which are measured, and how; and what others could do with the zeros, and under which condition.

The facts about others were collected from their source, documentation and issue threads in November 2026; they are
claims of their authors unless it says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoprune.errors import AutopruneError
from autoprune.models import InMemoryBlocks, all_linears
from autoprune.speed.payoff import Facts
from autoprune.speed.zeros import count

PLAIN = "transformers"


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """Something that is here and runs a model. `lacks` says why it cannot be measured on the pruned model, "" where it
    can; `prepare` changes the model that transformers has opened."""

    uses_zeros: bool
    lacks: Callable[[Facts], str]
    prepare: Callable[[Any], None]


def _lacks_for_two_of_four(pruned: Facts) -> str:
    if not pruned.zeros.two_of_four:
        return "no matrix has zeros in 2 of every 4 consecutive inputs"
    if pruned.capability is None:
        return "needs an NVIDIA GPU"
    if pruned.capability < (8, 0):
        return "needs an NVIDIA GPU of compute capability 8.0 or more"
    if pruned.dtype not in ("bfloat16", "float16"):
        return "needs bfloat16 or float16; give --dtype"
    return ""


def use_two_of_four(model: Any) -> None:
    """Store every linear layer that has the pattern as torch's 2:4 kernels want it: the values and where they are."""
    converted = 0
    for linear in all_linears(InMemoryBlocks(model)):
        module = linear.module
        if not isinstance(module, nn.Linear) or not linear.is_plain or not count(linear.weight_RC)[1]:
            continue
        try:
            weight: Any = torch.sparse.to_sparse_semi_structured(linear.weight_RC)
        except (RuntimeError, NotImplementedError):  # a shape that the kernels do not take
            continue
        module.weight = nn.Parameter(weight, requires_grad=False)
        converted += 1
    if not converted:
        raise AutopruneError(
            "torch's 2:4 kernels take none of the model's matrices", remedy="measure it in another runtime"
        )


RUNTIMES: dict[str, Runtime] = {
    PLAIN: Runtime(uses_zeros=False, lacks=lambda pruned: "", prepare=lambda model: None),
    "torch 2:4": Runtime(uses_zeros=True, lacks=_lacks_for_two_of_four, prepare=use_two_of_four),
}
"""By name, in the order they are measured in. All are installed with autoprune itself."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What advice depends on."""

    share: float
    two_of_four: bool
    device: str
    cpu_flags: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What would give a gain from zeros, for whom."""

    fits: Callable[[Case], bool]
    text: str


ADVICE: list[Advice] = [
    Advice(
        fits=lambda case: case.two_of_four and case.device != "cuda",
        text="The zeros have the 2:4 pattern: on an NVIDIA GPU of compute capability 8.0 or more torch's "
        "to_sparse_semi_structured and TensorRT-LLM can use it. At best it helps large batches and long prompts; for "
        "one token at a time users found it slower than dense, and in TensorRT-LLM often no gain at all. Run this "
        "command there to see.",
    ),
    Advice(
        fits=lambda case: not case.two_of_four and case.device == "cuda",
        text="torch and TensorRT-LLM skip zeros on an NVIDIA GPU only where 2 of every 4 inputs are zero: prune with "
        "--pattern 2:4 and measure again. At best it helps large batches and long prompts.",
    ),
    Advice(
        fits=lambda case: case.device == "cpu" and "amx_int8" in case.cpu_flags,
        text="OpenVINO, not measured here: on a CPU with AMX, as this one, it can read fewer bytes for sparse weights "
        "of any pattern. It does so only where weights and activations are int8 (not for bfloat16, nor int8 weights "
        "alone), both sides of a matrix divide by 64, and the share of zeros reaches "
        "CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE, which has to be set.",
    ),
    Advice(
        fits=lambda case: case.device == "cpu" and "amx_int8" not in case.cpu_flags,
        text="OpenVINO can use zeros of any pattern with int8 weights and activations on CPUs with AMX; this has none.",
    ),
    Advice(
        fits=lambda case: case.share >= 0.5,
        text="MACKO, not measured here: kernels for consumer NVIDIA GPUs and zeros of any pattern. Its authors claim "
        "about 1.5 times the decoding speed in two thirds of the memory where half the weights are zero.",
    ),
    Advice(
        fits=lambda case: True,
        text="vLLM, llama.cpp and ONNX Runtime compute with zeros as with any number (vLLM gave up sparse kernels in "
        "2026), and DeepSparse is no longer maintained. What makes every runtime faster is fewer or smaller matrices: "
        "whole experts, heads or layers removed.",
    ),
]


def advice(case: Case) -> list[str]:
    """What holds for this case."""
    return [entry.text for entry in ADVICE if entry.fits(case)]


def cpu_flags() -> list[str]:
    """What the CPU can do, where Linux tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return []
    return next((sorted(line.split(":", 1)[1].split()) for line in lines if line.startswith(("flags", "Features"))), [])
