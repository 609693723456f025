"""Configured sources, ingested once and then read from memory maps.

Ingested tables lie in folders named by the hash of what they were made from, so that a table is
made once for all sources that share it, and again only when its files change. A folder appears
under its name when it is whole and on disk.
"""

import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from synrank_jax.config import SourceConfig
from synrank_jax.data import beir
from synrank_jax.data.draws import crop
from synrank_jax.data.formats import open_reader
from synrank_jax.data.lines import read_lines
from synrank_jax.data.pairs import EXAMPLES, Missing, Pairs, write_pairs
from synrank_jax.data.streams import Pair, Stream, Text, content_sha256
from synrank_jax.data.tables import Rows, TextTable, write_texts
from synrank_jax.errors import UserError

# Raised with every change of what is written into a cached folder or of how files are read.
CACHE_VERSION = 1


class Cache:
    """A folder of ingested tables."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._used: set[str] = set()

    def get(self, kind: str, key: str, write: Callable[[Path], None]) -> Path:
        """The folder of what `write` makes from the content that `key` stands for.

        Raises:
            UserError: bad input, or the disk is full.
        """
        digest = hashlib.sha256(f"{CACHE_VERSION} {key}".encode()).hexdigest()
        folder = self._folder / f"{kind}-{digest[:32]}"
        self._used.add(folder.name)
        if not folder.is_dir():
            with _appearing(folder) as temporary:
                write(temporary)
        return folder

    def prune(self) -> None:
        """Remove what was not asked for, left behind by killed runs or made of former content."""
        for path in self._folder.glob("*"):
            if path.name not in self._used:
                shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    # Not the process id: machines that share a file system may have the same.
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for path in temporary.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        temporary.rename(folder)
    except OSError as error:
        if not folder.is_dir():  # else another process was faster
            raise UserError(f"{folder}: cannot be written ({error.strerror})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class Source:
    """A source: its queries, and the documents that it has for each, by row."""

    def __init__(
        self,
        config: SourceConfig,
        documents: TextTable,
        queries: TextTable,
        pairs: Pairs,
        excluded: Pairs | None,
    ) -> None:
        self.config = config
        self.documents = documents
        self._queries = queries
        self._pairs = pairs
        self._excluded = excluded

    def rows(self) -> NDArray[np.int64]:
        """Rows of the queries with a document, in file order; those of the query subset only.

        Raises:
            UserError: the subset names an unknown query.
        """
        return np.intersect1d(self._pairs.queries(), _subset(self))

    def query_count(self) -> int:
        """Queries in the files, those without a document included."""
        return len(self._queries)

    def find_queries(self, ids: Sequence[str]) -> Rows:
        """Row of each query id, -1 where there is none."""
        return self._queries.find(ids)

    def query_id(self, row: int) -> str:
        """Id of a query."""
        return self._queries.id(row)

    def query(self, row: int, seed: int, draw: int) -> str:
        """Text of a query."""
        return self._queries.text(row)

    def passage(self, row: int, seed: int, draw: int) -> str:
        """Text of a document in a list."""
        return self.documents.text(row)

    def found(self, row: int) -> tuple[Rows, NDArray[np.float64]]:
        """Rows and scores of a query's documents, in file order."""
        return self._pairs.of(row)

    def scores(self) -> NDArray[np.float64]:
        """Scores of all pairs."""
        return self._pairs.scores

    def barred(self, query_id: str) -> Rows:
        """Rows of the documents that exclude.tsv names for a query, whatever the query subset."""
        if self._excluded is None:
            return np.empty(0, np.int32)
        row = int(self._queries.find([query_id])[0])
        return self._excluded.of(row)[0] if row >= 0 else np.empty(0, np.int32)

    def missing(self) -> dict[str, Missing]:
        """Pairs left out for naming an unknown query or document."""
        stamp = self._pairs.stamp
        missing = {"query": stamp.missing_queries, "document": stamp.missing_documents}
        if self._excluded is not None:
            stamp = self._excluded.stamp
            missing["query in exclude.tsv"] = stamp.missing_queries
            missing["document in exclude.tsv"] = stamp.missing_documents
        return missing

    def locate(self, query_id: str, doc_id: str | None) -> str:
        """FILE:LINE of a pair, wherever it is, or of the first of a query, for error messages."""
        pairs = open_reader(self.config).pairs
        found = (pair for pair in (pairs.rows() if pairs else ()) if pair.query_id == query_id)
        if doc_id is None:
            return str(next(found).place)
        return " and ".join(str(pair.place) for pair in found if pair.doc_id == doc_id)

    def locate_text(self, stream: Literal["queries", "documents"], text_id: str) -> str:
        """FILE:LINE of a text, for error messages."""
        texts = getattr(open_reader(self.config), stream)
        for text in texts.rows() if texts else ():
            if text.id == text_id:
                return str(text.place)
        return self.config.path


