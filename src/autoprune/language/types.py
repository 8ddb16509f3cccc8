"""Types of the pruning language: the shape of a value, known before anything runs.

Legend: R output rows, C input columns of the linear layer that is being pruned.
At run time every value is a two-dimensional float32 tensor, so that broadcasting follows the type:
scalar (1, 1), R (R, 1), C (1, C), RC (R, C), CC (C, C).
"""

from __future__ import annotations

from enum import StrEnum


class Type(StrEnum):
    SCALAR = "scalar"
    R = "R"
    C = "C"
    RC = "RC"
    CC = "CC"


AXES = ("rows", "columns", "all")

_MEANING = {
    Type.SCALAR: "one number per layer",
    Type.R: "one number per output row",
    Type.C: "one number per input column",
    Type.RC: "one number per weight",
    Type.CC: "one number per pair of input columns",
}


def describe(kind: Type) -> str:
    return f"{kind} ({_MEANING[kind]})"


def join(left: Type, right: Type) -> Type | None:
    """Type of an elementwise combination, or None where there is none (a CC meets a scalar or a CC only)."""
    if left == right or right is Type.SCALAR:
        return left
    if left is Type.SCALAR:
        return right
    if Type.CC in (left, right):
        return None
    return Type.RC


def reduced(kind: Type, over: str) -> Type | None:
    """Type that is left after reducing `over` an axis, or None where the value has no such axis."""
    if kind is Type.SCALAR:
        return None
    if over == "all":
        return Type.SCALAR
    if over == "rows":
        return {Type.RC: Type.C, Type.CC: Type.C, Type.R: Type.SCALAR}.get(kind)
    return {Type.RC: Type.R, Type.C: Type.SCALAR}.get(kind)
