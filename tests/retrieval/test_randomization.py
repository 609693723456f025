import itertools

import numpy as np
import pytest

from synrank_jax.errors import UserError
from synrank_jax.retrieval.significance import EXACT_PAIRS, paired_p_value, randomization_test

ROUNDING = 1e-12
# Standard deviation of a share estimated from 100,000 draws is at most .0016; six of them.
DRAWN = 0.01


def test_three_pairs_by_hand() -> None:
    # Sums of +-1 +-2 +-3: 6 0 2 -4 4 -2 0 -6; the observed sum is 4; |sum| >= 4 in 4 of 8.
    assert randomization_test(np.array([-1.0, 2.0, 3.0])) == 4 / 8


def test_pairs_without_a_difference_change_nothing() -> None:
    assert randomization_test(np.array([0.0, -1.0, 0.0, 2.0, 3.0])) == 4 / 8


@pytest.mark.parametrize("pairs", [0, 5])
def test_no_difference_at_all_gives_one(pairs: int) -> None:
    assert randomization_test(np.zeros(pairs)) == 1.0


def test_few_pairs_are_enumerated() -> None:
    differences = np.random.default_rng(0).normal(0.3, 1, size=10)
    sums = [abs(np.dot(signs, differences)) for signs in itertools.product([1, -1], repeat=10)]
    observed = abs(differences.sum())
    expected = np.mean([value >= observed - ROUNDING for value in sums])
    assert randomization_test(differences) == expected


def test_drawn_patterns_agree_with_enumeration() -> None:
    differences = np.random.default_rng(1).normal(0.2, 1, size=EXACT_PAIRS)
    exact = randomization_test(differences)
    # One more pair, too small to matter, is one too many to enumerate.
    drawn = randomization_test(np.append(differences, 1e-9))
    assert 0.01 < exact < 0.5
    assert drawn == pytest.approx(exact, abs=DRAWN)


def test_drawn_p_is_never_zero() -> None:
    assert randomization_test(np.ones(200), permutations=999) == 1 / 1000


def test_same_seed_same_p_whatever_the_order_of_the_queries() -> None:
    rng = np.random.default_rng(2)
    values = {f"q{i}": float(x) for i, x in enumerate(rng.random(50))}
    baseline = {query: float(x) for query, x in zip(values, rng.random(50), strict=True)}
    turned = dict(reversed(values.items()))
    assert paired_p_value(values, baseline) == paired_p_value(turned, baseline)
    assert paired_p_value(values, baseline) == paired_p_value(baseline, values)


def test_other_queries_are_refused_with_an_example() -> None:
    with pytest.raises(UserError, match=r"2 and 2 queries, of which 2 .* b, c"):
        paired_p_value({"a": 1.0, "b": 1.0}, {"a": 1.0, "c": 1.0})
