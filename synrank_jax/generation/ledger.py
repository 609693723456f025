"""The ledger of a run: every answer once, in SQLite, whatever kills the process.

Rows are only ever added. An answer is a row whether it is valid or not; that a query has one valid
answer for each of its parts, and no more, is a constraint of the database. A part is what one call
asks for: the whole list, or one level.

SQLite in WAL mode with synchronous=FULL: a committed row survives the process and the machine.
`benchmarks/generation.py` compares it with JSON lines and fsync.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from synrank_jax.errors import UserError
from synrank_jax.generation.backend import Failure

FILE = "ledger.sqlite"
SCHEMA = """
CREATE TABLE IF NOT EXISTS identity (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS queries (
  query_id TEXT PRIMARY KEY, query TEXT NOT NULL, place INTEGER UNIQUE) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS answers (
  query_id TEXT NOT NULL, part INTEGER NOT NULL, attempt INTEGER NOT NULL,
  failure TEXT, message TEXT, passages TEXT,
  prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, at REAL NOT NULL,
  PRIMARY KEY (query_id, part, attempt)) WITHOUT ROWID;
CREATE UNIQUE INDEX IF NOT EXISTS one_valid_answer ON answers (query_id, part)
  WHERE failure IS NULL;
CREATE INDEX IF NOT EXISTS by_time ON answers (at);
"""
PAGE = 1000
RECENT_S = 600
# The same request would fail again: a query with this failure is not tried further.
FINAL = Failure.CONTEXT_TOO_LONG


class Query(NamedTuple):
    """A query to write a list for."""

    query_id: str
    query: str


@dataclass(frozen=True)
class Row:
    """An answer in the ledger."""

    query_id: str
    part: int
    attempt: int
    failure: str | None
    """Failure class; None: the answer is valid."""
    message: str | None
    """What was wrong."""
    passages: str | None
    """JSON list of [title, text] in the order of the part's slots, of a valid answer."""
    prompt_tokens: int
    completion_tokens: int
    at: float
    """Seconds since 1970."""


@dataclass(frozen=True)
class Status:
    """How far a run is."""

    queries: int
    valid: int
    """Queries with a valid answer for every part."""
    failed: int
    """Queries without, whose attempts are used up."""
    answers: int
    """Valid or not."""
    failures: dict[str, int]
    """Failure class -> answers."""
    failed_queries: dict[str, int]
    """Class of its last failure -> queries that are given up."""
    prompt_tokens: int
    completion_tokens: int
    lists_per_s: float
    """Over the last ten minutes of work."""


class Ledger:
    """An open ledger; use it from one thread. Rows are kept in memory until `flush`."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """Open or begin a ledger.

        Raises:
            UserError: there is none to read, or the file is none.
        """
        self._path, self._waiting = path, list[Row]()
        if read_only and not path.is_file():
            raise UserError(f"{path}: no such ledger; `generate --config` begins one")
        mode = "ro" if read_only else "rwc"
        try:
            with ExitStack() as failed:
                self._db = sqlite3.connect(
                    f"file:{_quoted(path)}?mode={mode}", uri=True, isolation_level=None
                )
                failed.callback(self._db.close)
                if not read_only:
                    self._db.execute("PRAGMA journal_mode = WAL")
                    self._db.execute("PRAGMA synchronous = FULL")
                    self._db.executescript(SCHEMA)
                self._db.execute("SELECT count(*) FROM identity").fetchone()
                failed.pop_all()
        except sqlite3.Error as error:
            raise UserError(
                f"{path}: cannot be used as a ledger ({error}); is it another file, or on a "
                "network file system?"
            ) from error

    def close(self) -> None:
        """Flush and close."""
        try:
            self.flush()
        finally:
            self._db.close()

    def identity(self) -> dict[str, Any]:
        """What `claim` stored; empty for a new ledger."""
        rows = self._db.execute("SELECT name, value FROM identity")
        return {name: json.loads(value) for name, value in rows}

    def claim(self, identity: dict[str, Any]) -> None:
        """Say in a new ledger what its answers are answers to."""
        rows = [(name, json.dumps(value)) for name, value in identity.items()]
        with self._transaction():
            self._db.executemany("INSERT INTO identity VALUES (?, ?)", rows)

    def set_queries(self, queries: Iterable[tuple[object, Query]]) -> None:
        """Set which queries the run is about, in order; answers of others are kept, but not used.

        Args:
            queries: Each with the place it was read from, for errors.

        Raises:
            UserError: an id is there twice, or has another text than its answers are for.
        """
        with self._transaction():
            self._db.execute(
                "CREATE TEMP TABLE asked (place INTEGER PRIMARY KEY, query_id TEXT NOT NULL UNIQUE,"
                " query TEXT NOT NULL)"
            )
            for place, (where, query) in enumerate(queries):
                try:
                    self._db.execute("INSERT INTO asked VALUES (?, ?, ?)", (place, *query))
                except sqlite3.IntegrityError:
                    (first,) = self._db.execute(
                        "SELECT place FROM asked WHERE query_id = ?", (query.query_id,)
                    ).fetchone()
                    raise UserError(
                        f"{where}: query id {query.query_id!r} is written twice (the first is "
                        f"query number {first + 1}); give every query an id of its own"
                    ) from None
            self._refuse_changed_texts()
            # Queries that are left out keep their text, without a place: their answers are for it.
            self._db.execute("UPDATE queries SET place = NULL WHERE place IS NOT NULL")
            self._db.execute(
                "INSERT INTO queries SELECT query_id, query, place FROM asked WHERE true "
                "ON CONFLICT DO UPDATE SET place = excluded.place, query = excluded.query"
            )
            self._db.execute("DROP TABLE asked")

    def _refuse_changed_texts(self) -> None:
        changed = self._db.execute(
            "SELECT query_id, queries.query, asked.query FROM queries JOIN asked USING (query_id) "
            "WHERE queries.query != asked.query AND query_id IN (SELECT query_id FROM answers)"
        ).fetchone()
        if changed:
            query_id, old, new = changed
            raise UserError(
                f"{self._path}: has answers for query {query_id!r} with the text {old!r}, which is "
                f"{new!r} now; use another output folder"
            )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All of it or, after an error, nothing."""
        self._db.execute("BEGIN")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def unfinished(self, parts: int) -> Iterator[Query]:
        """Queries without a valid answer for each of so many parts, in order."""
        last = -1
        while True:
            rows = self._db.execute(
                "SELECT place, query_id, query FROM queries WHERE place > ? AND "
                "(SELECT count(*) FROM answers WHERE answers.query_id = queries.query_id "
                "AND failure IS NULL) < ? ORDER BY place LIMIT ?",
                (last, parts, PAGE),
            ).fetchall()
            for last, query_id, query in rows:  # noqa: B007 (for the next page)
                yield Query(query_id, query)
            if len(rows) < PAGE:
                return

    def answers(self, query_id: str) -> list[Row]:
        """All answers of a query that are on disk, by part and attempt."""
        rows = self._db.execute(
            "SELECT * FROM answers WHERE query_id = ? ORDER BY part, attempt", (query_id,)
        )
        return [Row(*row) for row in rows]

    def any_valid(self) -> bool:
        """Whether there is a valid answer."""
        found = self._db.execute("SELECT 1 FROM answers WHERE failure IS NULL LIMIT 1").fetchone()
        return found is not None

    def add(self, row: Row) -> None:
        """Keep an answer until the next `flush`."""
        self._waiting.append(row)

    def flush(self) -> None:
        """Write what was added: all of it is on disk afterwards.

        Raises:
            UserError: the disk is full.
        """
        if not self._waiting:
            return
        rows = [tuple(asdict(row).values()) for row in self._waiting]
        try:
            with self._transaction():
                self._db.executemany("INSERT INTO answers VALUES (?,?,?,?,?,?,?,?,?)", rows)
        except sqlite3.IntegrityError:
            raise  # an answer twice: a fault of ours
        except sqlite3.DatabaseError as error:
            raise UserError(f"{self._path}: cannot be written ({error})") from error
        self._waiting.clear()

    def valid(self, parts: int) -> Iterator[tuple[Query, list[Row]]]:
        """Queries in order, each with its valid answers by part; unfinished ones are left out."""
        with closing(self._db.cursor()) as cursor:
            cursor.execute(
                "SELECT query_id, query FROM queries WHERE place IS NOT NULL ORDER BY place"
            )
            for query_id, query in cursor:
                rows = self._db.execute(
                    "SELECT * FROM answers WHERE query_id = ? AND failure IS NULL ORDER BY part",
                    (query_id,),
                ).fetchall()
                if len(rows) == parts:
                    yield Query(query_id, query), [Row(*row) for row in rows]

    def failures(self, parts: int) -> Iterator[tuple[Query, Row]]:
        """Unfinished queries that have failures, in order, each with the last one."""
        for query in self.unfinished(parts):
            if rows := [row for row in self.answers(query.query_id) if row.failure]:
                yield query, max(rows, key=lambda row: (row.part, row.attempt))

    def status(self, parts: int, attempts: int) -> Status:
        """Count everything, for queries of so many parts with so many attempts each."""
        one = self._db.execute
        (queries,) = one("SELECT count(*) FROM queries WHERE place IS NOT NULL").fetchone()
        (valid,) = one(
            "SELECT count(*) FROM queries WHERE place IS NOT NULL AND (SELECT count(*) "
            "FROM answers WHERE answers.query_id = queries.query_id AND failure IS NULL) = ?",
            (parts,),
        ).fetchone()
        given_up = one(
            "SELECT failure, count(*) FROM ("
            "  SELECT query_id, part, max(attempt) AS attempt FROM answers GROUP BY query_id, part"
            "  HAVING sum(failure IS NULL) = 0 AND (count(*) >= ? OR sum(failure = ?) > 0)) "
            "JOIN answers USING (query_id, part, attempt) JOIN queries USING (query_id) "
            "WHERE place IS NOT NULL GROUP BY failure ORDER BY count(*) DESC, failure",
            (attempts, FINAL),
        ).fetchall()
        failures = one(
            "SELECT failure, count(*) FROM answers WHERE failure IS NOT NULL GROUP BY failure "
            "ORDER BY count(*) DESC, failure"
        ).fetchall()
        answers, prompt, completion, newest = one(
            "SELECT count(*), coalesce(sum(prompt_tokens), 0), "
            "coalesce(sum(completion_tokens), 0), max(at) FROM answers"
        ).fetchone()
        recent, since = one(
            "SELECT count(*), min(at) FROM answers WHERE at > ? AND failure IS NULL",
            ((newest or 0) - RECENT_S,),
        ).fetchone()
        return Status(
            queries=queries,
            valid=valid,
            failed=sum(count for _, count in given_up),
            answers=answers,
            failures=dict(failures),
            failed_queries=dict(given_up),
            prompt_tokens=prompt,
            completion_tokens=completion,
            lists_per_s=recent / parts / max(newest - since, 1e-3) if recent > 1 else 0.0,
        )


def _quoted(path: Path) -> str:
    return path.resolve().as_posix().replace("%", "%25").replace("?", "%3f").replace("#", "%23")
