"""Is a difference between systems more than luck? Paired randomisation test, Holm's correction."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from synrank_jax.errors import UserError

EXACT_PAIRS = 16
"""Up to so many differing pairs all 2^n sign patterns are enumerated."""
PERMUTATIONS = 100_000
_CHUNK = 8_192
# Sums of the same numbers in another order differ by rounding; they count as equal.
_ROUNDING = 1e-12


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
    if values.keys() != baseline.keys():
        only = sorted(values.keys() ^ baseline.keys())
        raise UserError(
            f"paired test: {len(values)} and {len(baseline)} queries, of which {len(only)} are in "
            f"only one of the two (for example {', '.join(only[:3])}); score both on the same"
        )
    # Sorted, so that the random patterns do not depend on the order of the queries in a file.
    differences = np.array([values[query] - baseline[query] for query in sorted(values)])
    return randomization_test(differences, permutations, seed)


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
    count = 0
    for start in range(0, permutations, _CHUNK):
        rows = min(_CHUNK, permutations - start)
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


def _flipped_sums(
    patterns: NDArray[np.integer], differences: NDArray[np.float64]
) -> NDArray[np.float64]:
    """|sum of the differences| under each row of flips: [R, Q] of 0 and 1 -> [R]."""
    sums: NDArray[np.float64] = np.abs(differences.sum() - 2.0 * (patterns @ differences))
    return sums
