"""Readers of BEIR-layout folders: what they accept, and errors with file and line."""

import json
import logging
from pathlib import Path

import pytest

from synrank_jax.data import beir
from synrank_jax.errors import UserError
from synrank_jax.hub import BUNDLED_COLLECTIONS


def write_lines(path: Path, *lines: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join((x if isinstance(x, bytes) else x.encode()) + b"\n" for x in lines))
    return path


def write_qrels(folder: Path, *rows: str) -> Path:
    return write_lines(folder / "qrels" / "test.tsv", "query-id\tcorpus-id\tscore", *rows)


def test_title_and_text_are_joined_and_stripped(tmp_path):
    write_lines(
        tmp_path / "corpus.jsonl",
        '{"_id": "a", "title": "Head", "text": "body "}',
        '{"_id": "b", "title": "", "text": "body"}',
        '{"_id": "c", "title": null, "text": ""}',
        '{"_id": 4, "text": "no title"}',
    )
    assert beir.read_corpus(tmp_path) == {"a": "Head body", "b": "body", "c": "", "4": "no title"}


def test_blank_lines_and_line_separators_inside_texts_do_not_cut_records(tmp_path):
    text = "one\u2028two\u0085three"
    line = json.dumps({"_id": "a", "text": text}, ensure_ascii=False)
    write_lines(tmp_path / "queries.jsonl", line + "\r", "", "  ")
    assert beir.read_queries(tmp_path) == {"a": text}


def test_cranfield_has_the_counts_of_its_description():
    folder = BUNDLED_COLLECTIONS / "cranfield"
    corpus = beir.read_corpus(folder)
    assert len(corpus) == 1400
    assert [doc for doc, text in corpus.items() if not text] == ["471", "995"]
    assert len(beir.read_queries(folder)) == 225
    for split, queries, judgements in (("train", 137, 938), ("test", 88, 674)):
        qrels = beir.read_qrels(folder, split)
        assert len(qrels) == queries
        assert sum(map(len, qrels.values())) == judgements
        assert {grade for judged in qrels.values() for grade in judged.values()} == {1, 2, 3, 4}
    assert ("1", "486") in beir.read_exclude(folder)


def test_a_folder_without_exclude_file_excludes_nothing(tmp_path):
    assert beir.read_exclude(tmp_path) == frozenset()


def test_the_same_judgement_twice_counts_once_and_is_reported(tmp_path, caplog):
    write_qrels(tmp_path, "q\td\t2", "q\td\t2", "q\te\t0")
    with caplog.at_level(logging.WARNING):
        assert beir.read_qrels(tmp_path, "test") == {"q": {"d": 2, "e": 0}}
    assert "1 judgements are repeats" in caplog.text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"_id": "b", "text": ', "not valid JSON"),
        ("[1, 2]", "expected an object"),
        ('{"text": "x"}', "has no '_id'; what it has is: text"),
        ('{"_id": "", "text": "x"}', "_id must be a non-empty string, got ''"),
        ('{"_id": true, "text": "x"}', "_id must be a non-empty string, got True"),
        ('{"_id": "b"}', "has no 'text'; what it has is: _id"),
        ('{"_id": "b", "text": 3}', "text must be a string, got 3"),
        ('{"_id": "b", "title": 3, "text": "x"}', "title must be a string, got 3"),
        ('{"_id": "a", "text": "other"}', "id 'a' is written twice, with different texts"),
        ('{"_id": "b", "text": "a\\ud800"}', "half of a surrogate pair at character 1"),
        (b'{"_id": "b", "text": "caf\xe9"}', "not valid UTF-8 (byte 25 of the line is 0xe9)"),
    ],
)
def test_a_bad_corpus_line_is_named(tmp_path, line, message):
    path = write_lines(tmp_path / "corpus.jsonl", '{"_id": "a", "text": "one"}', "", line)
    with pytest.raises(UserError) as error:
        beir.read_corpus(tmp_path)
    assert str(error.value).startswith(f"{path}:3: ")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("q\td", "expected 3 filled columns"),
        ("q\td\t1\t0", "expected 3 filled columns"),
        ("q 0 d 1", "expected 3 filled columns"),
        ("q\t\t1", "expected 3 filled columns"),
        ("q\te\t1.5", "grade '1.5' is not an integer"),
        ("q\te\t--1", "grade '--1' is not an integer"),
        ("q\te\tgood", "grade 'good' is not an integer"),
        ("q\te\t\u0663", "is not an integer"),
        ("q\td\t3", "query 'q' and document 'd' are judged twice, with grades 2 and 3"),
    ],
)
def test_a_bad_qrels_row_is_named(tmp_path, row, message):
    path = write_qrels(tmp_path, "q\td\t2", row)
    with pytest.raises(UserError) as error:
        beir.read_qrels(tmp_path, "test")
    assert str(error.value).startswith(f"{path}:3: ")
    assert message in str(error.value)


def test_a_negative_grade_is_not_relevant_and_counted(tmp_path, caplog):
    write_qrels(tmp_path, "q\td\t2", "q\te\t-1", "q\tf\t-2")
    assert beir.read_qrels(tmp_path, "test") == {"q": {"d": 2, "e": 0, "f": 0}}
    assert "2 negative grades are taken as 0" in caplog.text


@pytest.mark.parametrize("first", ["q\td\t2", "query-id corpus-id score", ""])
def test_a_wrong_qrels_header_is_shown(tmp_path, first):
    path = write_lines(tmp_path / "qrels" / "test.tsv", first)
    with pytest.raises(UserError, match=r"test\.tsv:1: expected the header query-id<TAB>") as error:
        beir.read_qrels(tmp_path, "test")
    assert str(path) in str(error.value)


def test_a_wrong_exclude_file_is_refused(tmp_path):
    path = write_lines(tmp_path / "exclude.tsv", "query-id\tcorpus-id", "q")
    with pytest.raises(UserError, match="expected 2 filled columns") as error:
        beir.read_exclude(tmp_path)
    assert f"{path}:2" in str(error.value)


def test_missing_files_are_named_with_the_way_out(tmp_path):
    with pytest.raises(UserError, match=r"corpus\.jsonl: cannot be read .* a collection has"):
        beir.read_corpus(tmp_path)
    with pytest.raises(UserError, match=r"queries\.jsonl: cannot be read .* a collection has"):
        beir.read_queries(tmp_path)
    write_qrels(tmp_path, "q\td\t1")
    with pytest.raises(UserError, match=r"dev\.tsv: .* splits of this collection are: test"):
        beir.read_qrels(tmp_path, "dev")


def test_a_query_subset_is_one_id_per_line(tmp_path):
    file = write_lines(tmp_path / "subset.txt", "7", "", "12", "7")
    assert beir.read_query_subset(file) == {"7", "12"}
    with pytest.raises(UserError, match="names no query"):
        beir.read_query_subset(write_lines(tmp_path / "empty.txt", ""))
    with pytest.raises(UserError, match=r"absent\.txt: cannot be read"):
        beir.read_query_subset(tmp_path / "absent.txt")
