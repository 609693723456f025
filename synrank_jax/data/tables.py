"""Ingested texts on disk, memory-mapped.

Building reads a stream once; in memory stay hashes and offsets, about 40 bytes per text.
"""

import hashlib
import itertools
import mmap
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from synrank_jax.data.streams import Stream, Text
from synrank_jax.errors import UserError
from synrank_jax.files import map_file

Rows = NDArray[np.int32]
CHUNK_ROWS = 2**16
# Texts read between two releases of a map's pages, which would all count as memory of the process.
RELEASE_TEXTS = 512


class _Texts:
    """Ids and texts by row number."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ids, self._texts = map_file(folder / "ids"), map_file(folder / "texts")
        self._id_ends = map_array(folder / "id_ends", np.int64)
        self._text_ends = map_array(folder / "text_ends", np.int64)
        self._reads = 0

    def __len__(self) -> int:
        return len(self._id_ends) - 1

    def id(self, row: int) -> str:
        """Id of a row."""
        return self._ids[self._id_ends[row] : self._id_ends[row + 1]].decode()

    def text(self, row: int) -> str:
        """Text of a row."""
        self._reads += 1
        if self._reads % RELEASE_TEXTS == 0 and isinstance(self._texts, mmap.mmap):
            self._texts.madvise(mmap.MADV_DONTNEED)  # they stay in the system's cache
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


def write_array(path: Path, values: NDArray[Any]) -> None:
    """Write an array's bytes, without a header."""
    with path.open("wb") as file:
        values.tofile(file)


def map_array(path: Path, kind: Any) -> NDArray[Any]:
    """Map what `write_array` wrote."""
    return np.frombuffer(map_file(path), kind)
