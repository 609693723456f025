"""The figures of the report, on rankings whose figures can be counted."""

import numpy as np
import pytest

from synrank_jax.retrieval.baselines import Baseline
from synrank_jax.retrieval.report_page import scores as scores_module
from synrank_jax.retrieval.report_page.cases import SHOWN_CHARACTERS, by_length, outcomes
from synrank_jax.retrieval.report_page.facts import CURVE_POINTS, cost, curves
from synrank_jax.retrieval.report_page.scores import UNJUDGED, UNJUDGED_TOP, score_facts

ROUNDING = 1e-9
# 4,000 pairs of a share: standard deviation below .008; about four of them.
DRAWN = 0.03

RUN = {
    "q1": {"a": 0.9, "b": 0.5, "c": 0.4, "x": 0.3},
    "q2": {"d": 0.8, "e": 0.7},
}
# q1: grade 2 above both of grade 1, one of which ties with nothing and one was not retrieved.
# q2: grade 2 below grade 1.
QRELS = {"q1": {"a": 2, "c": 1, "missing": 1}, "q2": {"d": 1, "e": 2}}


def test_separation_counts_pairs_within_queries_and_over_all() -> None:
    facts = score_facts(RUN, QRELS)
    unjudged, grades = facts.separations
    assert (unjudged.lower, unjudged.higher, unjudged.queries) == (UNJUDGED, "1", 1)
    # Grade 1 in q1: .4 is above x and below b, the one that was not retrieved below both.
    assert unjudged.within == 1 / 4
    assert (grades.lower, grades.higher, grades.queries) == ("1", "2", 2)
    assert grades.within == (2 / 2 + 0 / 1) / 2
    # Grade 2: .9 .7; grade 1: .4 .8.
    assert grades.pooled == 3 / 4


def test_levels_hold_scores_and_what_was_not_retrieved() -> None:
    levels = {level.name: level for level in score_facts(RUN, QRELS).levels}
    assert list(levels) == [UNJUDGED, UNJUDGED_TOP, "1", "2"]
    assert (levels["1"].scored, levels["1"].not_retrieved) == (2, 1)
    assert levels["2"].percentiles == pytest.approx((0.71, 0.75, 0.8, 0.85, 0.89), abs=ROUNDING)
    assert levels[UNJUDGED_TOP].scored == 2


def test_equal_scores_count_half() -> None:
    facts = score_facts({"q": {"a": 1.0, "b": 1.0}}, {"q": {"a": 1, "b": 2}})
    assert facts.separations[-1].within == 0.5
    assert facts.in_order == 0.5


def test_gaps_between_judged_documents_by_hand() -> None:
    facts = score_facts(RUN, QRELS)
    assert not facts.gaps_to_unjudged
    # q1: a over c by .5, right; q2: d over e by .1, wrong.
    assert facts.in_order == 0.5
    assert [(gap.pairs, gap.share) for gap in facts.gaps] == [(1, 0.0), (1, 1.0)]
    assert [gap.mean for gap in facts.gaps] == pytest.approx([0.1, 0.5], abs=ROUNDING)


def test_without_two_grades_the_gaps_are_to_unjudged_documents() -> None:
    facts = score_facts(RUN, {"q1": {"b": 1}, "q2": {"e": 1}})
    assert facts.gaps_to_unjudged
    assert facts.in_order == pytest.approx(2 / 4)  # b under a, over c and x; e under d
    assert sum(gap.pairs for gap in facts.gaps) == 4


def test_calibration_follows_the_chance_that_a_gap_tells_the_grade() -> None:
    """Grades drawn with a chance of 1 / (1 + exp(-4 gap)) give shares on that curve."""
    rng = np.random.default_rng(0)
    run, qrels = {}, {}
    for number in range(4_000):
        low, high = sorted(rng.random(2))
        right = rng.random() < 1 / (1 + np.exp(-4 * (high - low)))
        run[f"q{number}"] = {"low": low, "high": high}
        qrels[f"q{number}"] = {"high": 1 + right, "low": 2 - right}
    facts = score_facts(run, qrels)
    assert len(facts.gaps) == scores_module.GAP_BINS
    for gap in facts.gaps:
        expected = 1 / (1 + np.exp(-4 * gap.mean))
        assert gap.share == pytest.approx(expected, abs=2.5 * DRAWN)
        assert gap.interval.low < gap.share < gap.interval.high
        assert gap.interval.high - gap.interval.low == pytest.approx(
            2 * 1.96 * np.sqrt(expected * (1 - expected) / gap.pairs), rel=0.2
        )


def test_interval_of_a_gap_draws_whole_queries() -> None:
    """A thousand pairs of ten queries that are all right or all wrong are ten observations."""
    run, qrels = {}, {}
    for number in range(10):
        best = {f"d{i}": 1.0 + i * 1e-4 for i in range(10)}
        rest = {f"e{i}": 0.0 - i * 1e-4 for i in range(10)}
        run[f"q{number}"] = best | rest
        higher, lower = (best, rest) if number % 2 else (rest, best)
        qrels[f"q{number}"] = dict.fromkeys(higher, 2) | dict.fromkeys(lower, 1)
    for gap in score_facts(run, qrels).gaps:
        assert gap.interval.high - gap.interval.low > 0.4


