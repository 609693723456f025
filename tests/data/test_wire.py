"""Integer features decoded by NumPy are those that protobuf reads, or none at all."""

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from tensorflow_datasets.proto.tf_example_generated_pb2 import Example

from synrank_jax.data.wire import decode_any, decode_ints, decode_packed

NAMES = ("tokens", "grades", "numbers")
INT32 = st.integers(-(2**31), 2**31 - 1)


def varint(value: int) -> bytes:
    value %= 2**64  # negative numbers are written in two's complement
    groups = [value >> shift & 0x7F for shift in range(0, max(value.bit_length(), 1), 7)]
    return bytes([*(group | 0x80 for group in groups[:-1]), groups[-1]])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def packed(values: list[int]) -> bytes:
    return field(1, b"".join(map(varint, values)))


def unpacked(values: list[int]) -> bytes:
    return b"".join(varint(1 << 3) + varint(value) for value in values)


def padded(values: list[int]) -> bytes:
    return field(1, b"".join(bytes([varint(v)[0] | 0x80, 0]) for v in values if 0 <= v < 0x80))


# All are Int64Lists to protobuf.
LISTS = st.one_of(
    st.lists(st.integers(0, 2**14)).map(packed),
    st.lists(INT32).map(packed),
    st.lists(INT32, max_size=3).map(unpacked),
    st.lists(st.integers(0, 300), max_size=3).map(padded),
    st.lists(st.lists(INT32, max_size=3), max_size=3).map(lambda runs: b"".join(map(packed, runs))),
    st.lists(INT32, max_size=3).map(lambda values: packed(values) + unpacked(values)),
    st.just(packed([1]) + field(9, b"of a later version")),
)
FEATURES = st.one_of(
    st.just(b""),
    LISTS.map(lambda ints: field(3, ints)),
    st.just(field(1, field(1, b"text"))),
    st.just(field(2, field(1, b"\x00\x00\x80\x3f"))),
    LISTS.map(lambda ints: field(3, ints) + field(1, field(1, b"text"))),
    LISTS.map(lambda ints: field(3, ints) + field(3, ints)),
)
ENTRIES = st.tuples(st.sampled_from((*NAMES, "other")), st.lists(FEATURES, min_size=1, max_size=2))
RECORDS = st.lists(ENTRIES, max_size=6).map(
    lambda entries: field(
        1,
        b"".join(
            field(1, field(1, name.encode()) + b"".join(field(2, f) for f in features))
            for name, features in entries
        ),
    )
)


def by_protobuf(records: list[bytes]) -> tuple[list[int], list[list[int]]]:
    lists = [
        [list(Example.FromString(data).features.feature[name].int64_list.value) for data in records]
        for name in NAMES
    ]
    flat = [value for feature in lists for values in feature for value in values]
    return flat, [[len(values) for values in feature] for feature in lists]


@given(st.lists(RECORDS, min_size=1, max_size=4))
def test_whatever_is_decoded_is_what_protobuf_reads(records):
    expected = by_protobuf(records)
    fast = decode_packed(records, NAMES)
    for values, counts in [decode_any(records, NAMES), *([] if fast is None else [fast])]:
        assert values.dtype == np.int32
        assert (values.tolist(), counts.tolist()) == expected


EXAMPLES = st.lists(
    st.dictionaries(st.sampled_from(NAMES), st.lists(st.integers(0, 2**28 - 1), max_size=200)),
    min_size=1,
    max_size=4,
)


@given(EXAMPLES, st.booleans())
def test_what_protobuf_writes_needs_no_protobuf(lists, deterministic):
    records = []
    for features in lists:
        example = Example()
        for name, values in features.items():
            example.features.feature[name].int64_list.value.extend(values)
        records.append(example.SerializeToString(deterministic=deterministic))
    fast = decode_packed(records, NAMES)
    assert fast is not None
    values, counts = fast
    assert (values.tolist(), counts.tolist()) == by_protobuf(records)


@given(RECORDS, st.data())
def test_a_cut_record_is_read_as_protobuf_reads_it_or_refused(record, data):
    cut = record[: data.draw(st.integers(0, len(record)))]
    try:
        expected = by_protobuf([cut])
    except DecodeError:
        with pytest.raises(DecodeError):
            decode_ints([cut], NAMES)
        return
    values, counts = decode_ints([cut], NAMES)
    assert (values.tolist(), counts.tolist()) == expected


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1])
def test_a_value_of_more_than_32_bits_is_refused(value):
    record = field(1, field(1, field(1, b"tokens") + field(2, field(3, packed([value])))))
    with pytest.raises(OverflowError):
        decode_ints([record], NAMES)
