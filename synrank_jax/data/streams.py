"""What a source consists of: streams of texts and of scored pairs that can be started again."""

import functools
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from synrank_jax.data.lines import Place
from synrank_jax.errors import UserError


class Text(NamedTuple):
    """A document or a query."""

    place: Place
    id: str
    text: str


class Pair(NamedTuple):
    """A document that a source has for a query. score: higher is more relevant, by custom."""

    place: Place
    query_id: str
    doc_id: str
    score: float


T = TypeVar("T")


class Stream(NamedTuple, Generic[T]):
    """Rows in file order, read anew at every call of `rows`, in memory that does not grow.

    kind: How the files are read; with their content it decides the rows.
    files: All files that are read.
    origin: What stands for the content of rows that come from elsewhere, such as a hub commit.
    """

    kind: str
    files: tuple[Path, ...]
    rows: Callable[[], Iterator[T]]
    origin: str = ""

    def sha256(self) -> str:
        """Hash of everything that decides the rows; where the files lie does not.

        Raises:
            UserError: a file is missing.
        """
        digest = hashlib.sha256(f"{self.kind}\n{self.origin}\n".encode())
        for path in self.files:
            if not path.is_file():
                next(self.rows(), None)  # raises the reader's own error, which knows the way out
            digest.update(f"{path.name}:{content_sha256(path)}\n".encode())
        return digest.hexdigest()


class Reader(NamedTuple):
    """A source, opened but not read.

    queries, pairs: None where queries are made from the documents (format `crops`).
    excluded: Pairs that are neither trained on nor negatives; their scores mean nothing.
    """

    documents: Stream[Text]
    queries: Stream[Text] | None
    pairs: Stream[Pair] | None
    excluded: Stream[Pair] | None = None

    def sha256(self) -> str:
        """Hash of the content of all streams."""
        digest = hashlib.sha256()
        for stream in self:
            digest.update(f"{stream.sha256() if stream else None}\n".encode())
        return digest.hexdigest()


def content_sha256(path: Path) -> str:
    """SHA-256 of a file, computed once while the file stays as it is.

    Raises:
        UserError: it cannot be read.
    """
    try:
        state = path.stat()
        return _content_sha256(path, state.st_size, state.st_mtime_ns, state.st_ino)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


@functools.lru_cache(maxsize=256)
def _content_sha256(path: Path, *state: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
