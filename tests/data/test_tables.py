"""Ingested tables: the same as dictionaries, whatever the hashes and the sizes of chunks."""

import errno
import os
import pickle
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from synrank_jax.data import pairs as pairs_module
from synrank_jax.data import tables
from synrank_jax.data.lines import Place
from synrank_jax.data.pairs import Pairs, write_pairs
from synrank_jax.data.sources import Cache
from synrank_jax.data.streams import Pair, Stream, Text
from synrank_jax.data.tables import TextTable, write_texts
from synrank_jax.errors import UserError

FILE = Path("file")
ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=4)
collections = st.dictionaries(ids, st.text(st.characters(exclude_categories=["Cs"])), max_size=12)
in_tmp_path = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def stream(kind, rows):
    placed = [kind(Place(FILE, line), *row) for line, row in enumerate(rows, start=1)]
    return Stream("test", (), lambda: iter(placed))


@pytest.fixture
def table(tmp_path_factory):
    def build(rows):
        folder = tmp_path_factory.mktemp("table")
        write_texts(folder, stream(Text, rows))
        return TextTable(folder)

    return build


@pytest.fixture(params=[False, True], ids=["distinct", "colliding"])
def colliding(request, monkeypatch):
    """All tests also with hashes of which most ids share one."""
    if request.param:
        monkeypatch.setattr(tables, "_hash", lambda text_id: len(text_id.encode()) % 2)


@given(texts=collections, others=st.lists(ids, max_size=5))
@in_tmp_path
def test_a_table_is_its_dictionary(table, colliding, texts, others):
    built = pickle.loads(pickle.dumps(table(texts.items())))
    assert len(built) == len(texts)
    assert [built.id(row) for row in range(len(built))] == list(texts)
    assert [built.text(row) for row in range(len(built))] == list(texts.values())
    assert built.empty().tolist() == [text == "" for text in texts.values()]
    wanted = [*others, *texts]
    rows = {text_id: row for row, text_id in enumerate(texts)}
    assert built.find(wanted).tolist() == [rows.get(text_id, -1) for text_id in wanted]


@given(texts=collections, others=collections)
@in_tmp_path
def test_joining_two_tables_pairs_their_common_ids(table, colliding, texts, others):
    left, right = table(texts.items()), table(others.items())
    rows = zip(*left.join(right), strict=True)
    pairs = {(left.id(row), right.id(other)) for row, other in rows}
    assert pairs == {(text_id, text_id) for text_id in texts.keys() & others.keys()}


def test_an_id_written_again_with_the_same_text_is_found_at_its_first_row(table, colliding):
    built = table([("a", "x"), ("b", "y"), ("a", "x"), ("c", "z"), ("a", "x")])
    assert len(built) == 5
    assert built.find(["a", "b", "c", "d"]).tolist() == [0, 1, 3, -1]
    assert built.distinct_rows().tolist() == [0, 1, 3]


def test_an_id_written_again_with_another_text_is_refused_with_its_line(table, colliding):
    with pytest.raises(UserError, match="file:4: id 'a' is written twice, with different texts"):
        table([("a", "x"), ("b", "y"), ("a", "x"), ("a", "z")])


pair_rows = st.lists(
    st.tuples(st.sampled_from("qrst"), st.sampled_from("abcde"), st.integers(-2, 5)), max_size=30
)


@given(rows=pair_rows, chunk=st.integers(1, 7))
@in_tmp_path
def test_pairs_are_grouped_by_query_in_file_order(table, tmp_path_factory, rows, chunk):
    queries = table([(name, "") for name in "srq"])  # t is unknown
    documents = table([(name, "") for name in "dcba"])  # e is unknown
    folder = tmp_path_factory.mktemp("pairs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs_module, "CHUNK_ROWS", chunk)
        write_pairs(folder, stream(Pair, rows), queries, documents)
    pairs = pickle.loads(pickle.dumps(Pairs(folder)))
    expected = defaultdict(list)
    for query, document, score in rows:
        if query != "t" and document != "e":
            expected[query].append((document, score))
    found = {
        queries.id(row): [
            (documents.id(document), score) for document, score in zip(*pairs.of(row), strict=True)
        ]
        for row in range(len(queries))
    }
    assert {query: listed for query, listed in found.items() if listed} == expected
    assert [queries.id(row) for row in pairs.queries()] == [q for q in "srq" if q in expected]
    assert len(pairs) == sum(map(len, expected.values()))
    lost_queries = [line for line, row in enumerate(rows, 1) if row[0] == "t"]
    lost = [line for line, row in enumerate(rows, 1) if row[0] != "t" and row[1] == "e"]
    for missing, lines, name in (
        (pairs.stamp.missing_queries, lost_queries, "t"),
        (pairs.stamp.missing_documents, lost, "e"),
    ):
        assert missing.count == len(lines)
        assert missing.first_place == (f"file:{lines[0]}" if lines else "")
        assert missing.examples == ((name,) if lines else ())


def test_building_holds_a_chunk_of_pairs_at_a_time(table, tmp_path, monkeypatch):
    monkeypatch.setattr(pairs_module, "CHUNK_ROWS", 8)
    alive = []

    class Counted(Pair):
        def __new__(cls, *values):
            alive.append(1)
            return super().__new__(cls, *values)

        def __del__(self):
            alive.pop()

    peak = 0

    def rows():
        nonlocal peak
        for line in range(1000):
            yield Counted(Place(FILE, line), "q", "d", 1.0)
            peak = max(peak, len(alive))

    one = table([("q", "")]), table([("d", "")])
    write_pairs(tmp_path, Stream("test", (), rows), *one)
    assert len(Pairs(tmp_path)) == 1000
    assert peak < 4 * 8


def test_a_cached_folder_appears_only_when_it_is_whole(tmp_path, monkeypatch):
    cache = Cache(tmp_path / "cache")

    def failing(folder):
        (folder / "ids").write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
        cache.get("texts", "key", failing)

    def interrupted(folder):
        (folder / "ids").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.get("texts", "key", interrupted)
    assert list((tmp_path / "cache").iterdir()) == []
    folder = cache.get("texts", "key", lambda new: (new / "ids").write_text("whole"))
    assert cache.get("texts", "key", failing) == folder
    assert (folder / "ids").read_text() == "whole"


def test_a_disk_without_room_for_the_pairs_is_an_error_not_a_signal(table, tmp_path, monkeypatch):
    def full(descriptor, offset, size):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    one = table([("q", "")])
    with pytest.raises(OSError, match="No space left"):
        write_pairs(tmp_path, stream(Pair, [("q", "q", 1.0)]), one, one)


def test_scores_keep_the_precision_of_the_file(table, tmp_path):
    one = table([("q", "")])
    write_pairs(tmp_path, stream(Pair, [("q", "q", 0.7)]), one, one)
    assert Pairs(tmp_path).of(0)[1] == np.float64(0.7)
