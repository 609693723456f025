"""What TensorFlow Datasets reads of a prepared folder, without TensorFlow."""

import json

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf import json_format
from tensorflow_datasets.core.proto import dataset_info_pb2, feature_pb2
from tensorflow_datasets.proto.tf_example_generated_pb2 import Example

from synrank_jax.data.manifest import shard_paths
from synrank_jax.data.records import TFRecordSource


def test_the_files_are_the_documented_protos(prepare):
    folder, manifest = prepare(lists=7, shards=3)
    info = json_format.Parse(
        (folder / "dataset_info.json").read_text(), dataset_info_pb2.DatasetInfo()
    )
    (split,) = info.splits
    assert (info.name, info.version, info.file_format) == ("lists", "3.0.0", "tfrecord")
    assert list(split.shard_lengths) == [shard.records for shard in manifest.shards]
    assert split.num_bytes == sum(path.stat().st_size for path in shard_paths(manifest, folder))
    feature = json_format.Parse((folder / "features.json").read_text(), feature_pb2.Feature())
    text = tfds.features.Text()
    ints = tfds.features.Tensor(shape=(None,), dtype=np.int64)
    expected = tfds.features.FeaturesDict(
        {
            "query_id": text,
            "query_tokens": ints,
            "passage_ids": tfds.features.Sequence(text),
            "passage_numbers": ints,
            "passage_lengths": ints,
            "passage_tokens": ints,
            "grades": ints,
            "excluded_numbers": ints,
        }
    )
    assert repr(tfds.features.FeaturesDict.from_proto(feature)) == repr(expected)


def test_the_features_are_those_of_every_record(prepare):
    folder, manifest = prepare(lists=7, shards=3)
    features = json.loads((folder / "features.json").read_text())["featuresDict"]["features"]
    records = TFRecordSource(shard_paths(manifest, folder))
    for index in range(len(records)):
        assert Example.FromString(records[index]).features.feature.keys() == features.keys()


def test_a_builder_finds_the_shards(prepare):
    folder, manifest = prepare(lists=7, shards=3, draws=2, take={"random_k": 1})
    builder = tfds.builder_from_directory(folder)
    split = builder.info.splits["train"]
    assert split.num_examples == 2 * manifest.lists == 14
    assert [str(path) for path in split.filepaths] == list(map(str, shard_paths(manifest, folder)))