class CropSource(Source):
    """A source that makes a query and its one passage of each document, by two random crops."""

    PREFIX = "crop:"

    def __init__(self, config: SourceConfig, documents: TextTable) -> None:
        self.config = config
        self.documents = documents

    def rows(self) -> NDArray[np.int64]:
        distinct = self.documents.distinct_rows()
        filled = distinct[~self.documents.empty()[distinct]]
        return np.intersect1d(filled, _subset(self))

    def query_count(self) -> int:
        return len(self.documents)

    def find_queries(self, ids: Sequence[str]) -> Rows:
        rows = self.documents.find([text_id.removeprefix(self.PREFIX) for text_id in ids])
        ours = [text_id.startswith(self.PREFIX) for text_id in ids]
        return np.where(ours, rows, -1).astype(np.int32)

    def query_id(self, row: int) -> str:
        return f"{self.PREFIX}{self.documents.id(row)}"

    def query(self, row: int, seed: int, draw: int) -> str:
        return crop(self.documents.text(row), seed, draw, self.documents.id(row), "query")

    def passage(self, row: int, seed: int, draw: int) -> str:
        return crop(self.documents.text(row), seed, draw, self.documents.id(row), "passage")

    def found(self, row: int) -> tuple[Rows, NDArray[np.float64]]:
        return np.array([row], np.int32), np.ones(1)

    def scores(self) -> NDArray[np.float64]:
        return np.ones(len(self.rows()))

    def barred(self, query_id: str) -> Rows:
        return np.empty(0, np.int32)

    def missing(self) -> dict[str, Missing]:
        return {}

    def locate(self, query_id: str, doc_id: str | None) -> str:
        return self.config.path


def ingest(config: SourceConfig, cache: Cache, allow_missing: bool) -> Source:
    """Open a source, ingesting what the cache lacks.

    Raises:
        UserError: bad input; pairs with an unknown query or document, unless `allow_missing`.
    """
    reader = open_reader(config)

    def table(stream: Stream[Text]) -> TextTable:
        return TextTable(
            cache.get("texts", stream.sha256(), lambda folder: write_texts(folder, stream))
        )

    documents = table(reader.documents)
    if reader.queries is None or reader.pairs is None:
        return CropSource(config, documents)
    queries = table(reader.queries)

    def grouped(stream: Stream[Pair]) -> Pairs:
        key = f"{stream.sha256()} {queries.folder.name} {documents.folder.name}"
        return Pairs(
            cache.get("pairs", key, lambda folder: write_pairs(folder, stream, queries, documents))
        )

    excluded = grouped(reader.excluded) if reader.excluded else None
    source = Source(config, documents, queries, grouped(reader.pairs), excluded)
    if not allow_missing:
        _require_known(source)
    return source


def source_sha256(config: SourceConfig) -> str:
    """Hash of the content of every file that is read of a source.

    Raises:
        UserError: the folder or a file does not exist.
    """
    digest = hashlib.sha256(open_reader(config).sha256().encode())
    if config.queries is not None:
        digest.update(content_sha256(Path(config.queries).expanduser()).encode())
    return digest.hexdigest()


def _require_known(source: Source) -> None:
    for what in ("query", "document"):
        if (missing := source.missing()[what]).count:
            raise UserError(
                f"{missing.first_place}: {what} {missing.examples[0]!r} is not in the {what} texts "
                f"of {source.config.path} ({among(missing.count, missing.examples)} unknown); add "
                "it, remove its judgements, or leave them out with data.allow_missing=true"
            )


def _subset(source: Source) -> NDArray[np.int64]:
    """Rows of the queries that the source is restricted to, ascending."""
    if source.config.queries is None:
        return np.arange(source.query_count())
    file = Path(source.config.queries).expanduser()
    ids = sorted(beir.read_query_subset(file))
    rows = source.find_queries(ids)
    unknown = [ids[index] for index in np.flatnonzero(rows < 0)]
    if unknown:
        line = next(line for line, text in read_lines(file) if text == unknown[0])
        raise UserError(
            f"{file}:{line}: query {unknown[0]!r} is not in {source.config.path} "
            f"({among(len(unknown), unknown)} unknown); remove it"
        )
    return np.sort(rows).astype(np.int64)


def among(count: int, ids: Sequence[str]) -> str:
    """The number of ids and the first few of them."""
    return f"{count}: {', '.join(ids[:EXAMPLES])}{', ...' if count > EXAMPLES else ''}"
