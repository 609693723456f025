from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpy_losses
import pytest
from loss_cases import LEVELS, UNEVEN
from ott.geometry.costs import PNormP
from ott.geometry.pointcloud import PointCloud
from ott.problems.linear.linear_problem import LinearProblem
from ott.solvers.linear.univariate import quantile_solver

from synrank_jax.losses.wasserstein import transport_cost, wasserstein

VALUE_ATOL = 1e-6  # float32 sums of five masses, times level distances up to 6
SOLVER_ATOL = 1e-8  # scipy's simplex in float64


def cdf_formula(p, t, levels):
    """W1 as sum of gap times |CDF_p - CDF_t|; its gradient takes sign(0) = 0."""
    gaps = jnp.diff(jnp.asarray(levels, p.dtype))
    return jnp.sum(gaps * jnp.abs(jnp.cumsum(p) - jnp.cumsum(t))[:-1])


def histograms(number, zero_levels=()):
    """Random pairs (p, t) [number, 5]; t has no mass on `zero_levels`."""
    rng = np.random.default_rng(0)
    p, t = rng.dirichlet(np.ones(5), size=(2, number))
    t[:, list(zero_levels)] = 0
    return jnp.asarray(p, jnp.float32), jnp.asarray(t / t.sum(1, keepdims=True), jnp.float32)


def along_tangents(gradient):
    """Gradients up to a constant: masses move at constant total."""
    return gradient - gradient.mean(axis=-1, keepdims=True)


cost_gradient = jax.jit(jax.grad(transport_cost), static_argnums=(2, 3))


def batched(function):
    return jax.jit(jax.vmap(function))


@pytest.mark.parametrize("zero_levels", [(), (0,), (0, 2), (4,)])
@pytest.mark.parametrize("levels", [LEVELS, UNEVEN])
def test_order_1_equals_the_cdf_formula_in_value_and_gradient(levels, zero_levels):
    p, t = histograms(64, zero_levels)
    ours = jax.value_and_grad(lambda p, t: transport_cost(p, t, levels, 1), argnums=(0, 1))
    formula = jax.value_and_grad(lambda p, t: cdf_formula(p, t, levels), argnums=(0, 1))
    value, gradients = batched(ours)(p, t)
    expected, expected_gradients = batched(formula)(p, t)
    np.testing.assert_allclose(value, expected, atol=VALUE_ATOL)
    np.testing.assert_allclose(
        along_tangents(gradients[0]), along_tangents(expected_gradients[0]), atol=1e-6
    )
    # t is only differentiable inside the simplex; the loss does not differentiate it at all.
    if not zero_levels:
        np.testing.assert_allclose(
            along_tangents(gradients[1]), along_tangents(expected_gradients[1]), atol=1e-6
        )


@pytest.mark.parametrize("order", [1, 2])
def test_equals_the_linear_program(order):
    with jax.enable_x64(True):
        p, t = (a.astype(jnp.float64) for a in histograms(6, zero_levels=(0,)))
        p, t = (a / a.sum(axis=1, keepdims=True) for a in (p, t))
        values = batched(lambda p, t: transport_cost(p, t, UNEVEN, order))(p, t)
        expected = [
            numpy_losses.linear_program(*pair, UNEVEN, order)
            for pair in zip(np.asarray(p), np.asarray(t), strict=True)
        ]
    np.testing.assert_allclose(values, expected, atol=SOLVER_ATOL)


@pytest.mark.parametrize("order", [1, 2])
def test_potential_equals_finite_differences_towards_other_histograms(order):
    with jax.enable_x64(True):
        p, t = (a.astype(jnp.float64) for a in histograms(32, zero_levels=(0,)))
        p, t = (a / a.sum(axis=1, keepdims=True) for a in (p, t))
        direction = 1e-6 * (p[::-1] - p)
        cost = batched(lambda p, t: transport_cost(p, t, UNEVEN, order))
        difference = (cost(p + direction, t) - cost(p - direction, t)) / 2
        gradient = batched(jax.grad(lambda p, t: transport_cost(p, t, UNEVEN, order)))(p, t)
        # The cost is piecewise linear: exact but for rounding of 1e-15.
        np.testing.assert_allclose((gradient * direction).sum(1), difference, atol=1e-13)


# CDFs .25 .5 .75 .875 1 and .5 .5625 .625 .75 1: F_p(1) = F_t(0) and F_p(2) = F_t(3) exactly, but
# F_p(k) = F_t(k) for no k < 4, so W1 is differentiable.
TIED_P = jnp.array([0.25, 0.25, 0.25, 0.125, 0.125])
TIED_T = jnp.array([0.5, 0.0625, 0.0625, 0.125, 0.25])


def test_gradient_is_right_where_masses_tie():
    gradient = cost_gradient(TIED_P, TIED_T, LEVELS, 1)
    # Signs of F_p - F_t are -, -, +, +; sums from the top level down.
    np.testing.assert_array_equal(gradient, [0, 1, 2, 1, 0])


