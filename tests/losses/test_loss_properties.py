"""What holds for every loss."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as Spec
from loss_cases import keywords

from synrank_jax.config_loss import BATCH_STATISTICS, FIXED_TEMPERATURE, LOSS_NAMES
from synrank_jax.losses import LOSSES, list_loss
from synrank_jax.losses.pool import pool_labels
from synrank_jax.losses.rows import as_rows

every_loss = pytest.mark.parametrize("name", LOSSES)
PER_LIST = [name for name in LOSSES if name not in BATCH_STATISTICS]
# These single one passage out: among equals the first column or a random one.
SINGLING_OUT = {"infonce", "infonce_sampled", "margin_mse"}
# Squares of 1e30 leave float32.
LARGEST_SCORE = {"margin_mse": 1e15}
# Transport plans of iterations are marginals, 1 up to rounding and Sinkhorn's threshold.
NOTHING = {"sinkhorn": 1e-6, "soft_rank": 1e-6}

# Float32 sums taken in another order: a few roundings of 6e-8, on terms up to 10.
SAME = {"rtol": 2e-6, "atol": 5e-7}

Q, L = 8, 4


@cache
def compiled(name):
    """(scores, labels, where, target_where, temperature=0.5) -> (value, gradient)."""

    def loss(scores, labels, where, target_where, temperature):
        temperatures = {"temperature": temperature, "target_temperature": 0.7}
        options = keywords(name, len(scores))
        return LOSSES[name](scores, labels, where, target_where, **temperatures, **options)

    value_and_grad = jax.jit(jax.value_and_grad(loss))
    return lambda *arrays, temperature=0.5: value_and_grad(*arrays, temperature)


pool_lists = jax.jit(partial(pool_labels, in_batch_level=-1.0), static_argnames="in_batch_grade")


def weighted_sum(arrays, weights):
    options = {name: keywords(name, Q) for name in LOSSES}
    temperatures = {"temperature": 0.5, "target_temperature": 0.7}
    return jax.jit(partial(list_loss, weights=weights, options=options, **temperatures))(*arrays)


def pool(seed=0, in_batch_grade=None):
    """(scores, labels, where, target_where) of 8 lists of 4 with one passage per grade."""
    rng = np.random.default_rng(seed)
    labels = jnp.asarray(rng.permuted(np.tile([3.0, 2, 1, 0], (Q, 1)), axis=1), jnp.float32)
    ids = jnp.arange(Q * L, dtype=jnp.int32).reshape(Q, L)
    where = jnp.ones((Q, L), bool)
    pooled = pool_lists(labels, where, ids, in_batch_grade=in_batch_grade)
    return jnp.asarray(rng.normal(size=(Q, Q * L)), jnp.float32), *pooled


def assert_same(result, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **SAME), result, expected)


def test_the_names_are_those_of_the_configuration():
    assert tuple(LOSSES) == LOSS_NAMES
    assert set(LOSSES) > {*BATCH_STATISTICS, *FIXED_TEMPERATURE}


@every_loss
@pytest.mark.parametrize("scale", [1e-30, 1e4, 1e30])
def test_extreme_scores_give_finite_values_and_gradients(name, scale):
    scores, *rest = pool()
    scale = min(scale, LARGEST_SCORE.get(name, scale))
    value, gradient = compiled(name)(scale * jnp.sign(scores), *rest)
    assert jnp.isfinite(value)
    assert jnp.isfinite(gradient).all()


@every_loss
@pytest.mark.parametrize("grade", [None, 0.0])
def test_ties_give_finite_values_and_gradients(name, grade):
    scores, labels, *masks = pool(in_batch_grade=grade)
    tied = jnp.where(labels >= 0, 2.0, labels)
    for tied_labels in (labels, tied):
        value, gradient = compiled(name)(jnp.zeros_like(scores), tied_labels, *masks)
        assert jnp.isfinite(value)
        assert jnp.isfinite(gradient).all()


@every_loss
def test_one_item_has_nothing_to_learn(name):
    scores, labels, _, _ = pool()
    alone = jnp.zeros(scores.shape, bool).at[0, 3].set(True)
    value, gradient = compiled(name)(scores, jnp.maximum(labels, 0), alone, alone)
    atol = NOTHING.get(name, 0)
    assert value == pytest.approx(0, abs=atol)
    np.testing.assert_allclose(gradient, 0, atol=atol)


@every_loss
def test_all_masked_gives_zero_and_zero_gradient(name):
    scores, labels, _, _ = pool()
    nothing = jnp.zeros(scores.shape, bool)
    value, gradient = compiled(name)(jnp.full_like(scores, jnp.nan), labels, nothing, nothing)
    assert value == 0
    assert not gradient.any()


@every_loss
def test_masked_items_and_queries_equal_their_absence(name):
    scores, labels, where, target_where = pool()
    # Leave out query 2 and the last passage of each list; mask them and fill them with garbage.
    rows, columns = np.arange(Q) != 2, np.arange(Q * L) % L != L - 1
    kept = np.ix_(rows, columns)
    masks = where & np.outer(rows, columns)
    value, gradient = compiled(name)(
        jnp.where(masks, scores, jnp.nan), jnp.where(masks, labels, 9.0), masks, target_where
    )
    without = (array[kept] for array in (scores, labels, where, target_where))
    expected, expected_gradient = compiled(name)(*without)
    assert_same((value, gradient[kept]), (expected, expected_gradient))
    assert not jnp.where(masks, 0, gradient).any()


@every_loss
def test_order_of_the_passages_does_not_matter(name):
    arrays = pool()
    order = np.random.default_rng(1).permutation(Q * L)
    expected, expected_gradient = compiled(name)(*arrays)
    value, gradient = compiled(name)(*(array[:, order] for array in arrays))
    assert_same((value, gradient), (expected, expected_gradient[:, order]))


@pytest.mark.parametrize("name", PER_LIST)
def test_a_per_list_loss_lets_each_row_order_its_passages(name):
    arrays = pool()
    order = np.random.default_rng(1).permuted(np.tile(np.arange(Q * L), (Q, 1)), axis=1)
    value, _ = compiled(name)(*(jnp.take_along_axis(array, order, 1) for array in arrays))
    assert_same(value, compiled(name)(*arrays)[0])


@pytest.mark.parametrize("name", sorted(set(PER_LIST) - SINGLING_OUT))
def test_passages_of_one_grade_are_interchangeable(name):
    scores, labels, *masks = pool()
    tied = jnp.where(labels == 3, 2.0, labels)
    order = np.tile(np.arange(Q * L), (Q, 1))
    for row, row_labels in zip(order, np.asarray(labels), strict=True):
        equals = np.flatnonzero(row_labels >= 2)
        row[equals] = row[equals[::-1]]
    swapped = jnp.take_along_axis(scores, order, 1)
    value, gradient = compiled(name)(scores, tied, *masks)
    swapped_value, swapped_gradient = compiled(name)(swapped, tied, *masks)
    assert abs(scores - swapped).max() > 1
    assert_same(swapped_value, value)
    assert_same(swapped_gradient, jnp.take_along_axis(gradient, order, 1))


@every_loss
def test_vmap_over_pools_equals_a_loop(name):
    pools = [pool(seed=seed) for seed in range(3)]
    stacked = [jnp.stack(arrays) for arrays in zip(*pools, strict=True)]
    values, gradients = jax.jit(jax.vmap(compiled(name)))(*stacked)
    for arrays, value, gradient in zip(pools, values, gradients, strict=True):
        assert_same((value, gradient), compiled(name)(*arrays))


@every_loss
def test_bfloat16_scores_are_computed_in_float32(name):
    scores, *rest = pool()
    half = scores.astype(jnp.bfloat16)
    value, gradient = compiled(name)(half, *rest)
    expected, _ = compiled(name)(half.astype(jnp.float32), *rest)
    assert value.dtype == jnp.float32
    assert value == expected
    assert gradient.dtype == jnp.bfloat16
    assert jnp.isfinite(gradient.astype(jnp.float32)).all()


def test_masks_default_to_everything_and_to_where():
    scores, labels, _, _ = pool()
    rows = as_rows(scores, labels, None, None)
    assert rows.where.all()
    assert rows.target_where.all()
    rows = as_rows(scores, labels, labels > 0, None)
    assert (rows.target_where == (labels > 0)).all()


@every_loss
def test_temperature_divides_the_scores(name):
    arrays = pool()
    value, gradient = compiled(name)(*arrays)
    doubled, half_gradient = compiled(name)(2 * arrays[0], *arrays[1:], temperature=1.0)
    assert_same((doubled, 2 * half_gradient), (value, gradient))


@every_loss
def test_eight_devices_compute_what_one_computes(name):
    arrays = pool()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharded = jax.device_put(arrays, NamedSharding(mesh, Spec("data")))
    assert_same(compiled(name)(*sharded), compiled(name)(*arrays))


def test_list_loss_is_the_weighted_sum_and_reports_the_parts():
    arrays = pool()
    weights = {name: 0.1 * (number + 1) for number, name in enumerate(LOSSES)}
    total, metrics = weighted_sum(arrays, weights)
    expected = {name: compiled(name)(*arrays)[0] for name in weights}
    assert_same({name: metrics[name] for name in weights}, expected)
    assert_same(total, sum(weights[name] * expected[name] for name in weights))
    assert set(metrics) == {*weights, "alignment"}


def test_list_loss_computes_only_what_has_a_weight():
    total, metrics = weighted_sum(pool(), {"infonce": 2.0})
    assert set(metrics) == {"infonce"}
    assert total == 2 * metrics["infonce"]


def test_list_loss_refuses_an_unknown_loss():
    with pytest.raises(KeyError, match="sink"):
        weighted_sum(pool(), {"sink": 1.0})
