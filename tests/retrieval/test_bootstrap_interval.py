import math

import numpy as np
import pytest
import scipy.stats

from synrank_jax.retrieval.significance import (
    bootstrap_interval,
    minimum_detectable_difference,
)

# Both ends are quantiles of 10,000 drawn means of a standard error of .1: one hundredth of it is
# an eighth of the ends' own standard deviation over seeds.
DRAWN = 0.01
DIGITS = 1e-9


@pytest.mark.parametrize("skew", [0.2, 1.5])
def test_interval_is_scipys(skew: float) -> None:
    values = np.random.default_rng(0).gamma(1 / skew, size=60)
    low, high = bootstrap_interval(values, resamples=20_000)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="BCa", rng=np.random.default_rng(1)
    ).confidence_interval
    width = theirs.high - theirs.low
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=3 * DRAWN * width)
    # Skewed to the right: the upper end is further away, which a symmetric interval would miss.
    assert high - values.mean() > values.mean() - low + DRAWN * width


def test_interval_depends_on_the_seed_alone() -> None:
    values = np.random.default_rng(2).random(40)
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_interval(values) != bootstrap_interval(values, seed=1)


@pytest.mark.parametrize("values", [[0.3, 0.3, 0.3], [0.0], [0.1 + 0.2, 0.3]])
def test_equal_values_have_no_interval(values: list[float]) -> None:
    low, high = bootstrap_interval(np.array(values))
    assert low == high == pytest.approx(values[0], abs=DIGITS)


def test_two_values_give_ends_within_them() -> None:
    low, high = bootstrap_interval(np.array([0.0, 1.0]))
    assert (low, high) == (0, 1)


def test_detectable_difference_by_hand() -> None:
    # Standard deviation 2 of four values, so a standard error of 1; 1.959964 + .841621.
    differences = np.array([1.0, -1.0, 3.0, -1.0, 3.0, 1.0, 1.0, 1.0])
    s = math.sqrt((0 + 4 + 4 + 4 + 4) / 7)
    expected = (1.959963985 + 0.841621234) * s / math.sqrt(8)
    assert minimum_detectable_difference(differences) == pytest.approx(expected, abs=1e-8)


def test_one_query_detects_nothing() -> None:
    assert minimum_detectable_difference(np.array([0.4])) == math.inf
