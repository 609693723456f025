"""Readers of BEIR-layout folders: corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv, exclude.tsv.

Ids are strings everywhere. Every error names the file and the line. The functions that return
dictionaries are for collections that fit into memory (`evaluate`); `prepare` reads the streams.
"""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from synrank_jax.data.lines import (
    ENDINGS,
    Place,
    existing_file,
    identifier,
    member,
    read_lines,
    read_objects,
    read_table,
    score,
    string,
)
from synrank_jax.data.streams import Pair, Stream, Text
from synrank_jax.errors import UserError

CORPUS_FILE = "corpus.jsonl"
QUERIES_FILE = "queries.jsonl"
EXCLUDE_FILE = "exclude.tsv"
QRELS_HEADER = ("query-id", "corpus-id", "score")
EXCLUDE_HEADER = ("query-id", "corpus-id")
PARTS = f"a collection has {CORPUS_FILE}, {QUERIES_FILE} and qrels/SPLIT.tsv"

logger = logging.getLogger(__name__)


def qrels_file(folder: Path, split: str) -> Path:
    """Where the judgements of a split are, or would be."""
    return existing_file(folder / "qrels", f"{split}.tsv") or folder / "qrels" / f"{split}.tsv"


def documents(folder: Path) -> Stream[Text]:
    """The documents: title and text joined by a space; a text may be empty."""
    return _texts(folder, CORPUS_FILE, document_text)


def queries(folder: Path) -> Stream[Text]:
    """The queries; a text may be empty."""
    return _texts(folder, QUERIES_FILE, query_text)


def judgements(folder: Path, split: str) -> Stream[Pair]:
    """The judgements of a split, whose scores may be any finite numbers."""
    path = qrels_file(folder, split)

    def rows() -> Iterator[Pair]:
        for place, cells in read_table(path, QRELS_HEADER, header=True, way_out=_splits(path)):
            yield Pair(place, cells[0], cells[1], score(cells[2], "score", place))

    return Stream("beir qrels", (path,), rows)


def excluded(folder: Path) -> Stream[Pair] | None:
    """The pairs of exclude.tsv; None where the folder has none."""
    path = existing_file(folder, EXCLUDE_FILE)
    if path is None:
        return None

    def rows() -> Iterator[Pair]:
        for place, cells in read_table(path, EXCLUDE_HEADER, header=True):
            yield Pair(place, cells[0], cells[1], 0.0)

    return Stream("beir exclude", (path,), rows)


def document_text(record: dict[str, Any], place: Place) -> str:
    """Title and text of a document's record. Without titles the key is absent, or null."""
    title = string(record["title"], "title", place) if record.get("title") is not None else ""
    return f"{title} {string(member(record, 'text', place), 'text', place)}".strip()


def query_text(record: dict[str, Any], place: Place) -> str:
    """Text of a query's record."""
    return string(member(record, "text", place), "text", place).strip()


def read_corpus(folder: Path) -> dict[str, str]:
    """Document id -> title and text joined by a space, in file order; a text may be empty.

    Raises:
        UserError: missing file, malformed line, or one id with two texts.
    """
    return _read_texts(documents(folder))


def read_queries(folder: Path) -> dict[str, str]:
    """Query id -> text, in file order; a text may be empty.

    Raises:
        UserError: missing file, malformed line, or one id with two texts.
    """
    return _read_texts(queries(folder))


def read_qrels(folder: Path, split: str) -> dict[str, dict[str, int]]:
    """Query id -> {document id: grade}, in file order. Higher is more relevant.

    A negative grade (TREC-COVID and Touché have some) is 0, as trec_eval takes both for not
    relevant. A judgement written again with the same grade counts once. Warnings give the numbers.

    Raises:
        UserError: missing file, wrong header or column count, a grade that is not an integer, or
            one pair with two grades.
    """
    path = qrels_file(folder, split)
    qrels: dict[str, dict[str, int]] = {}
    repeated = negative = 0
    for place, cells in read_table(path, QRELS_HEADER, header=True, way_out=_splits(path)):
        query_id, doc_id, text = cells
        grade = _grade(text, place)
        if grade < 0:
            grade, negative = 0, negative + 1
        judged = qrels.setdefault(query_id, {})
        if doc_id not in judged:
            judged[doc_id] = grade
        elif judged[doc_id] == grade:
            repeated += 1
        else:
            raise UserError(
                f"{place}: query {query_id!r} and document {doc_id!r} are judged twice, "
                f"with grades {judged[doc_id]} and {grade}; keep one of the lines"
            )
    if negative:
        logger.warning("%s: %d negative grades are taken as 0, not relevant", path, negative)
    if repeated:
        logger.warning("%s: %d judgements are repeats of earlier lines; ignored", path, repeated)
    return qrels


def read_exclude(folder: Path) -> frozenset[tuple[str, str]]:
    """The (query id, document id) pairs of exclude.tsv; empty where the folder has none.

    Raises:
        UserError: wrong header or column count.
    """
    pairs = excluded(folder)
    if pairs is None:
        return frozenset()
    return frozenset((pair.query_id, pair.doc_id) for pair in pairs.rows())


def read_query_subset(file: Path) -> frozenset[str]:
    """The query ids of a text file with one id per line.

    Raises:
        UserError: the file is missing or names no query.
    """
    query_ids = frozenset(text for _, text in read_lines(file))
    if not query_ids:
        raise UserError(f"{file}: names no query; write one query id per line")
    return query_ids


def locate_text(path: Path, text_id: str) -> str:
    """`FILE:LINE` of an id in a .jsonl file, for error messages."""
    for place, record in read_objects(path):
        if str(record["_id"]) == text_id:
            return str(place)
    return str(path)


def _splits(path: Path) -> str:
    """The way out where a split is missing."""
    names = {
        file.name.removesuffix(f".tsv{end}")
        for end in ENDINGS
        for file in path.parent.glob(f"*.tsv{end}")
    }
    return f"the splits of this collection are: {', '.join(sorted(names)) or 'none'}"


def _grade(text: str, place: Place) -> int:
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit()):
        raise UserError(
            f"{place}: grade {text!r} is not an integer; grades are 0, 1, 2, ..., "
            "higher is more relevant, and a line that judges nothing is left out"
        )
    return int(text)


def _texts(
    folder: Path, name: str, text_of: Callable[[dict[str, Any], Place], str]
) -> Stream[Text]:
    path = existing_file(folder, name) or folder / name

    def rows() -> Iterator[Text]:
        for place, record in read_objects(path, PARTS):
            yield Text(
                place,
                identifier(member(record, "_id", place), "_id", place),
                text_of(record, place),
            )

    return Stream(f"beir {name}", (path,), rows)


def _read_texts(stream: Stream[Text]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for place, text_id, text in stream.rows():
        if texts.setdefault(text_id, text) != text:
            raise UserError(
                f"{place}: id {text_id!r} is written twice, with different texts; keep one"
            )
    return texts
