"""A figure that is drawn once and shown three ways: in the page, where its colours follow light and dark, and as SVG
and PNG for papers."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoprune.errors import AutopruneError

TEXT, QUIET, GRID = "#1d2733", "#687583", "#dde3e9"
COLOURS = ("#1f5fa8", "#b8511c", "#23784b", "#7b4aa1", "#8a6d00", "#a1335d", "#1b7f8c", "#5b5b5b")
"""Told apart by people with any colour vision, in this order."""
MARKERS = "osv^DP*X"

_NAMES = {TEXT: "text", QUIET: "quiet", GRID: "grid"} | {colour: f"c{i}" for i, colour in enumerate(COLOURS)}
_WIDTH = 4.6
"""Inches: as wide as a column of the page and, with letters of 10 points, still read on a phone."""

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # letters stay letters: small, searchable, read aloud
    "svg.hashsalt": "autoprune",
    "text.parse_math": False,  # a name may hold any character
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.titlecolor": TEXT,
    "axes.edgecolor": QUIET,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.facecolor": "none",
}


@dataclass(frozen=True)
class Table:
    """Rows of cells under headings; numbers are formatted already."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""


@dataclass(frozen=True)
class Picture:
    """A figure with a name for its files, a title, a sentence that says what it shows, and its data."""

    name: str
    title: str
    says: str
    figure: Any
    table: Table

    def inline(self, prefix: str) -> str:
        """As SVG for the page: names of colours in place of colours, ids that no other picture of the page has."""
        svg = self._svg("none")
        svg = svg[svg.index("<svg") :]
        svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
        for colour, name in _NAMES.items():
            svg = svg.replace(colour, f"var(--{name})")
        svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', svg)
        svg = re.sub(r"(url\(|href=\")#", rf"\1#{prefix}-", svg)
        label = f' role="img" aria-labelledby="{prefix}-title" aria-describedby="{prefix}-says"'
        return re.sub(r'<svg height="[^"]*"', f"<svg{label}", re.sub(r' width="[^"]*pt"', "", svg, count=1), count=1)

    def save(self, folder: Path) -> None:
        """NAME.svg and NAME.png, on white."""
        (folder / f"{self.name}.svg").write_text(self._svg("white"), "utf-8")
        with _styled():
            self.figure.savefig(folder / f"{self.name}.png", dpi=200, facecolor="white")

    def _svg(self, background: str) -> str:
        buffer = io.StringIO()
        with _styled():
            self.figure.savefig(buffer, format="svg", facecolor=background, metadata={"Date": None})
        return encodable(buffer.getvalue())


def encodable(text: str) -> str:
    """Without what no file can hold: halves of characters, as from names that are not UTF-8."""
    return text.encode("utf-8", "replace").decode()


def named(label: str) -> str:
    """A label that matplotlib shows, whatever is in it; it hides those that begin with "_"."""
    return encodable(f"\N{ZERO WIDTH SPACE}{label}" if label.startswith("_") else label)


def mark(number: int) -> tuple[str, str]:
    """Colour and marker of a series; no two of the first 64 are the same."""
    count = len(COLOURS)
    return COLOURS[number % count], MARKERS[(number + number // count) % len(MARKERS)]


@contextmanager
def axes(columns: int = 1, height: float = 3.0, *, counted: bool = False) -> Iterator[Any]:
    """A figure of one column's width to draw on: its axes, one or an array; `.figure` of which is the figure. To the
    right goes what is `counted`, or any number."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with _styled():
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        found = figure.subplots(1, columns, squeeze=False)[0]
        for axis in found:
            axis.spines[["top", "right"]].set_visible(False)
            axis.grid(axis="y", color=GRID, linewidth=0.8)
            axis.set_axisbelow(True)
            axis.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10], integer=counted, min_n_ticks=1))
        yield found[0] if columns == 1 else found


@contextmanager
def _styled() -> Iterator[None]:
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        yield


def log_axis(axis: Any, which: str, values: Sequence[float]) -> None:
    """A logarithmic scale with round numbers, where the values ask for one: all positive, and far apart."""
    low, high = min(values), max(values)
    if low <= 0 or high < 4 * low:
        return
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    own = axis.xaxis if which == "x" else axis.yaxis
    getattr(axis, f"set_{which}scale")("log")
    decades = math.log10(high / low)
    steps = (1,) if decades > 3 else (1, 2, 5) if decades > 0.8 else (1, 1.5, 2, 3, 5, 7)
    own.set_major_locator(LogLocator(subs=steps))
    own.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    own.set_minor_formatter(NullFormatter())


def check_matplotlib() -> None:
    """Refuse to start work whose pictures could not be drawn."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise AutopruneError("pictures need matplotlib", remedy="run: pip install 'autoprune[figures]'") from None