def test_differentiating_the_solver_itself_is_wrong_there():
    """The reason for our own derivative rule: should this fail, OTT has mended it."""

    def solver(p):
        points = jnp.asarray(LEVELS)[:, None]
        cloud = PointCloud(points, points, cost_fn=PNormP(1))
        return quantile_solver(LinearProblem(cloud, a=p, b=TIED_T)).ot_costs[0]

    assert solver(TIED_P) == transport_cost(TIED_P, TIED_T, LEVELS, 1)
    gradient = jax.jit(jax.grad(solver))(TIED_P)
    assert (
        np.abs(along_tangents(gradient) - along_tangents(jnp.array([0.0, 1, 2, 1, 0]))).max() > 0.1
    )


@pytest.mark.parametrize("order", [1, 2])
def test_equal_histograms_cost_nothing_and_order_1_has_no_gradient(order):
    assert transport_cost(TIED_P, TIED_P, LEVELS, order) == 0
    gradient = cost_gradient(TIED_P, TIED_P, LEVELS, order)
    np.testing.assert_array_equal(along_tangents(gradient), np.zeros(5))


row_loss = jax.jit(
    partial(wasserstein, target_temperature=0.5),
    static_argnames=("levels", "positions", "order"),
)


@pytest.mark.parametrize(("order", "expected"), [(1, 0.75 * 4), (2, 0.75 * 16)])
def test_all_mass_on_in_batch_passages_travels_from_their_level(order, expected):
    # One grade-3 passage; three in-batch passages one level below grade 0; uniform scores.
    value = row_loss(
        jnp.zeros((1, 4)),
        jnp.array([[3.0, -1.0, -1.0, -1.0]]),
        target_where=jnp.array([[True, False, False, False]]),
        temperature=1.0,
        levels=LEVELS,
        order=order,
    )
    assert value == pytest.approx(expected, abs=VALUE_ATOL)


@pytest.mark.parametrize(("order", "expected"), [(1, 0.75 * 6), (2, 0.75 * 36)])
def test_positions_say_where_the_levels_lie(order, expected):
    # As above, with the in-batch level three below grade 0.
    value = row_loss(
        jnp.zeros((1, 4)),
        jnp.array([[3.0, -1.0, -1.0, -1.0]]),
        target_where=jnp.array([[True, False, False, False]]),
        temperature=1.0,
        levels=LEVELS,
        positions=UNEVEN,
        order=order,
    )
    assert value == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("order", [1, 2])
def test_moving_the_levels_is_relabelling_with_the_same_target(order):
    rng = np.random.default_rng(0)
    scores = jnp.asarray(rng.normal(size=(4, 6)), jnp.float32)
    labels = jnp.asarray(rng.integers(-1, 4, (4, 6)), jnp.float32)
    doubled = tuple(2 * level for level in LEVELS)
    gradient = jax.jit(
        jax.value_and_grad(wasserstein),
        static_argnames=("levels", "positions", "order"),
    )
    # Doubled labels under a doubled temperature make the same target.
    value, by_scores = gradient(
        scores, labels, temperature=1.0, target_temperature=0.5, levels=LEVELS,
        positions=doubled, order=order,
    )  # fmt: skip
    expected, expected_by_scores = gradient(
        scores, 2 * labels, temperature=1.0, target_temperature=1.0, levels=doubled, order=order
    )
    assert value == pytest.approx(float(expected), rel=1e-6)
    np.testing.assert_allclose(by_scores, expected_by_scores, atol=VALUE_ATOL)


def test_passages_of_one_grade_are_interchangeable():
    labels = jnp.array([[2.0, 2.0, 0.0, 0.0]])
    values = [
        float(row_loss(jnp.array([scores]), labels, temperature=1.0, levels=LEVELS))
        for scores in ([3.0, 1.0, 0.5, 0.0], [1.0, 3.0, 0.0, 0.5])
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_a_miss_costs_more_the_lower_its_grade():
    labels = jnp.array([[3.0, 2.0, 1.0, 0.0]])
    values = [
        row_loss(10 * jnp.eye(4)[i : i + 1], labels, temperature=1.0, levels=LEVELS)
        for i in range(4)
    ]
    assert values == sorted(values)
    assert values[3] - values[2] > 0.9


def test_a_saturated_row_still_has_the_gradient_of_its_small_masses():
    scores = jnp.array([[20.0, 0.0, 0.0]])
    labels = jnp.array([[-1.0, 3.0, 0.0]])
    own = jnp.array([[False, True, True]])
    gradient = jax.grad(row_loss)(scores, labels, None, own, temperature=1.0, levels=LEVELS)
    # p_3 = e^-20 moves at cost 0 instead of the 4 levels from -1: dL/ds = p_3 (0 - 4).
    assert gradient[0, 1] == pytest.approx(-4 * np.exp(-20), rel=0.01)


@pytest.mark.parametrize("where", [[True, True, True], [True, True, False]])
def test_a_label_off_the_axis_gives_nan_unless_masked(where):
    value = row_loss(
        jnp.array([[1.0, 0.0, 0.5]]),
        jnp.array([[3.0, 0.0, 1.5]]),
        jnp.array([where]),
        temperature=1.0,
        levels=LEVELS,
    )
    assert jnp.isnan(value) == where[2]


def test_levels_are_compared_in_float32_also_in_float64():
    with jax.enable_x64(True):
        labels = jnp.array([[0.1, 3.0]], jnp.float32)
        scores = jnp.array([[0.0, 1.0]], jnp.float64)
        value = row_loss(scores, labels, temperature=1.0, levels=(0.1, 3.0))
    assert value.dtype == jnp.float64
    assert jnp.isfinite(value)
