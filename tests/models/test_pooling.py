"""Pooling and similarity: expected values as arithmetic, padding on either side."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synrank_jax.models.dual_encoder import similarity
from synrank_jax.models.pooling import pool, unit_length

# One rounding of float32 per operation.
ROUNDING = 1e-6

HIDDEN = jnp.asarray([[[1.0, 2.0], [3.0, 6.0], [7.0, 7.0]]], jnp.float32)
Pooling = Literal["mean", "cls"]
POOLINGS: tuple[Pooling, ...] = ("mean", "cls")


def mask(*row: int) -> jax.Array:
    return jnp.asarray([row], bool)


def test_mean_averages_attended_vectors() -> None:
    np.testing.assert_allclose(
        pool(HIDDEN, mask(1, 1, 0), "mean", False), [[(1 + 3) / 2, (2 + 6) / 2]]
    )


def test_cls_is_the_first_attended_vector() -> None:
    np.testing.assert_array_equal(pool(HIDDEN, mask(1, 1, 0), "cls", False), [[1.0, 2.0]])
    np.testing.assert_array_equal(pool(HIDDEN, mask(0, 1, 1), "cls", False), [[3.0, 6.0]])


def test_normalised_embedding_has_unit_length() -> None:
    pooled = pool(HIDDEN, mask(0, 0, 1), "mean", True)
    np.testing.assert_allclose(pooled, [[0.5**0.5, 0.5**0.5]], atol=ROUNDING)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("normalize", [False, True])
def test_padding_side_does_not_matter(pooling: Pooling, normalize: bool) -> None:
    vectors = HIDDEN[:, :2]
    right = jnp.concatenate([vectors, jnp.full((1, 2, 2), 9.0)], axis=1)
    left = jnp.concatenate([jnp.full((1, 2, 2), 9.0), vectors], axis=1)
    np.testing.assert_allclose(
        pool(right, mask(1, 1, 0, 0), pooling, normalize),
        pool(left, mask(0, 0, 1, 1), pooling, normalize),
        atol=ROUNDING,
    )


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("normalize", [False, True])
def test_fully_masked_row_is_zero_with_finite_gradient(pooling: Pooling, normalize: bool) -> None:
    value, gradient = jax.value_and_grad(
        lambda hidden: jnp.sum(pool(hidden, mask(0, 0, 0), pooling, normalize))
    )(HIDDEN)
    assert value == 0.0
    assert np.array_equal(gradient, np.zeros_like(gradient))


def test_bfloat16_hidden_states_are_pooled_in_float32() -> None:
    ones = jnp.ones((1, 1000, 1), jnp.bfloat16)
    pooled = pool(ones, jnp.ones((1, 1000), bool), "mean", False)
    assert pooled.dtype == jnp.float32
    assert pooled[0, 0] == 1.0  # a bfloat16 sum would stop growing at 256


def test_unit_length_of_zero_is_zero() -> None:
    assert np.array_equal(unit_length(jnp.zeros((2, 3))), np.zeros((2, 3)))


def test_dot_similarity_is_the_inner_product() -> None:
    query, passage = jnp.asarray([[1.0, 2.0]]), jnp.asarray([[3.0, 4.0], [0.0, -1.0]])
    np.testing.assert_array_equal(similarity(query, passage, "dot"), [[1 * 3 + 2 * 4, -2.0]])


def test_cosine_similarity_ignores_length_and_equals_dot_of_unit_vectors() -> None:
    query, passage = jnp.asarray([[3.0, 4.0]]), jnp.asarray([[0.0, 2.0], [30.0, 40.0]])
    cosine = similarity(query, passage, "cosine")
    np.testing.assert_allclose(cosine, [[4 / 5, 1.0]], atol=ROUNDING)
    np.testing.assert_allclose(
        similarity(unit_length(query), unit_length(passage), "dot"), cosine, atol=ROUNDING
    )
