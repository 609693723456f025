"""Schedules are worked out by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from synrank_jax.config import OptimizerConfig
from synrank_jax.optim import LOSS_MEMORY, learning_rate_schedule, make_optimizer

F32_RTOL = 1e-6  # one float32 rounding in each of a handful of operations


def rates(steps: int, **options) -> list[float]:
    schedule = learning_rate_schedule(OptimizerConfig(learning_rate=1.0, **options), steps)
    return [float(schedule(t)) for t in range(steps)]


def test_linear_warmup_then_linear_decay():
    # W = ceil(.4 * 5) = 2: 1/2, 2/2, then (5 - t) / (5 - 2) for t = 2, 3, 4.
    expected = [1 / 2, 1, 3 / 3, 2 / 3, 1 / 3]
    np.testing.assert_allclose(rates(5, warmup_fraction=0.4), expected, rtol=F32_RTOL)


def test_log_warmup_is_the_reference_formula():
    # W = 4: ln(t+1)/ln(4) for t = 0..3, then (8 - t) / (8 - 4).
    expected = [0, math.log(2) / math.log(4), math.log(3) / math.log(4), 1, 1, 3 / 4, 2 / 4, 1 / 4]
    got = rates(8, warmup="log", warmup_fraction=0.5)
    np.testing.assert_allclose(got, expected, rtol=F32_RTOL)


@pytest.mark.parametrize("warmup", ["linear", "log"])
def test_no_warmup_starts_at_the_peak(warmup: str):
    assert rates(4, warmup=warmup, warmup_fraction=0.0)[0] == 1.0


def test_constant_schedule_stays_at_the_peak():
    assert rates(4, schedule="constant", warmup_fraction=0.0) == [1.0] * 4


def test_weight_decay_touches_matrices_only():
    tx = make_optimizer(OptimizerConfig(weight_decay=0.1, learning_rate=1.0, warmup_fraction=0), 1)
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    zero = {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}
    updates, _ = tx.update(zero, tx.init(params), params, loss=1.0)
    np.testing.assert_allclose(updates["kernel"], -0.1 * np.ones((2, 2)), rtol=F32_RTOL)
    np.testing.assert_array_equal(updates["bias"], np.zeros(2))


def test_a_temperature_has_its_own_learning_rate_and_no_decay():
    options = {"learning_rate": 1e-5, "temperature_learning_rate": 1e-2, "weight_decay": 0.1}
    tx = make_optimizer(OptimizerConfig(warmup_fraction=0, clip_norm=None, **options), 1)
    params = {"kernel": jnp.ones((2, 2)), "log_temperature": jnp.float32(-3)}
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params, loss=1.0)
    # Adam's first update of a gradient of 1 is its learning rate, up to the rounding of 1 - b2.
    np.testing.assert_allclose(updates["kernel"], -1e-5 * 1.1 * np.ones((2, 2)), rtol=1e-5)
    np.testing.assert_allclose(updates["log_temperature"], -1e-2, rtol=1e-5)


def test_gradients_are_clipped_to_the_global_norm():
    # Adam's first update divides by the gradient itself, so look at its first moment instead:
    # m = (1 - b1) * clipped gradient, and |(3, 4)| = 5 is clipped to 1.
    tx = make_optimizer(OptimizerConfig(clip_norm=1.0), 1)
    params = {"w": jnp.zeros(2)}
    _, state = tx.update({"w": jnp.array([3.0, 4.0])}, tx.init(params), params, loss=1.0)
    moment = state.inner[1][0].mu["w"]
    np.testing.assert_allclose(moment, 0.1 * np.array([0.6, 0.8]), rtol=F32_RTOL)


def guarded(spike_factor: float | None = None):
    """An optimizer after one good update of weights that hold a -0.0."""
    tx = make_optimizer(OptimizerConfig(warmup_fraction=0), 100, spike_factor)
    params = {"w": jnp.array([1.0, -0.0])}
    updates, state = tx.update({"w": jnp.array([0.5, 0.0])}, tx.init(params), params, loss=2.0)
    return tx, optax.apply_updates(params, updates), state


def bits(tree: object) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize(
    ("loss", "grad"),
    [(np.nan, 0.1), (np.inf, 0.1), (1.0, np.nan), (1.0, np.inf), (1.0, 3e38)],
    ids=["nan loss", "inf loss", "nan gradient", "inf gradient", "overflowing norm"],
)
def test_an_update_that_is_not_finite_is_not_applied(loss: float, grad: float):
    tx, params, state = guarded()
    update = jax.jit(lambda grads, loss: tx.update(grads, state, params, loss=loss))
    updates, after = update({"w": jnp.array([0.1, grad])}, loss)
    assert bits(optax.apply_updates(params, updates)) == bits(params)
    assert bits(after.inner) == bits(state.inner)
    assert bits(after.loss_mean) == bits(state.loss_mean)
    assert (int(after.skipped_updates), int(after.applied_updates)) == (1, 1)


def test_a_spike_is_not_applied_once_the_mean_is_known():
    tx, params, state = guarded(spike_factor=2.0)
    grads = {"w": jnp.array([0.1, 0.1])}
    update = jax.jit(lambda state, loss: tx.update(grads, state, params, loss=loss))
    _, state = update(state, 100.0)  # too early to tell
    assert int(state.skipped_updates) == 0
    for _ in range(LOSS_MEMORY):
        _, state = update(state, 1.0)
    mean = float(state.loss_mean)
    _, spiked = update(state, 2.01 * mean)
    assert int(spiked.skipped_updates) == 1
    assert bits(spiked.inner) == bits(state.inner)
    _, fine = update(state, 1.99 * mean)
    assert int(fine.skipped_updates) == 0


def test_the_mean_of_the_loss_is_of_all_updates_then_of_the_last_ones():
    tx, params, state = guarded()
    grads = {"w": jnp.array([0.1, 0.1])}
    losses = [2.0, *(float(number % 5) for number in range(2 * LOSS_MEMORY))]
    expected = 2.0
    for number, loss in enumerate(losses[1:], start=2):
        _, state = tx.update(grads, state, params, loss=loss)
        expected += (loss - expected) / min(number, LOSS_MEMORY)
    # One rounding per update.
    np.testing.assert_allclose(state.loss_mean, expected, rtol=len(losses) * F32_RTOL)
