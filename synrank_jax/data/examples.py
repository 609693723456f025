"""One tokenised ranking list as a tf.Example: the schema of the shards.

| feature | type | shape | what |
|---|---|---|---|
| query_id | bytes | [1] | UTF-8 |
| query_tokens | int64 | [T] | special tokens and prompt included |
| passage_ids | bytes | [n] | document ids, UTF-8; highest grade first |
| passage_numbers | int64 | [n] | dense number of the document in the prepared set |
| passage_lengths | int64 | [n] | tokens per passage |
| passage_tokens | int64 | [sum of lengths] | the passages' tokens, one after the other |
| grades | int64 | [n] | relevance levels |
| excluded_numbers | int64 | [m] | documents of other lists that are no negatives for this query |

Equal document ids have equal numbers over the whole set, so that every host recognises a passage
that occurs twice in a step without seeing the other hosts' records. The texts are not stored.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

# The generated protos that tensorflow-datasets ships; the wire format is tf.train.Example's.
from tensorflow_datasets.proto.tf_example_generated_pb2 import Example

from synrank_jax.errors import UserError

Ints = NDArray[np.int64]


class TokenizedList(NamedTuple):
    """What training reads of a list; the ids stay in the record (`decode_ids`)."""

    query_tokens: Ints
    passage_numbers: Ints
    passage_lengths: Ints
    passage_tokens: Ints
    grades: Ints
    excluded_numbers: Ints


def encode_list(
    query_id: str,
    query_tokens: Sequence[int],
    passage_ids: Sequence[str],
    passage_numbers: Sequence[int],
    passage_tokens: Sequence[Sequence[int]],
    grades: Sequence[int],
    excluded_numbers: Sequence[int] = (),
) -> bytes:
    """A list as a serialised tf.Example; equal lists give equal bytes."""
    example = Example()
    feature = example.features.feature
    feature["query_id"].bytes_list.value.append(query_id.encode())
    feature["passage_ids"].bytes_list.value.extend(doc_id.encode() for doc_id in passage_ids)
    ints = {
        "query_tokens": query_tokens,
        "passage_numbers": passage_numbers,
        "passage_lengths": [len(tokens) for tokens in passage_tokens],
        "passage_tokens": list(itertools.chain.from_iterable(passage_tokens)),
        "grades": grades,
        "excluded_numbers": excluded_numbers,
    }
    for name, values in ints.items():
        feature[name].int64_list.value.extend(values)
    data: bytes = example.SerializeToString(deterministic=True)
    return data


def decode_list(data: bytes) -> TokenizedList:
    """The integer features of a serialised list.

    Raises:
        UserError: the record is not a tf.Example of this schema.
    """
    feature = _features(data)
    arrays = [np.array(feature[name].int64_list.value, np.int64) for name in TokenizedList._fields]
    decoded = TokenizedList(*arrays)
    n = len(decoded.grades)
    if not n == len(decoded.passage_numbers) == len(decoded.passage_lengths) > 0:
        raise UserError("a record is not a tf.Example of a ranking list; prepare the data again")
    return decoded


def decode_ids(data: bytes) -> tuple[str, list[str]]:
    """Query id and document ids of a serialised list.

    Raises:
        UserError: the record is not a tf.Example.
    """
    feature = _features(data)
    (query_id,) = feature["query_id"].bytes_list.value
    return query_id.decode(), [doc.decode() for doc in feature["passage_ids"].bytes_list.value]


def _features(data: bytes) -> Any:
    try:
        return Example.FromString(data).features.feature
    except Exception as error:  # protobuf's own error class differs between its backends
        raise UserError(
            f"a record is not a tf.Example ({error}); prepare the data again"
        ) from error
