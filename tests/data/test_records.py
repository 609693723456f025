"""TFRecord framing: known checksums, round trip, and damage of any kind."""

import errno
import os
import pickle
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from synrank_jax.data.records import TFRecordSource, masked_crc32c, write_records
from synrank_jax.errors import UserError

RECORDS = [b"first record", b"", b"\x00\xff" * 40]


def read_all(paths) -> list[bytes]:
    source = TFRecordSource(paths)
    return [source[index] for index in range(len(source))]


@pytest.mark.parametrize(
    ("data", "crc"),
    [
        # RFC 3720, B.4; and the customary check value of CRC-32C.
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (b"123456789", 0xE3069283),
    ],
)
def test_checksums_are_the_published_ones_masked(data, crc):
    rotated = (crc >> 15 | crc << 17) & 0xFFFFFFFF
    assert masked_crc32c(data) == (rotated + 0xA282EAD8) % 2**32


def test_the_file_is_laid_out_as_documented(tmp_path):
    path = tmp_path / "one"
    write_records(path, [b"abc"])
    length, length_crc, data, data_crc = struct.unpack("<QI3sI", path.read_bytes())
    assert (length, data) == (3, b"abc")
    assert length_crc == masked_crc32c(struct.pack("<Q", 3))
    assert data_crc == masked_crc32c(b"abc")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(files=st.lists(st.lists(st.binary(max_size=300), max_size=5), max_size=4))
def test_what_is_written_is_read(tmp_path, files):
    paths = [tmp_path / str(number) for number in range(len(files))]
    for path, records in zip(paths, files, strict=True):
        written = write_records(path, records)
        assert (written.records, written.bytes) == (len(records), path.stat().st_size)
    assert read_all(paths) == [record for records in files for record in records]


def test_an_index_past_the_end_is_an_index_error(tmp_path):
    write_records(tmp_path / "one", RECORDS)
    source = TFRecordSource([tmp_path / "one"])
    for index in (3, -1):
        with pytest.raises(IndexError):
            source[index]


def test_every_flipped_bit_is_found_with_file_and_offset(tmp_path):
    path = tmp_path / "shard"
    write_records(path, RECORDS)
    whole = path.read_bytes()
    starts = [0, 28, 44]  # 12 + 12 + 4 bytes, 12 + 0 + 4 bytes
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        start = max(start for start in starts if start <= position)
        with pytest.raises(UserError) as error:
            read_all([path])
        assert str(error.value).startswith(f"{path}: byte {start}: ")
        assert "--overwrite" in str(error.value)


def test_every_truncation_inside_a_record_is_found_at_opening(tmp_path):
    path = tmp_path / "shard"
    write_records(path, RECORDS)
    whole = path.read_bytes()
    borders = [0, 28, 44, len(whole)]
    for size in set(range(len(whole))) - set(borders):
        path.write_bytes(whole[:size])
        start = max(border for border in borders if border < size)
        with pytest.raises(UserError, match=f"byte {start}: a record of .* the file ends after"):
            TFRecordSource([path])


def test_a_huge_length_with_a_valid_checksum_is_a_truncation(tmp_path):
    path = tmp_path / "shard"
    length = struct.pack("<Q", 2**63)
    path.write_bytes(length + struct.pack("<I", masked_crc32c(length)) + b"abc")
    with pytest.raises(UserError, match="byte 0: a record of 9223372036854775824 bytes"):
        TFRecordSource([path])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"absent: cannot be read"):
        TFRecordSource([tmp_path / "absent"])


def test_a_pickled_source_reads_the_same(tmp_path):
    write_records(tmp_path / "one", RECORDS)
    write_records(tmp_path / "none", [])
    source = TFRecordSource([tmp_path / "none", tmp_path / "one"])
    copy = pickle.loads(pickle.dumps(source))
    assert [copy[index] for index in range(len(copy))] == RECORDS


def test_threads_read_what_one_thread_reads(tmp_path):
    records = [bytes([number]) * number for number in range(200)]
    write_records(tmp_path / "one", records)
    source = TFRecordSource([tmp_path / "one"])
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(source.__getitem__, list(range(200)) * 5)) == records * 5


def test_a_failing_writer_leaves_no_file_and_keeps_the_old_one(tmp_path):
    path = tmp_path / "shard"
    write_records(path, [b"old"])

    def failing():
        yield b"new"
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        write_records(path, failing())
    assert [p.name for p in tmp_path.iterdir()] == ["shard"]
    assert read_all([path]) == [b"old"]


def test_a_full_disk_is_one_clear_error(tmp_path: Path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"shard: cannot be written \(No space left on device\)"):
        write_records(tmp_path / "shard", RECORDS)
    assert list(tmp_path.iterdir()) == []
