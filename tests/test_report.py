"""The page: what it shows of finished, unfinished, damaged and hostile work, and how it behaves in a browser."""

from __future__ import annotations

import html.parser
import json
import re
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

import autoprune
import tiny
from autoprune import prune_blocks
from autoprune.discover import ARCHIVE
from autoprune.errors import AutopruneError
from autoprune.evaluation import evaluate_tokens
from autoprune.files import SIDECAR
from autoprune.models import open_model
from autoprune.report import report
from autoprune.report.samples import sample
from autoprune.search.account import best
from autoprune.search.archive import Archive
from browser import CHROMIUM, Browser
from command import Run
from fake_search import RUNGS, Scripted, searched

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> & \"quotes\" 'too' {{ 7 * 7 }} {% raw %}"


class Page(html.parser.HTMLParser):
    """What a page consists of."""

    VOID = frozenset({"meta", "link", "br", "img", "input"})

    def __init__(self, file: Path):
        super().__init__()
        self.source = file.read_text("utf-8")
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(self.source)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href") and value]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["script"], ["style"]):
            self.text += data


def check(file: Path) -> Page:
    """What holds for every page."""
    page = Page(file)
    assert len(page.ids) == len(set(page.ids)), "two elements have the same id"
    for link in page.links:
        assert link.startswith(("#", "data:")), f"the page needs {link}"
        assert not link.startswith("#") or link[1:] in page.ids, link
    for used in re.findall(r'url\(#([^)]+)\)|aria-(?:labelledby|describedby)="([^"]+)"', page.source):
        assert set("".join(used).split()) <= set(page.ids)
    assert len(page.source) < 5_000_000
    return page


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    folder = tmp_path_factory.mktemp("prune")
    source = tiny.save(folder / "dense")
    autoprune.prune(source, out=folder / "out", sparsity=0.5, calibration=f"file:{text}", sequences=4, length=16)
    return folder / "out"


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search") / "run"
    searched(folder).close()
    return folder


# ---------------------------------------------------------------- what it shows


def test_a_prune(pruned: Path, text: Path, tmp_path: Path):
    made = report([pruned], out=tmp_path / "r.html", data=f"file:{text}", count=2)
    page = check(tmp_path / "r.html")
    record = json.loads((pruned / SIDECAR).read_text())
    assert made.problems == []
    assert "50.0000%" in page.text
    assert "autoprune prune" in page.text
    for layer in record["layers"]:
        assert f"{layer['error']:.4g}" in page.text
        assert layer["name"] in page.text
    assert page.text.count("Mean loss") == 2
    names = {path.name for path in (tmp_path / "r-figures").iterdir()}
    assert names == {SIDECAR} | {
        f"{name}.{end}" for name in ("sparsity", "error", "skewness", "cost") for end in ("png", "svg")
    }
    for svg in (tmp_path / "r-figures").glob("*.svg"):
        ElementTree.parse(svg)
        assert "var(--" not in svg.read_text()


def test_a_search(search: Path, tmp_path: Path):
    report([search], out=tmp_path / "r.html")
    page = check(tmp_path / "r.html")
    archive = Archive.open(search / ARCHIVE)
    for node in archive.nodes():
        assert f'data-id="{node.digest}"' in page.source
    winner = best(archive, RUNGS, "fresh")
    assert winner is not None
    assert f"winner {winner}" in page.text
    drawn = page.source.count('<path class="edge ') - 3  # of the legend
    assert drawn == sum(len(set(edge.parents) - {edge.child}) for edge in archive.edges())


