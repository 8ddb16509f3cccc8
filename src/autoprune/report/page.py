"""Sections → one HTML file with everything in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from importlib.resources import files
from typing import Any

from autoprune.errors import AutopruneError
from autoprune.figures.picture import check_matplotlib
from autoprune.report.samples import Token
from autoprune.report.section import Section
from autoprune.strict_json import strict_json

GENERATOR = '<meta name="generator" content="autoprune'
"""By which a page of ours is known."""

_WORSE, _BETTER = 5.0, 2.0  # nats at which a colour is full


def check_libraries() -> None:
    """Refuse to start work whose page could not be made."""
    check_matplotlib()
    try:
        import jinja2  # noqa: F401
    except ImportError:
        raise AutopruneError("a report needs jinja2", remedy="run: pip install 'autoprune[figures]'") from None


def page(title: str, sections: Sequence[Section], problems: Sequence[str]) -> str:
    """The page; every text in it is escaped."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=False)
    environment.filters |= {"json": _json, "shade": _shade, "shown": _shown}
    own = files("autoprune.report")
    template = environment.from_string((own / "page.html.j2").read_text("utf-8"))
    return template.render(
        title=title,
        sections=sections,
        problems=problems,
        made=f"Made by autoprune {metadata.version('autoprune')} on {datetime.now(UTC):%Y-%m-%d}.",
        generator=_trusted(f'{GENERATOR} {metadata.version("autoprune")}">'),
        style=_trusted((own / "style.css").read_text("utf-8")),
        script=_trusted((own / "script.js").read_text("utf-8")),
    )


def _trusted(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)


def _json(value: Mapping[str, Any]) -> Any:
    """JSON that cannot end the element it is in."""
    return _trusted(strict_json(value).replace("<", "\\u003c"))


def _shade(token: Token) -> str:
    """The background of a token."""
    name, full = ("worse", _WORSE) if token.lost >= 0 else ("better", _BETTER)
    return f"background: rgba(var(--{name}), {min(abs(token.lost) / full, 1.0) * 0.9:.2f})"


def _shown(text: str) -> str:
    """With blanks at the ends and line breaks made visible."""
    return f"“{text}”".replace("\n", "⏎")
