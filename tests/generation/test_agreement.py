import random

import pytest
from planted_lists import clean_lists
from scipy.stats import kendalltau

from synrank_jax.generation.audit.agreement import (
    Agreement,
    Regraded,
    disagreements,
    measure,
    ranks_as_grades,
    tau_b,
)
from synrank_jax.generation.audit.findings import Kind


def regraded(*grades: tuple[int | None, ...]) -> list[Regraded]:
    contexts = clean_lists(len(grades))
    return [Regraded(n, c, g) for n, (c, g) in enumerate(zip(contexts, grades, strict=True))]


def judged(lists: list[Regraded]) -> Agreement:
    return measure("judge", "model", lists, {"refused": 2})


def test_tau_is_that_of_scipy_with_ties() -> None:
    rng = random.Random(0)
    for _ in range(300):
        size = rng.randint(2, 9)
        left, right = ([rng.randint(0, 4) for _ in range(size)] for _ in range(2))
        mine = tau_b(left, right)
        if len(set(left)) == 1 or len(set(right)) == 1:
            assert mine is None
        else:
            assert mine == pytest.approx(kendalltau(left, right).statistic, abs=1e-12)
    assert tau_b([], []) is None


def test_figures_by_hand() -> None:
    # grades are 3, 2, 1, 0 in each list
    found = judged(regraded((3, 2, 1, 0), (0, 1, 2, 3), (3, 3, None, 0)))
    assert (found.lists, found.passages, found.reversed_lists) == (3, 11, 1)
    # the third: of (3,3) (2,3) (0,0) one of three pairs is tied on the right: 2 / sqrt(3 * 2)
    assert found.tau == pytest.approx((1 - 1 + 2 / 6**0.5) / 3)
    assert found.confusion == {
        0: {0: 2, 3: 1},
        1: {1: 1, 2: 1},
        2: {1: 1, 2: 1, 3: 1},
        3: {0: 1, 3: 2},
    }
    assert found.exact == (2 + 1 + 1 + 2) / 11
    # passages of grade g times answers g: 0: 3 * 3, 1: 2 * 2, 2: 3 * 2, 3: 3 * 4
    assert found.exact_by_chance == (9 + 4 + 6 + 12) / 121
    assert found.failures == {"refused": 2}


def test_encoder_scores_deal_the_grades_out_again() -> None:
    assert ranks_as_grades((3, 2, 1, 0), (0.1, 0.9, 0.5, 0.2)) == (0, 3, 2, 1)
    assert ranks_as_grades((1, 0, 0), (0.1, 0.2, 0.2)) == (0, 1, 0)
    context = clean_lists(1)[0]
    scores = (0.9, 0.4, 0.5, 0.1)
    row = Regraded(0, context, ranks_as_grades((3, 2, 1, 0), scores), scores)
    found = measure("encoder", "model", [row], {})
    assert found.tau == pytest.approx(4 / 6)
    assert found.score_percentiles[3] == (0.9,) * 5
    assert [record["score"] for record in row.records("encoder")] == [0.9, 0.4, 0.5, 0.1]
    assert [record["regrade"] for record in row.records("encoder")] == [3, 1, 2, 0]


def test_only_reversed_lists_are_findings() -> None:
    lists = regraded((3, 2, 1, 0), (0, 1, 2, 3), (1, 1, 1, 1), (None, None, None, None))
    (finding,) = disagreements("judge", "model", lists)
    assert (finding.kind, finding.number, finding.query_id) == (Kind.JUDGE, 1, "q1")
    assert finding.evidence["tau"] == -1
    assert [row["judge"] for row in finding.evidence["passages"]] == [0, 1, 2, 3]


def test_nothing_known_is_none_not_zero() -> None:
    found = judged(regraded((None, None, None, None)))
    assert (found.tau, found.exact, found.passages) == (None, None, 0)
