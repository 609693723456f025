from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synrank_jax.losses import LOSSES
from synrank_jax.losses.gaussian import gaussian_transport, nuclear_norm
from synrank_jax.losses.pool import pool_labels

Q, L = 6, 4
LEVELS = (0.0, 1.0, 2.0, 3.0)
VALUE_ATOL = 2e-7  # float32 differences of terms below 1
temperatures = {"temperature": 0.5, "target_temperature": 1.0}
pool_lists = jax.jit(partial(pool_labels, in_batch_grade=0.0, in_batch_level=-1.0))
transport = jax.jit(partial(gaussian_transport, **temperatures))


def full_pool():
    """Random scores [Q, P] with distinct random grades per row, in-batch passages at grade 0."""
    rng = np.random.default_rng(0)
    labels = jnp.asarray(rng.permuted(np.tile([3.0, 2, 1, 0], (Q, 1)), axis=1), jnp.float32)
    ids = jnp.arange(Q * L, dtype=jnp.int32).reshape(Q, L)
    pooled = pool_lists(labels, jnp.ones((Q, L), bool), ids)
    return jnp.asarray(rng.normal(size=(Q, Q * L)), jnp.float32), pooled


@pytest.mark.parametrize("name", LOSSES)
def test_only_the_gaussian_loss_is_blind_to_which_query_owns_a_row(name):
    scores, pooled = full_pool()
    options = {"levels": LEVELS} if name == "wasserstein" else {}
    loss = jax.jit(partial(LOSSES[name], **temperatures, **options))
    value = float(loss(scores, *pooled))
    permuted = float(loss(jnp.roll(scores, 1, axis=0), *pooled))
    if name == "gaussian_wasserstein":
        assert permuted == pytest.approx(value, abs=VALUE_ATOL)
    else:
        assert abs(permuted - value) > 0.01


def test_perfect_lists_of_the_wrong_queries_cost_nothing_and_alignment_tells():
    _, pooled = full_pool()
    perfect = temperatures["temperature"] * pooled.labels
    right, wrong = transport(perfect, *pooled), transport(jnp.roll(perfect, 1, axis=0), *pooled)
    assert right.value == pytest.approx(0, abs=VALUE_ATOL)
    assert wrong.value == pytest.approx(0, abs=VALUE_ATOL)
    assert right.alignment == pytest.approx(1, abs=1e-5)
    assert wrong.alignment < 0.1


def test_alignment_has_no_gradient():
    scores, pooled = full_pool()
    gradient = jax.jit(jax.grad(lambda scores: transport(scores, *pooled).alignment))(scores)
    assert not gradient.any()


def test_one_query_leaves_the_gap_of_the_means():
    scores, labels = jnp.array([[0.1, 0.2, 0.3, 0.4]]), jnp.array([[3.0, 2.0, 1.0, 0.0]])
    value, alignment = transport(scores, labels)
    assert alignment == 0
    gap = jax.nn.softmax(scores / temperatures["temperature"]) - jax.nn.softmax(labels)
    assert value == pytest.approx(float(jnp.sum(gap**2)), rel=1e-6)


def test_nuclear_norm_and_its_gradient():
    # diag(3, -2) rotated: the singular values are 3 and 2, the polar factor R diag(1, -1).
    rotation = jnp.array([[0.6, -0.8], [0.8, 0.6]])
    value, gradient = jax.value_and_grad(nuclear_norm)(rotation @ jnp.diag(jnp.array([3.0, -2.0])))
    assert value == pytest.approx(5, rel=1e-6)
    np.testing.assert_allclose(gradient, rotation @ jnp.diag(jnp.array([1.0, -1.0])), atol=1e-6)


def test_nuclear_norm_gradient_is_finite_for_zero_equal_and_vanishing_singular_values():
    np.testing.assert_array_equal(jax.grad(nuclear_norm)(jnp.zeros((3, 3))), 0)
    np.testing.assert_allclose(jax.grad(nuclear_norm)(jnp.eye(3)), np.eye(3), atol=1e-6)
    # Damped by s / sqrt(s^2 + 1e-15): half a singular value of 1e-15 ** .5 would keep 1 / 5 ** .5.
    small = 0.5 * 1e-15**0.5
    gradient = jax.grad(nuclear_norm)(jnp.diag(jnp.array([1.0, small])))
    np.testing.assert_allclose(jnp.diag(gradient), [1, 5**-0.5], rtol=1e-5)