def test_a_sweep_and_a_diagnosis_together(text: Path, tmp_path: Path):
    source = tiny.save(tmp_path / "dense")
    given: dict[str, Any] = {"calibration": f"file:{text}", "sequences": 4, "length": 16}
    autoprune.sweep(source, run=tmp_path / "sweep", data=f"file:{text}", algorithms=["wanda", "magnitude"],
                    sparsities=[0.3, 0.6, "2:4"], eval_sequences=2, eval_length=16, **given)  # fmt: skip
    autoprune.diagnose(source, out=tmp_path / "diagnosis", **given)
    report([tmp_path / "sweep", tmp_path / "diagnosis"], out=tmp_path / "r.html")
    page = check(tmp_path / "r.html")
    for words in ("Perplexity over sparsity", "Divergence over sparsity", "Sensitivity of each block", "2:4"):
        assert words in page.text
    assert (tmp_path / "r-figures" / "1-sweep" / "perplexity.svg").is_file()
    assert (tmp_path / "r-figures" / "2-diagnosis" / "allocation.png").is_file()


def test_losses_of_tokens_are_those_of_an_evaluation(pruned: Path, text: Path):
    dense, own = open_model(pruned.parent / "dense"), open_model(pruned)
    tokens_BL = torch.arange(2 * 24).reshape(2, 24) % 40
    for tokens_L in tokens_BL:
        found = sample(dense.model, own.model, dense.tokenizer, tokens_L)
        both = [evaluate_tokens(opened.model, tokens_L[None]).nats_per_token for opened in (dense, own)]
        assert [found.dense, found.pruned] == pytest.approx(both, rel=1e-5)
        assert "".join(token.text for token in found.tokens) == dense.tokenizer.decode(tokens_L)


# ---------------------------------------------------------------- what cannot be shown


def broken(kind: str, folder: Path, pruned: Path, search: Path) -> Path:
    """A folder with something wrong."""
    path = folder / "broken"
    if kind.startswith("search"):
        shutil.copytree(search, path)
    elif kind.startswith("prune"):
        path.mkdir()
        shutil.copy(pruned / SIDECAR, path)
    else:
        path.mkdir()
    match kind:
        case "foreign":
            (path / "notes.txt").write_text("mine")
        case "prune, cut off":
            file = path / SIDECAR
            file.write_bytes(file.read_bytes()[:700])
        case "prune, of another kind":
            (path / SIDECAR).write_text('{"layers": 3}')
        case "prune, a list":
            (path / SIDECAR).write_text("[]")
        case "prune, binary":
            (path / SIDECAR).write_bytes(b"\xff\x00\xfe")
        case "search, no database":
            (path / ARCHIVE).write_text("nothing")
        case "search, another database":
            (path / ARCHIVE).unlink()
            sqlite3.connect(path / ARCHIVE).execute("CREATE TABLE mine (x)").connection.commit()
        case "search, cut off":
            file = path / ARCHIVE
            file.write_bytes(file.read_bytes()[:5000])
        case "sweep, foreign":
            (path / "sweep.jsonl").write_text('{"mine": 1}\n')
        case "missing":
            path.rmdir()
    return path


BROKEN = ["empty", "foreign", "missing", "prune, cut off", "prune, of another kind", "prune, a list", "prune, binary",
          "search, no database", "search, another database", "search, cut off", "sweep, foreign"]  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_broken_is_told_and_the_rest_is_shown(kind: str, pruned: Path, search: Path, tmp_path: Path, run: Run):
    path = broken(kind, tmp_path, pruned, search)
    alone = run("report", path, "--out", tmp_path / "alone.html")
    assert alone.code == 2
    assert str(path) in alone.error
    assert not (tmp_path / "alone.html").exists()
    assert not (tmp_path / "alone-figures").exists()
    ran = run("report", path, pruned, "--samples", "0", "--out", tmp_path / "r.html", "--json")
    assert ran.code == 0, ran.err
    (problem,) = json.loads(ran.out)["problems"]
    page = check(tmp_path / "r.html")
    assert problem in page.text
    assert "Sparsity of each layer" in page.text


