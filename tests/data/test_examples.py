"""The tf.Example schema of a list."""

import subprocess
import sys

import numpy as np
import pytest
from tensorflow_datasets.proto.tf_example_generated_pb2 import Example

from synrank_jax.data.examples import BLOCK, decode_ids, decode_lists, encode_list
from synrank_jax.errors import UserError

TOKENS = [[1, 30000, 2], [1, 2]]


def encoded() -> bytes:
    return encode_list("q\u00e9", [1, 7, 2], ["d1", "d\u00f6"], [4, 0], TOKENS, [3, 0], [7])


def test_lists_come_back_one_after_the_other():
    other = encode_list("q2", [5], ["d3"], [2], [[6, 7]], [1])
    decoded = decode_lists([encoded(), other])
    assert {name: values.tolist() for name, values in decoded._asdict().items()} == {
        "query_tokens": [1, 7, 2, 5],
        "query_lengths": [3, 1],
        "passage_tokens": [1, 30000, 2, 1, 2, 6, 7],
        "passage_lengths": [3, 2, 2],
        "passage_numbers": [4, 0, 2],
        "grades": [3, 0, 1],
        "list_sizes": [2, 1],
        "excluded_numbers": [7],
        "excluded_counts": [1, 0],
    }
    assert decode_ids(encoded()) == ("q\u00e9", ["d1", "d\u00f6"])


def test_many_lists_are_those_of_each_alone():
    count = 2 * BLOCK + 3
    records = [
        encode_list("q", [i] * i, ["d", "e"], [i, 2 * i], [[i] * 3, [i]], [1, 0], [i] * (i % 3))
        for i in range(count)
    ]
    alone = [decode_lists([record]) for record in records]
    for together, *parts in zip(decode_lists(records), *alone, strict=True):
        np.testing.assert_array_equal(together, np.concatenate(parts))


def test_the_features_are_the_documented_ones():
    features = Example.FromString(encoded()).features.feature
    kinds = {name: feature.WhichOneof("kind") for name, feature in features.items()}
    ints = (
        *("query_tokens", "passage_numbers", "passage_lengths", "passage_tokens"),
        *("grades", "excluded_numbers"),
    )
    assert kinds == dict.fromkeys(ints, "int64_list") | {
        "query_id": "bytes_list",
        "passage_ids": "bytes_list",
    }


def test_equal_lists_give_equal_bytes():
    assert encoded() == encoded()


@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"", Example().SerializeToString()])
def test_anything_else_is_refused(data):
    with pytest.raises(UserError, match=r"not a tf\.Example"):
        decode_lists([encoded(), data])


@pytest.mark.parametrize(
    ("feature", "values"),
    [
        ("grades", [3]),
        ("grades", [3, 2**31]),
        ("passage_numbers", [4, 0, 1]),
        ("passage_lengths", [3]),
        ("passage_lengths", [3, 3]),
        ("passage_lengths", [6, -1]),
        ("passage_tokens", [1, 2]),
    ],
)
def test_numbers_that_do_not_fit_together_are_refused(feature, values):
    example = Example.FromString(encoded())
    example.features.feature[feature].int64_list.value[:] = values
    with pytest.raises(UserError, match=r"not a tf\.Example of a ranking list"):
        decode_lists([encoded(), example.SerializeToString()])


def test_reading_records_imports_neither_tensorflow_nor_jax():
    code = (
        "import sys, synrank_jax.data.prepared, synrank_jax.data.examples;"
        "assert not {'tensorflow', 'jax', 'torch', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
