"""Lists on disk."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from synrank_jax.config import SourceConfig
from synrank_jax.data import beir
from synrank_jax.data.formats import open_reader
from synrank_jax.errors import UserError
from synrank_jax.generation.lists import Passage, RankingContext, read_lists
from synrank_jax.generation.output import json_line, write_lists

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


def test_lists_jsonl_appears_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    names, replace = [], Path.replace

    def noted(self: Path, target: Path) -> Path:
        names.append(target.name)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", noted)
    write_lists(tmp_path, LISTS)
    assert sorted(names) == ["corpus.jsonl", "lists.jsonl", "queries.jsonl", "train.tsv"]
    assert names[-1] == "lists.jsonl"


# Text that JSON lines must not be cut at, or changed; no surrogates, which are no text.
TEXTS = st.text(st.characters(codec="utf-8"))
IDS = st.text(st.characters(codec="utf-8", exclude_characters="\t\r\n"), min_size=1)
PASSAGES = st.builds(Passage, IDS, st.integers(0, 9), TEXTS, TEXTS)
CONTEXTS = st.builds(
    RankingContext,
    IDS,
    TEXTS,
    st.lists(PASSAGES, min_size=1, max_size=3).map(tuple),
    st.dictionaries(TEXTS, st.integers() | TEXTS, max_size=2),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(contexts=st.lists(CONTEXTS, max_size=3))
def test_any_text_survives(contexts: list[RankingContext], tmp_path: Path):
    path = tmp_path / "lists.jsonl"
    path.write_bytes(b"".join(json_line(context.record()) for context in contexts))
    assert list(read_lists(path)) == contexts


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
        '{"query_id": "q", "query": "x", "passages": [{"id": "d", "text": "t", "grade": -1}]}',
        '{"query_id": "q", "query": "x", "passages": [{"id": "d\\t", "text": "t", "grade": 1}]}',
        '{"query_id": "q", "query": "x", "passages": [{"id": "", "text": "t", "grade": 1}]}',
        '{"query_id": "q", "query": "x", "passages": []}',
        '{"query_id": true, "query": "x", "passages": [{"id": "d", "text": "t", "grade": 1}]}',
    ],
    ids=[
        *("cut", "array", "no passages", "query", "grade text", "grade bool", "surrogate"),
        *("grade below 0", "tab in an id", "empty id", "empty list", "query id"),
    ],
)
def test_a_line_that_is_no_list_is_named(line: str, tmp_path: Path):
    path = tmp_path / "lists.jsonl"
    path.write_text(json.dumps(LISTS[0].record()) + "\n\n" + line + "\n")
    with pytest.raises(UserError, match=r"lists.jsonl:3: not a list"):
        list(read_lists(path))


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"nothing.jsonl: cannot be read"):
        list(read_lists(tmp_path / "nothing.jsonl"))
