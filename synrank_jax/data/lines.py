"""Text files as streams, plain, gzip or zstd: every error names the file and the line."""

import gzip
import importlib
import io
import json
import math
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from synrank_jax.errors import UserError

# A file may be compressed: its name then ends with one of these.
ENDINGS = ("", ".gz", ".zst")


class Place(NamedTuple):
    """Where something was read, for error messages: FILE:LINE."""

    path: Path
    line: int

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"


def existing_file(folder: Path, name: str) -> Path | None:
    """The file `name` of a folder, or its compressed form; None if there is neither.

    Raises:
        UserError: the folder has more than one of them.
    """
    found = [folder / f"{name}{end}" for end in ENDINGS if (folder / f"{name}{end}").is_file()]
    if len(found) > 1:
        raise UserError(f"{folder}: has {' and '.join(f.name for f in found)}; keep one of them")
    return found[0] if found else None


def open_file(path: Path, way_out: str = "") -> IO[bytes]:
    """Open a file for reading bytes, decompressing it by its ending.

    Raises:
        UserError: it is missing or cannot be read; says `way_out`.
    """
    try:
        if path.suffix == ".gz":
            return io.BufferedReader(gzip.open(path, "rb"))
        if path.suffix == ".zst":
            return _zstd(path).open(path, "rb")  # type: ignore[no-any-return]
        return path.open("rb")
    except OSError as error:
        more = f"; {way_out}" if way_out else ""
        raise UserError(f"{path}: cannot be read ({error.strerror}){more}") from error


def _zstd(path: Path) -> Any:
    # The standard library's reader (Python 3.14) for earlier versions. The package zstandard takes
    # a file that is cut off for whole.
    try:
        return importlib.import_module("backports.zstd")
    except ImportError as error:
        raise UserError(
            f"{path}: reading zstd needs the package backports.zstd; install it (pip install "
            "'synrank-jax[sources]'), or decompress the file"
        ) from error


def read_lines(path: Path, way_out: str = "") -> Iterator[tuple[int, str]]:
    r"""Line number and text of every line that is not blank, without its \r\n or a byte-order mark.

    Raises:
        UserError: the file is missing, cut off or corrupt, or a line is not valid UTF-8.
    """
    line = 0
    with open_file(path, way_out) as file:
        try:
            # Bytes are cut at \n only: str.splitlines would also cut at U+2028 inside a text.
            for line, raw in enumerate(file, start=1):
                text = raw.decode("utf-8-sig" if line == 1 else "utf-8").strip("\r\n")
                if text.strip():
                    yield line, text
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path}:{line}: not valid UTF-8 (byte {error.start} of the line is "
                f"0x{error.object[error.start]:02x}); save the file as UTF-8"
            ) from error
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(_corrupt(path, line, error)) from error
        except Exception as error:
            if type(error).__name__ != "ZstdError":  # known only where its package is installed
                raise
            raise UserError(_corrupt(path, line, error)) from error


def _corrupt(path: Path, line: int, error: Exception) -> str:
    return f"{path}: cannot be read after line {line} ({error}); is the file whole?"


def read_objects(path: Path, way_out: str = "") -> Iterator[tuple[Place, dict[str, Any]]]:
    """Place and content of every line of a JSONL file.

    Raises:
        UserError: as `read_lines`; a line is not a JSON object.
    """
    for line, raw in read_lines(path, way_out):
        place = Place(path, line)
        try:
            record = json.loads(raw)
        except ValueError as error:
            raise UserError(f"{place}: not valid JSON ({error})") from error
        if not isinstance(record, dict):
            raise UserError(f"{place}: expected an object {{...}}, got {raw[:60]!r}")
        yield place, record


def read_table(
    path: Path, columns: Sequence[str], *, header: bool, way_out: str = ""
) -> Iterator[tuple[Place, tuple[str, ...]]]:
    """Place and cells of every row of a tab-separated file.

    Args:
        path: The file.
        columns: Names of the columns; a file with a header has exactly these there.
        header: Whether the first line names the columns.
        way_out: Said when the file is missing.

    Raises:
        UserError: as `read_lines`; a wrong header; a row with other columns or an empty cell.
    """
    lines = read_lines(path, way_out)
    if header:
        first, text = next(lines, (1, ""))
        if tuple(text.split("\t")) != tuple(columns):
            expected = "<TAB>".join(columns)
            raise UserError(f"{path}:{first}: expected the header {expected}, got {text!r}")
    for line, text in lines:
        cells = tuple(text.split("\t"))
        if len(cells) != len(columns) or not all(cells):
            raise UserError(
                f"{path}:{line}: expected {len(columns)} filled columns separated by tabs "
                f"({', '.join(columns)}), got {text[:200]!r}"
            )
        yield Place(path, line), cells


def member(record: Any, name: str, place: Place) -> Any:
    """A value of a record.

    Raises:
        UserError: the record is no object, or has no such key.
    """
    if not isinstance(record, dict):
        raise UserError(f"{place}: expected an object with {name}, got {record!r}")
    if name not in record:
        raise UserError(f"{place}: has no {name!r}; what it has is: {', '.join(record)}")
    return record[name]


def identifier(value: Any, name: str, place: Place) -> str:
    """A query or document id as a string; an integer is taken as its digits.

    Raises:
        UserError: it is empty, or neither a string nor an integer.
    """
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise UserError(f"{place}: {name} must be a non-empty string, got {value!r}")
    return _encodable(str(value), name, place)


def string(value: Any, name: str, place: Place) -> str:
    """A text that UTF-8 can hold.

    Raises:
        UserError: it is not a string, or has half of a surrogate pair.
    """
    if not isinstance(value, str):
        raise UserError(f"{place}: {name} must be a string, got {value!r}")
    return _encodable(value, name, place)


def _encodable(value: str, name: str, place: Place) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{place}: {name} has half of a surrogate pair at character {error.start}, which is "
            "no text; write the character itself"
        ) from error
    return value


def score(value: Any, name: str, place: Place) -> float:
    """A finite number, or its text.

    Raises:
        UserError: it is none.
    """
    written = isinstance(value, str) and value.isascii() and "_" not in value
    if written or (isinstance(value, int | float) and not isinstance(value, bool)):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
        if math.isfinite(number):
            return number
    raise UserError(f"{place}: {name} must be a finite number, got {value!r}")
