"""One self-contained page about prunes, diagnoses, sweeps and searches: pictures that explain, and what they are made
from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from autoprune.data import check_source
from autoprune.errors import AutopruneError
from autoprune.figures.picture import encodable
from autoprune.files import SIDECAR, check_output, check_space, finished_folder, write_text, writing_to
from autoprune.progress import Progress, Silent
from autoprune.report.page import GENERATOR, check_libraries, page
from autoprune.report.reading import WANTED, read
from autoprune.report.samples import Wanted, samples
from autoprune.report.section import Section

SAMPLES, SAMPLE_TOKENS = 2, 160
"""Texts that are shown, and how long they are, unless told."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was written: the page, the folder with a PNG and an SVG of each figure, and what could not be shown."""

    page: str
    figures: str
    sections: list[str]
    problems: list[str]


def report(
    paths: Sequence[str | Path],
    *,
    out: str | Path,
    title: str = "",
    data: str | None = None,
    count: int = SAMPLES,
    against: str | None = None,
    device: str = "auto",
    force: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write a page about what is at `paths`: folders that prune, diagnose, sweep and search have written.

    A prune is also shown on `count` texts as the unpruned and the pruned model read them, from `data` ("file:PATH",
    "hub:NAME"), else such as the unpruned model writes itself; that is the one it was made from, or `against`. What
    cannot be read is said on the page. Beside `out`, a folder STEM-figures gets each figure as PNG and SVG. Raises
    AutopruneError where nothing can be shown, or `out` is a file that is no such page and not `force`.
    """
    progress, file = progress or Silent(), Path(out)
    check_libraries()
    figures = file.with_name(f"{file.stem}-figures")
    _check_page(file, force)
    _check_figures(figures)
    check_space(file, 0)
    if data is not None:
        check_source(data)
    sections, problems, without_text = [], [], []
    for path in map(Path, dict.fromkeys(map(str, paths))):
        progress.stage(f"reading {path}", 1)
        try:
            section = read(path)
        except AutopruneError as error:
            if len(paths) == 1:
                raise
            problems.append(str(error))
            continue
        if section.kind == "prune" and count and not section.missing:
            wanted = Wanted(data=data, count=count, length=SAMPLE_TOKENS, against=against, device=device)
            try:
                found = samples(path, wanted, progress)
                says = f"{section.says} {found.loss}"
                section = replace(section, says=says, samples=found.texts, samples_say=found.says)
            except AutopruneError as error:
                section = replace(section, missing=[f"No text is shown: {error}."])
                without_text.append(f"texts of {path}: {error}")
        sections.append(section)
    if not sections:
        raise AutopruneError("nothing can be shown", where="; ".join(problems) or "no path was given", remedy=WANTED)
    progress.stage(f"writing {file}", 1)
    text = page(title or _title(sections), sections, problems)
    with writing_to(file):
        write_text(file, encodable(text))
    _write_figures(figures, file, sections)
    return Report(
        page=str(file),
        figures=str(figures),
        sections=[section.title for section in sections],
        problems=[*problems, *without_text],
    )


def _title(sections: Sequence[Section]) -> str:
    return sections[0].title if len(sections) == 1 else "autoprune report"


def _check_page(file: Path, force: bool) -> None:
    """Refuse to replace what is not a page of ours."""
    if file.is_dir():
        raise AutopruneError("is a folder, not a file", where=str(file), remedy="name a file, as report.html")
    if file.exists() and not force:
        with file.open("rb") as opened:
            if GENERATOR.encode() not in opened.read(4096):
                raise AutopruneError(
                    "the file is not such a page", where=str(file), remedy="choose another --out, or add --force"
                )


def _check_figures(folder: Path) -> None:
    """Refuse to replace a folder that is not one of figures: it may hold a model."""
    check_output(folder, force=True)
    if folder.is_dir() and any(folder.iterdir()):
        try:
            own = "figures_of" in json.loads((folder / SIDECAR).read_text("utf-8"))
        except (OSError, ValueError):
            own = False
        if not own:
            raise AutopruneError(
                "the folder for the figures holds something else", where=str(folder), remedy="choose another --out"
            )


def _write_figures(folder: Path, file: Path, sections: Sequence[Section]) -> None:
    """PNG and SVG of each figure; with several sections, in a folder for each."""
    with finished_folder(folder) as unfinished:
        (unfinished / SIDECAR).write_text(json.dumps({"format": 1, "figures_of": file.name}) + "\n", "utf-8")
        for number, section in enumerate(sections, 1):
            place = unfinished if len(sections) == 1 else unfinished / f"{number}-{section.kind}"
            place.mkdir(exist_ok=True)
            for picture in section.pictures:
                picture.save(place)


__all__ = ["Report", "report"]
