import numpy as np
import pytest
from test_comparison_table import BETTER, result

from synrank_jax.errors import UserError
from synrank_jax.retrieval.baselines import Baseline
from synrank_jax.retrieval.significance import bootstrap_interval, minimum_detectable_difference
from synrank_jax.retrieval.summary import summarise, summary_table

ROUNDING = 1e-12

MODEL = {"nDCG@10": {"a": 0.2, "b": 0.4, "c": 0.6}}
# Differences .1 .2 .3 of one sign: 2 of 8 sign patterns. Differences .1 -.1 .3: sums .3 .1 .5 -.3
# and their negatives, and |sum| >= .3 in 6 of 8.
BASELINES = [
    Baseline("base", "file", {"nDCG@10": {"a": 0.1, "b": 0.2, "c": 0.3}}, None),
    Baseline("other", "file", {"nDCG@10": {"a": 0.1, "b": 0.5, "c": 0.3}}, None),
]


def test_differences_intervals_and_p_values_over_all_baselines() -> None:
    (summary,) = summarise(MODEL, BASELINES)
    base, other = summary.comparisons
    assert (summary.measure, base.baseline) == ("nDCG@10", "base")
    assert summary.mean == pytest.approx(0.4, abs=ROUNDING)
    assert summary.interval == bootstrap_interval(np.array([0.2, 0.4, 0.6]))
    assert (base.mean, base.difference) == pytest.approx((0.2, 0.2), abs=ROUNDING)
    differences = np.array([0.2 - 0.1, 0.4 - 0.2, 0.6 - 0.3])
    assert base.interval == bootstrap_interval(differences)
    assert base.detectable == minimum_detectable_difference(differences)
    assert (base.p, other.p) == (2 / 8, 6 / 8)
    assert (base.p_holm, other.p_holm) == (2 * 2 / 8, 6 / 8)  # two baselines: the smaller p twice


def test_other_queries_are_refused() -> None:
    other = Baseline("other", "file", {"nDCG@10": {"a": 0.1}}, None)
    with pytest.raises(UserError, match="3 and 1 queries"):
        summarise(MODEL, [other])


# That all three draws of a sample are the largest value has a chance of 1 in 27, above .025: the
# intervals end at the smallest and the largest.
TABLE = """\
bundled:cranfield, split test: 3 queries, 1,400 documents, 3 pairs excluded

measure  system    mean     95 % interval  difference       95 % interval       p  p Holm  detectable
-----------------------------------------------------------------------------------------------------
nDCG@10  model   0.4000  0.2000 to 0.6000
         base    0.2000                       +0.2000  +0.1000 to +0.3000  0.2500  0.5000      0.1617
         other   0.3000                       +0.1000  -0.1000 to +0.3000  0.7500  0.7500      0.3235
"""  # noqa: E501


def test_table_of_the_terminal() -> None:
    text = summary_table(BETTER, summarise(MODEL, BASELINES))
    assert text.startswith(TABLE)
    assert "p Holm: corrected for the number of baselines" in text


def test_equal_systems_detect_nothing_and_a_lone_model_is_not_compared() -> None:
    (summary,) = summarise(MODEL, [Baseline("same", "file", MODEL, None)])
    (same,) = summary.comparisons
    assert (same.difference, same.interval, same.p) == (0, (0, 0), 1)
    (row,) = [line for line in summary_table(BETTER, [summary]).splitlines() if "same" in line]
    assert row.endswith("1.0000  1.0000")
    alone = summary_table(result(MODEL["nDCG@10"]), summarise(MODEL, []))
    assert "p Holm" not in alone
    assert "detectable" not in alone
