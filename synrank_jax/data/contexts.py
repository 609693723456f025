"""Ranking contexts: one query with its graded list of passages, from the mixture of all sources."""

import bisect
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from synrank_jax.config import DataConfig
from synrank_jax.data.mixture import Assembled, Found, Member, RefusedError, assemble
from synrank_jax.data.sources import Cache, ingest
from synrank_jax.data.tables import CHUNK_ROWS, Rows, TextTable, map_array, write_array
from synrank_jax.errors import UserError

NO_ROWS, NO_SCORES = np.empty(0, np.int32), np.empty(0)


class Passage(NamedTuple):
    """A document in the list of a query. number: as in `Documents`."""

    doc_id: str
    text: str
    grade: int
    number: int


class RankingContext(NamedTuple):
    """A query and its list, highest grade first and document ids ascending within a grade.

    excluded: numbers of documents that are no negatives for this query either, where other lists
    hold them.
    """

    query_id: str
    query: str
    passages: tuple[Passage, ...]
    excluded: frozenset[int]


class Documents:
    """The union of all document tables: every document id has one number.

    The number is the row in the first table that has the id, counted on from table to table.
    """

    def __init__(self, tables: Sequence[TextTable], folders: Sequence[Path]) -> None:
        """Map what `union` wrote: the folders of all tables but the first."""
        self.tables = tables
        self._folders = folders
        self._ends: list[int] = np.cumsum([0, *map(len, tables)]).tolist()
        self._numbers = [map_array(folder / "numbers", np.int32) for folder in folders]

    def __reduce__(self) -> tuple[type[Self], tuple[Sequence[TextTable], Sequence[Path]]]:
        return type(self), (self.tables, self._folders)

    def __len__(self) -> int:
        return self._ends[-1]

    def numbers(self, table: int, rows: Rows) -> Rows:
        """Numbers of a table's rows."""
        return self._numbers[table - 1][rows] if table else rows

    def id(self, number: int) -> str:
        """Document id of a number."""
        table = bisect.bisect_right(self._ends, number) - 1
        return self.tables[table].id(number - self._ends[table])


def union(tables: Sequence[TextTable], cache: Cache) -> Documents:
    """Number the documents of several tables.

    Raises:
        UserError: there are more than an int32 can number.
    """
    ends = np.cumsum([0, *map(len, tables)])
    if ends[-1] >= 2**31:
        raise UserError(f"data.sources: {ends[-1]} documents in all, more than 2^31")

    def numbers_of(index: int) -> Path:
        def write(folder: Path) -> None:
            numbers = np.arange(ends[index], ends[index + 1], dtype=np.int32)
            for earlier in reversed(range(index)):
                rows, others = tables[index].join(tables[earlier])
                numbers[rows] = others + ends[earlier]
            write_array(folder / "numbers", numbers)

        key = " ".join(table.folder.name for table in tables[: index + 1])
        return cache.get("numbers", key, write)

    return Documents(tables, [numbers_of(index) for index in range(1, len(tables))])


class Query(NamedTuple):
    """A query, and what every source has for it.

    rows: Its row in each source, -1 where the source lacks it.
    documents: Rows of its documents in each source; found: their numbers and scores.
    barred: Numbers of the documents that no list of it may hold.
    """

    id: str
    rows: Sequence[int]
    documents: list[list[int]]
    found: list[Found]
    barred: frozenset[int]


