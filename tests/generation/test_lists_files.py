"""Lists on disk."""

import json
from pathlib import Path

import pytest

from synrank_jax.config import SourceConfig
from synrank_jax.data import beir
from synrank_jax.data.formats import open_reader
from synrank_jax.errors import UserError
from synrank_jax.generation.lists import Passage, RankingContext, read_lists
from synrank_jax.generation.output import write_lists

LISTS = [
    RankingContext(
        "q1",
        "what <b>is</b> this",
        (
            Passage("d1", 3, "text \u2028 with \x00 marks", "A title"),
            Passage("d2", 0, "</script>"),
        ),
        {"seed": 1},
    ),
    RankingContext("q2", "second", (Passage("d3", 1, "other"),), {}),
]


def test_what_is_written_is_read(tmp_path: Path):
    assert write_lists(tmp_path, LISTS) == 2
    assert list(read_lists(tmp_path / "lists.jsonl")) == LISTS
    assert beir.read_corpus(tmp_path)["d1"] == "A title text \u2028 with \x00 marks"
    assert beir.read_queries(tmp_path) == {"q1": "what <b>is</b> this", "q2": "second"}
    assert beir.read_qrels(tmp_path, "train") == {"q1": {"d1": 3, "d2": 0}, "q2": {"d3": 1}}
    source = SourceConfig(path=str(tmp_path / "lists.jsonl"), format="lists")
    pairs = [(p.query_id, p.doc_id, p.score) for p in open_reader(source).pairs.rows()]
    assert pairs == [("q1", "d1", 3.0), ("q1", "d2", 0.0), ("q2", "d3", 1.0)]


def test_a_failure_midway_leaves_the_former_files(tmp_path: Path):
    write_lists(tmp_path, LISTS[:1])

    def broken():
        yield LISTS[1]
        raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        write_lists(tmp_path, broken())
    assert list(read_lists(tmp_path / "lists.jsonl")) == LISTS[:1]
    names = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert names == {"lists.jsonl", "corpus.jsonl", "queries.jsonl", "train.tsv"}


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"query_id": "q", "query": "x"}',
        '{"query_id": "q", "query": 3, "passages": []}',
        '{"query_id": "q", "query": "x", "passages": [{"id": "d", "text": "t", "grade": "3"}]}',
        '{"query_id": "q", "query": "x", "passages": [{"id": "d", "text": "t", "grade": true}]}',
        '{"query_id": "q", "query": "x", "passages": [{"id": "d", "text": "\\ud800", "grade": 1}]}',
    ],
    ids=["cut", "array", "no passages", "query", "grade text", "grade bool", "surrogate"],
)
def test_a_line_that_is_no_list_is_named(line: str, tmp_path: Path):
    path = tmp_path / "lists.jsonl"
    path.write_text(json.dumps(LISTS[0].record()) + "\n\n" + line + "\n")
    with pytest.raises(UserError, match=r"lists.jsonl:3: not a list"):
        list(read_lists(path))


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"nothing.jsonl: cannot be read"):
        list(read_lists(tmp_path / "nothing.jsonl"))