def test_a_search_that_has_not_begun_and_one_that_is_not_finished(tmp_path: Path):
    (tmp_path / "new").mkdir()
    Archive.open(tmp_path / "new" / ARCHIVE).close()
    searched(tmp_path / "half", evaluations=12).close()
    connection = sqlite3.connect(tmp_path / "half" / ARCHIVE)
    connection.execute("DELETE FROM run WHERE name = 'finalists'").connection.commit()
    connection.close()
    report([tmp_path / "new", tmp_path / "half"], out=tmp_path / "r.html")
    page = check(tmp_path / "r.html")
    assert "has hardly begun" in page.text
    assert "there is no winner yet" in page.text
    assert "Show the winner" not in page.text


def test_a_prune_that_was_ended_shows_the_blocks_it_has(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source, solve, calls = tiny.save(tmp_path / "dense"), prune_blocks.solve, []

    def ended(*args: Any, **more: Any) -> Any:
        calls.append(0)
        if len(calls) > 8:
            raise KeyboardInterrupt
        return solve(*args, **more)

    monkeypatch.setattr(prune_blocks, "solve", ended)
    with pytest.raises(KeyboardInterrupt):
        autoprune.prune(source, out=tmp_path / "out", sparsity=0.5, calibration=f"file:{text}", sequences=4, length=16)
    report([tmp_path / "out"], out=tmp_path / "r.html")
    page = check(tmp_path / "r.html")
    assert "Unfinished: 1 blocks are pruned" in page.text
    assert f"--out {tmp_path / 'out'}" in page.text
    assert "model.layers.0.mlp.down_proj" in page.text


def test_without_the_unpruned_model_there_is_no_text_but_all_else(pruned: Path, tmp_path: Path):
    record = json.loads((pruned / SIDECAR).read_text()) | {"model": str(tmp_path / "gone")}
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / SIDECAR).write_text(json.dumps(record))
    made = report([tmp_path / "out"], out=tmp_path / "r.html")
    assert "--against" in made.problems[0]
    page = check(tmp_path / "r.html")
    assert "No text is shown" in page.text
    assert "Output error of each layer" in page.text


def test_a_record_of_an_earlier_version_is_shown_without_what_it_lacks(pruned: Path, tmp_path: Path):
    record = json.loads((pruned / SIDECAR).read_text())
    for layer in record["layers"]:
        for name in ("skewness", "error", "error_by"):
            del layer[name]
    del record["blocks"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / SIDECAR).write_text(json.dumps(record))
    report([tmp_path / "out"], out=tmp_path / "r.html", count=0)
    page = check(tmp_path / "r.html")
    assert "Sparsity of each layer" in page.text
    assert "Output error" not in page.text


def test_hostile_texts_stay_texts(pruned: Path, tmp_path: Path):
    record = json.loads((pruned / SIDECAR).read_text())
    record["model"] = record["algorithm"]["name"] = HOSTILE
    record["notes"] = [HOSTILE]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / SIDECAR).write_text(json.dumps(record))
    program = "def score(weight, input_norm):\n    return abs(weight) * input_norm * 2"
    reply = f"diagnosis: {HOSTILE}\nhypothesis: {HOSTILE}\nprogram:\n```python\n{program}\n```"
    searched(tmp_path / "run", evaluations=1, proposer=Scripted([reply])).close()
    report([tmp_path / "out", tmp_path / "run"], out=tmp_path / "r.html", title=HOSTILE, count=0)
    page = check(tmp_path / "r.html")
    assert "img" not in page.tags
    assert page.tags.count("script") == 2  # the data of the graph, and ours
    assert HOSTILE in page.text
    data = re.search(r'<script type="application/json">(.*?)</script>', page.source, re.S)
    assert data
    assert any(node.get("hypothesis", "").startswith("</script>") for node in json.loads(data[1])["nodes"])


