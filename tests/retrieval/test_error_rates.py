"""How often the paired test and the intervals are right, on simulated collections."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from synrank_jax.retrieval.significance import (
    ALPHA,
    LEVEL,
    POWER,
    bootstrap_interval,
    minimum_detectable_difference,
    randomization_test,
)

# 2,000 experiments: standard deviation of a share of .05 is .0049, of one of .8 is .009.
TYPE_I = 0.01
# The normal approximation and the drawn permutations cost one or two percentage points.
POWER_TOLERANCE = 0.03
COVERAGE = 0.03
EXPERIMENTS = 2_000
SIZES = pytest.mark.parametrize("queries", [50, pytest.param(300, marks=pytest.mark.slow)])

GAINS = 1 / np.log2(np.arange(2, 12))


def ndcg(rng: np.random.Generator, difficulty: NDArray[np.float64]) -> NDArray[np.float64]:
    """[queries] nDCG@10 of a system that finds a document of grade 1 or 2 at each rank by chance:
    few distinct values, many zeros, skewed as those of a collection.
    """
    found = rng.random((len(difficulty), 10)) < difficulty[:, None] * np.linspace(1, 0.4, 10)
    grades = found * rng.integers(1, 3, found.shape)
    ideal = np.array([3.0, 2.0, 2.0, 1.0, 1.0]) @ GAINS[:5]
    return np.minimum((grades * GAINS).sum(axis=1) / ideal, 1.0)


def two_systems(rng: np.random.Generator, queries: int) -> NDArray[np.float64]:
    """[queries] differences of two systems that are equally good on every query."""
    difficulty = rng.beta(0.8, 2.0, queries)
    return ndcg(rng, difficulty) - ndcg(rng, difficulty)


def rejected(rng: np.random.Generator, queries: int, experiments: int, shift: float = 0.0) -> float:
    return float(
        np.mean(
            [
                randomization_test(two_systems(rng, queries) + shift, permutations=2_000, seed=i)
                <= ALPHA
                for i in range(experiments)
            ]
        )
    )


def test_the_simulated_metric_is_like_a_real_one() -> None:
    values = ndcg(np.random.default_rng(0), np.random.default_rng(1).beta(0.8, 2.0, 5_000))
    assert 0.05 < np.mean(values == 0) < 0.5
    assert 0.2 < values.mean() < 0.5
    assert values.std() > 0.2
    assert np.mean(two_systems(np.random.default_rng(2), 5_000) == 0) > 0.05


@SIZES
def test_luck_is_called_a_difference_in_five_percent_of_experiments(queries: int) -> None:
    rng = np.random.default_rng(queries)
    assert rejected(rng, queries, EXPERIMENTS) == pytest.approx(ALPHA, abs=TYPE_I)


def detectable(queries: int) -> float:
    """Of a typical pair: from the spread over many queries."""
    spread = two_systems(np.random.default_rng(9), 20_000)
    return minimum_detectable_difference(spread) * math.sqrt(len(spread) / queries)


@SIZES
def test_the_detectable_difference_is_found_four_times_in_five(queries: int) -> None:
    rng = np.random.default_rng(queries + 1)
    found = rejected(rng, queries, EXPERIMENTS, detectable(queries))
    assert found == pytest.approx(POWER, abs=POWER_TOLERANCE)


def test_intervals_hold_the_true_mean_as_often_as_they_say() -> None:
    rng = np.random.default_rng(5)
    truth = ndcg(rng, rng.beta(0.8, 2.0, 200_000)).mean()
    held = []
    for seed in range(600):
        values = ndcg(rng, rng.beta(0.8, 2.0, 50))
        low, high = bootstrap_interval(values, resamples=1_000, seed=seed)
        held.append(low <= truth <= high)
    assert np.mean(held) == pytest.approx(LEVEL, abs=COVERAGE)
