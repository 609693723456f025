"""Is a difference between systems more than luck, how large is it, and how large must it be?

Paired randomisation test, Holm's correction, bootstrap intervals, minimum detectable difference.
"""

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from synrank_jax.errors import UserError

EXACT_PAIRS = 16
"""Up to so many differing pairs all 2^n sign patterns are enumerated."""
PERMUTATIONS = 100_000
RESAMPLES = 10_000
LEVEL = 0.95
"""Of the intervals."""
ALPHA, POWER = 0.05, 0.8
_CHUNK = 8_192
_DRAWN_AT_ONCE = 2**22
# Sums of the same numbers in another order differ by rounding; they count as equal.
_ROUNDING = 1e-12


class Interval(NamedTuple):
    low: float
    high: float


def paired_p_value(
    values: Mapping[str, float],
    baseline: Mapping[str, float],
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> float:
    """p-value of the difference of two systems' means over the same queries.

    Args:
        values: {query_id: metric} of one system.
        baseline: the same of the other.
        permutations: random sign patterns where enumeration is too long.
        seed: of the random sign patterns.

    Raises:
        UserError: the two were scored on different queries.
    """
    return randomization_test(paired_differences(values, baseline), permutations, seed)


def paired_differences(
    values: Mapping[str, float], baseline: Mapping[str, float]
) -> NDArray[np.float64]:
    """[Q] values - baseline over the same queries, in the order of the sorted query ids.

    Raises:
        UserError: the two were scored on different queries.
    """
    if values.keys() != baseline.keys():
        only = sorted(values.keys() ^ baseline.keys())
        raise UserError(
            f"paired test: {len(values)} and {len(baseline)} queries, of which {len(only)} are in "
            f"only one of the two (for example {', '.join(only[:3])}); score both on the same"
        )
    # Sorted, so that nothing drawn at random depends on the order of the queries in a file.
    return np.array([values[query] - baseline[query] for query in sorted(values)])


def randomization_test(
    differences: NDArray[np.float64], permutations: int = PERMUTATIONS, seed: int = 0
) -> float:
    """Two-sided paired randomisation (sign-flip) test of mean difference 0.

    Under the null hypothesis the two systems are exchangeable on every query, so each difference
    is as likely as its negative (Smucker, Allan and Carterette, CIKM 2007, section 2.1). Pairs
    without a difference change nothing and are left out. With n sign patterns of which c give a sum
    at least as far from 0 as the observed one, p = c / n where all patterns are enumerated (the
    observed one among them) and p = (1 + c) / (1 + n) where they are drawn.

    Args:
        differences: [Q] float64, one per query.
        permutations: n where more than `EXACT_PAIRS` pairs differ.
        seed: of the drawn patterns.

    Returns:
        p in (0, 1]; 1 if nothing differs.
    """
    differing = differences[differences != 0]
    total = np.abs(differing).sum()
    threshold = abs(differing.sum()) - _ROUNDING * total
    if differing.size <= EXACT_PAIRS:
        patterns = np.arange(2**differing.size)[:, None] >> np.arange(differing.size) & 1
        return float(np.mean(_flipped_sums(patterns, differing) >= threshold))
    rng = np.random.default_rng(seed)
    chunk = max(1, min(_CHUNK, _DRAWN_AT_ONCE // differing.size))
    count = 0
    for start in range(0, permutations, chunk):
        rows = min(chunk, permutations - start)
        patterns = rng.integers(0, 2, size=(rows, differing.size), dtype=np.int8)
        count += int(np.sum(_flipped_sums(patterns, differing) >= threshold))
    return (1 + count) / (1 + permutations)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values corrected for the number of comparisons, by Holm's step-down procedure.

    With the m p-values in ascending order p_1 <= ... <= p_m, the corrected one is
    p'_i = max over j <= i of min(1, (m - j + 1) p_j) (Holm, Scandinavian Journal of Statistics
    6:65-70, 1979). Calling the comparisons with p' <= alpha different keeps the chance of one or
    more false calls below alpha, however the comparisons depend on each other.

    Args:
        p_values: comparison -> its p-value; all the comparisons of one family.

    Returns:
        comparison -> corrected p-value, in the order of `p_values`.
    """
    corrected: dict[str, float] = {}
    highest = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[name]))
        corrected[name] = highest
    return {name: corrected[name] for name in p_values}


def bootstrap_interval(
    values: NDArray[np.float64], resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """95 % interval of the mean over queries by the bootstrap, bias-corrected and accelerated.

    BCa of Efron (Journal of the American Statistical Association 82:171-185, 1987): of the sorted
    means of samples drawn with replacement, the interval ends at the shares

        alpha_i = Phi(z0 + (z0 + z_i) / (1 - a (z0 + z_i))),  z_i = Phi^-1(.025), Phi^-1(.975),

    with z0 = Phi^-1 of the share of means below the observed one (half of those equal to it) and
    a = sum d^3 / (6 (sum d^2)^1.5) over the deviations d from the mean, which is the jackknife's
    acceleration of a mean. Given paired differences this is the paired interval of the difference.

    Args:
        values: [Q] one metric, or one difference, per query.
        resamples: number of samples drawn.
        seed: of the draws.

    Returns:
        Both ends are the mean where all values are equal.
    """
    mean, size = float(values.mean()), values.size
    deviations = values - mean
    if not np.any(np.abs(deviations) > _ROUNDING):
        return Interval(mean, mean)
    rng = np.random.default_rng(seed)
    rows = max(1, _DRAWN_AT_ONCE // size)
    means = np.concatenate(
        [
            values[rng.integers(0, size, size=(min(rows, resamples - start), size))].mean(axis=1)
            for start in range(0, resamples, rows)
        ]
    )
    below = np.mean(means < mean - _ROUNDING) + np.mean(np.abs(means - mean) <= _ROUNDING) / 2
    normal = NormalDist()
    # A share of 0 or 1 has no z; no resample is that telling.
    bias = normal.inv_cdf(min(max(float(below), 1 / resamples), 1 - 1 / resamples))
    acceleration = float(np.sum(deviations**3) / (6 * np.sum(deviations**2) ** 1.5))
    ends = []
    for tail in ((1 - LEVEL) / 2, (1 + LEVEL) / 2):
        z = bias + normal.inv_cdf(tail)
        ends.append(normal.cdf(bias + z / (1 - acceleration * z)))
    low, high = np.quantile(means, ends)
    return Interval(float(low), float(high))


def minimum_detectable_difference(
    differences: NDArray[np.float64], power: float = POWER, alpha: float = ALPHA
) -> float:
    """True difference of the means that a two-sided paired test finds with probability `power`.

    (Phi^-1(1 - alpha / 2) + Phi^-1(power)) s / sqrt(Q), with s the standard deviation of the
    differences (Q - 1): the sample-size formula of the paired test in its normal approximation,
    solved for the difference (Cohen, Statistical Power Analysis, 2nd edition 1988, section 2.3;
    for retrieval Webber, Moffat and Zobel, CIKM 2008). With few queries, below about 20, it is a
    few per cent too small.

    Args:
        differences: [Q] per query, of the two systems or of a pair like them.
        power: probability that the test rejects.
        alpha: of the test.

    Returns:
        In the unit of the metric, >= 0; infinite for a single query.
    """
    if differences.size < 2:
        return math.inf
    normal = NormalDist()
    standard_error = float(differences.std(ddof=1)) / math.sqrt(differences.size)
    return (normal.inv_cdf(1 - alpha / 2) + normal.inv_cdf(power)) * standard_error


def _flipped_sums(
    patterns: NDArray[np.integer], differences: NDArray[np.float64]
) -> NDArray[np.float64]:
    """|sum of the differences| under each row of flips: [R, Q] of 0 and 1 -> [R]."""
    sums: NDArray[np.float64] = np.abs(differences.sum() - 2.0 * (patterns @ differences))
    return sums