def test_more_than_enough_is_drawn_and_the_same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores_module, "MOST_PAIRS", 50)
    monkeypatch.setattr(scores_module, "MOST_SCORES", 30)
    rng = np.random.default_rng(1)
    run = {"q": {f"d{i}": float(score) for i, score in enumerate(rng.random(200))}}
    qrels = {"q": {f"d{i}": i % 3 for i in range(200)}}
    facts = score_facts(run, qrels)
    assert sum(gap.pairs for gap in facts.gaps) == 50
    assert facts.levels[2].scored == 67
    assert facts == score_facts(run, qrels)


def test_wins_and_losses_are_the_largest_differences_with_texts_and_ranks() -> None:
    values = {"q1": 0.9, "q2": 0.1, "q3": 0.5}
    base = {"q1": 0.2, "q2": 0.4, "q3": 0.5}
    other = {"q1": {"b": 2.0, "z": 1.0}}
    queries = {"q1": "one", "q2": "two", "q3": "three"}
    found = outcomes(values, RUN, (base, other), QRELS | {"q3": {"a": 1}}, queries, "<{}>".format)
    assert (found.better, found.equal, found.worse) == (1, 1, 1)
    (win,), (loss,) = found.best, found.worst
    assert (win.query_id, win.query, win.value, win.baseline) == ("q1", "one", 0.9, 0.2)
    shown = [(d.doc_id, d.rank, d.grade, d.other_rank, d.text) for d in win.documents]
    assert shown == [
        ("a", 1, 2, None, "<a>"),
        ("b", 2, None, 1, "<b>"),
        ("c", 3, 1, None, "<c>"),
    ]
    assert [(d.doc_id, d.other_rank) for d in win.baseline_documents] == [("b", 2), ("z", None)]
    assert (loss.query_id, loss.baseline_documents) == ("q2", ())
    assert (found.curve[0], found.curve[50], found.curve[100]) == (-0.3, 0, 0.7)


def test_without_a_baseline_the_best_and_the_worst_queries() -> None:
    values = {f"q{i:02}": i / 29 for i in range(30)}
    queries = dict.fromkeys(values, "text")
    found = outcomes(values, {}, None, {q: {"a": 1} for q in values}, queries, str)
    assert [case.query_id for case in found.best] == [f"q{i}" for i in range(29, 19, -1)]
    assert [case.query_id for case in found.worst] == [f"q{i:02}" for i in range(10)]
    assert found.worst[0].baseline is None
    assert found.curve[100] == 1


@pytest.mark.parametrize("text", ["word " * 500, "w" * 5_000, " \n" * 2_000 + "word"])
def test_long_texts_are_cut(text: str) -> None:
    found = outcomes(
        {"q": 1.0, "r": 0.0}, {"q": {"d": 1.0}}, None, {"q": {}, "r": {}}, {"q": "", "r": ""},
        lambda _: text,
    )  # fmt: skip
    shown = found.best[0].documents[0].text
    assert len(shown) <= SHOWN_CHARACTERS + 2
    assert shown.endswith("…")


def test_lengths_are_counted_in_words_with_all_queries_in_some_group() -> None:
    queries = {f"q{i}": " ".join(["w"] * (1 + i % 7)) for i in range(70)}
    values = {query_id: float(len(text.split())) for query_id, text in queries.items()}
    base = Baseline("base", "", {"m": {query_id: v - 1 for query_id, v in values.items()}}, None)
    bins = by_length(values, [base], "m", queries)
    assert sum(b.queries for b in bins) == 70
    assert [b.low for b in bins][1:] == [b.high + 1 for b in bins][:-1]
    for found in bins:
        assert found.low <= found.mean <= found.high
        assert found.baselines["base"] == pytest.approx(found.mean - 1)


def test_one_length_is_one_group() -> None:
    (found,) = by_length({"a": 0.0, "b": 1.0}, [], "m", {"a": "x y", "b": "z w"})
    assert (found.low, found.high, found.queries, found.mean) == (2, 2, 2, 0.5)


def test_curves_are_means_of_blocks_without_what_is_not_finite() -> None:
    history = [{"step": i, "loss": float(i), "text": "x"} for i in range(1, 1_001)]
    history[0]["loss"] = float("nan")
    history[500]["validation_nDCG@10"] = 0.4
    loss, validation = curves(history)
    assert loss.name == "loss"
    assert len(loss.steps) <= CURVE_POINTS
    assert loss.steps == loss.values
    assert loss.values[0] == np.mean([2, 3, 4, 5])
    assert (validation.steps, validation.values) == ((501,), (0.4,))


def test_rates_follow_from_the_times() -> None:
    times = {"documents_encoded": 100.0, "encode_s": 4.0, "query_s": 1.0, "search_s": 2.0}
    found = cost(times | {"tokens": 4_500.0, "slots": 5_000.0}, queries=50)
    assert found["documents_per_s"] == 25
    assert found["tokens_per_s"] == 900
    assert found["padding_share"] == pytest.approx(0.1)
    assert found["search_ms_per_query"] == 40
    assert cost({}, queries=50) == {}
