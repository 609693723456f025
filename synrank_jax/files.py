"""Files that are never seen half-written."""

import fcntl
import hashlib
import mmap
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from synrank_jax.errors import UserError

LOCK_FILE = "lock"


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file that becomes `path` when the block ends, and vanishes if it fails.

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    # Not the process id: machines that share a file system may have the same.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path, field: str) -> Iterator[None]:
    """Hold a folder; the lock ends with the process, however that ends.

    Args:
        folder: made if missing.
        field: what named it, for errors.

    Raises:
        UserError: another process holds it, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / LOCK_FILE).open("a+")
    except OSError as error:
        raise UserError(f"{field} {folder}: cannot be written ({error})") from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            raise UserError(
                f"{field} {folder}: in use by process {handle.read().strip() or '?'}; "
                f"wait for it, end it, or set another {field}"
            ) from None
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield


def make_folder(folder: Path, field: str) -> None:
    """Make a folder; `field` names what asked for it in errors.

    Raises:
        UserError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{field} {folder}: cannot be written ({error.strerror})") from error


def write_text(path: Path, text: str) -> None:
    """`atomic_write` of a whole text in UTF-8."""
    with atomic_write(path) as file:
        file.write(text.encode())


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def map_file(path: Path) -> mmap.mmap | bytes:
    """A file's content as a read-only memory map.

    Raises:
        UserError: it is missing or cannot be read.
    """
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                return b""  # an empty file cannot be mapped
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); prepare the data") from error
