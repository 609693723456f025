from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loss_cases import LEVELS, UNEVEN

from synrank_jax.losses.sinkhorn import sinkhorn
from synrank_jax.losses.wasserstein import wasserstein

temperatures = {"temperature": 0.5, "target_temperature": 0.7}
STATIC = ("levels", "positions", "order", "cost", "threshold", "max_iterations")
divergence = jax.jit(partial(sinkhorn, **temperatures), static_argnames=STATIC)
gradient = jax.jit(
    jax.grad(lambda scores, *rest, **options: sinkhorn(scores, *rest, **temperatures, **options)),
    static_argnames=STATIC,
)


def lists(Q=16, L=8):
    rng = np.random.default_rng(0)
    scores = jnp.asarray(rng.normal(size=(Q, L)), jnp.float32)
    return scores, jnp.asarray(rng.integers(0, 4, (Q, L)), jnp.float32)


@pytest.mark.parametrize("epsilon", [pytest.param(0.1, marks=pytest.mark.slow), 0.5, 2.0])
def test_where_it_stops_by_default_the_value_and_the_gradient_are_converged(epsilon):
    arrays = lists()
    options = {"levels": LEVELS, "epsilon": epsilon}
    value, by_scores = divergence(*arrays, **options), gradient(*arrays, **options)
    with jax.enable_x64(True):
        double = [jnp.asarray(array, jnp.float64) for array in arrays]
        end = {"threshold": 1e-9, "max_iterations": 20_000}
        expected, by_double = divergence(*double, **options, **end), gradient(*double, **options)
    # Float32, and marginals 1e-5 off: the value's error is of second order in that.
    assert value == pytest.approx(float(expected), abs=2e-6)
    np.testing.assert_allclose(by_scores, by_double, atol=2e-6)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("positions", [None, UNEVEN])
def test_small_epsilon_is_the_transport_cost(order, positions):
    arrays = lists(Q=4)
    options = {"levels": LEVELS, "positions": positions, "order": order}
    exact = wasserstein(*arrays, **temperatures, **options)
    values = [float(divergence(*arrays, **options, epsilon=eps)) for eps in (0.3, 0.1, 0.03)]
    errors = [abs(value - float(exact)) for value in values]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.05 * exact


def test_a_perfect_prediction_costs_nothing():
    _, labels = lists()
    perfect = labels * temperatures["temperature"] / temperatures["target_temperature"]
    options = {"levels": LEVELS, "epsilon": 0.5}
    assert divergence(perfect, labels, **options) == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(gradient(perfect, labels, **options), 0, atol=1e-6)


@pytest.mark.parametrize("where", [[True, True, True], [True, True, False]])
def test_a_label_off_the_axis_gives_nan_unless_masked(where):
    arrays = jnp.array([[1.0, 0.0, 0.5]]), jnp.array([[3.0, 0.0, 1.5]]), jnp.array([where])
    assert jnp.isnan(divergence(*arrays, levels=LEVELS, epsilon=0.5)) == where[2]


by_embedding = partial(divergence, cost="embedding", epsilon=0.2)


def test_mass_on_a_passage_like_the_right_one_costs_less():
    # Passage 1 resembles the relevant passage 0, passage 2 does not.
    passages = jnp.array([[1.0, 0.0], [2.0, 0.5], [0.0, 1.0]])
    labels = jnp.array([[3.0, 0.0, 0.0]])
    target = jnp.array([[True, False, False]])
    near, far = (
        by_embedding(jnp.array([scores]), labels, None, target, passages=passages)
        for scores in ([0.0, 3.0, 0.0], [0.0, 0.0, 3.0])
    )
    assert near < 0.2 * far


def test_passages_that_are_all_alike_cost_nothing():
    passages = jnp.tile(jnp.array([[1.0, 2.0]]), (8, 1))
    assert by_embedding(*lists(), passages=passages) == pytest.approx(0, abs=1e-6)


def test_lists_bring_their_own_passages():
    scores, labels = lists(Q=4)
    passages = jnp.asarray(np.random.default_rng(1).normal(size=(8, 5)), jnp.float32)
    shared = by_embedding(scores, labels, passages=passages)
    tiled = jnp.tile(passages, (4, 1, 1))
    assert by_embedding(scores, labels, passages=tiled) == pytest.approx(float(shared), rel=1e-6)
    own = [
        by_embedding(scores[i : i + 1], labels[i : i + 1], passages=passages[::-1]) for i in (0,)
    ]
    mixed = tiled.at[0].set(passages[::-1])
    rest = by_embedding(scores[1:], labels[1:], passages=passages)
    expected = (own[0] + 3 * rest) / 4
    assert by_embedding(scores, labels, passages=mixed) == pytest.approx(float(expected), rel=1e-5)


def test_no_gradient_flows_through_the_ground_cost():
    passages = jnp.asarray(np.random.default_rng(1).normal(size=(8, 5)), jnp.float32)
    by_passages = jax.grad(lambda passages: by_embedding(*lists(), passages=passages))(passages)
    assert not by_passages.any()


def test_masked_passages_are_as_good_as_absent():
    scores, labels = lists(Q=4)
    passages = jnp.asarray(np.random.default_rng(1).normal(size=(8, 5)), jnp.float32)
    where = jnp.ones((4, 8), bool).at[:, 6:].set(False)
    value = by_embedding(scores, labels, where, passages=passages)
    expected = by_embedding(scores[:, :6], labels[:, :6], passages=passages[:6])
    assert value == pytest.approx(float(expected), rel=1e-5)
    options = {"cost": "embedding", "epsilon": 0.2, "passages": passages}
    by_scores = gradient(scores, labels, where, **options)
    assert jnp.isfinite(by_scores).all()
    assert not by_scores[:, 6:].any()
