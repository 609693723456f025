"""Readers of BEIR-layout folders: corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv, exclude.tsv.

Ids are strings everywhere. Every error names the file and the line.
"""

import json
import logging
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

from synrank_jax.errors import UserError

CORPUS_FILE = "corpus.jsonl"
QUERIES_FILE = "queries.jsonl"
EXCLUDE_FILE = "exclude.tsv"
QRELS_HEADER = ("query-id", "corpus-id", "score")
EXCLUDE_HEADER = ("query-id", "corpus-id")

logger = logging.getLogger(__name__)


def qrels_file(folder: Path, split: str) -> Path:
    """Where the judgements of a split are."""
    return folder / "qrels" / f"{split}.tsv"


def read_corpus(folder: Path) -> dict[str, str]:
    """Document id -> title and text joined by a space, in file order; a text may be empty.

    Raises:
        UserError: missing file, malformed line, or one id with two texts.
    """
    return _read_texts(folder / CORPUS_FILE, _document_text)


def read_queries(folder: Path) -> dict[str, str]:
    """Query id -> text, in file order; a text may be empty.

    Raises:
        UserError: missing file, malformed line, or one id with two texts.
    """
    return _read_texts(folder / QUERIES_FILE, _query_text)


def read_qrels(folder: Path, split: str) -> dict[str, dict[str, int]]:
    """Query id -> {document id: grade}, in file order. Higher is more relevant.

    A judgement written again with the same grade counts once, and a warning gives their number.

    Raises:
        UserError: missing file, wrong header or column count, a grade that is not a non-negative
            integer, or one pair with two grades.
    """
    path = qrels_file(folder, split)
    qrels: dict[str, dict[str, int]] = {}
    repeated = 0
    for line, (query_id, doc_id, score) in _read_table(path, QRELS_HEADER):
        grade = _grade(score, f"{path}:{line}")
        judged = qrels.setdefault(query_id, {})
        if doc_id not in judged:
            judged[doc_id] = grade
        elif judged[doc_id] == grade:
            repeated += 1
        else:
            raise UserError(
                f"{path}:{line}: query {query_id!r} and document {doc_id!r} are judged twice, "
                f"with grades {judged[doc_id]} and {grade}; keep one of the lines"
            )
    if repeated:
        logger.warning("%s: %d judgements are repeats of earlier lines; ignored", path, repeated)
    return qrels


def read_exclude(folder: Path) -> frozenset[tuple[str, str]]:
    """The (query id, document id) pairs of exclude.tsv; empty where the folder has none.

    Raises:
        UserError: wrong header or column count.
    """
    path = folder / EXCLUDE_FILE
    if not path.is_file():
        return frozenset()
    return frozenset((query, doc) for _, (query, doc) in _read_table(path, EXCLUDE_HEADER))


def read_query_subset(file: Path) -> frozenset[str]:
    """The query ids of a text file with one id per line.

    Raises:
        UserError: the file is missing or names no query.
    """
    query_ids = frozenset(text for _, text in _read_lines(file))
    if not query_ids:
        raise UserError(f"{file}: names no query; write one query id per line")
    return query_ids


def open_file(path: Path) -> BufferedReader:
    """Open a file of a collection for reading bytes.

    Raises:
        UserError: it is missing or cannot be read; says what a collection folder holds.
    """
    try:
        return path.open("rb")
    except OSError as error:
        reason = f"cannot be read ({error.strerror})"
        if path.parent.name == "qrels":
            splits = ", ".join(sorted(file.stem for file in path.parent.glob("*.tsv"))) or "none"
            reason += f"; the splits of this collection are: {splits}"
        elif path.name in (CORPUS_FILE, QUERIES_FILE):
            reason += f"; a collection has {CORPUS_FILE}, {QUERIES_FILE} and qrels/SPLIT.tsv"
        raise UserError(f"{path}: {reason}") from error


def locate_text(path: Path, text_id: str) -> str:
    """`FILE:LINE` of an id in a .jsonl file, for error messages."""
    for line, raw in _read_lines(path):
        if str(json.loads(raw)["_id"]) == text_id:
            return f"{path}:{line}"
    return str(path)


def locate_row(path: Path, *columns: str) -> str:
    """`FILE:LINE` of the first row of a .tsv file that starts with `columns`."""
    for line, raw in _read_lines(path):
        if tuple(raw.split("\t")[: len(columns)]) == columns:
            return f"{path}:{line}"
    return str(path)


def _read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line number and text of every line that is not blank."""
    with open_file(path) as file:
        # Bytes are cut at \n only: str.splitlines would also cut at U+2028 inside a text.
        for line, raw in enumerate(file, start=1):
            try:
                text = raw.decode("utf-8").strip("\r\n")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path}:{line}: not valid UTF-8 (byte {error.start} of the line is "
                    f"0x{raw[error.start]:02x}); save the file as UTF-8"
                ) from error
            if text.strip():
                yield line, text


def _read_table(path: Path, header: tuple[str, ...]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Line number and cells of every row below the header."""
    lines = _read_lines(path)
    first, text = next(lines, (1, ""))
    if tuple(text.split("\t")) != header:
        expected = "<TAB>".join(header)
        raise UserError(f"{path}:{first}: expected the header {expected}, got {text!r}")
    for line, text in lines:
        cells = tuple(text.split("\t"))
        if len(cells) != len(header) or not all(cells):
            raise UserError(
                f"{path}:{line}: expected {len(header)} filled columns separated by tabs "
                f"({', '.join(header)}), got {text!r}"
            )
        yield line, cells


def _grade(text: str, where: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise UserError(
            f"{where}: grade {text!r} is not a non-negative integer; grades are 0, 1, 2, ..., "
            "higher is more relevant, and a line that judges nothing is left out"
        )
    return int(text)


def _read_texts(path: Path, text_of: Callable[[dict[str, Any], str], str]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for line, raw in _read_lines(path):
        where = f"{path}:{line}"
        try:
            record = json.loads(raw)
        except ValueError as error:
            raise UserError(f"{where}: not valid JSON ({error})") from error
        if not isinstance(record, dict):
            raise UserError(f"{where}: expected an object with _id and text, got {raw[:60]!r}")
        text_id, text = _text_id(record, where), text_of(record, where)
        if texts.setdefault(text_id, text) != text:
            raise UserError(
                f"{where}: id {text_id!r} is written twice, with different texts; keep one"
            )
    return texts


def _text_id(record: dict[str, Any], where: str) -> str:
    value = record.get("_id")
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise UserError(f"{where}: _id must be a non-empty string, got {value!r}")
    return str(value)


def _document_text(record: dict[str, Any], where: str) -> str:
    # BEIR collections without titles leave the key out, or write null.
    title = "" if record.get("title") is None else _string(record, "title", where)
    return f"{title} {_string(record, 'text', where)}".strip()


def _query_text(record: dict[str, Any], where: str) -> str:
    return _string(record, "text", where).strip()


def _string(record: dict[str, Any], field: str, where: str) -> str:
    value = record.get(field)
    if not isinstance(value, str):
        raise UserError(f"{where}: {field} must be a string, got {value!r}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: {field} has half of a surrogate pair at character {error.start}, which is "
            "no text; write the character itself"
        ) from error
    return value
