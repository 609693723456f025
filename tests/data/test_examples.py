"""The tf.Example schema of a list."""

import subprocess
import sys

import pytest
from tensorflow_datasets.proto.tf_example_generated_pb2 import Example

from synrank_jax.data.examples import decode_ids, decode_list, encode_list
from synrank_jax.errors import UserError

TOKENS = [[1, 30000, 2], [1, 2]]


def encoded() -> bytes:
    return encode_list("q\u00e9", [1, 7, 2], ["d1", "d\u00f6"], [4, 0], TOKENS, [3, 0], [7])


def test_a_list_comes_back():
    decoded = decode_list(encoded())
    assert {name: values.tolist() for name, values in decoded._asdict().items()} == {
        "query_tokens": [1, 7, 2],
        "passage_numbers": [4, 0],
        "passage_lengths": [3, 2],
        "passage_tokens": [1, 30000, 2, 1, 2],
        "grades": [3, 0],
        "excluded_numbers": [7],
    }
    assert decode_ids(encoded()) == ("q\u00e9", ["d1", "d\u00f6"])


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
        decode_list(data)


def test_reading_records_imports_neither_tensorflow_nor_jax():
    code = (
        "import sys, synrank_jax.data.prepared, synrank_jax.data.examples;"
        "assert not {'tensorflow', 'jax', 'torch', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
