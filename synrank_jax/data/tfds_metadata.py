"""The files by which TensorFlow Datasets opens a prepared folder.

`tfds.builder_from_directory(folder)` reads dataset_info.json and features.json: the JSON forms of
`DatasetInfo` and `Feature` (tensorflow_datasets/core/proto; 64-bit integers are strings there). It
finds the shards by their names, `NAME-SPLIT.tfrecord-SHARD`. Written as plain JSON, because
importing those protos imports most of TFDS.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from synrank_jax.data.examples import INT_FEATURES
from synrank_jax.data.manifest import SCHEMA_VERSION, FileStamp
from synrank_jax.files import write_text

INFO_FILE, FEATURES_FILE = "dataset_info.json", "features.json"
ANY_LENGTH = "-1"


def write_tfds_metadata(folder: Path, shards: Sequence[FileStamp]) -> None:
    """Describe the shards, in the order of their records, as split `train` of a dataset `lists`.

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    split = {
        "name": "train",
        "shardLengths": [str(shard.records) for shard in shards],
        "numBytes": str(sum(shard.bytes for shard in shards)),
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
    }
    info = {
        "name": "lists",
        "version": f"{SCHEMA_VERSION}.0.0",
        "description": "Tokenised graded lists of synrank_jax; manifest.json says how they were "
        "made.",
        "fileFormat": "tfrecord",
        # The number of a record has a meaning: the lists of a draw are consecutive.
        "disableShuffling": True,
        "splits": [split],
    }
    _write(folder / INFO_FILE, info)
    _write(folder / FEATURES_FILE, _feature("features_dict.FeaturesDict", featuresDict=_lists()))


def _lists() -> dict[str, Any]:
    ints = {"dtype": "int64", "shape": {"dimensions": [ANY_LENGTH]}}
    text = _feature("text_feature.Text", text={})
    ids = _feature("sequence_feature.Sequence", sequence={"feature": text, "length": ANY_LENGTH})
    arrays = dict.fromkeys(INT_FEATURES, _feature("tensor_feature.Tensor", tensor=ints))
    return {"features": arrays | {"query_id": text, "passage_ids": ids}}


def _feature(name: str, **content: dict[str, Any]) -> dict[str, Any]:
    return {"pythonClassName": f"tensorflow_datasets.core.features.{name}", **content}


def _write(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2, sort_keys=True) + "\n")