class Mixture:
    """All sources of a configuration, opened."""

    def __init__(self, data: DataConfig, cache: Cache) -> None:
        """Open the sources, ingesting what the cache lacks.

        Raises:
            UserError: bad input.
        """
        self.data = data
        self.sources = [ingest(source, cache, data.allow_missing) for source in data.sources]
        folders = [source.documents.folder for source in self.sources]
        tables = {source.documents.folder: source.documents for source in self.sources}
        self.documents = union(list(tables.values()), cache)
        self.tables = [list(tables).index(folder) for folder in folders]
        """Of each source, its index among the tables of `documents`."""

    def entries(self) -> NDArray[np.int32]:
        """Every query that a source has a document for: its row in each source, -1 for none.

        In the order of the sources, and of their query files.

        Returns:
            int32 [queries, sources].
        """
        entries = np.empty((0, len(self.sources)), np.int32)
        for index, source in enumerate(self.sources):
            rows = source.rows().astype(np.int32)
            owners = self._known(entries, index, rows)
            entries[owners[owners >= 0], index] = rows[owners >= 0]
            new = np.full((int((owners < 0).sum()), len(self.sources)), -1, np.int32)
            new[:, index] = rows[owners < 0]
            entries = np.concatenate([entries, new])
        return entries

    def _known(self, entries: NDArray[np.int32], index: int, rows: Rows) -> NDArray[np.int64]:
        """Entry of each of a source's queries, by the sources before it; -1 for none."""
        known = np.full(len(rows), -1, np.int64)
        for column in range(index):
            entry_of = np.full(self.sources[column].query_count(), -1, np.int64)
            present = np.flatnonzero(entries[:, column] >= 0)
            entry_of[entries[present, column]] = present
            for start in range(0, len(rows), CHUNK_ROWS):
                part = slice(start, start + CHUNK_ROWS)
                ids = [self.sources[index].query_id(row) for row in rows[part].tolist()]
                found = self.sources[column].find_queries(ids)
                owners = np.where(found >= 0, entry_of[found], -1)
                known[part] = np.maximum(known[part], owners)
        return known

    def query(self, entry: Sequence[int]) -> Query:
        """What the sources have for a row of `entries`."""
        first = next(index for index, row in enumerate(entry) if row >= 0)
        query_id = self.sources[first].query_id(entry[first])
        documents: list[list[int]] = []
        found, barred = [], set[int]()
        for source, table, row in zip(self.sources, self.tables, entry, strict=True):
            rows, scores = source.found(row) if row >= 0 else (NO_ROWS, NO_SCORES)
            documents.append(rows.tolist())
            found.append(Found(self.documents.numbers(table, rows).tolist(), scores.tolist()))
            barred.update(self.documents.numbers(table, source.barred(query_id)).tolist())
        return Query(query_id, entry, documents, found, frozenset(barred))

    def assemble(self, query: Query, draw: int) -> Assembled | None:
        """The list of a query by number, document ids ascending within a grade.

        Raises:
            RefusedError: the rules refuse it (`mixture.assemble`); `located` adds the place.
        """
        assembled = assemble(query.id, query.found, query.barred, self.data, draw)
        if assembled:
            assembled.members.sort(key=lambda m: (-m.grade, self.documents.id(m.document)))
        return assembled

    def located(self, error: RefusedError, query: Query) -> UserError:
        """The error with file and line; reads the source's pairs again."""
        doc_id = None if error.document is None else self.documents.id(error.document)
        place = self.sources[error.source].locate(query.id, doc_id)
        what = "" if doc_id is None else f"query {query.id!r}, document {doc_id!r}: "
        return UserError(f"{place}: {what}{error}")

    def context(self, query: Query, draw: int) -> RankingContext | None:
        """The list of a query with its texts.

        Raises:
            UserError: as `assemble` and `text`.
        """
        assembled = self.assemble(query, draw)
        if assembled is None:
            return None
        passages = tuple(
            Passage(
                self.documents.id(member.document),
                self.sources[member.source].passage(self.row(query, member), self.data.seed, draw),
                member.grade,
                member.document,
            )
            for member in assembled.members
        )
        return RankingContext(query.id, self.text(query, draw), passages, assembled.others)

    def row(self, query: Query, member: Member) -> int:
        """Row of a member of the query's list in its source's documents."""
        return query.documents[member.source][member.place]

    def text(self, query: Query, draw: int) -> str:
        """Text of a query, which all its sources agree on.

        Raises:
            UserError: they do not, or it is empty.
        """
        sources = {
            source.query(row, self.data.seed, draw): source
            for source, row in zip(self.sources, query.rows, strict=True)
            if row >= 0
        }
        if len(sources) > 1 or "" in sources:
            places = (source.locate_text("queries", query.id) for source in sources.values())
            wrong = (
                "is empty, but in a training list; give it a text or remove its judgements"
                if "" in sources
                else "has different texts; rename it in one of them"
            )
            raise UserError(f"{' and '.join(places)}: query {query.id!r} {wrong}")
        (text,) = sources
        return text
