"""The ledger: every answer once, whatever happens to the process."""

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from synrank_jax.errors import UserError
from synrank_jax.generation import ledger as module
from synrank_jax.generation.backend import Failure
from synrank_jax.generation.ledger import Ledger, Query, Row


def row(query_id: str, attempt: int, failure: str | None = None, part: int = 0, at: float = 0.0):
    return Row(query_id, part, attempt, failure, None, None, 10, 5, at)


def queries(*ids: str, text: str = "what is {}"):
    return [(f"file:{n}", Query(name, text.format(name))) for n, name in enumerate(ids, start=1)]


@pytest.fixture
def ledger(tmp_path: Path):
    opened = Ledger(tmp_path / "ledger.sqlite")
    yield opened
    opened.close()


def unfinished(ledger: Ledger, parts: int = 1) -> list[str]:
    return [query.query_id for query in ledger.unfinished(parts)]


def test_a_claim_that_ends_half_way_claims_nothing(ledger: Ledger):
    with pytest.raises(UnicodeEncodeError):
        ledger.claim({"model": "a", "\ud800": "b"})
    assert ledger.identity() == {}


def test_a_second_valid_answer_is_impossible(ledger: Ledger):
    ledger.add(row("a", 0))
    ledger.flush()
    ledger.add(row("a", 1))
    with pytest.raises(sqlite3.IntegrityError):
        ledger.flush()
    ledger._waiting.clear()


def test_an_attempt_is_recorded_once(ledger: Ledger):
    ledger.add(row("a", 0, "malformed"))
    ledger.flush()
    ledger.add(row("a", 0, "refused"))
    with pytest.raises(sqlite3.IntegrityError):
        ledger.flush()
    ledger._waiting.clear()


def test_queries_keep_the_order_they_come_in(ledger: Ledger):
    ledger.set_queries(queries("z", "a", "m"))
    ledger.add(row("a", 0))
    ledger.flush()
    assert unfinished(ledger) == ["z", "m"]
    for name in ("m", "z"):
        ledger.add(row(name, 0))
    ledger.flush()
    assert [query.query_id for query, _ in ledger.valid(1)] == ["z", "a", "m"]


def test_pages_meet_without_gap_or_repeat(ledger: Ledger, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "PAGE", 3)
    for count in (2, 3, 4, 6, 7):
        names = [f"q{n}" for n in range(count)]
        ledger.set_queries(queries(*names))
        assert unfinished(ledger) == names


def test_a_query_of_two_parts_needs_both(ledger: Ledger):
    ledger.set_queries(queries("a"))
    ledger.add(row("a", 0, part=0))
    ledger.flush()
    assert unfinished(ledger, 2) == ["a"]
    assert list(ledger.valid(2)) == []
    ledger.add(row("a", 3, part=1))
    ledger.flush()
    assert unfinished(ledger, 2) == []
    ((_, rows),) = ledger.valid(2)
    assert [(one.part, one.attempt) for one in rows] == [(0, 0), (1, 3)]


def test_an_id_written_twice_is_told_and_changes_nothing(ledger: Ledger):
    ledger.set_queries(queries("a", "b"))
    with pytest.raises(UserError, match=r"file:3: query id 'x' is written twice .*number 1\)"):
        ledger.set_queries(queries("x", "y", "x"))
    assert unfinished(ledger) == ["a", "b"]
    ledger.set_queries(queries("c"))
    assert unfinished(ledger) == ["c"]


def test_another_text_under_answers_is_refused(ledger: Ledger):
    ledger.set_queries(queries("a", "b"))
    ledger.add(row("a", 0, "malformed"))
    ledger.flush()
    with pytest.raises(UserError, match="answers for query 'a' with the text 'what is a'"):
        ledger.set_queries(queries("a", text="who is {}"))
    ledger.set_queries(queries("b", text="who is {}"))
    # Left out, its text still stands.
    with pytest.raises(UserError, match="query 'a'"):
        ledger.set_queries(queries("a", text="who is {}"))
    ledger.set_queries(queries("b", "a"))
    assert unfinished(ledger) == ["b", "a"]


