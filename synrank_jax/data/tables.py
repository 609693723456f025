"""Ingested sources on disk, memory-mapped: tables of texts, and pairs grouped by query.

Building reads a stream once. In memory stay 8 bytes per row and array for a table (hashes and
offsets, about 40 bytes per text) and a few thousand rows for pairs, however many there are.
"""

import hashlib
import itertools
import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from synrank_jax.config import Section
from synrank_jax.data.lines import Place
from synrank_jax.data.streams import Pair, Stream, Text
from synrank_jax.errors import UserError
from synrank_jax.files import map_file

Rows = NDArray[np.int32]
CHUNK_ROWS = 2**16
EXAMPLES = 3


class _Texts:
    """Ids and texts by row number."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ids, self._texts = map_file(folder / "ids"), map_file(folder / "texts")
        self._id_ends = map_array(folder / "id_ends", np.int64)
        self._text_ends = map_array(folder / "text_ends", np.int64)

    def __len__(self) -> int:
        return len(self._id_ends) - 1

    def id(self, row: int) -> str:
        """Id of a row."""
        return self._ids[self._id_ends[row] : self._id_ends[row + 1]].decode()

    def text(self, row: int) -> str:
        """Text of a row."""
        return self._texts[self._text_ends[row] : self._text_ends[row + 1]].decode()

    def empty(self) -> NDArray[np.bool_]:
        """Whether the text of each row has no character."""
        empty: NDArray[np.bool_] = self._text_ends[1:] == self._text_ends[:-1]
        return empty


class TextTable(_Texts):
    """Ids and texts by row number, and row numbers by id.

    An id that the stream repeats with the same text has several rows, but is found at its first.
    """

    def __init__(self, folder: Path) -> None:
        """Map what `write_texts` wrote."""
        super().__init__(folder)
        self._hashes = map_array(folder / "hashes", np.uint64)  # ascending
        self._rows = map_array(folder / "rows", np.int32)  # of the hashes

    def __reduce__(self) -> tuple[type[Self], tuple[Path]]:
        return type(self), (self.folder,)

    def distinct_rows(self) -> Rows:
        """First row of every id, ascending, int32."""
        return np.sort(self._rows)

    def find(self, ids: Sequence[str]) -> Rows:
        """First row of each id, int32; -1 where the table has no such id."""
        hashes = np.fromiter(map(_hash, ids), np.uint64, len(ids))
        rows = np.full(len(ids), -1, np.int32)
        for index, place in self._candidates(hashes):
            rows[index] = self._walk(ids[index], place)
        return rows

    def join(self, other: "TextTable") -> tuple[Rows, Rows]:
        """Rows of the ids that both tables have, here and there."""
        pairs = [
            (row, other._walk(self.id(row), place))
            for row, place in (
                (int(self._rows[index]), place) for index, place in other._candidates(self._hashes)
            )
        ]
        both = np.array([pair for pair in pairs if pair[1] >= 0], np.int32).reshape(-1, 2)
        return both[:, 0], both[:, 1]

    def _candidates(self, hashes: NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
        """Index of every hash that the table has, and where its first is."""
        places = np.searchsorted(self._hashes, hashes)
        inside = np.flatnonzero(places < len(self._hashes))
        found = inside[self._hashes[places[inside]] == hashes[inside]]
        return zip(found.tolist(), places[found].tolist(), strict=True)

    def _walk(self, text_id: str, place: int) -> int:
        """The row of an id among those that share its hash, the first of which is at `place`."""
        for other in range(place, len(self._hashes)):
            if self._hashes[other] != self._hashes[place]:
                break
            row = int(self._rows[other])
            if self.id(row) == text_id:
                return row
        return -1


def _hash(text_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(text_id.encode(), digest_size=8).digest(), "little")


def write_texts(folder: Path, stream: Stream[Text]) -> None:
    """Write the table of a stream into an empty folder.

    Raises:
        UserError: bad input of the stream; one id with two texts.
    """
    hashes, id_ends, text_ends = array("Q"), array("q", [0]), array("q", [0])
    with (folder / "ids").open("wb") as ids, (folder / "texts").open("wb") as texts:
        for _, text_id, text in stream.rows():
            hashes.append(_hash(text_id))
            id_ends.append(id_ends[-1] + ids.write(text_id.encode()))
            text_ends.append(text_ends[-1] + texts.write(text.encode()))
    write_array(folder / "id_ends", np.frombuffer(id_ends, np.int64))
    write_array(folder / "text_ends", np.frombuffer(text_ends, np.int64))
    unsorted = np.frombuffer(hashes, np.uint64)
    rows = np.argsort(unsorted, kind="stable").astype(np.int32)
    repeats = _repeats(_Texts(folder), unsorted[rows], rows, stream)
    rows = rows[~np.isin(rows, repeats)]
    write_array(folder / "rows", rows)
    write_array(folder / "hashes", unsorted[rows])


def _repeats(
    texts: _Texts, hashes: NDArray[np.uint64], rows: Rows, stream: Stream[Text]
) -> list[int]:
    """Rows whose id an earlier row has, with the same text; the hashes of `rows` ascend."""
    same = np.flatnonzero(hashes[1:] == hashes[:-1])
    first_rows: dict[str, int] = {}
    repeats = []
    for row in np.unique(np.concatenate([rows[same], rows[same + 1]])).tolist():
        text_id = texts.id(row)
        first = first_rows.setdefault(text_id, row)
        if first == row:
            continue
        repeats.append(row)
        if texts.text(first) != texts.text(row):
            place = next(itertools.islice(stream.rows(), row, None)).place
            raise UserError(
                f"{place}: id {text_id!r} is written twice, with different texts; keep one"
            )
    return repeats


class Missing(Section):
    """Pairs whose query or document no table has: how many, and the first few."""

    count: int = 0
    first_place: str = ""
    examples: tuple[str, ...] = ()

    def plus(self, ids: Sequence[str], place: Place | None) -> "Missing":
        """With further ids; `place` is that of the first."""
        if not ids:
            return self
        return Missing(
            count=self.count + len(ids),
            first_place=self.first_place or str(place),
            examples=tuple(dict.fromkeys((*self.examples, *ids)))[:EXAMPLES],
        )


class PairsStamp(Section):
    """What was left out of the pairs."""

    missing_queries: Missing = Missing()
    missing_documents: Missing = Missing()


class Pairs:
    """The documents of every query, in file order: rows of two tables, and scores."""

    def __init__(self, folder: Path) -> None:
        """Map what `write_pairs` wrote."""
        self.folder = folder
        self.starts = map_array(folder / "starts", np.int64)
        self.documents = map_array(folder / "documents", np.int32)
        self.scores = map_array(folder / "scores", np.float64)
        self.stamp = PairsStamp.model_validate_json((folder / "stamp.json").read_bytes())

    def __reduce__(self) -> tuple[type[Self], tuple[Path]]:
        return type(self), (self.folder,)

    def __len__(self) -> int:
        return len(self.documents)

    def of(self, query: int) -> tuple[Rows, NDArray[np.float64]]:
        """Rows and scores of the documents of a query's row."""
        pairs = slice(self.starts[query], self.starts[query + 1])
        return self.documents[pairs], self.scores[pairs]

    def queries(self) -> NDArray[np.int64]:
        """Rows of the queries that have a document, ascending."""
        return np.flatnonzero(np.diff(self.starts))


