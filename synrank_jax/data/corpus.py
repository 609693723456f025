"""The documents of a collection for evaluation: on disk, memory-mapped, in file order."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from synrank_jax.data import beir
from synrank_jax.data.sources import Cache
from synrank_jax.data.streams import content_sha256
from synrank_jax.data.tables import TextTable, write_texts
from synrank_jax.errors import UserError

TABLE_FILES = ("ids", "id_ends", "texts", "text_ends")


class Corpus:
    """Documents by position, 0 to N - 1; an id that the file repeats has one position.

    Args:
        table: the ingested documents.
    """

    def __init__(self, table: TextTable) -> None:
        self._table = table
        self._rows = table.distinct_rows()
        self.ids: Sequence[str] = _Ids(self)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def sha256(self) -> str:
        """Hash of ids and texts in order."""
        files = (content_sha256(self._table.folder / name) for name in TABLE_FILES)
        return hashlib.sha256(" ".join(files).encode()).hexdigest()

    def id(self, position: int) -> str:
        """Id of a document."""
        return self._table.id(int(self._rows[position]))

    def text(self, doc_id: str) -> str:
        """Title and text of a document.

        Raises:
            KeyError: there is no such document.
        """
        row = int(self._table.find([doc_id])[0])
        if row < 0:
            raise KeyError(doc_id)
        return self._table.text(row)

    def texts(self, start: int, stop: int) -> list[str]:
        """Title and text of the documents at positions start to stop - 1."""
        return [self._table.text(row) for row in self._rows[start:stop].tolist()]

    def unknown(self, ids: Sequence[str]) -> list[str]:
        """Those of `ids` that no document has."""
        found = self._table.find(ids)
        return [ids[index] for index in np.flatnonzero(found < 0).tolist()]

    def empty(self) -> list[int]:
        """Positions of the documents without text."""
        positions: list[int] = np.flatnonzero(self._table.empty()[self._rows]).tolist()
        return positions


class _Ids(Sequence[str]):
    """Ids by position, read when asked for."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus

    def __len__(self) -> int:
        return len(self._corpus)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self._corpus.id(position) for position in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._corpus.id(index)

    def __iter__(self) -> Iterator[str]:
        return map(self._corpus.id, range(len(self)))


def read_corpus(folder: Path, cache: Path) -> Corpus:
    """Ingest the documents of a BEIR-layout folder, unless `cache` has them.

    Memory: about 40 bytes per document while ingesting, 4 afterwards; the texts stay on disk.

    Raises:
        UserError: the corpus is missing, empty or malformed, or has one id with two texts; the
            cache cannot be written.
    """
    stream = beir.documents(folder)
    tables = Cache(cache)
    table = TextTable(
        tables.get("texts", stream.sha256(), lambda target: write_texts(target, stream))
    )
    corpus = Corpus(table)
    if not len(corpus):
        raise UserError(f"{stream.files[0]}: the corpus is empty, there is nothing to search in")
    return corpus
