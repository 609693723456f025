"""The Gaussian loss from lists: structure of the target, groups, devices, memory."""

import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as Spec

from synrank_jax.errors import UserError
from synrank_jax.losses.gaussian import (
    gaussian_paired,
    gaussian_transport,
    gaussian_wasserstein,
)
from synrank_jax.losses.nuclear_norm import nuclear_norm
from synrank_jax.losses.pool import pool_labels, target_distribution
from synrank_jax.losses.pooled_target import PoolLists, pooled_target, target_gaussian

Q, L = 8, 4
temperatures = {"temperature": 0.3, "target_temperature": 0.7}
# Float64 rounding over singular values of 1e-3.
SAME64 = {"rtol": 1e-11, "atol": 1e-13}
SAME32 = {"rtol": 1e-5, "atol": 1e-6}
grades = pytest.mark.parametrize("in_batch_grade", [None, 0.0, 1.5])


def lists(*, shared, ragged=True, queries=Q, seed=0):
    """(scores [Q, P], labels, where, ids [Q, L]) as NumPy arrays."""
    rng = np.random.default_rng(seed)
    labels = rng.permuted(np.tile([3.0, 2, 1, 0], (queries, 1)), axis=1)
    where = np.ones((queries, L), bool)
    if ragged:
        where[1, 2:] = where[3] = where[6, 0] = False
    ids = np.arange(queries * L).reshape(queries, L)
    if shared:
        ids[5, 0] = ids[0, 1] = ids[7, 3] = 77  # one document in three lists
        ids[4, 1] = ids[4, 2]  # twice in the own list,
        ids[2, 0] = ids[4, 1]  # and in another
        ids[1, 2] = ids[0, 0]  # a repetition that is masked, where lists are ragged
    ids = np.where(where, ids, -1).astype(np.int32)
    return rng.normal(size=(queries, queries * L)), labels, where, ids


def on_device(arrays, dtype):
    return [jnp.asarray(a, dtype if a.dtype == np.float64 else None) for a in arrays]


@cache
def compiled(in_batch_grade, form, **options):
    """(scores, labels, where, ids) -> ((value, alignment), gradient)."""
    options = {**temperatures, **options}

    def loss(scores, labels, where, ids):
        dense = pool_labels(labels, where, ids, in_batch_grade=in_batch_grade, in_batch_level=-1.0)
        if form == "paired":
            value = gaussian_paired(scores, *dense, **options)
            return value, value
        from_lists = PoolLists(labels, where, ids, in_batch_grade) if form == "lists" else None
        return gaussian_transport(scores, *dense, **options, lists=from_lists)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


@partial(jax.jit, static_argnums=(3, 4))
def parts_of_target(labels, where, ids, in_batch_grade, target_temperature):
    lists = PoolLists(labels, where, ids, in_batch_grade)
    target = pooled_target(lists, target_temperature, labels.dtype)
    return target, target.counts, target_gaussian(target)


def assert_same(result, expected, tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), result, expected)


@grades
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("ragged", [False, True])
def test_lists_give_what_the_full_target_gives(in_batch_grade, shared, ragged):
    with jax.enable_x64(True):
        arrays = on_device(lists(shared=shared, ragged=ragged), jnp.float64)
        result = compiled(in_batch_grade, "lists")(*arrays)
        assert_same(result, compiled(in_batch_grade, "dense")(*arrays), SAME64)
    assert np.linalg.norm(result[1]) > 0.01


def test_float32_lists_give_what_the_full_target_gives():
    arrays = on_device(lists(shared=True), jnp.float32)
    assert_same(compiled(0.0, "lists")(*arrays), compiled(0.0, "dense")(*arrays), SAME32)