def test_more_queries_keep_what_is_done(ledger: Ledger):
    ledger.set_queries(queries("a", "b"))
    ledger.add(row("a", 0))
    ledger.flush()
    ledger.set_queries(queries("c", "a", "b"))
    assert unfinished(ledger) == ["c", "b"]
    ledger.set_queries(queries("b"))
    assert list(ledger.valid(1)) == []
    assert ledger.status(1, 4).valid == 0


def test_the_status_by_hand(ledger: Ledger):
    ledger.set_queries(queries("a", "b", "c", "d", "e"))
    for number, one in enumerate(
        [
            row("a", 0),
            row("b", 0, "malformed"),
            row("b", 1),
            row("c", 0, "malformed"),
            row("c", 1, "too short"),
            row("d", 0, Failure.CONTEXT_TOO_LONG),
            row("e", 0, "refused"),
        ]
    ):
        ledger.add(Row(**{**one.__dict__, "at": 100.0 + number}))
    ledger.flush()
    status = ledger.status(1, 2)
    assert (status.queries, status.valid, status.failed, status.answers) == (5, 2, 2, 7)
    assert status.failed_queries == {"context too long": 1, "too short": 1}
    assert status.failures == {"malformed": 2, "context too long": 1, "refused": 1, "too short": 1}
    assert (status.prompt_tokens, status.completion_tokens) == (70, 35)
    assert status.lists_per_s == pytest.approx(2 / 6)  # two in the 6 s from the first to the last
    assert ledger.status(1, 3).failed_queries == {"context too long": 1}
    assert ledger.status(1, 1).failed_queries == {
        **{"context too long": 1, "refused": 1, "too short": 1}
    }
    assert [query.query_id for query, _ in ledger.failures(1)] == ["c", "d", "e"]
    assert [one.failure for _, one in ledger.failures(1)] == [
        *("too short", "context too long", "refused")
    ]


WRITER = """
import itertools, sys
from pathlib import Path
from synrank_jax.generation.ledger import Ledger, Row
ledger = Ledger(Path(sys.argv[1]))
start = len(ledger.answers("q"))
for attempt in itertools.count(start):
    ledger.add(Row("q", 0, attempt, "malformed", None, None, 1, 1, 0.0))
    ledger.flush()
    print(attempt, flush=True)
"""


def test_what_was_flushed_survives_kills(tmp_path: Path):
    path, flushed = tmp_path / "ledger.sqlite", 0
    for number in range(5):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ.copy(),
        ) as writer:
            for _ in range(20 + 7 * number):
                flushed = int(writer.stdout.readline()) + 1
            writer.send_signal(signal.SIGKILL)
        ledger = Ledger(path)
        attempts = [one.attempt for one in ledger.answers("q")]
        assert attempts == list(range(len(attempts)))
        assert len(attempts) >= flushed
        ledger.close()


def test_it_can_be_read_while_it_is_written(ledger: Ledger, tmp_path: Path):
    ledger.set_queries(queries("a"))
    ledger._db.execute("BEGIN IMMEDIATE")
    reader = Ledger(tmp_path / "ledger.sqlite", read_only=True)
    assert reader.status(1, 1).queries == 1
    reader.close()
    ledger._db.execute("COMMIT")


@pytest.mark.parametrize("name", ["with space", "per%20cent", "what?", "hash#tag"])
def test_any_folder_name(name: str, tmp_path: Path):
    folder = tmp_path / name
    folder.mkdir()
    Ledger(folder / "ledger.sqlite").close()
    assert [file.name for file in folder.iterdir()] == ["ledger.sqlite"]
    Ledger(folder / "ledger.sqlite", read_only=True).close()


def test_another_file_is_no_ledger(tmp_path: Path):
    (tmp_path / "ledger.sqlite").write_text("not a database, but long enough to look at" * 50)
    with pytest.raises(UserError, match="cannot be used as a ledger"):
        Ledger(tmp_path / "ledger.sqlite")
