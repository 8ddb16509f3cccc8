"""Everything a search has tried, in one SQLite file: what a report says comes from here.

What a language model replied and what a rung measured is written as soon as it is known, since it has cost something;
what follows from a batch of steps is one transaction. A search is a function of its settings and of those replies and
figures (chance is drawn anew from the seed and the number of each step), so one that was killed replays what is here,
loses at most the candidate in flight, and ends with the archive that an uninterrupted one would have had.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoprune.errors import AutopruneError
from autoprune.search.protocol import Answer, Outcome
from autoprune.search.reply import sound

FORMAT = 1

_PATIENCE_S = 10
"""Seconds a write waits for another process."""

_AGAIN = "check the disk and its free space; the same command goes on where it was"

_TABLES = """
CREATE TABLE run (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE node (
    digest TEXT PRIMARY KEY,
    canonical TEXT NOT NULL,
    traits TEXT NOT NULL,
    step INTEGER NOT NULL,
    same_as TEXT REFERENCES node
) WITHOUT ROWID;
CREATE TABLE edge (
    step INTEGER PRIMARY KEY,
    child TEXT NOT NULL REFERENCES node,
    operator TEXT NOT NULL,
    diagnosis TEXT NOT NULL,
    hypothesis TEXT NOT NULL,
    predicted REAL,
    observed REAL,
    noise REAL,
    verdict TEXT NOT NULL
);
CREATE TABLE parent (
    step INTEGER NOT NULL REFERENCES edge,
    position INTEGER NOT NULL,
    digest TEXT NOT NULL REFERENCES node,
    PRIMARY KEY (step, position)
) WITHOUT ROWID;
CREATE TABLE evaluation (
    digest TEXT NOT NULL,
    rung TEXT NOT NULL,
    damage REAL,
    parts TEXT NOT NULL,
    figures TEXT NOT NULL,
    signature TEXT NOT NULL,
    seconds REAL NOT NULL,
    peak_bytes INTEGER,
    error TEXT NOT NULL,
    PRIMARY KEY (digest, rung)
) WITHOUT ROWID;
CREATE TABLE call (
    step INTEGER NOT NULL,
    round INTEGER NOT NULL,
    prompt TEXT NOT NULL,
    reply TEXT NOT NULL,
    model TEXT NOT NULL,
    tokens_in INTEGER,
    tokens_out INTEGER,
    seconds REAL NOT NULL,
    price_usd REAL,
    error TEXT NOT NULL,
    PRIMARY KEY (step, round)
) WITHOUT ROWID;
CREATE TABLE proposal (step INTEGER PRIMARY KEY, outcome TEXT NOT NULL, detail TEXT NOT NULL, digest TEXT);
"""

# SQLite does not notice a bit that has flipped in a text or a number: each row has a checksum here.
_SEAL = "seal"
_MAKE_SEAL = f"""
CREATE TABLE {_SEAL} (of TEXT NOT NULL, row TEXT NOT NULL, crc32 INTEGER NOT NULL, PRIMARY KEY (of, row)) WITHOUT ROWID
"""

_SCHEMA = "SELECT type, name, sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite_autoindex%' ORDER BY name"

_UNREADABLE = (sqlite3.Error, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""What reading raises where the values are not as they were written."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """What a proposer was asked, and what it replied; `round` 1 is a repair."""

    step: int
    round: int
    prompt: str
    answer: Answer


@dataclass(frozen=True, kw_only=True)
class Node:
    """A program that passed the check; `same_as` is an earlier one that keeps the same weights."""

    digest: str
    canonical: str
    traits: tuple[str, ...]
    step: int
    same_as: str | None = None


@dataclass(frozen=True, kw_only=True)
class Edge:
    """A step of reasoning from `parents` to `child`. Effects are nats a token, negative where the child is better;
    `noise` is the standard error of the observed one."""

    step: int
    child: str
    parents: tuple[str, ...]
    operator: str
    diagnosis: str = ""
    hypothesis: str = ""
    predicted: float | None = None
    observed: float | None = None
    noise: float | None = None
    verdict: str = ""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a rung of the scorer said of a program."""

    digest: str
    rung: str
    outcome: Outcome


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """What became of a step: the digest of the program where it passed the check, and in any case the outcome."""

    step: int
    outcome: str
    detail: str = ""
    digest: str | None = None


class Archive:
    """Reads and writes the file. Only one process may write; any number may read meanwhile."""

    def __init__(self, connection: sqlite3.Connection, path: Path):
        self._connection, self.path = connection, path

    @classmethod
    def open(cls, path: Path) -> Archive:
        """The archive at a path, made if it is not there; refused where it is damaged or of another format."""
        try:
            connection = sqlite3.connect(path, isolation_level=None, timeout=_PATIENCE_S)
        except sqlite3.Error as error:
            raise _refusal(error, path) from None
        archive = cls(connection, path)
        try:
            for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
                archive._rows(f"PRAGMA {pragma}")
            archive._prepare()
            archive._seal()
        except BaseException:
            connection.close()
            raise
        return archive

    @classmethod
    @contextmanager
    def snapshot(cls, path: Path) -> Iterator[Archive]:
        """The archive as it is at this moment, to be read only; a search may be at work on it, and the folder may be
        one that cannot be written. Whatever is wrong with it is an AutopruneError."""
        copy = sqlite3.connect(":memory:", isolation_level=None)
        try:
            _copy(path, copy)
            archive = cls(copy, path)
            archive._prepare()
            yield archive
        except AutopruneError:
            raise
        except _UNREADABLE as error:
            raise _damaged(path, str(error)) from None
        finally:
            copy.close()

    def _rows(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a statement; what fails, as on a full disk or in a damaged file, is an AutopruneError."""
        try:
            return self._connection.execute(statement, values).fetchall()
        except (sqlite3.Error, UnicodeDecodeError) as error:  # it may quote a damaged text
            raise _refusal(error, self.path) from None

    def _prepare(self) -> None:
        version = self._rows("PRAGMA user_version")[0][0]
        if version == FORMAT:
            self._require_own_tables()
            return
        if version or self._rows("SELECT count(*) FROM sqlite_master")[0][0]:
            raise AutopruneError(
                f"an archive of format {version}, not {FORMAT}", where=str(self.path), remedy="give another --run"
            )
        with self.transaction():
            for statement in (*_TABLES.split(";"), _MAKE_SEAL):
                self._rows(statement)
            self._rows(f"PRAGMA user_version = {FORMAT}")

    def _require_own_tables(self) -> None:
        """Refuse tables, views or triggers that are not ours, whose SQL would run with our queries, and values of other
        types than a column's, which SQLite would take."""
        own = sqlite3.connect(":memory:")
        own.executescript(f"{_TABLES};{_MAKE_SEAL}")
        expected, found = own.execute(_SCHEMA).fetchall(), self._rows(_SCHEMA)
        own.close()
        if found not in (expected, [row for row in expected if row[1] != _SEAL]):  # older ones have no seals
            raise _damaged(self.path, "it has other tables than a search makes")
        for _, table, *_ in found:
            columns = self._rows(f"PRAGMA table_info({table})")
            wrong = (
                f"typeof({name}) NOT IN ('{kind.lower()}', '{kind.lower() if required or key else 'null'}')"
                for _, name, kind, required, _, key in columns
            )
            if self._rows(f"SELECT 1 FROM {table} WHERE {' OR '.join(wrong)} LIMIT 1"):
                raise _damaged(self.path, f"a value in {table} is of another type")

    def close(self) -> None:
        self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is written within is there afterwards, or nothing of it."""
        self._rows("BEGIN IMMEDIATE")
        try:
            yield
            self._rows("COMMIT")
        except BaseException:
            if self._connection.in_transaction:  # a full disk has ended it already
                self._rows("ROLLBACK")
            raise
        self._empty_log()

    def _empty_log(self) -> None:
        """SQLite takes a damaged write-ahead log for one that ends there, and silently loses what follows: so what has
        cost something does not stay in it. Where that fails, as on a full disk or while another process reads, the
        next transaction gets it over."""
        with suppress(AutopruneError):
            self._rows("PRAGMA busy_timeout = 0")
            self._rows("PRAGMA wal_checkpoint(TRUNCATE)")
        self._rows(f"PRAGMA busy_timeout = {_PATIENCE_S * 1000}")

    def is_sound(self) -> bool:
        """Whether SQLite finds the file whole, every reference in it leads somewhere, and every row is as it was
        written."""
        try:
            self._check()
        except AutopruneError:
            return False
        return True

    # ---------------------------------------------------------------- checksums

    def _seal(self) -> None:
        """Check all rows, and have those that are written from now on sealed with a checksum."""
        if not self._check():  # from before there were any
            with self.transaction():
                self._rows(_MAKE_SEAL)
                for table, key, crc in self._sums():
                    self._rows(f"INSERT INTO {_SEAL} SELECT '{table}', {key}, {crc} FROM {table}")
        for table, key, crc in self._sums("NEW."):
            self._rows(
                f"CREATE TEMP TRIGGER seal_{table} AFTER INSERT ON main.{table} BEGIN "
                f"INSERT OR REPLACE INTO {_SEAL} VALUES ('{table}', {key}, {crc}); END"
            )
        for table, key, _ in self._sums("OLD."):
            self._rows(
                f"CREATE TEMP TRIGGER unseal_{table} AFTER DELETE ON main.{table} BEGIN "
                f"DELETE FROM {_SEAL} WHERE of = '{table}' AND row = {key}; END"
            )

    def _check(self) -> bool:
        """Refuse a file that is damaged. False where it has no checksums."""
        self._connection.create_function("crc32", -1, _crc32, deterministic=True)
        whole = self._rows("PRAGMA integrity_check") == [("ok",)] and not self._rows("PRAGMA foreign_key_check")
        has_seals = bool(self._rows("SELECT 1 FROM sqlite_master WHERE name = ?", (_SEAL,)))
        self._rows("BEGIN")  # of one moment: another process may be writing
        for table, key, crc in self._sums() if has_seals else ():
            sealed = f"SELECT row, crc32 FROM {_SEAL} WHERE of = '{table}'"
            found = f"SELECT {key}, {crc} FROM {table}"
            whole = whole and not self._rows(f"SELECT * FROM ({sealed} EXCEPT {found}) UNION ALL "
                                             f"SELECT * FROM ({found} EXCEPT {sealed})")  # fmt: skip
        self._rows("COMMIT")
        if not whole:
            raise _damaged(self.path, "its rows are not as they were written")
        return has_seals

    def _sums(self, of: str = "") -> Iterator[tuple[str, str, str]]:
        """By table, expressions of a row's key and checksum."""
        for table in ("run", "node", "edge", "parent", "evaluation", "call", "proposal"):
            columns = self._rows(f"PRAGMA table_info({table})")
            key = " || ' ' || ".join(f"{of}{name}" for _, name, *_, position in columns if position)
            yield table, f"CAST({key} AS TEXT)", f"crc32({', '.join(f'{of}{name}' for _, name, *_ in columns)})"

    # ---------------------------------------------------------------- writing

    def set(self, name: str, value: Any) -> None:
        self._rows("INSERT OR REPLACE INTO run VALUES (?, ?)", (name, json.dumps(value)))

    def add_call(self, call: Call) -> None:
        """At once, outside of the step's transaction."""
        answer = call.answer
        row = (
            call.step,
            call.round,
            sound(call.prompt),
            sound(answer.text),
            answer.model,
            answer.tokens_in,
            answer.tokens_out,
            answer.seconds,
            answer.price_usd,
            sound(answer.error),
        )
        with self.transaction():
            self._rows("INSERT OR REPLACE INTO call VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)

    def add_node(self, node: Node) -> None:
        self._rows(
            "INSERT INTO node VALUES (?, ?, ?, ?, ?)",
            (node.digest, node.canonical, json.dumps(node.traits), node.step, node.same_as),
        )

    def add_edge(self, edge: Edge) -> None:
        self._rows(
            "INSERT INTO edge VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                edge.step,
                edge.child,
                edge.operator,
                sound(edge.diagnosis),
                sound(edge.hypothesis),
                edge.predicted,
                edge.observed,
                edge.noise,
                edge.verdict,
            ),
        )
        rows = [(edge.step, position, digest) for position, digest in enumerate(edge.parents)]
        for row in rows:
            self._rows("INSERT INTO parent VALUES (?, ?, ?)", row)

    def add_evaluation(self, evaluation: Evaluation) -> None:
        """At once, outside of the step's transaction."""
        outcome = evaluation.outcome
        row = (
            evaluation.digest,
            evaluation.rung,
            outcome.damage,
            json.dumps(outcome.parts),
            json.dumps(dict(outcome.figures)),
            outcome.signature,
            outcome.seconds,
            outcome.peak_bytes,
            sound(outcome.error),
        )
        with self.transaction():
            self._rows("INSERT OR REPLACE INTO evaluation VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)

    def add_proposal(self, proposal: Proposal) -> None:
        row = (proposal.step, proposal.outcome, sound(proposal.detail), proposal.digest)
        self._rows("INSERT INTO proposal VALUES (?, ?, ?, ?)", row)

    # ---------------------------------------------------------------- reading

    def get(self, name: str, default: Any = None) -> Any:
        rows = self._rows("SELECT value FROM run WHERE name = ?", (name,))
        return json.loads(rows[0][0]) if rows else default

    def nodes(self) -> list[Node]:
        """In the order in which they were found."""
        rows = self._rows("SELECT digest, canonical, traits, step, same_as FROM node ORDER BY step, digest")
        return [Node(digest=d, canonical=c, traits=tuple(json.loads(t)), step=s, same_as=a) for d, c, t, s, a in rows]

    def edges(self) -> list[Edge]:
        parents: dict[int, list[str]] = {}
        for step, digest in self._rows("SELECT step, digest FROM parent ORDER BY step, position"):
            parents.setdefault(step, []).append(digest)
        names = "step, child, operator, diagnosis, hypothesis, predicted, observed, noise, verdict"
        return [
            Edge(parents=tuple(parents.get(row[0], ())), **dict(zip(names.split(", "), row, strict=True)))
            for row in self._rows(f"SELECT {names} FROM edge ORDER BY step")
        ]

    def evaluations(self) -> dict[tuple[str, str], Outcome]:
        """All outcomes, by digest and rung."""
        names = "damage, parts, figures, signature, seconds, peak_bytes, error"
        return {
            (digest, rung): Outcome(
                damage=damage,
                parts=tuple(json.loads(parts)),
                figures=json.loads(figures),
                signature=signature,
                seconds=seconds,
                peak_bytes=peak_bytes,
                error=error,
            )
            for digest, rung, damage, parts, figures, signature, seconds, peak_bytes, error in self._rows(
                f"SELECT digest, rung, {names} FROM evaluation ORDER BY digest, rung"
            )
        }

    def calls(self, step: int | None = None) -> list[Call]:
        names = ("text", "model", "seconds", "tokens_in", "tokens_out", "price_usd", "error")
        rows = self._rows(
            "SELECT step, round, prompt, reply, model, seconds, tokens_in, tokens_out, price_usd, error FROM call "
            "WHERE ?1 IS NULL OR step = ?1 ORDER BY step, round",
            (step,),
        )
        return [
            Call(step=step, round=turn, prompt=prompt, answer=Answer(**dict(zip(names, answer, strict=True))))
            for step, turn, prompt, *answer in rows
        ]

    def cost(self) -> tuple[int, float]:
        """Tokens of all prompts and replies, and US dollars, as far as they are known."""
        statement = "SELECT TOTAL(tokens_in) + TOTAL(tokens_out), TOTAL(price_usd) FROM call"
        tokens, usd = self._rows(statement)[0]
        return int(tokens), usd

    def proposals(self) -> list[Proposal]:
        rows = self._rows("SELECT step, outcome, detail, digest FROM proposal ORDER BY step")
        return [Proposal(step=s, outcome=o, detail=d, digest=g) for s, o, d, g in rows]


def _crc32(*values: object) -> int:
    """Of a row."""
    return zlib.crc32(repr(values).encode(errors="backslashreplace"))


def _damaged(path: Path, why: str) -> AutopruneError:
    return AutopruneError(
        f"cannot be used as an archive ({why})", where=str(path), remedy="restore it from a copy, or give another --run"
    )


def _refusal(error: sqlite3.Error | UnicodeDecodeError, path: Path) -> AutopruneError:
    """What to tell of an error of SQLite's: damage, or a disk that fails."""
    reason = getattr(error, "sqlite_errorcode", None)
    if reason is None or reason & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR):
        return _damaged(path, str(error))
    return AutopruneError(f"cannot be read or written ({error})", where=str(path), remedy=_AGAIN)


def _copy(path: Path, copy: sqlite3.Connection) -> None:
    """All pages of an archive, with those that are still in its write-ahead log."""
    for how in ("mode=ro", "immutable=1"):  # the first one needs a writable folder if there is a log
        try:
            source = sqlite3.connect(f"{path.resolve().as_uri()}?{how}", uri=True, timeout=10)
            try:
                source.backup(copy)
            finally:
                source.close()
            return
        except sqlite3.OperationalError:
            if how == "immutable=1":
                raise