@grades
def test_target_from_lists_is_the_target_distribution(in_batch_grade):
    with jax.enable_x64(True):
        _, *arrays = on_device(lists(shared=True), jnp.float64)
        dense = pool_labels(*arrays, in_batch_grade=in_batch_grade, in_batch_level=-1.0)
        _, t = target_distribution(dense.labels, dense.target_where, 0.7)
        target, counts, (mean, spread) = parts_of_target(*arrays, in_batch_grade, 0.7)
    np.testing.assert_array_equal(counts, dense.target_where.any(axis=1))
    own = np.eye(Q, dtype=bool).repeat(L, axis=1)
    np.testing.assert_allclose(target.own.ravel(), np.asarray(t)[own], rtol=1e-12)
    in_batch = np.where(own | ~np.asarray(dense.target_where), 0, target.in_batch[:, None])
    np.testing.assert_allclose(in_batch, np.where(own, 0, t), rtol=1e-12)
    rows = np.asarray(t)[np.asarray(counts)]
    np.testing.assert_allclose(mean, rows.mean(axis=0), rtol=1e-12, atol=1e-16)
    assert spread == pytest.approx(rows.var(axis=0, ddof=1).sum(), rel=1e-12)


def test_spread_of_a_flat_target_survives_float32():
    # A mean row of norm 0.03 under deviations of 0.005.
    arrays = lists(shared=False, ragged=False, queries=256)
    with jax.enable_x64(True):
        _, *wide = on_device(arrays, jnp.float64)
        _, expected = target_gaussian(
            pooled_target(PoolLists(*wide, 0.0), 1.0, jnp.dtype("float64"))
        )
    _, *arrays = on_device(arrays, jnp.float32)
    _, _, (_, spread) = parts_of_target(*arrays, 0.0, 1.0)
    assert spread == pytest.approx(float(expected), rel=1e-6)


def test_no_list_at_all_gives_zero_and_zero_gradient():
    scores, labels, where, ids = on_device(lists(shared=False), jnp.float32)
    nothing = (jnp.full_like(scores, jnp.nan), labels, jnp.zeros_like(where), ids)
    for solver in ("svd", "newton_schulz"):
        (value, alignment), gradient = compiled(0.0, "lists", solver=solver)(*nothing)
        assert value == alignment == 0
        assert not gradient.any()


@pytest.mark.parametrize("form", ["dense", "lists", "paired"])
@pytest.mark.parametrize("in_batch_grade", [None, 0.0])
def test_groups_are_pools_of_their_own(form, in_batch_grade):
    arrays = lists(shared=True)
    arrays[2][2:4] = False  # the second group of two has no list: it does not count
    arrays[3][2:4] = -1
    with jax.enable_x64(True):
        grouped = compiled(in_batch_grade, form, group_size=2)(*on_device(arrays, jnp.float64))
        results, gradient = [], np.zeros((Q, Q * L))
        for start in (0, 4, 6):
            rows, columns = np.s_[start : start + 2], np.s_[start * L : (start + 2) * L]
            scores, *rest = (array[rows] for array in arrays)
            group = on_device([scores[:, columns], *rest], jnp.float64)
            result, gradient[rows, columns] = compiled(in_batch_grade, form)(*group)
            results.append(result)
        assert_same(grouped, (tuple(np.mean(results, axis=0)), gradient / 3), SAME64)


def test_one_group_is_the_whole_pool():
    arrays = on_device(lists(shared=True), jnp.float32)
    whole = compiled(0.0, "lists")(*arrays)
    assert_same(compiled(0.0, "lists", group_size=Q)(*arrays), whole, {"rtol": 0})


@pytest.mark.parametrize("form", ["dense", "lists", "paired"])
def test_a_group_size_that_does_not_divide_the_pool_is_refused(form):
    arrays = on_device(lists(shared=False), jnp.float32)
    with pytest.raises(UserError, match="group_size 3 does not divide the 8 queries"):
        compiled(0.0, form, group_size=3)(*arrays)


def sharded(arrays):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    return jax.device_put(arrays, NamedSharding(mesh, Spec("data")))