def damaged(change: Any, pruned: Path, tmp_path: Path) -> Path:
    """A copy of a prune's record with something wrong."""
    record = json.loads((pruned / SIDECAR).read_text())
    change(record)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / SIDECAR).write_text(json.dumps(record))
    return tmp_path / "out"


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.pop("allocation"),
        lambda record: record.pop("method"),
        lambda record: record["layers"][0].pop("sparsity"),
        lambda record: record["layers"][0].update(name=3),
        lambda record: record["algorithm"].update(text="def"),
        lambda record: record.update(zeros="many"),
        lambda record: record["blocks"][0].pop("seconds"),
    ],
)
def test_one_field_that_is_wrong_hides_only_what_needs_it(change: Any, pruned: Path, tmp_path: Path):
    report([damaged(change, pruned, tmp_path)], out=tmp_path / "r.html", count=0)
    page = check(tmp_path / "r.html")
    assert "damaged" in page.text
    assert "Skewness of each layer" in page.text


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE evaluation SET damage = 9e999 WHERE rung = 'full'",
        "UPDATE evaluation SET damage = NULL, error = ''",
        "UPDATE evaluation SET seconds = 9e999",
        "UPDATE edge SET predicted = 9e999, observed = 1",
        "DELETE FROM proposal",
        "DELETE FROM evaluation",
        """UPDATE node SET traits = '["$x_{", "_y"]'""",
        "DELETE FROM run WHERE name = 'names'",
        "PRAGMA foreign_keys = OFF; DELETE FROM node WHERE digest IN (SELECT digest FROM node WHERE step > 3 LIMIT 2)",
    ],
)
def test_an_archive_with_odd_figures_is_shown(statement: str, search: Path, tmp_path: Path):
    shutil.copytree(search, tmp_path / "run")
    connection = sqlite3.connect(tmp_path / "run" / ARCHIVE)
    connection.executescript(statement)
    connection.close()
    report([tmp_path / "run"], out=tmp_path / "r.html")
    page = check(tmp_path / "r.html")
    assert "Programs and the steps between them" in page.text
    if CHROMIUM:
        with Browser() as browser:
            browser.open(tmp_path / "r.html")
            browser.value("document.querySelectorAll('.graph .node').forEach(n => n.dispatchEvent(new Event('click')))")
            assert browser.problems == []


@pytest.mark.parametrize("name", ["$x_{$", "_hidden", "\udcff half", "#&%~^"])
def test_any_name_can_be_drawn(name: str, pruned: Path, tmp_path: Path):
    def change(record: dict[str, Any]) -> None:
        record["model"] = name
        for layer in record["layers"]:
            layer["name"] += name

    report([damaged(change, pruned, tmp_path)], out=tmp_path / "r.html", count=0)
    check(tmp_path / "r.html")


def test_a_sweep_that_was_ended_says_what_is_to_come(text: Path, tmp_path: Path):
    source = tiny.save(tmp_path / "dense")
    given: dict[str, Any] = {"calibration": f"file:{text}", "sequences": 4, "length": 16}
    autoprune.sweep(source, run=tmp_path / "run", data=f"file:{text}", algorithms=["wanda", "magnitude"],
                    sparsities=[0.3, 0.6], eval_sequences=2, eval_length=16, **given)  # fmt: skip
    file = tmp_path / "run" / "sweep.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    points = [line for line in lines if line.startswith('{"point"')]
    file.write_text("".join(line for line in lines if line not in points[2:]) + '{"point": {"mine": 1}}\n')
    report([tmp_path / "run"], out=tmp_path / "r.html")
    page = check(tmp_path / "r.html")
    assert "Unfinished: 2 points are to come" in page.text
    assert "1 points cannot be read" in page.text


# ---------------------------------------------------------------- files


def test_a_model_beside_the_page_is_not_taken_for_its_figures(pruned: Path, tmp_path: Path, run: Run):
    shutil.copytree(pruned, tmp_path / "r-figures")
    ran = run("report", pruned, "--samples", "0", "--out", tmp_path / "r.html")
    assert "holds something else" in ran.error
    assert list((tmp_path / "r-figures").glob("*.safetensors"))
    assert not (tmp_path / "r.html").exists()