class _Chunk(NamedTuple):
    queries: Rows
    documents: Rows
    scores: NDArray[np.float64]


def write_pairs(
    folder: Path, stream: Stream[Pair], queries: TextTable, documents: TextTable
) -> None:
    """Write the pairs of a stream into an empty folder; unknown ids are left out and counted.

    Raises:
        UserError: bad input of the stream.
    """
    stamp = PairsStamp()
    counts = np.zeros(len(queries), np.int64)
    names = {"queries": np.int32, "documents": np.int32, "scores": np.float64}
    files = {name: (folder / f"unsorted_{name}").open("wb") for name in names}
    for pairs in batched(stream.rows(), CHUNK_ROWS):
        chunk, stamp = _known(pairs, queries, documents, stamp)
        counts += np.bincount(chunk.queries, minlength=len(queries))
        for name, file in files.items():
            getattr(chunk, name).tofile(file)
    for file in files.values():
        file.close()
    write_array(folder / "starts", np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))
    unsorted = [map_array(folder / f"unsorted_{name}", kind) for name, kind in names.items()]
    _group(_Chunk(*unsorted), folder)
    for name in names:
        (folder / f"unsorted_{name}").unlink()
    (folder / "stamp.json").write_text(stamp.model_dump_json() + "\n", "utf-8")


