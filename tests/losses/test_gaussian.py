from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from synrank_jax.losses import LOSSES
from synrank_jax.losses.gaussian import gaussian_paired, gaussian_transport
from synrank_jax.losses.pool import pool_labels

Q, L = 6, 4
LEVELS = (0.0, 1.0, 2.0, 3.0)
OPTIONS = {
    "wasserstein": {"levels": LEVELS},
    "sinkhorn": {"levels": LEVELS, "epsilon": 0.1},
    "soft_rank": {"levels": LEVELS},
    "infonce_sampled": {"positive_grade": 2.0, "keys": jax.random.split(jax.random.key(0), Q)},
}
VALUE_ATOL = 2e-7  # float32 differences of terms below 1
temperatures = {"temperature": 0.5, "target_temperature": 1.0}
pool_lists = jax.jit(partial(pool_labels, in_batch_grade=0.0, in_batch_level=-1.0))
transport = jax.jit(partial(gaussian_transport, **temperatures))
paired = jax.jit(partial(gaussian_paired, **temperatures))


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
    loss = jax.jit(partial(LOSSES[name], **temperatures, **OPTIONS.get(name, {})))
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


def distributions(scores, pooled):
    """p and t [Q, P] in float64."""
    logits = np.asarray(scores, np.float64) / temperatures["temperature"]
    return scipy.special.softmax(logits, axis=1), scipy.special.softmax(pooled.labels, axis=1)


def test_paired_is_the_brier_score_with_less_weight_on_a_shared_error():
    scores, pooled = full_pool()
    p, t = distributions(scores, pooled)
    brier = np.mean(np.sum((p - t) ** 2, axis=1))
    shared = np.sum(np.mean(p - t, axis=0) ** 2)
    value = float(paired(scores, *pooled))
    assert value == pytest.approx(brier + (brier - shared) / (Q - 1), rel=1e-6)
    plain_mse = np.mean((p - t) ** 2)
    assert Q * L * plain_mse <= value <= Q * L * plain_mse * Q / (Q - 1)
    # An error that is the same in every row counts once: exactly P times the plain MSE.
    same_labels = jnp.tile(pooled.labels[:1], (Q, 1))
    same_scores = jnp.tile(scores[:1], (Q, 1))
    error = p[0] - t[0]
    assert paired(same_scores, same_labels) == pytest.approx(np.sum(error**2), rel=1e-6)


def test_paired_follows_the_row_to_its_query_and_the_transport_does_not():
    scores, pooled = full_pool()
    perfect = temperatures["temperature"] * pooled.labels + 0.1 * scores
    moved = jnp.roll(perfect, 1, axis=0)
    assert paired(moved, *pooled) > 2 * paired(perfect, *pooled)
    right, wrong = transport(perfect, *pooled), transport(moved, *pooled)
    assert wrong.value == pytest.approx(float(right.value), abs=VALUE_ATOL)


def test_paired_is_never_below_the_transport_and_equals_it_when_rows_are_aligned():
    scores, pooled = full_pool()
    assert paired(scores, *pooled) > transport(scores, *pooled).value + 0.01
    # Halfway from the mean to the target: E_p = E_t / 2, so A is symmetric.
    _, t = distributions(scores, pooled)
    between = jnp.asarray(np.log((t + t.mean(axis=0)) / 2), jnp.float32)
    aligned = temperatures["temperature"] * between
    expected = transport(aligned, *pooled)
    assert expected.alignment == pytest.approx(1, abs=1e-5)
    assert paired(aligned, *pooled) == pytest.approx(float(expected.value), abs=VALUE_ATOL)


def test_one_query_leaves_the_gap_of_the_means_to_the_paired_loss_too():
    scores, labels = jnp.array([[0.1, 0.2, 0.3, 0.4]]), jnp.array([[3.0, 2.0, 1.0, 0.0]])
    assert paired(scores, labels) == pytest.approx(float(transport(scores, labels).value), rel=1e-6)
