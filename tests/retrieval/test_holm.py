"""Holm's correction against numbers worked out by hand."""

import numpy as np
import pytest

from synrank_jax.retrieval.significance import holm

# Products of two decimals.
ROUNDING = 1e-12
# 2,000 simulated experiments at .05: standard deviation .0049; three of them.
FAMILY_WISE = 0.015


def test_four_comparisons_by_hand() -> None:
    # Ascending: .005 .01 .03 .04, times 4, 3, 2, 1: .02 .03 .06 .04; the last is raised to .06.
    corrected = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert corrected == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}, abs=ROUNDING)
    assert list(corrected) == ["a", "b", "c", "d"]


def test_never_above_one() -> None:
    assert holm({"a": 0.6, "b": 0.4, "c": 0.9}) == {"a": 1.0, "b": 1.0, "c": 1.0}


def test_equal_p_values_get_equal_corrections() -> None:
    assert holm({"a": 0.02, "b": 0.02}) == {"a": 0.04, "b": 0.04}


def test_one_comparison_needs_no_correction() -> None:
    assert holm({"a": 0.03}) == {"a": 0.03}
    assert holm({}) == {}


def test_family_wise_error_is_at_most_alpha() -> None:
    """Of ten true null hypotheses, one or more is rejected in 5 % of experiments at most."""
    drawn = np.random.default_rng(0).random((2_000, 10))
    rejected = [
        min(holm(dict(zip("abcdefghij", row, strict=True))).values()) <= 0.05 for row in drawn
    ]
    assert np.mean(rejected) <= 0.05 + FAMILY_WISE
    assert np.mean(drawn.min(axis=1) <= 0.05) > 0.3  # without the correction