def _known(
    pairs: Sequence[Pair], queries: TextTable, documents: TextTable, stamp: PairsStamp
) -> tuple[_Chunk, PairsStamp]:
    query_rows = _find_all(queries, [pair.query_id for pair in pairs])
    document_rows = _find_all(documents, [pair.doc_id for pair in pairs])
    lost_queries = np.flatnonzero(query_rows < 0).tolist()
    lost_documents = np.flatnonzero((query_rows >= 0) & (document_rows < 0)).tolist()
    stamp = PairsStamp(
        missing_queries=stamp.missing_queries.plus(
            [pairs[i].query_id for i in lost_queries],
            pairs[lost_queries[0]].place if lost_queries else None,
        ),
        missing_documents=stamp.missing_documents.plus(
            [pairs[i].doc_id for i in lost_documents],
            pairs[lost_documents[0]].place if lost_documents else None,
        ),
    )
    known = (query_rows >= 0) & (document_rows >= 0)
    scores = np.fromiter((pair.score for pair in pairs), np.float64, len(pairs))
    return _Chunk(query_rows[known], document_rows[known], scores[known]), stamp


def _find_all(table: TextTable, ids: list[str]) -> Rows:
    """`find`, looking up each distinct id once."""
    distinct = list(dict.fromkeys(ids))
    rows = dict(zip(distinct, table.find(distinct).tolist(), strict=True))
    return np.fromiter((rows[text_id] for text_id in ids), np.int32, len(ids))


def _group(unsorted: _Chunk, folder: Path) -> None:
    """A stable counting sort by query from disk to disk."""
    free = np.array(map_array(folder / "starts", np.int64))  # next place of every query
    documents = _sink(folder / "documents", np.int32, len(unsorted.queries))
    scores = _sink(folder / "scores", np.float64, len(unsorted.queries))
    for start in range(0, len(unsorted.queries), CHUNK_ROWS):
        part = slice(start, start + CHUNK_ROWS)
        chunk = _Chunk(unsorted.queries[part], unsorted.documents[part], unsorted.scores[part])
        order = np.argsort(chunk.queries, kind="stable")
        ordered = chunk.queries[order]
        values, firsts, sizes = np.unique(ordered, return_index=True, return_counts=True)
        places = free[ordered] + np.arange(len(order)) - np.repeat(firsts, sizes)
        documents[places], scores[places] = chunk.documents[order], chunk.scores[order]
        free[values] += sizes


def _sink(path: Path, kind: type[np.generic], size: int) -> NDArray[Any]:
    """A new file of `size` values to write into, with its room on the disk taken at once."""
    with path.open("wb") as file:
        if size:  # an empty file cannot be mapped
            os.posix_fallocate(file.fileno(), 0, size * np.dtype(kind).itemsize)
    return np.memmap(path, kind, "r+") if size else np.empty(0, kind)


def batched(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    """Lists of `size` items, the last one shorter."""
    while batch := list(itertools.islice(items, size)):
        yield batch


def write_array(path: Path, values: NDArray[Any]) -> None:
    """Write an array's bytes, without a header."""
    with path.open("wb") as file:
        values.tofile(file)


def map_array(path: Path, kind: Any) -> NDArray[Any]:
    """Map what `write_array` wrote."""
    return np.frombuffer(map_file(path), kind)
