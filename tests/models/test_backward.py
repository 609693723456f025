"""Own backward passes against JAX' differentiation of the plain formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_bert import small_bert

from synrank_jax.engine.compilation import CPU_OPTIONS
from synrank_jax.models.attention import MASKED_LOGIT, weighted_values
from synrank_jax.models.backward import after, layer_norm, linear
from synrank_jax.models.bert import ACTIVATIONS, BertEncoder
from synrank_jax.models.numerics import Numerics
from synrank_jax.models.reductions import LANES, row_max, row_sum

HIGHEST = jax.lax.Precision.HIGHEST
# Float32 sums of up to 96 products in another order; values and gradients are of order 1 to 10.
TOLERANCE = {"rtol": 2e-5, "atol": 2e-5}


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def assert_same_vjp(ours, plain, *arguments, counts=1.0):
    expected, of_plain = jax.vjp(plain, *arguments)
    found, of_ours = jax.vjp(ours, *arguments)
    np.testing.assert_allclose(found, expected, **TOLERANCE)
    gradient = normal(9, *expected.shape) * counts
    for own, reference in zip(of_ours(gradient), of_plain(gradient), strict=True):
        assert own.shape == reference.shape
        np.testing.assert_allclose(own, reference, **TOLERANCE)


@pytest.mark.parametrize("name", [None, *ACTIVATIONS])
def test_a_linear_layer_after_an_activation(name: str | None):
    activation = None if name is None else ACTIVATIONS[name]

    def ours(x, kernel, bias):
        return linear(x, kernel, bias, HIGHEST, activation)

    def plain(x, kernel, bias):
        activated = x if activation is None else activation(x)
        return jnp.matmul(activated, kernel, precision=HIGHEST) + bias

    assert_same_vjp(ours, plain, normal(0, 2, 7, 5), normal(1, 5, 3), normal(2, 3))


@pytest.mark.parametrize("size", [5, 3 * LANES])
def test_a_layer_norm(size: int):
    def plain(x, scale, bias):
        mean = x.mean(-1, keepdims=True)
        variance = jnp.square(x - mean).mean(-1, keepdims=True)
        return (x - mean) / jnp.sqrt(variance + 1e-12) * scale + bias

    arguments = normal(0, 2, 7, size), normal(1, size), normal(2, size)
    assert_same_vjp(lambda *args: layer_norm(*args, 1e-12), plain, *arguments)


@pytest.mark.parametrize("length", [5, 2 * LANES])
def test_attention(length: int):
    lengths = np.array([length, 3, 0])  # a text that fills its row, a short one, an empty row
    may = jnp.asarray(np.arange(length) < lengths[:, None])[:, None, None, :]

    def plain(query, key, value):
        logits = jnp.einsum("bnqd,bnkd->bnqk", query, key, precision=HIGHEST)
        weights = jax.nn.softmax(jnp.where(may, logits, MASKED_LOGIT))
        return jnp.einsum("bnqk,bnkd->bnqd", weights, value, precision=HIGHEST)

    def ours(query, key, value):
        return weighted_values(query, key, value, may, HIGHEST)

    # What an empty row gives is padding, which no loss looks at.
    counts = jnp.asarray(lengths > 0)[:, None, None, None]
    arguments = [normal(seed, 3, 2, length, 4) for seed in range(3)]
    assert_same_vjp(ours, plain, *arguments, counts=counts)


def test_weights_of_a_narrow_type_have_gradients_of_that_type():
    x, kernel, bias = (normal(0, 7, 5), normal(1, 5, 3), normal(2, 3))
    narrow = tuple(part.astype(jnp.bfloat16) for part in (x, kernel, bias))
    out, of_inputs = jax.vjp(
        lambda *args: linear(*args, jax.lax.Precision.DEFAULT, ACTIVATIONS["gelu"]), *narrow
    )
    assert {part.dtype for part in (out, *of_inputs(out))} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("size", [1, LANES - 1, LANES, 3 * LANES])
def test_rows_are_added_and_compared(size: int):
    x = normal(0, 4, size)
    np.testing.assert_allclose(row_sum(x), x.sum(-1, keepdims=True), **TOLERANCE)
    np.testing.assert_array_equal(row_max(x), x.max(-1, keepdims=True))


def test_after_changes_nothing():
    x = normal(0, 4)
    np.testing.assert_array_equal(jax.jit(after)(x, normal(1, 2, 3), normal(2, 1)), x)


def test_a_step_keeps_neither_attention_weights_nor_activations():
    """What it needs in all is less than the attention weights of its layers alone would be."""
    layers, heads, texts, length = 6, 4, 2, 512
    config = small_bert(
        vocab_size=11,
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=64,
        max_position_embeddings=length,
    )
    structure, params = nnx.split(BertEncoder(config, Numerics(), rngs=nnx.Rngs(0)))

    def loss(params):
        ids = jnp.zeros((texts, length), jnp.int32)
        hidden = nnx.merge(structure, params)(ids, jnp.ones((texts, length), bool))
        return jnp.sum(hidden**2)

    compiled = jax.jit(jax.grad(loss), compiler_options=CPU_OPTIONS).lower(params).compile()
    weights = 4 * layers * heads * texts * length**2
    assert 0 < compiled.memory_analysis().temp_size_in_bytes < weights
