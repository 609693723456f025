"""Losses of pairs and orders: what tells them apart."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loss_cases import LEVELS
from ott.tools import soft_sort

from synrank_jax.losses import LOSSES
from synrank_jax.losses.anchors import sum_over_anchors
from synrank_jax.losses.gains import ranks
from synrank_jax.losses.pairwise import lambdarank, margin_mse, ranknet
from synrank_jax.losses.permutation import approx_ndcg, listmle
from synrank_jax.losses.pool import pool_labels
from synrank_jax.losses.sorting import EPSILON, ITERATIONS, soft_rank

temperatures = {"temperature": 1.0, "target_temperature": 1.0}


def with_gradient(loss, **options):
    return jax.jit(jax.value_and_grad(partial(loss, **temperatures, **options)))


def test_ranknet_is_the_mean_over_pairs_of_different_grades():
    scores, labels = jnp.array([[1.0, 0.5, 0.0]]), jnp.array([[2.0, 0.0, 0.0]])
    value, _ = with_gradient(ranknet)(scores, labels)
    expected = (np.log1p(np.exp(-0.5)) + np.log1p(np.exp(-1.0))) / 2
    assert value == pytest.approx(expected, rel=1e-6)


def test_lambdarank_weighs_a_pair_by_the_ndcg_it_would_change():
    # Ranks 2, 1: swapping them gains (2 - 1) (1 - 1 / log2 3) of the ideal 2 + 1 / log2 3.
    scores, labels = jnp.array([[0.0, 1.0]]), jnp.array([[2.0, 1.0]])
    value, gradient = with_gradient(lambdarank)(scores, labels)
    weight = (1 - 1 / np.log2(3)) / (2 + 1 / np.log2(3))
    assert value == pytest.approx(weight * np.log1p(np.exp(1.0)), rel=1e-6)
    np.testing.assert_allclose(gradient[0, 1], weight / (1 + np.exp(-1.0)), rtol=1e-6)


def test_tied_scores_share_their_mean_rank_and_masked_ones_come_last():
    scores = jnp.array([[1.0, 5.0, 1.0, 9.0]])
    result = ranks(scores, jnp.array([[True, True, True, False]]))
    assert result[0, :3].tolist() == [2.5, 1, 2.5]


def test_approx_ndcg_tends_to_one_minus_ndcg():
    scores, labels = jnp.array([[2.0, 3.0, 1.0]]), jnp.array([[3.0, 1.0, 0.0]])
    value = approx_ndcg(scores, labels, temperature=0.01, target_temperature=1.0)
    ndcg = (3 / np.log2(3) + 1) / (3 + 1 / np.log2(3))
    assert value == pytest.approx(1 - ndcg, rel=1e-6)


@pytest.mark.parametrize("name", ["approx_ndcg", "lambdarank"])
def test_in_batch_passages_gain_nothing_and_grade_0_a_little(name):
    labels = jnp.array([[0.0, -1.0, -1.0]])
    target_where = jnp.array([[True, False, False]])
    _, gradient = with_gradient(LOSSES[name])(
        jnp.array([[0.0, 1.0, 2.0]]), labels, None, target_where
    )
    assert gradient[0, 0] < 0
    assert (gradient[0, 1:] > 0).all()


def test_listmle_is_the_plackett_luce_likelihood():
    # The chance to draw 2 first, then 0, in proportion to exp of the scores.
    scores, labels = jnp.log(jnp.array([[2.0, 3.0, 5.0]])), jnp.array([[1.0, 0.0, 2.0]])
    value, _ = with_gradient(listmle)(scores, labels)
    assert value == pytest.approx(-np.log(5 / 10 * 2 / 5) / 2, rel=1e-6)


def test_listmle_draws_each_of_two_equals_from_all_that_are_not_above():
    scores, labels = jnp.log(jnp.array([[2.0, 3.0, 5.0]])), jnp.array([[2.0, 2.0, 0.0]])
    value, _ = with_gradient(listmle)(scores, labels)
    assert value == pytest.approx(-np.log(2 / 10 * 3 / 10) / 2, rel=1e-6)


def test_margin_mse_looks_at_margins_to_the_top_only():
    scores, labels = jnp.array([[1.0, 4.0, 2.0]]), jnp.array([[7.0, 5.0, 6.0]])
    value, _ = with_gradient(margin_mse)(scores, labels)
    # Margins 1 - 4 against 7 - 5, and 1 - 2 against 7 - 6.
    assert value == pytest.approx(((-3 - 2) ** 2 + (-1 - 1) ** 2) / 2)
    shifted, _ = with_gradient(margin_mse)(scores + 3, labels)
    assert shifted == pytest.approx(float(value))


def in_batch_pool(Q, L, in_batch_grade=None):
    rng = np.random.default_rng(0)
    labels = jnp.asarray(rng.integers(0, 4, (Q, L)), jnp.float32)
    ids = jnp.arange(Q * L, dtype=jnp.int32).reshape(Q, L)
    pooled = pool_labels(
        labels, jnp.ones((Q, L), bool), ids, in_batch_grade=in_batch_grade, in_batch_level=-1.0
    )
    return jnp.asarray(rng.normal(size=(Q, Q * L)), jnp.float32), *pooled


@pytest.mark.parametrize("name", ["ranknet", "lambdarank", "listmle", "approx_ndcg"])
def test_memory_stays_far_below_all_pairs_of_a_pool(name):
    arrays = in_batch_pool(32, 8)
    compiled = with_gradient(LOSSES[name]).lower(*arrays).compile()
    all_pairs = 4 * arrays[0].size * arrays[0].shape[1]
    assert compiled.memory_analysis().temp_size_in_bytes < all_pairs / 8


def test_pairs_of_two_in_batch_passages_do_not_count():
    scores, labels, where, target_where = in_batch_pool(3, 4)
    value, gradient = with_gradient(ranknet)(scores, labels, where, target_where)
    own = np.asarray(target_where)
    for row in range(3):
        s, y, o = np.asarray(scores)[row], np.asarray(labels)[row], own[row]
        pairs = [(i, j) for i in range(12) for j in range(12) if y[i] > y[j] and (o[i] or o[j])]
        assert len(pairs) == sum(y[i] > y[j] for i in range(12) for j in range(12))
        slope = sum(1 / (1 + np.exp(s[i] - s[j])) * (np.arange(12) == j) for i, j in pairs)
        slope -= sum(1 / (1 + np.exp(s[i] - s[j])) * (np.arange(12) == i) for i, j in pairs)
        np.testing.assert_allclose(gradient[row], slope / len(pairs) / 3, rtol=1e-4, atol=1e-7)
    assert value > 0


def test_a_sum_over_anchors_visits_each_once_with_its_gradient():
    logits = jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    anchors = jnp.array([[True, False, True], [False, False, False]])

    def term(is_anchor, logits, power):
        return jnp.sum(logits**power, axis=-1, where=is_anchor)

    def total(logits):
        return sum_over_anchors(term, logits, anchors, 2).sum()

    value, gradient = jax.jit(jax.value_and_grad(total))(logits)
    assert value == total(logits) == 1 + 9
    assert gradient.tolist() == [[2, 0, 6], [0, 0, 0]]


def test_soft_ranks_of_one_passage_per_grade_are_those_of_ott():
    scores = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4)), jnp.float32)
    labels, levels = jnp.array([[2.0, 0.0, 3.0, 1.0]]), LEVELS[1:]
    value = jax.jit(partial(soft_rank, **temperatures, levels=levels))(scores, labels)
    soft = jax.jit(
        partial(
            soft_sort.ranks,
            squashing_fun=lambda x: jax.nn.sigmoid(x - x.mean()),
            epsilon=EPSILON,
            min_iterations=ITERATIONS,
            max_iterations=ITERATIONS,
        )
    )(scores)
    assert value == pytest.approx(float(jnp.mean(((soft - labels) / 3) ** 2)), rel=1e-5)


def test_differentiating_a_fixed_number_of_ott_iterations_is_wrong():
    """The reason for the detour in `soft_rank`: should this fail, OTT has mended it."""

    def first_rank(x):
        how = {"implicit_diff": None, "min_iterations": 50, "max_iterations": 50}
        return soft_sort.ranks(x, squashing_fun=lambda x: x, epsilon=EPSILON, **how)[0]

    with jax.enable_x64(True):
        x, step = jnp.array([0.3, 0.1, 0.9, 0.4]), 1e-6 * jnp.eye(4)
        gradient = jax.jit(jax.grad(first_rank))(x)
        ahead, behind = jnp.split(jax.jit(jax.vmap(first_rank))(x + jnp.vstack([step, -step])), 2)
        differences = (ahead - behind) / 2e-6
        assert np.linalg.norm(gradient - differences) > 0.1 * np.linalg.norm(differences)


def test_soft_rank_falls_with_better_orders_and_a_label_off_the_axis_is_nan():
    labels = jnp.array([[3.0, 2.0, 1.0, 0.0]])
    loss = jax.jit(partial(soft_rank, **temperatures, levels=LEVELS[1:]))
    values = [
        float(loss(3 * jnp.array([scores]), labels))
        for scores in ([3.0, 2, 1, 0], [3.0, 2, 0, 1], [0.0, 2, 1, 3], [0.0, 1, 2, 3])
    ]
    assert values == sorted(values)
    assert values[0] < 0.02 < 0.3 < values[-1]
    assert jnp.isnan(loss(jnp.zeros((1, 4)), labels.at[0, 0].set(2.5)))