@pytest.mark.parametrize("solver", ["svd", "newton_schulz"])
@pytest.mark.parametrize("options", [{}, {"group_size": 4}])
def test_eight_devices_compute_what_one_computes(solver, options):
    arrays = on_device(lists(shared=True, queries=16), jnp.float32)
    loss = compiled(0.0, "lists", solver=solver, **options)
    (value, alignment), gradient = loss(*arrays)
    (sharded_value, sharded_alignment), sharded_gradient = loss(*sharded(arrays))
    assert sharded_value == pytest.approx(float(value), abs=5e-7)
    assert sharded_alignment == pytest.approx(float(alignment), abs=1e-5)
    largest = float(jnp.abs(gradient).max())
    np.testing.assert_allclose(sharded_gradient, gradient, rtol=0, atol=1e-5 * largest)


def compiled_for_eight_devices(loss, queries):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, Spec("data"))
    shapes = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=rows)
        for shape, dtype in (
            ((queries, queries * L), jnp.float32),
            ((queries, L), jnp.float32),
            ((queries, L), jnp.bool_),
            ((queries, L), jnp.int32),
        )
    ]
    return jax.jit(loss, out_shardings=(None, rows)).lower(*shapes).compile()


def largest_gathered(executable):
    """Most elements in the result of an all-gather of a compiled program."""
    text = executable.as_text()
    assert "all-reduce" in text
    shapes = re.findall(r"= \(?\w+\[([\d,]*)\]\S* all-gather", text)
    return max((int(np.prod([int(n) for n in s.split(",") if n])) for s in shapes), default=0)


LARGE = 4096


@pytest.mark.parametrize(
    ("options", "gathered"),
    [
        ({"solver": "svd"}, LARGE**2),  # A
        ({"solver": "newton_schulz"}, LARGE * L),
        ({"solver": "svd", "group_size": 64}, LARGE * L),
    ],
)
def test_no_device_gathers_scores_or_target_of_4096_queries(options, gathered):
    executable = compiled_for_eight_devices(compiled(0.0, "lists", **options), LARGE)
    assert largest_gathered(executable) <= gathered
    # A device's eighth of float32 [Q, P] is 32 MiB, [Q, Q] is 64 MiB.
    rows, square = 4 * LARGE * LARGE * L // 8, 4 * LARGE**2
    assert executable.memory_analysis().temp_size_in_bytes < 3 * rows + 4 * square


def test_the_full_target_would_be_gathered():
    executable = compiled_for_eight_devices(compiled(0.0, "dense"), LARGE)
    assert largest_gathered(executable) == LARGE * LARGE * L


def test_memory_is_a_few_times_that_of_the_scores():
    queries, size = 32, 32
    shapes = [
        jax.ShapeDtypeStruct((queries, queries * size), jnp.float32),
        jax.ShapeDtypeStruct((queries, size), jnp.float32),
        jax.ShapeDtypeStruct((queries, size), jnp.bool_),
        jax.ShapeDtypeStruct((queries, size), jnp.int32),
    ]
    for solver in ("svd", "newton_schulz"):
        memory = compiled(0.0, "lists", solver=solver).lower(*shapes).compile().memory_analysis()
        # [P, P] of float32 would be 32 times the scores.
        assert memory.temp_size_in_bytes < 10 * 4 * queries * queries * size


def test_solver_reaches_the_nuclear_norm():
    scores, labels = jnp.eye(4), 3 * jnp.eye(4)
    text = {
        solver: str(
            jax.make_jaxpr(partial(gaussian_wasserstein, **temperatures, solver=solver))(
                scores, labels
            )
        )
        for solver in ("svd", "newton_schulz")
    }
    assert "svd" in text["svd"].replace("newton_schulz", "")
    assert " svd" not in text["newton_schulz"]
    assert nuclear_norm(jnp.eye(4), 0.0, "newton_schulz") == pytest.approx(4, rel=1e-6)
