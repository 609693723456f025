"""Ingested pairs on disk, memory-mapped and grouped by query.

Building reads a stream once and holds a few thousand of its rows at a time, however many there are.
"""

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from synrank_jax.config_section import Section
from synrank_jax.data.lines import Place
from synrank_jax.data.streams import Pair, Stream
from synrank_jax.data.tables import CHUNK_ROWS, Rows, TextTable, map_array, write_array

EXAMPLES = 3


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
    for pairs in _batched(stream.rows(), CHUNK_ROWS):
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


def _batched(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    """Lists of `size` items, the last one shorter."""
    while batch := list(itertools.islice(items, size)):
        yield batch
