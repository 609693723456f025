"""TensorFlow reads our shards, and we read its: in the environment of `make test-interop`."""

import json

import numpy as np
import pytest
import tensorflow_datasets as tfds

from synrank_jax.data.examples import INT_FEATURES, decode_ids, decode_lists, encode_list
from synrank_jax.data.manifest import read_manifest, shard_paths
from synrank_jax.data.pipeline import PreparedLists
from synrank_jax.data.records import TFRecordSource
from synrank_jax.files import file_sha256

tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed: make test-interop")


@pytest.fixture(scope="module")
def folder(prepared_mixture):
    return prepared_mixture("tensorflow")


@pytest.fixture(scope="module")
def ours(folder):
    """What our reader gives, as plain values per list."""
    source = TFRecordSource(shard_paths(read_manifest(folder), folder))
    lists = [values_of(source[index]) for index in range(len(source))]
    assert len(lists) == 2 * 137
    assert len({len(values["grades"]) for values in lists}) > 1
    assert any(values["excluded_numbers"] for values in lists)
    return lists


def values_of(record):
    query_id, passage_ids = decode_ids(record)
    lists = decode_lists([record])
    return {name: getattr(lists, name).tolist() for name in INT_FEATURES} | {
        "query_id": query_id,
        "passage_ids": passage_ids,
    }


def plain(example):
    """An example that TensorFlow read, as plain values."""
    assert all(example[name].dtype == np.int64 for name in INT_FEATURES)
    return {name: example[name].tolist() for name in INT_FEATURES} | {
        "query_id": example["query_id"].decode(),
        "passage_ids": [doc_id.decode() for doc_id in example["passage_ids"]],
    }


def parse(serialized):
    """`tf.io.parse_single_example` with the documented schema."""
    features = {name: tf.io.RaggedFeature(tf.int64) for name in INT_FEATURES}
    features["passage_ids"] = tf.io.RaggedFeature(tf.string)
    features["query_id"] = tf.io.FixedLenFeature([], tf.string)
    return tf.io.parse_single_example(serialized, features)


def test_tensorflow_reads_our_shards(folder, ours):
    paths = [str(path) for path in shard_paths(read_manifest(folder), folder)]
    dataset = tf.data.TFRecordDataset(paths).map(parse)
    assert [plain(example) for example in dataset.as_numpy_iterator()] == ours


def test_tfds_opens_the_folder(folder, ours):
    builder = tfds.builder_from_directory(folder)
    assert builder.info.splits["train"].num_examples == len(ours)
    dataset = builder.as_dataset(split="train")
    assert len(dataset) == len(ours)
    assert [plain(example) for example in tfds.as_numpy(dataset)] == ours
    third = tfds.as_numpy(builder.as_dataset(split="train[137:140]"))
    assert [plain(example) for example in third] == ours[137:140]


def as_tensorflow(values):
    """The list as a `tf.train.Example`, its features in the order of their names."""
    texts = {"query_id": [values["query_id"]], "passage_ids": values["passage_ids"]}
    features = {}
    for name in sorted(values):
        if name in texts:
            encoded = [text.encode() for text in texts[name]]
            features[name] = tf.train.Feature(bytes_list=tf.train.BytesList(value=encoded))
        else:
            ints = tf.train.Int64List(value=values[name])
            features[name] = tf.train.Feature(int64_list=ints)
    return tf.train.Example(features=tf.train.Features(feature=features))


def test_our_reader_reads_what_tensorflow_wrote(tmp_path, ours):
    path = tmp_path / "written"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for values in ours:
            writer.write(as_tensorflow(values).SerializeToString())
    source = TFRecordSource([path])
    assert [values_of(source[index]) for index in range(len(source))] == ours


def test_a_folder_rewritten_by_tensorflow_is_a_prepared_set(folder, ours, tmp_path):
    manifest = json.loads((folder / "manifest.json").read_text())
    start = 0
    for shard in manifest["shards"]:
        path = tmp_path / shard["name"]
        with tf.io.TFRecordWriter(str(path)) as writer:
            for values in ours[start : start + shard["records"]]:
                writer.write(as_tensorflow(values).SerializeToString())
        start += shard["records"]
        shard |= {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    sizes = manifest["sizes"]["name"]
    (tmp_path / sizes).write_bytes((folder / sizes).read_bytes())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    rewritten, lists = PreparedLists(tmp_path), PreparedLists(folder)
    assert len(rewritten) == len(lists) == 137
    both = [opened.read(range(2 * 137))._asdict() for opened in (rewritten, lists)]
    np.testing.assert_equal(*both)


def varint(number):
    digits = []
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*digits, number])


def field(number, content):
    """A protobuf field of bytes."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def by_hand(record, order, packed):
    """The list as an Example's bytes: features in that order, ints packed or each with its tag."""
    entries = []
    for name in order:
        feature = tf.train.Example.FromString(record).features.feature[name]
        if feature.HasField("int64_list"):
            digits = [varint(value) for value in feature.int64_list.value]
            ints = field(1, b"".join(digits)) if packed else b"".join(b"\x08" + d for d in digits)
            content = field(3, ints)
        else:
            content = feature.SerializeToString()
        entries.append(field(1, field(1, name.encode()) + field(2, content)))
    return field(1, b"".join(entries))


@pytest.mark.parametrize("packed", [True, False])
def test_any_order_and_unpacked_integers_are_read_alike(packed):
    numbers = [0, 1, 127, 128, 2**31 - 1]
    tokens = [[101, 30521], [7], [300], [1, 2, 3], [129]]
    ids = ["a", "\u00f6", "c", "d", "e"]
    record = encode_list("q\u00e9", [101, 2**15], ids, numbers, tokens, [3, 3, 1, 0, 0], [5])
    names = list(tf.train.Example.FromString(record).features.feature)
    written = [by_hand(record, order, packed) for order in (sorted(names), sorted(names)[::-1])]
    assert written[0] != written[1]
    for other in written:
        example = {name: value.numpy() for name, value in parse(other).items()}
        assert plain(example) == values_of(other) == values_of(record)
