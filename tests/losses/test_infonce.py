from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synrank_jax.losses.listwise import infonce, infonce_sampled
from synrank_jax.losses.pool import own_list, pool_labels

temperatures = {"temperature": 1.0, "target_temperature": 1.0}
top = jax.jit(jax.value_and_grad(partial(infonce, **temperatures)))
sampled = jax.jit(
    jax.value_and_grad(partial(infonce_sampled, **temperatures)), static_argnames="positive_grade"
)
# Positives under grade 2: three of the first list, one of the second, none of the third.
LABELS = jnp.array([[3.0, 0.0, 2.0, 2.0], [1.0, 2.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
WHERE = jnp.ones((3, 4), bool)
SCORES = jnp.asarray(np.random.default_rng(0).normal(size=(3, 12)), jnp.float32)
OWN = own_list(3, 4)


def keys(seed=0, Q=3):
    return jax.random.split(jax.random.key(seed), Q)


def pooled(in_batch_grade=None, labels=LABELS):
    ids = jnp.arange(12, dtype=jnp.int32).reshape(3, 4)
    return pool_labels(labels, WHERE, ids, in_batch_grade=in_batch_grade, in_batch_level=-1.0)


def negative_log_share(scores, positive, columns):
    return -np.log(np.exp(scores[positive]) / np.exp(scores[columns]).sum())


@pytest.mark.parametrize("in_batch_grade", [None, 0.0])
def test_one_positive_against_lower_grades_and_in_batch_passages(in_batch_grade):
    value, gradient = sampled(SCORES, *pooled(in_batch_grade), positive_grade=2.0, keys=keys())
    (drawn,) = np.flatnonzero(gradient[0] < 0)
    assert drawn in (0, 2, 3)
    scores = np.asarray(SCORES)
    first = negative_log_share(scores[0], drawn, [drawn, 1, *range(4, 12)])
    second = negative_log_share(scores[1], 5, range(12))
    assert value == pytest.approx((first + second) / 2, rel=1e-6)
    others = [column for column in (0, 2, 3) if column != drawn]
    assert not gradient[0, jnp.array(others)].any()
    assert not gradient[2].any()  # a list without a positive does not count


def test_every_positive_is_drawn_equally_often():
    draws = 600
    scores, labels = jnp.tile(SCORES[:1, :4], (draws, 1)), jnp.tile(LABELS[:1], (draws, 1))
    _, gradient = sampled(scores, labels, positive_grade=2.0, keys=keys(Q=draws))
    counts = (gradient < 0).sum(axis=0)
    assert counts.sum() == draws
    assert counts[1] == 0
    # Three standard deviations of a binomial count: 3 sqrt(600 / 3 * 2 / 3) = 35.
    assert (abs(counts[jnp.array([0, 2, 3])] - draws / 3) < 35).all()


def test_the_draw_of_a_row_depends_on_its_key_alone():
    def drawn(rows, seed):
        _, gradient = sampled(
            SCORES[rows, :4], LABELS[rows], positive_grade=2.0, keys=keys(seed)[rows]
        )
        return int(jnp.argmin(gradient[0]))

    def drawn_in_pool(seed):
        _, gradient = sampled(SCORES, *pooled(), positive_grade=2.0, keys=keys(seed))
        return int(jnp.argmin(gradient[0]))

    whole, alone = slice(0, 3), slice(0, 1)
    draws = [(drawn(whole, seed), drawn(alone, seed), drawn_in_pool(seed)) for seed in range(8)]
    assert all(a == b == c for a, b, c in draws)
    assert len(set(draws)) > 1


@pytest.mark.parametrize("in_batch_grade", [3.0, 5.0])
def test_the_positive_is_of_the_own_list_whatever_in_batch_passages_count(in_batch_grade):
    pool = pooled(in_batch_grade)
    for _, gradient in (
        top(SCORES, *pool, own=OWN),
        sampled(SCORES, *pool, own=OWN, positive_grade=2.0, keys=keys()),
    ):
        # In-batch passages that are no worse than the positive are left out.
        assert not jnp.where(OWN, 0, gradient).any()
        assert (jnp.where(OWN, gradient, 0)[0] < 0).sum() == 1


def test_without_mass_on_in_batch_passages_the_own_list_need_not_be_named():
    expected = top(SCORES, *pooled(), own=OWN)
    jax.tree.map(np.testing.assert_array_equal, top(SCORES, *pooled()), expected)


def test_own_lower_grades_are_negatives_of_the_first_form_and_equals_are_left_out():
    value, gradient = top(SCORES[:, :4], LABELS.at[0, 2].set(3.0))
    assert gradient[0, 0] < 0
    assert gradient[0, 2] == 0
    assert (gradient[0, [1, 3]] > 0).all()
    assert value > 0
