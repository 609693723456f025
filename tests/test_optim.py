"""Schedules are worked out by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synrank_jax.config import OptimizerConfig
from synrank_jax.optim import learning_rate_schedule, make_optimizer

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
    updates, _ = tx.update(zero, tx.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.1 * np.ones((2, 2)), rtol=F32_RTOL)
    np.testing.assert_array_equal(updates["bias"], np.zeros(2))


def test_a_temperature_has_its_own_learning_rate_and_no_decay():
    options = {"learning_rate": 1e-5, "temperature_learning_rate": 1e-2, "weight_decay": 0.1}
    tx = make_optimizer(OptimizerConfig(warmup_fraction=0, clip_norm=None, **options), 1)
    params = {"kernel": jnp.ones((2, 2)), "log_temperature": jnp.float32(-3)}
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    # Adam's first update of a gradient of 1 is its learning rate, up to the rounding of 1 - b2.
    np.testing.assert_allclose(updates["kernel"], -1e-5 * 1.1 * np.ones((2, 2)), rtol=1e-5)
    np.testing.assert_allclose(updates["log_temperature"], -1e-2, rtol=1e-5)


def test_gradients_are_clipped_to_the_global_norm():
    # Adam's first update divides by the gradient itself, so look at its first moment instead:
    # m = (1 - b1) * clipped gradient, and |(3, 4)| = 5 is clipped to 1.
    tx = make_optimizer(OptimizerConfig(clip_norm=1.0), 1)
    params = {"w": jnp.zeros(2)}
    _, state = tx.update({"w": jnp.array([3.0, 4.0])}, tx.init(params), params)
    moment = state[1][0].mu["w"]
    np.testing.assert_allclose(moment, 0.1 * np.array([0.6, 0.8]), rtol=F32_RTOL)
