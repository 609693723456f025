import math

import pytest

from synrank_jax.errors import UserError
from synrank_jax.retrieval.metrics import means, parse_measures, per_query

# Only the rounding of a few float64 operations may differ.
ROUNDING = 1e-12


def test_ndcg_has_linear_gain() -> None:
    run = {"q": {"a": 3.0, "b": 2.0, "c": 1.0}}
    qrels = {"q": {"a": 1, "c": 3}}
    dcg = 1 / math.log2(2) + 3 / math.log2(4)
    ideal = 3 / math.log2(2) + 1 / math.log2(3)
    value = per_query(run, qrels, ["nDCG@10"])["nDCG@10"]["q"]
    assert value == pytest.approx(dcg / ideal, abs=ROUNDING)


def test_judged_query_without_documents_scores_zero_and_counts_in_the_mean() -> None:
    values = per_query({"q": {"a": 1.0}}, {"q": {"a": 1}, "missing": {"a": 1}}, ["AP", "P@1"])
    assert values["AP"] == {"q": 1.0, "missing": 0.0}
    assert means(values) == {"AP": 0.5, "P@1": 0.5}


def test_query_without_judgements_is_not_averaged_in() -> None:
    run = {"q": {"a": 1.0}, "unjudged": {"a": 1.0}, "empty": {"a": 1.0}}
    assert per_query(run, {"q": {"a": 1}, "empty": {}}, ["AP"]) == {"AP": {"q": 1.0}}


def test_query_whose_judged_documents_are_all_irrelevant_scores_zero() -> None:
    assert per_query({"q": {"a": 1.0}}, {"q": {"a": 0}}, ["nDCG@10"]) == {"nDCG@10": {"q": 0.0}}


# The second pair differs in float64 only.
@pytest.mark.parametrize("scores", [(1.0, 1.0), (1.0 + 1e-9, 1.0)], ids=["equal", "float32"])
@pytest.mark.parametrize(
    ("measure", "expected"),
    [("RR", 0.5), ("RR@2", 0.5), ("RR@1", 0.0), ("P@1", 0.0), ("Judged@1", 0.0), ("Judged@2", 0.5)],
)
def test_equal_scores_rank_the_larger_document_id_first(
    measure: str, expected: float, scores: tuple[float, float]
) -> None:
    run = {"q": dict(zip("ab", scores, strict=True))}
    assert per_query(run, {"q": {"a": 1}}, [measure])[measure]["q"] == expected


def test_query_with_an_empty_ranking_is_not_judged_at_all() -> None:
    assert per_query({"q": {}}, {"q": {"a": 1}}, ["Judged@10"]) == {"Judged@10": {"q": 0.0}}


def test_two_spellings_of_one_measure_both_get_its_values() -> None:
    values = per_query({"q": {"a": 1.0}}, {"q": {"a": 1}}, ["AP", "AP(rel=1)"])
    assert values["AP"] == values["AP(rel=1)"] == {"q": 1.0}


def test_no_judgements_at_all_is_refused() -> None:
    with pytest.raises(UserError, match="no query has judgements"):
        per_query({"q": {"a": 1.0}}, {}, ["AP"])


# nDCG@0 would abort the process inside pytrec_eval; ERR@20 would start a Perl script.
@pytest.mark.parametrize(
    "name", ["nDGC@10", "R", "AP(foo=1)", "P@x", "1+1", "", "nDCG@0", "ERR@20"]
)
def test_unknown_measure_is_named(name: str) -> None:
    with pytest.raises(UserError, match=r"evaluation\.metrics: .* is not a measure"):
        parse_measures(["AP", name])
