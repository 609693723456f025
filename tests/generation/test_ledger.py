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
    ledger.add(row("b", 0))
    ledger.add(row("a", 1))
    with pytest.raises(sqlite3.IntegrityError):
        ledger.flush()
    ledger._waiting.clear()
    assert ledger.answers("b") == []  # all rows of a flush, or none
    for other in (row("a", 1, "refused"), row("a", 0, part=1)):
        ledger.add(other)
    ledger.flush()
    assert len(ledger.answers("a")) == 3


def test_rows_come_back_as_they_were(ledger: Ledger):
    added = Row("q \u2028 <b>", 2, 3, "malformed", "said \x00 '; --", '[["t", "x"]]', 7, 9, 1.5)
    ledger.add(added)
    assert ledger.answers(added.query_id) == []
    assert not ledger.any_valid()
    ledger.flush()
    assert ledger.answers(added.query_id) == [added]
    assert not ledger.any_valid()
    ledger.add(row("q", 0))
    ledger.flush()
    assert ledger.any_valid()


def test_what_it_is_about_is_said_once(ledger: Ledger, tmp_path: Path):
    assert ledger.identity() == {}
    identity = {"prompt_hash": "ab", "seed": 3}
    ledger.claim(identity)
    with pytest.raises(sqlite3.IntegrityError):
        ledger.claim(identity | {"seed": 4})
    reader = Ledger(tmp_path / "ledger.sqlite", read_only=True)
    assert reader.identity() == identity
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader.claim({"model": "m"})
    reader.close()


def test_a_full_disk_is_told_and_nothing_is_lost(ledger: Ledger, tmp_path: Path):
    (pages,) = ledger._db.execute("PRAGMA page_count").fetchone()
    ledger._db.execute(f"PRAGMA max_page_count = {pages}")
    for number in range(500):
        ledger.add(row(f"query {number}", 0))
    with pytest.raises(UserError, match=r"ledger.sqlite: cannot be written \(.*full\)"):
        ledger.flush()
    ledger._db.execute(f"PRAGMA max_page_count = {pages + 1000}")
    ledger.flush()
    assert [len(ledger.answers(f"query {number}")) for number in range(500)] == [1] * 500


def test_it_is_closed_whatever_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    opened, connect = [], sqlite3.connect

    def noted(*args, **options):
        opened.append(connect(*args, **options))
        return opened[-1]

    monkeypatch.setattr(sqlite3, "connect", noted)
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.add(row("a", 0))
    ledger.add(row("a", 0))
    with pytest.raises(sqlite3.IntegrityError):
        ledger.close()
    (tmp_path / "other.sqlite").write_bytes(b"no database" * 99)
    with pytest.raises(UserError):
        Ledger(tmp_path / "other.sqlite")
    assert len(opened) == 2
    for connection in opened:
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            connection.execute("SELECT 1")


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
    for name in ("q1", "q2", "q4"):
        ledger.add(row(name, 0))
    ledger.flush()
    assert unfinished(ledger) == ["q0", "q3", "q5", "q6"]
    pages = ledger.unfinished(1)
    assert [next(pages).query_id for _ in range(3)] == ["q0", "q3", "q5"]
    for name in ("q0", "q3"):  # written while the run goes through the pages
        ledger.add(row(name, 0))
    ledger.flush()
    assert [query.query_id for query in pages] == ["q6"]


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
    status = ledger.status(1, 4)
    assert (status.queries, status.valid, status.answers) == (1, 0, 1)
    ledger.set_queries(queries("b", "a"))
    assert [query for query, _ in ledger.valid(1)] == [Query("a", "what is a")]


def test_an_id_with_a_changed_text_and_no_answers_takes_the_new_text(ledger: Ledger):
    ledger.set_queries(queries("a", "b"))
    ledger.set_queries(queries("b", text="who is {}"))
    ledger.set_queries(queries("a", "b", text="who is {}"))
    assert list(ledger.unfinished(1)) == [Query("a", "who is a"), Query("b", "who is b")]


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


def test_the_status_of_lists_in_two_parts(ledger: Ledger):
    ledger.set_queries(queries("a", "b", "c", "d"))
    for one in (
        row("a", 0, part=1, at=10.0),
        row("a", 0, at=12.0),
        row("b", 0, "refused", at=13.0),
        row("b", 1, "refused", at=14.0),
        row("b", 2, at=14.5),
        row("b", 0, "too long", part=1, at=15.0),
        row("b", 1, "too short", part=1, at=16.0),
        row("d", 0, "refused", at=17.0),
        row("d", 1, "refused", at=17.0),
        row("d", 2, at=17.0),
        row("d", 0, "language", part=1, at=17.0),
        row("c", 0, "too short", at=18.0),
    ):
        ledger.add(one)
    ledger.flush()
    status = ledger.status(2, 2)
    assert (status.valid, status.failed, status.failed_queries) == (1, 1, {"too short": 1})
    assert status.lists_per_s == pytest.approx(4 / 2 / 8)  # four valid parts from 10 s to 18 s
    assert ledger.status(2, 3).failed == 0
    ((_, rows),) = ledger.valid(2)
    assert [one.part for one in rows] == [0, 1]
    last = [(one.query_id, one.part, one.attempt) for _, one in ledger.failures(2)]
    assert last == [("b", 1, 1), ("c", 0, 0), ("d", 1, 0)]


def test_the_rate_is_of_the_last_ten_minutes_of_work(ledger: Ledger):
    assert ledger.status(1, 1).lists_per_s == 0.0
    ledger.set_queries(queries(*"abcde"))
    ledger.add(row("a", 0, at=1000.0))
    ledger.flush()
    assert ledger.status(1, 1).lists_per_s == 0.0  # of one there is none
    for name, at in (("b", 1400.0), ("c", 1401.0), ("d", 2000.0)):
        ledger.add(row(name, 0, at=at))
    ledger.flush()
    assert ledger.status(1, 1).lists_per_s == pytest.approx(2 / 599)  # 1400 is ten minutes ago


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
    ledger._db.execute("BEGIN EXCLUSIVE")
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


def test_there_must_be_one_to_read(tmp_path: Path):
    with pytest.raises(UserError, match=r"ledger.sqlite: no such ledger; .* begins one"):
        Ledger(tmp_path / "ledger.sqlite", read_only=True)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="cannot be used as a ledger"):
        Ledger(tmp_path / "no folder" / "ledger.sqlite")


def test_another_file_is_no_ledger(tmp_path: Path):
    (tmp_path / "ledger.sqlite").write_text("not a database, but long enough to look at" * 50)
    for read_only in (False, True):
        with pytest.raises(UserError, match="cannot be used as a ledger"):
            Ledger(tmp_path / "ledger.sqlite", read_only=read_only)
    (tmp_path / "ledger.sqlite").write_bytes(b"")
    with pytest.raises(UserError, match="cannot be used as a ledger"):
        Ledger(tmp_path / "ledger.sqlite", read_only=True)
