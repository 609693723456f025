"""TFRecord files without TensorFlow: atomic writing, random access over a memory map.

A record is `length: uint64 | masked CRC32C of length: uint32 | data | masked CRC32C of data:
uint32`, little-endian (TensorFlow, tensorflow/core/lib/io/record_writer.h). The length CRCs are
checked when a file is opened, the data CRC whenever a record is read.
"""

import hashlib
import mmap
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numpy as np

from synrank_jax.errors import UserError
from synrank_jax.files import atomic_write, map_file

LENGTH = struct.Struct("<Q")
CRC = struct.Struct("<I")
HEADER = struct.Struct("<QI")
CRC_MASK_DELTA = 0xA282EAD8
WAY_OUT = "the shard is damaged: prepare the data again with --overwrite"


def masked_crc32c(data: bytes) -> int:
    """CRC32C rotated right by 15 bits plus a constant, so that a CRC of a CRC stays useful."""
    crc: int = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + CRC_MASK_DELTA) & 0xFFFFFFFF


class WrittenFile(NamedTuple):
    """What a finished file holds."""

    records: int
    bytes: int
    sha256: str


def write_records(path: Path, records: Iterable[bytes]) -> WrittenFile:
    """Write a TFRecord file; `path` appears only when it is whole and on disk.

    Raises:
        UserError: the disk is full or the place cannot be written.
    """
    count = size = 0
    digest = hashlib.sha256()
    with atomic_write(path) as file:
        for data in records:
            length = LENGTH.pack(len(data))
            framed = b"".join(
                (length, CRC.pack(masked_crc32c(length)), data, CRC.pack(masked_crc32c(data)))
            )
            file.write(framed)
            digest.update(framed)
            count += 1
            size += len(framed)
    return WrittenFile(count, size, digest.hexdigest())


class TFRecordSource:
    """The records of several TFRecord files as one sequence, read from memory maps.

    Reading is thread-safe; a pickled source carries its index and maps the files again.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        """Map the files and index their records.

        Raises:
            UserError: a file is missing, truncated, or a record's length fails its CRC.
        """
        self._paths = tuple(paths)
        self._maps = tuple(map_file(path) for path in self._paths)
        indices = [_index(path, data) for path, data in zip(self._paths, self._maps, strict=True)]
        self._shards = np.repeat(np.arange(len(indices)), [len(index) for index in indices])
        self._spans = np.concatenate([np.empty((0, 2), np.int64), *indices])

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: int) -> bytes:
        """Record number `index`, counted through the files in order.

        Raises:
            UserError: the record's CRC does not match; names file and byte offset.
            IndexError: no such record.
        """
        if not 0 <= index < len(self._spans):
            raise IndexError(f"record {index} of {len(self._spans)}")
        shard = self._shards[index]
        start, length = self._spans[index].tolist()
        end = start + length
        data: bytes = self._maps[shard][start:end]
        (crc,) = CRC.unpack_from(self._maps[shard], end)
        if masked_crc32c(data) != crc:
            raise UserError(
                f"{self._paths[shard]}: byte {start - HEADER.size}: the record's checksum does not "
                f"match; {WAY_OUT}"
            )
        return data

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_maps"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._maps = tuple(map_file(path) for path in self._paths)


def _index(path: Path, data: mmap.mmap | bytes) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Start and length [records, 2] int64, in bytes, of every record's data."""
    spans = []
    offset, size = 0, len(data)
    while offset < size:
        start = offset + HEADER.size
        if start > size:
            raise _truncated(path, offset, HEADER.size, size)
        length, crc = HEADER.unpack_from(data, offset)
        if masked_crc32c(data[offset : offset + LENGTH.size]) != crc:
            raise UserError(
                f"{path}: byte {offset}: the record length's checksum does not match; {WAY_OUT}"
            )
        end = start + length + CRC.size
        if end > size:
            raise _truncated(path, offset, end - offset, size)
        spans.append((start, length))
        offset = end
    return np.array(spans, np.int64).reshape(-1, 2)


def _truncated(path: Path, offset: int, needed: int, size: int) -> UserError:
    return UserError(
        f"{path}: byte {offset}: a record of {needed} bytes starts here, but the file ends after "
        f"{size - offset}; {WAY_OUT}"
    )
