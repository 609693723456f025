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
from google.protobuf.message import DecodeError

# The generated protos that tensorflow-datasets ships; the wire format is tf.train.Example's.
from tensorflow_datasets.proto.tf_example_generated_pb2 import Example

from synrank_jax.data.wire import Counts, Ints, decode_ints
from synrank_jax.errors import UserError

INT_FEATURES = (
    "query_tokens",
    "passage_numbers",
    "passage_lengths",
    "passage_tokens",
    "grades",
    "excluded_numbers",
)
# Lists decoded at once: larger temporary arrays than those would go back to the system after each
# batch, and page faults would double the time.
BLOCK = 32


class TokenizedLists(NamedTuple):
    """What training reads of B lists, one after the other; S is the sum of their sizes.

    The ids stay in the records (`decode_ids`).
    """

    query_tokens: Ints
    """[sum of query_lengths]"""
    query_lengths: Counts
    """[B]"""
    passage_tokens: Ints
    """[sum of passage_lengths]"""
    passage_lengths: Ints
    """[S]"""
    passage_numbers: Ints
    """[S]"""
    grades: Ints
    """[S]"""
    list_sizes: Counts
    """[B]"""
    excluded_numbers: Ints
    """[sum of excluded_counts]"""
    excluded_counts: Counts
    """[B]"""


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


def decode_lists(records: Sequence[bytes]) -> TokenizedLists:
    """The integer features of B > 0 serialised lists.

    Raises:
        UserError: a record is not a tf.Example of this schema.
    """
    blocks = [records[start : start + BLOCK] for start in range(0, len(records), BLOCK)]
    try:
        decoded = [decode_ints(block, INT_FEATURES) for block in blocks]
    except (DecodeError, OverflowError) as error:
        raise _no_list(f" ({error})") from error
    splits = [np.split(values, np.cumsum(counts.sum(axis=1))[:-1]) for values, counts in decoded]
    parts = map(np.concatenate, zip(*splits, strict=True))
    counts = np.concatenate([counts for _, counts in decoded], axis=1)
    of = dict(zip(INT_FEATURES, parts, strict=True))
    count = dict(zip(INT_FEATURES, counts, strict=True))
    sizes = count["grades"]
    one_of_each = all(
        np.array_equal(sizes, count[name]) for name in ("passage_numbers", "passage_lengths")
    )
    if not one_of_each or not sizes.all() or of["passage_lengths"].min() < 0:
        raise _no_list()
    tokens = np.add.reduceat(of["passage_lengths"], np.cumsum(sizes) - sizes)
    if not np.array_equal(tokens, count["passage_tokens"]):
        raise _no_list()
    return TokenizedLists(
        **of,
        query_lengths=count["query_tokens"],
        list_sizes=sizes,
        excluded_counts=count["excluded_numbers"],
    )


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
    except DecodeError as error:
        raise _no_list(f" ({error})") from error


def _no_list(why: str = "") -> UserError:
    return UserError(f"a record is not a tf.Example of a ranking list{why}; prepare the data again")
