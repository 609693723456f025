from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loss_cases import keywords

from synrank_jax.losses import LOSSES
from synrank_jax.losses.pool import (
    own_list_target_mass,
    pool_labels,
    target_distribution,
)

# Two lists of 3. Passage 7 stands in both; the second list has only two passages.
LABELS = jnp.array([[3.0, 1.0, 0.0], [2.0, 0.0, 0.0]])
WHERE = jnp.array([[True, True, True], [True, True, False]])
IDS = jnp.array([[5, 7, 6], [8, 7, -1]], jnp.int32)


compiled = jax.jit(partial(pool_labels, in_batch_level=-1.0), static_argnames="in_batch_grade")
own_mass = jax.jit(own_list_target_mass)


def pooled(in_batch_grade, labels=LABELS, where=WHERE, ids=IDS):
    return compiled(labels, where, ids, in_batch_grade=in_batch_grade)


def test_in_batch_passages_stand_at_the_level_without_target_mass():
    result = pooled(None)
    assert result.labels.tolist() == [[3, 1, 0, -1, -1, -1], [-1, -1, -1, 2, 0, 0]]
    assert result.target_where.astype(int).tolist() == [[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 0]]


def test_an_in_batch_grade_carries_target_mass():
    result = pooled(0.5)
    assert result.labels.tolist() == [[3, 1, 0, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 2, 0, 0]]
    assert (result.target_where == result.where).all()


@pytest.mark.parametrize("in_batch_grade", [None, 0.0])
def test_repeated_and_masked_passages_take_no_part(in_batch_grade):
    # Row 0: the second list's passage 7 is its own; row 1: the first list's. The last is padding.
    expected = [[1, 1, 1, 1, 0, 0], [1, 0, 1, 1, 1, 0]]
    assert pooled(in_batch_grade).where.astype(int).tolist() == expected


def test_a_passage_twice_in_the_own_list_stays():
    result = pooled(None, ids=IDS.at[0, 0].set(7))
    assert result.where[0].astype(int).tolist() == [1, 1, 1, 1, 0, 0]


def test_a_query_without_list_takes_no_part():
    result = pooled(0.0, where=WHERE.at[0].set(False))
    assert not result.where[0].any()
    assert result.where[1].astype(int).tolist() == [0, 0, 0, 1, 1, 0]


@cache
def gradient_of(name):
    options = keywords(name, Q=2, positive_grade=2.0)
    loss = partial(LOSSES[name], temperature=0.5, target_temperature=1.0, **options)
    return jax.jit(jax.grad(loss))


@pytest.mark.parametrize("in_batch_grade", [None, 0.0])
@pytest.mark.parametrize("name", LOSSES)
def test_a_repeated_passage_is_never_a_negative(name, in_batch_grade):
    scores = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6)), jnp.float32)

    def gradient(ids):
        return gradient_of(name)(scores, *pooled(in_batch_grade, ids=ids))

    repeated, distinct = gradient(IDS), gradient(IDS.at[1, 1].set(9))
    assert repeated[0, 4] == repeated[1, 1] == 0
    if name == "margin_mse" and in_batch_grade is None:
        assert not distinct[0, 3:].any()  # without a teacher's score it has no margin
    else:
        assert distinct[0, 4] != 0
        assert distinct[1, 1] != 0


# Excluded for query 0 is passage 8 (of list 1), for query 1 are 5 and 6 (of list 0); 5 twice.
EXCLUDED_IDS = jnp.array([[8, -1, -1], [5, 6, 5]], jnp.int32)


def excluding(in_batch_grade, ids=EXCLUDED_IDS):
    return compiled(LABELS, WHERE, IDS, in_batch_grade=in_batch_grade, excluded_ids=ids)


@pytest.mark.parametrize("in_batch_grade", [None, 0.0])
def test_an_excluded_in_batch_passage_is_masked(in_batch_grade):
    result, without = excluding(in_batch_grade), pooled(in_batch_grade)
    assert without.where.astype(int).tolist() == [[1, 1, 1, 1, 0, 0], [1, 0, 1, 1, 1, 0]]
    assert result.where.astype(int).tolist() == [[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 0]]
    assert (result.target_where == (without.target_where & result.where)).all()
    assert (result.labels == without.labels).all()


@pytest.mark.parametrize("ids", [[[-1, 7, 99], [7, 98, -1]], [[], []]])
def test_exclusion_of_passages_not_met_in_batch_changes_nothing(ids):
    # -1 is padding; 7 stands in both own lists, where the list's grade counts.
    result = excluding(None, jnp.array(ids, jnp.int32))
    assert (result.where == pooled(None).where).all()
    assert (result.target_where == pooled(None).target_where).all()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("in_batch_grade", [None, 0.0])
def test_an_excluded_passage_is_never_a_negative(name, in_batch_grade):
    scores = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6)), jnp.float32)
    gradient = gradient_of(name)(scores, *excluding(in_batch_grade))
    assert gradient[0, 3] == gradient[1, 0] == gradient[1, 2] == 0


def test_target_is_the_softmax_of_the_grades():
    result = pooled(None)
    log_t, t = target_distribution(result.labels, result.target_where, 0.5)
    e = np.exp([6.0, 2.0, 0.0])
    np.testing.assert_allclose(t[0], [*e / e.sum(), 0, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(log_t[0, :3], np.log(e / e.sum()), rtol=1e-6)
    np.testing.assert_allclose(t.sum(axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("Q", [2, 16])
def test_own_list_target_mass_falls_with_the_pool_unless_in_batch_has_none(Q):
    labels = jnp.tile(jnp.array([3.0, 2.0, 1.0, 0.0]), (Q, 1))
    ids = jnp.arange(4 * Q, dtype=jnp.int32).reshape(Q, 4)
    where = jnp.ones((Q, 4), bool)
    own = np.exp([3, 2, 1, 0]).sum()
    graded = own_mass(pooled(0.0, labels, where, ids), 1.0)
    assert graded == pytest.approx(own / (own + 4 * (Q - 1)), rel=1e-5)
    assert own_mass(pooled(None, labels, where, ids), 1.0) == pytest.approx(1, rel=1e-6)


def test_own_list_target_mass_skips_queries_without_list():
    mass = own_mass(pooled(None, where=WHERE.at[0].set(False)), 1.0)
    assert mass == pytest.approx(1, rel=1e-6)


def test_groups_keep_their_target_mass_in_a_large_pool():
    labels = jnp.tile(jnp.array([3.0, 2.0, 1.0, 0.0]), (16, 1))
    ids, where = jnp.arange(64, dtype=jnp.int32).reshape(16, 4), jnp.ones((16, 4), bool)
    own = np.exp([3, 2, 1, 0]).sum()
    grouped = own_list_target_mass(pooled(0.0, labels, where, ids), 1.0, group_size=2)
    assert grouped == pytest.approx(own / (own + 4), rel=1e-5)


def test_memory_grows_with_queries_times_passages_only():
    Q, L, J = 64, 16, 32
    lists = (
        jax.ShapeDtypeStruct((Q, L), jnp.float32),
        jax.ShapeDtypeStruct((Q, L), jnp.bool_),
        jax.ShapeDtypeStruct((Q, L), jnp.int32),
    )
    excluded = jax.ShapeDtypeStruct((Q, J), jnp.int32)
    lowered = compiled.lower(*lists, in_batch_grade=None, excluded_ids=excluded)
    # A [Q, P, L] or [P, P] array of bytes would be 16 times Q P, a [Q, P, J] one 32 times.
    assert lowered.compile().memory_analysis().temp_size_in_bytes < 8 * Q * (Q * L)
