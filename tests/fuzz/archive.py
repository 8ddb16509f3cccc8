"""Target: the archive of a search, a SQLite file → account, reasoning, graph, and (of one in forty) the page."""

from __future__ import annotations

import html.parser
import json
import sqlite3
import tempfile
import warnings
import zlib
from contextlib import closing
from functools import cache
from pathlib import Path
from random import Random

from autoprune.errors import AutopruneError, printable
from autoprune.report.page import page
from autoprune.report.searching import searching
from autoprune.scoring.scorer import FRESH
from autoprune.search.account import account, best, leader, reasoning
from autoprune.search.archive import Archive
from fake_search import RUNGS, searched
from fuzz.outcome import ACCEPTED, refused

_PAGES = 40

_HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'{{7*7}}\x1b]0;owned\x07\u202e&amp;"

_VALUES: tuple[object, ...] = (
    *(None, 0, -1, 1, 2**63 - 1, -(2**63), 0.0, -0.5, 1e308, -1e308, float("inf"), 1e-320, "", "x", "0", _HOSTILE),
    *(
        b"",
        b"\xff\x00",
        b"[]",
        b"text",
        "[]",
        "{}",
        "null",
        "3",
        '"abc"',
        "[1, 2]",
        "[1e999, NaN]",
        '["a"]',
        '{"a": 1}',
    ),
    *("[" * 3_000, '{"a":' * 2_000, "9" * 5_000, f"[{'9' * 5_000}]", "\ud7ff", '"\\ud800"', '["\\ud800"]', "\x00"),
    *('[[["x"]]]', json.dumps({"model": _HOSTILE}), json.dumps([_HOSTILE] * 3), "x" * 20_000, "full", "confirmed"),
    *("def score(weight):\n    return weight\n", "simplify", "[null, null, null, null]", "[true]", "[{}]"),
)

_STATEMENTS = (
    "DROP TABLE {table}",
    "DELETE FROM {table}",
    "DELETE FROM {table} WHERE {column} = (SELECT {column} FROM {table} LIMIT 1)",
    "ALTER TABLE {table} ADD COLUMN more",
    "ALTER TABLE {table} RENAME COLUMN {column} TO other",
    "CREATE INDEX more ON {table} ({column})",
    "CREATE TRIGGER more AFTER INSERT ON {table} BEGIN SELECT 1; END",
    "DROP TABLE {table}; CREATE VIEW {table} AS WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) "
    "SELECT x AS {column} FROM c",
    "DROP TABLE {table}; CREATE VIRTUAL TABLE {table} USING fts5({column})",
    "PRAGMA user_version = 2",
    "PRAGMA user_version = 0",
    "PRAGMA encoding = 'UTF-16'",
    "UPDATE edge SET child = (SELECT digest FROM parent WHERE parent.step = edge.step)",
    "UPDATE parent SET digest = (SELECT child FROM edge WHERE edge.step = parent.step)",
    "UPDATE node SET same_as = digest",
    "UPDATE evaluation SET rung = 'full'",
    "UPDATE evaluation SET damage = -damage",
    "UPDATE evaluation SET damage = 0.0, parts = '[]'",
    "UPDATE node SET step = 9223372036854775807",
    "UPDATE edge SET observed = 0.1, noise = NULL",
)


@cache
def seeds() -> list[bytes]:
    """A search of a dozen steps without models, and one that has not begun; pages are small, so that files are."""
    with tempfile.TemporaryDirectory() as folder:
        searched(Path(folder, "run"), evaluations=12).close()
        Archive.open(Path(folder, "empty.sqlite")).close()
        found = []
        for file in (Path(folder, "run", "archive.sqlite"), Path(folder, "empty.sqlite")):
            with closing(sqlite3.connect(file, isolation_level=None)) as connection:
                connection.execute("UPDATE call SET prompt = 'p' WHERE step > 2")
                connection.executescript("PRAGMA journal_mode = DELETE; PRAGMA page_size = 512; VACUUM")
                found.append(connection.serialize())
    return found


def mutated(data: bytes, rng: Random) -> bytes:
    """A value of a wrong type or size, other tables, or other bytes."""
    if rng.random() < 0.2:
        return _changed_bytes(data, rng)
    connection = sqlite3.connect(":memory:", isolation_level=None)
    try:
        connection.deserialize(data)
        connection.execute("PRAGMA ignore_check_constraints = ON")
        for _ in range(rng.choice((1, 1, 2, 5))):
            _change(connection, rng)
        return connection.serialize()
    except (sqlite3.Error, OverflowError, ValueError, IndexError):
        return _changed_bytes(data, rng)
    finally:
        connection.close()


def _change(connection: sqlite3.Connection, rng: Random) -> None:
    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
    table = rng.choice(tables)
    columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
    column = rng.choice(columns)
    if rng.random() < 0.15:
        connection.executescript(rng.choice(_STATEMENTS).format(table=table, column=column))
        return
    place = rng.randrange(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] + 1)
    one = f" WHERE {column} = (SELECT {column} FROM {table} LIMIT 1 OFFSET {place})"
    some = "" if rng.random() < 0.3 else one
    value = rng.choice(_VALUES)
    if isinstance(value, str) and rng.random() < 0.05:
        value *= 50
    connection.execute(f"UPDATE OR REPLACE {table} SET {column} = ?{some}", (value,))


def _changed_bytes(data: bytes, rng: Random) -> bytes:
    made = bytearray(data)
    for _ in range(rng.choice((1, 2, 8, 64))):
        if made:
            made[rng.randrange(len(made))] = rng.choice((0, 255, 127, rng.randrange(256)))
    if rng.random() < 0.1:
        del made[rng.randrange(len(made) + 1) :]
    return bytes(made)


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="autoprune-fuzz-")


class _Tags(html.parser.HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.tags, self.handlers = list[str](), list[str]()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.handlers += [
            name for name, value in attrs if name.startswith("on") or (value or "").startswith("javascript")
        ]


def check(data: bytes) -> str:
    """Refused in one line, or everything is shown, as text."""
    path = Path(_folder().name, "archive.sqlite")
    path.write_bytes(data)
    try:
        with Archive.snapshot(path) as archive:
            _read(archive)
        if zlib.crc32(data) % _PAGES == 0:
            check_page(path)
    except AutopruneError as error:
        return refused(error)
    return ACCEPTED


def _read(archive: Archive) -> None:
    archive.is_sound()
    told = account(archive, RUNGS, FRESH)
    assert len(told.rows) <= 10 or len(archive.get("finalists")) > 10
    best(archive, RUNGS, FRESH)
    archive.calls()
    try:
        digests = [leader(archive, RUNGS, FRESH)]
    except AutopruneError:
        digests = []
    for digest in [*digests, *(node.digest for node in archive.nodes()[:3])]:
        assert all(printable(line).isprintable() for line in reasoning(archive, RUNGS, digest))


def check_page(path: Path) -> None:
    """No text of the archive becomes a part of the page that does something."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of matplotlib and numpy, about figures that are not finite
        section = searching(path, RUNGS, FRESH)
        text = page(section.title, [section], [])
    found = _Tags(text)
    assert found.tags.count("script") <= 2  # the data of the graph, and ours
    assert "img" not in found.tags
    assert not found.handlers
