"""The table of operators. Checker, interpreter, printer, documentation (and later grammar and prompt) read it.

Every operator is total: for arguments within ±1e30 it gives a result within ±1e30, so that float32 never
overflows. Its *guard* says what it gives outside its mathematical domain.
Numeric functions take and return two-dimensional float32 tensors (see `types`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from autoprune.language.types import Type, join, reduced

LIMIT = 1e30
"""Results are clamped to ±LIMIT: far beyond any score, yet a sum of 10^8 such values still fits float32."""

_LOG1P_FLOOR = -1.0 + 1e-6


@dataclass(frozen=True, kw_only=True)
class Operator:
    """One row of the table.

    `kind` decides the type rule: "elementwise" broadcasts, "reduce" drops the axis named by ``over=``,
    "normalize" works along that axis and keeps the type, "matmul" and "diagonal" take a CC.
    `symbol` is the infix or prefix spelling, if it has one; `function` is the operator itself.
    """

    name: str
    arity: int
    kind: str
    function: Callable[..., Tensor]
    doc: str
    guard: str = ""
    symbol: str = ""
    commutative: bool = False

    @property
    def takes_axis(self) -> bool:
        return self.kind in ("reduce", "normalize")

    @property
    def signature(self) -> str:
        names = _ARGUMENTS.get(self.name, ("x",) if self.arity == 1 else ("a", "b", "c")[: self.arity])
        if self.symbol:
            return f"{self.symbol}{names[0]}" if self.arity == 1 else f"{names[0]} {self.symbol} {names[1]}"
        axis = ['over="all"'] if self.takes_axis else []
        return f"{self.name}({', '.join([*names, *axis])})"

    def result_type(self, arguments: tuple[Type, ...], over: str | None) -> Type | None:
        """The type of the result, or None where the arguments do not fit."""
        first, *rest = arguments
        match self.kind:
            case "elementwise":
                kind: Type | None = first
                for other in rest:
                    kind = kind and join(kind, other)
                return kind
            case "matmul":
                return first if rest == [Type.CC] and first in (Type.C, Type.RC, Type.CC) else None
            case "diagonal":
                return Type.C if first is Type.CC else None
        if any(other is not Type.SCALAR for other in rest):
            return None
        if self.kind == "normalize" and first is Type.CC:
            return first
        remaining = reduced(first, over or "all")
        return remaining if self.kind == "reduce" or remaining is None else first

    def __call__(self, *arguments: Tensor, over: str | None = None) -> Tensor:
        if not self.takes_axis:
            return self.function(*arguments)
        x, *rest = arguments
        match over:
            case "rows":
                return self.function(x, *rest, dim=0)
            case "columns":
                return self.function(x, *rest, dim=1)
        flat = self.function(x.reshape(1, -1), *rest, dim=1)
        return flat if self.kind == "reduce" else flat.reshape(x.shape)


_ARGUMENTS = {
    "where": ("condition", "a", "b"),
    "clip": ("x", "low", "high"),
    "quantile": ("x", "q"),
    "power": ("x", "p"),
    "matmul": ("x", "gram"),
    "diagonal": ("gram",),
}


def _held(x: Tensor) -> Tensor:
    """Keep a fresh result inside ±LIMIT (in place)."""
    return x.clamp_(-LIMIT, LIMIT)


def _divide(a: Tensor, b: Tensor) -> Tensor:
    quotient = a / b
    return _held(torch.where(b == 0, torch.zeros_like(quotient), quotient))


def _power(x: Tensor, p: Tensor) -> Tensor:
    result = torch.pow(x, p)
    undefined = torch.isnan(result) | ((x == 0) & (p < 0))
    return _held(result.masked_fill_(undefined, 0.0))


def _compare(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda a, b: function(a, b).to(torch.float32)


def _sum(x: Tensor, dim: int) -> Tensor:
    return _held(x.sum(dim, keepdim=True))


def _mean(x: Tensor, dim: int) -> Tensor:
    return _held(x.mean(dim, keepdim=True))


def _std(x: Tensor, dim: int) -> Tensor:
    deviation = _norm(x - _mean(x, dim), dim) / x.shape[dim] ** 0.5
    # The mean of equal values may be off by a rounding error.
    return torch.where(x.amax(dim, keepdim=True) == x.amin(dim, keepdim=True), 0.0, deviation)


def _norm(x: Tensor, dim: int) -> Tensor:
    largest = x.abs().amax(dim, keepdim=True)  # squares of what remains neither overflow nor vanish
    return _held(_divide(x, largest).square_().sum(dim, keepdim=True).sqrt_() * largest)


def _quantile(x: Tensor, q: Tensor, dim: int) -> Tensor:
    # torch.quantile refuses more than 16 million values, fewer than one large layer holds.
    if q.isnan().any():  # of statistics that are not finite: neither is the score then, which is refused
        return x.narrow(dim, 0, 1) * torch.nan
    position = float(q.clamp(0, 1)) * (x.shape[dim] - 1)
    below = int(position)
    above = min(below + 1, x.shape[dim] - 1)
    if x.device.type == "cpu":  # a partition takes a tenth of a sort's time; at two places at once it would take more
        lines = np.partition(x.movedim(dim, -1).numpy(), below, axis=-1)
        low, high = lines[..., below : below + 1], np.fmin.reduce(lines[..., above:], axis=-1, keepdims=True)
        low, high = (torch.from_numpy(part).movedim(-1, dim) for part in (low, high))
    else:
        ordered = x.sort(dim=dim).values
        low, high = ordered.narrow(dim, below, 1), ordered.narrow(dim, above, 1)
    return torch.lerp(low, high, position - below)


def _median(x: Tensor, dim: int) -> Tensor:
    return _quantile(x, torch.tensor(0.5), dim)


def _standardize(x: Tensor, dim: int) -> Tensor:
    return _divide(x - _mean(x, dim), _std(x, dim))


def _minmax(x: Tensor, dim: int) -> Tensor:
    low, high = x.amin(dim, keepdim=True), x.amax(dim, keepdim=True)
    return _divide(x - low, high - low)


def _rank(x: Tensor, dim: int) -> Tensor:
    lines = x.movedim(dim, -1).contiguous()
    smaller = torch.searchsorted(lines.sort(dim=-1).values, lines).to(torch.float32)
    return (smaller / max(lines.shape[-1] - 1, 1)).movedim(-1, dim)


def _cumulative_sum(x: Tensor, dim: int) -> Tensor:
    return _held(x.cumsum(dim))


def _matmul(x: Tensor, gram: Tensor) -> Tensor:
    # Products of huge values may overflow to infinities of both signs, whose sum is not a number.
    return _held((x @ gram).nan_to_num_(nan=0.0))


def _elementwise(name: str, arity: int, function: Callable[..., Tensor], doc: str, **rest) -> Operator:
    return Operator(name=name, arity=arity, kind="elementwise", function=function, doc=doc, **rest)


def _reduce(name: str, function: Callable[..., Tensor], doc: str, arity: int = 1, guard: str = "") -> Operator:
    return Operator(name=name, arity=arity, kind="reduce", function=function, doc=doc, guard=guard)


def _normalize(name: str, function: Callable[..., Tensor], doc: str, guard: str = "") -> Operator:
    return Operator(name=name, arity=1, kind="normalize", function=function, doc=doc, guard=guard)


_ROWS = [
    # arithmetic
    _elementwise("add", 2, lambda a, b: _held(a + b), "Sum.", symbol="+", commutative=True),
    _elementwise("subtract", 2, lambda a, b: _held(a - b), "Difference.", symbol="-"),
    _elementwise("multiply", 2, lambda a, b: _held(a * b), "Product.", symbol="*", commutative=True),
    _elementwise("divide", 2, _divide, "Quotient.", symbol="/", guard="anything / 0 = 0"),
    _elementwise(
        "power",
        2,
        _power,
        "x raised to p.",
        symbol="**",
        guard="a negative x with a fractional p gives 0 (as sqrt does), and so does 0 to a negative power",
    ),
    _elementwise("negate", 1, torch.neg, "Opposite sign.", symbol="-"),
    # comparison: 1.0 where true, 0.0 where not
    _elementwise("greater", 2, _compare(torch.gt), "1 where a > b, else 0.", symbol=">"),
    _elementwise("less", 2, _compare(torch.lt), "1 where a < b, else 0.", symbol="<"),
    _elementwise("greater_equal", 2, _compare(torch.ge), "1 where a >= b, else 0.", symbol=">="),
    _elementwise("less_equal", 2, _compare(torch.le), "1 where a <= b, else 0.", symbol="<="),
    _elementwise("equal", 2, _compare(torch.eq), "1 where a == b, else 0.", symbol="==", commutative=True),
    _elementwise("not_equal", 2, _compare(torch.ne), "1 where a != b, else 0.", symbol="!=", commutative=True),
    _elementwise("where", 3, lambda c, a, b: torch.where(c != 0, a, b), "a where the condition is not 0, else b."),
    # elementwise functions
    _elementwise("abs", 1, torch.abs, "Absolute value."),
    _elementwise("sign", 1, torch.sign, "-1, 0 or 1."),
    _elementwise("sqrt", 1, lambda x: x.clamp(min=0).sqrt_(), "Square root.", guard="of a negative number: 0"),
    _elementwise("square", 1, lambda x: _held(x.square()), "x times x."),
    _elementwise(
        "log1p",
        1,
        lambda x: x.clamp(min=_LOG1P_FLOOR).log1p_(),
        "Natural logarithm of 1 + x.",
        guard="below -0.999999, as at -0.999999 (about -13.8)",
    ),
    _elementwise("exp", 1, lambda x: _held(x.exp()), "e raised to x.", guard="at most 1e30"),
    _elementwise("tanh", 1, torch.tanh, "Hyperbolic tangent."),
    _elementwise("maximum", 2, torch.maximum, "The larger of two values.", commutative=True),
    _elementwise("minimum", 2, torch.minimum, "The smaller of two values.", commutative=True),
    _elementwise(
        "clip",
        3,
        lambda x, low, high: torch.minimum(torch.maximum(x, low), high),
        "x held between low and high.",
        guard="where low > high: high",
    ),
    # reductions
    _reduce("sum", _sum, "Sum."),
    _reduce("mean", _mean, "Arithmetic mean."),
    _reduce("std", _std, "Standard deviation of the population (divides by n)."),
    _reduce("min", lambda x, dim: x.amin(dim, keepdim=True), "Smallest value."),
    _reduce("max", lambda x, dim: x.amax(dim, keepdim=True), "Largest value."),
    _reduce("median", _median, "Median (mean of the middle two)."),
    _reduce("quantile", _quantile, "Quantile q, interpolated linearly; q is a scalar.", 2, "q is held in [0, 1]"),
    _reduce("norm", _norm, "Euclidean norm."),
    # normalisers: along an axis, the type stays
    _normalize("standardize", _standardize, "(x - mean) / std.", "of equal values: 0"),
    _normalize("minmax", _minmax, "(x - min) / (max - min), in [0, 1].", "of equal values: 0"),
    _normalize("softmax", lambda x, dim: torch.softmax(x, dim), "exp(x) / sum of exp(x)."),
    _normalize("rank", _rank, "Share of the other values that are smaller, in [0, 1].", "of one value: 0"),
    _normalize("cumulative_sum", _cumulative_sum, "Running sum in index order."),
    # matrices of pairs of input columns
    Operator(
        name="matmul",
        arity=2,
        kind="matmul",
        function=_matmul,
        symbol="@",
        doc="Matrix product with a CC on the right.",
        guard="where products beyond 1e30 cancel, anything within ±1e30",
    ),
    Operator(
        name="diagonal",
        arity=1,
        kind="diagonal",
        function=lambda gram: gram.diagonal().reshape(1, -1).clone(),
        doc="Diagonal of a CC, as a C.",
    ),
]

OPERATORS: dict[str, Operator] = {operator.name: operator for operator in _ROWS}
