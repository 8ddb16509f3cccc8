"""Types of the pruning language: the shape of a value, known before anything runs.

Legend: R output rows, C input columns of the linear layer that is being pruned; L the layers (blocks or linear
layers) that share out the sparsity.
At run time every value is a two-dimensional float32 tensor, so that broadcasting follows the type:
scalar (1, 1), R (R, 1), C (1, C), RC (R, C), CC (C, C), L (1, L).
"""

from __future__ import annotations

from enum import StrEnum


class Type(StrEnum):
    SCALAR = "scalar"
    R = "R"
    C = "C"
    RC = "RC"
    CC = "CC"
    L = "L"


AXES = ("rows", "columns", "all")

_MEANING = {
    Type.SCALAR: "one number",
    Type.R: "one number per output row",
    Type.C: "one number per input column",
    Type.RC: "one number per weight",
    Type.CC: "one number per pair of input columns",
    Type.L: "one number per layer",
}


def describe(kind: Type) -> str:
    return f"{kind} ({_MEANING[kind]})"


def join(left: Type, right: Type) -> Type | None:
    """Type of an elementwise combination, or None where there is none: a CC or an L meets a scalar or its own kind."""
    if left == right or right is Type.SCALAR:
        return left
    if left is Type.SCALAR:
        return right
    if left in (Type.CC, Type.L) or right in (Type.CC, Type.L):
        return None
    return Type.RC


def reduced(kind: Type, over: str) -> Type | None:
    """Type that is left after reducing `over` an axis, or None where the value has no such axis."""
    if kind is Type.SCALAR:
        return None
    if over == "all":
        return Type.SCALAR
    if over == "rows":  # of layers, an L, there are neither rows nor columns
        return {Type.RC: Type.C, Type.CC: Type.C, Type.R: Type.SCALAR}.get(kind)
    return {Type.RC: Type.R, Type.C: Type.SCALAR}.get(kind)
