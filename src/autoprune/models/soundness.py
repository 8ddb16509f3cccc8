"""A checkpoint that cannot be what it says: one line about it, before it takes all time or memory."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from autoprune.errors import AutopruneError

_MOST = {"layer": 10_000, "layers": 10_000, "experts": 100_000}
"""How the settings end that say how many modules are made, and the most there are: the deepest models have hundreds of
layers, and one has 16,384 experts a layer."""

_WEIGHTS_A_BYTE = 8  # at most, in any file; two bytes hold a weight in most


def check_lists(settings: dict[str, Any], name: str) -> None:
    """Refuse a configuration for which lists of modules would take all time and memory to make."""
    for key, value in settings.items():
        if isinstance(value, dict):
            check_lists(value, name)
            continue
        most = _MOST.get(key.rpartition("_")[2])
        if most and isinstance(value, int) and value > most:
            raise AutopruneError(
                f"the configuration says {key} = {value}, more than {most:,}",
                where=name,
                remedy="use an undamaged checkpoint",
            )


def check_size(make: Callable[[torch.dtype], Any], files: Sequence[Path], name: str) -> None:
    """Refuse a configuration for which the files are far too small: before it says which tensors it lacks, transformers
    would make them."""
    stored = sum(file.stat().st_size for file in files)
    with torch.device("meta"):
        weights = make(torch.bfloat16).num_parameters()
    if weights > _WEIGHTS_A_BYTE * stored:
        raise AutopruneError(
            f"the configuration makes a model of {weights:,} weights, and the files have {stored:,} bytes",
            where=name,
            remedy="use a complete, undamaged checkpoint",
        )


@contextmanager
def readable(name: str, location: str) -> Iterator[None]:
    """Whatever goes wrong with a checkpoint in this context is an AutopruneError: transformers, tokenizers, gguf and
    safetensors have no class of error in common."""
    try:
        yield
    except AutopruneError:
        raise
    except BaseException as error:
        # A panic of the tokenizers library, whose class cannot be named, is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise _unreadable(name, location, error) from None


def _unreadable(name: str, location: str, error: BaseException) -> AutopruneError:
    message = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, SafetensorError):
        return AutopruneError(
            f"a safetensors file is corrupt ({message})", where=name, remedy="download or copy the checkpoint again"
        )
    if isinstance(error, pickle.UnpicklingError):
        return AutopruneError(
            "a file of weights holds other things than tensors, or is corrupt; it was not run",
            where=name,
            remedy="use a checkpoint with safetensors files",
        )
    if "trust_remote_code" in message:
        return AutopruneError(
            "the checkpoint needs code of its own, which is never run",
            where=name,
            remedy="use one of an architecture that transformers has",
        )
    if not os.path.exists(location):
        return AutopruneError(
            "no such folder here, and no such model in the local hub cache or on the hub",
            where=name,
            remedy="check the name, the network and HF_TOKEN; `demo` needs no network",
        )
    return AutopruneError(f"cannot be opened as a causal LM ({message[:300]})", where=name, remedy="check its files")
