"""The queries that lists are written for, in every layout."""

import gzip
import json
from pathlib import Path

import pytest

from synrank_jax.config_generation import QueriesConfig
from synrank_jax.data.queries import asked_queries
from synrank_jax.errors import UserError

TSV = "10\twhat is ten\n20\twhat is twenty\n30\twhat is thirty\n"


def ids(path: Path | str, **fields) -> list[str]:
    return [text.id for text in asked_queries(QueriesConfig(path=str(path), **fields))]


def test_a_split_of_a_bundled_collection():
    assert len(ids("bundled:cranfield")) == 225
    train = ids("bundled:cranfield", split="train")
    assert len(train) == 137
    assert not set(train) & set(ids("bundled:cranfield", split="test"))


def test_tables_plain_and_compressed(tmp_path: Path):
    (tmp_path / "a.tsv").write_text(TSV)
    (tmp_path / "b.tsv.gz").write_bytes(gzip.compress(TSV.encode()))
    assert ids(tmp_path / "a.tsv") == ids(tmp_path / "b.tsv.gz") == ["10", "20", "30"]
    (first, *_) = asked_queries(QueriesConfig(path=str(tmp_path / "a.tsv")))
    assert (first.text, str(first.place)) == ("what is ten", f"{tmp_path / 'a.tsv'}:1")


def test_json_lines(tmp_path: Path):
    lines = [json.dumps({"_id": number, "text": f" text {number} "}) for number in (1, 2)]
    (tmp_path / "q.jsonl").write_text("\n".join(lines))
    found = list(asked_queries(QueriesConfig(path=str(tmp_path / "q.jsonl"))))
    assert [(text.id, text.text) for text in found] == [("1", "text 1"), ("2", "text 2")]


def test_a_folder_of_ms_marco(tmp_path: Path):
    (tmp_path / "queries.train.tsv").write_text(TSV)
    (tmp_path / "qrels.train.tsv").write_text("10 0 700 1\n30 0 800 1\n30 0 801 1\n")
    assert ids(tmp_path, split="train") == ["10", "30"]
    assert ids(tmp_path) == ["10", "20", "30"]


def test_a_subset_and_a_limit(tmp_path: Path):
    (tmp_path / "a.tsv").write_text(TSV)
    (tmp_path / "ids").write_text("30\n10\n")
    subset = str(tmp_path / "ids")
    assert ids(tmp_path / "a.tsv", subset=subset) == ["10", "30"]
    assert ids(tmp_path / "a.tsv", subset=subset, limit=1) == ["10"]
    assert ids(tmp_path / "a.tsv", limit=2) == ["10", "20"]
    (tmp_path / "ids").write_text("30\n44\n")
    with pytest.raises(UserError, match=r"queries.subset .*: 1 of its ids are no query .*'44'"):
        ids(tmp_path / "a.tsv", subset=subset)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("q.jsonl", '{"_id": "a", "text": ""}', r"q.jsonl:1: query 'a' is empty"),
        ("q.jsonl", '{"_id": "a\\tb", "text": "x"}', r"q.jsonl:1: query id .* has a tab"),
        ("q.tsv", "a\u00a0b\tx\n", r"q.tsv:1: query id .* does not print"),
        ("q.jsonl", '{"id": "a"}', r"q.jsonl:1: has no '_id'"),
        ("q.tsv", "a b\n", r"q.tsv:1: expected 2 filled columns"),
        ("q.csv", "a,b\n", r"queries.path .*q.csv: neither .tsv"),
        ("q.tsv", "", r"queries.path .*q.tsv: no query there"),
    ],
    ids=["empty", "tab", "no-break space", "key", "columns", "kind", "none"],
)
def test_what_is_wrong_is_named(name: str, text: str, said: str, tmp_path: Path):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=said):
        ids(tmp_path / name)


def test_a_missing_file_and_a_missing_folder(tmp_path: Path):
    with pytest.raises(UserError, match=r"queries.path .*none.tsv: no such file"):
        ids(tmp_path / "none.tsv")
    with pytest.raises(UserError, match=r"queries.path '.*none': no such folder"):
        ids(tmp_path / "none")