def test_its_own_pages_are_replaced_and_no_others(pruned: Path, tmp_path: Path, run: Run):
    given = ("report", pruned, "--samples", "0", "--out", tmp_path / "r.html")
    assert run(*given).code == 0
    assert run(*given).code == 0
    (tmp_path / "r.html").write_text("mine")
    assert "not such a page" in run(*given).error
    assert (tmp_path / "r.html").read_text() == "mine"
    assert run(*given, "--force").code == 0
    shutil.rmtree(tmp_path / "r-figures")
    (tmp_path / "r-figures").mkdir()
    (tmp_path / "r-figures" / "mine.txt").write_text("mine")
    assert run(*given).code == 2
    assert (tmp_path / "r-figures" / "mine.txt").exists()


def test_a_folder_is_no_page(pruned: Path, tmp_path: Path, run: Run):
    assert "is a folder" in run("report", pruned, "--out", tmp_path).error


def test_missing_libraries_are_named(pruned: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert "autoprune[figures]" in run("report", pruned, "--out", tmp_path / "r.html").error


def test_nothing_to_show_is_an_error():
    with pytest.raises(AutopruneError, match="no path was given"):
        report([], out="r.html")


# ---------------------------------------------------------------- in a browser

needs_browser = pytest.mark.skipif(not CHROMIUM, reason="no Chromium here")


@pytest.fixture
def browser() -> Iterator[Browser]:
    with Browser() as opened:
        yield opened


@needs_browser
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_opens_without_a_complaint_at_any_width(
    width: int, dark: bool, pruned: Path, search: Path, text: Path, tmp_path: Path, browser: Browser
):
    report([search, pruned], out=tmp_path / "r.html", data=f"file:{text}", count=1)
    browser.open(tmp_path / "r.html", width, dark=dark)
    assert browser.problems == []
    assert browser.value("document.documentElement.scrollWidth") <= width
    colour = browser.value("getComputedStyle(document.body).backgroundColor")
    assert colour == ("rgb(18, 23, 29)" if dark else "rgb(255, 255, 255)")
    assert browser.value("getComputedStyle(document.querySelector('figure svg text')).fill") != "rgb(0, 0, 0)"


@needs_browser
def test_a_click_and_keys_show_programs(search: Path, tmp_path: Path, browser: Browser):
    report([search], out=tmp_path / "r.html")
    archive = Archive.open(search / ARCHIVE)
    browser.open(tmp_path / "r.html")
    winner = best(archive, RUNGS, "fresh")
    assert browser.value("document.querySelector('.panel h4').textContent").endswith(str(winner))
    nodes = {node.digest: node for node in archive.nodes()}
    by_step = {edge.child: edge for edge in archive.edges() if edge.parents}
    child = next(edge for edge in by_step.values() if edge.observed is not None)
    browser.click(f'.graph .node[data-id="{child.child}"]')
    shown = browser.value("document.querySelector('.panel').textContent")
    assert nodes[child.child].canonical in shown
    assert child.diagnosis in shown
    assert child.verdict in shown
    assert child.parents[0][:8] in shown
    browser.value(f"document.querySelector('.graph .node[data-id=\"{child.child}\"]').focus()")
    browser.press("ArrowUp")
    assert nodes[child.parents[0]].canonical in browser.value("document.querySelector('.panel').textContent")
    browser.press("Home")
    browser.press("ArrowRight")
    second = browser.value("document.querySelectorAll('.graph .node')[1].dataset.id")
    assert browser.value("document.activeElement.dataset.id") == second
    assert browser.value("document.activeElement.getAttribute('aria-pressed')") == "true"
    assert browser.value("document.querySelectorAll('.graph .node[tabindex=\"0\"]').length") == 1
    assert browser.problems == []
