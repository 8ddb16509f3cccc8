"""What a program does, in few bytes: which weights of a sample it keeps, how it goes on, what each layer loses.

Programs that do the same would be measured twice for nothing.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoprune.layer import Method

_BITS = 1 << 15
AGREEMENT = 0.995
"""Share of weights that two masks treat alike from which on they count as the same."""

_SAME_SHARE = 0.005  # in sparsity: nearer than that no layer's share tells two programs apart


def signature(method: Method, keep: Sequence[Tensor], sparsity_N: Sequence[float]) -> str:
    """Of masks on the same parts of layers, each (R, C), and of the sparsities of all layers."""
    kept = torch.cat([keep_RC.reshape(-1).cpu() for keep_RC in keep]).numpy()
    chosen = np.random.default_rng(0).permutation(len(kept))[:_BITS]
    bits = base64.b64encode(np.packbits(kept[chosen]).tobytes()).decode()
    after = [method.update, method.towards_dense]
    return json.dumps({"kept": bits, "after": after, "shares": [round(float(share), 4) for share in sparsity_N]})


def joined(signatures: Sequence[str]) -> str:
    """Of a program on several models, from that on each; none where there is none on any."""
    return json.dumps([json.loads(text) for text in signatures]) if all(signatures) else ""


def alike(one: str, other: str) -> bool:
    """Whether two programs do the same, as far as signatures tell; with several models on every one of them."""
    first, second = (found if isinstance(found, list) else [found] for found in (json.loads(one), json.loads(other)))
    return len(first) == len(second) and all(map(_alike, first, second))


def _alike(first: dict[str, Any], second: dict[str, Any]) -> bool:
    if first["after"] != second["after"] or len(first["shares"]) != len(second["shares"]):
        return False
    if np.abs(np.subtract(first["shares"], second["shares"])).max() > _SAME_SHARE:
        return False
    return agreement(first["kept"], second["kept"]) >= AGREEMENT


def agreement(one: str, other: str) -> float:
    """Share of weights that two packed masks treat alike."""
    first, second = (np.frombuffer(base64.b64decode(text), dtype=np.uint8) for text in (one, other))
    if len(first) != len(second):
        return 0.0
    return 1 - float(np.unpackbits(first ^ second).mean())
