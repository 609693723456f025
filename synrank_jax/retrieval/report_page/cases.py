"""The queries that a model wins and loses, with what it ranked best; metric against length."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from synrank_jax.config_section import Section
from synrank_jax.retrieval.baselines import Baseline
from synrank_jax.retrieval.files import Qrels, Run, ranked
from synrank_jax.retrieval.significance import Interval, bootstrap_interval

SHOWN_CASES = 10
SHOWN_DOCUMENTS = 3
SHOWN_CHARACTERS = 300
LENGTH_BINS = 5


class RankedDocument(Section):
    """A document among the best of a system."""

    doc_id: str
    rank: int
    score: float
    grade: int | None
    """None: not judged."""
    other_rank: int | None
    """Its rank in the other system's list; None where it is not on it."""
    text: str
    """The beginning."""


class QueryCase(Section):
    """One query, with the best-ranked documents of the model and of the first baseline."""

    query_id: str
    query: str
    value: float
    baseline: float | None
    """The first baseline's value; None without a baseline."""
    documents: tuple[RankedDocument, ...]
    baseline_documents: tuple[RankedDocument, ...]
    """Empty where the baseline's rankings are not at hand."""


class Outcomes(Section):
    """How the queries fall out against the first baseline; without one, the values themselves."""

    better: int
    equal: int
    worse: int
    """Without a baseline: queries above, at and below the mean."""
    curve: tuple[float, ...]
    """Percentiles 0 to 100 of the differences, or of the values."""
    best: tuple[QueryCase, ...]
    """The best first."""
    worst: tuple[QueryCase, ...]
    """The worst first."""


class LengthBin(Section):
    """Queries of `low` to `high` words."""

    low: int
    high: int
    queries: int
    mean: float
    interval: Interval
    baselines: dict[str, float]
    """label -> mean."""


def outcomes(
    values: Mapping[str, float],
    run: Run,
    baseline: tuple[Mapping[str, float], Run | None] | None,
    qrels: Qrels,
    queries: Mapping[str, str],
    text_of: Callable[[str], str],
) -> Outcomes:
    """The most won and most lost queries; without a baseline the best and the worst.

    Args:
        values: {query_id: metric} of the model.
        run: its rankings.
        baseline: the same two of the first baseline.
        qrels: {query_id: {doc_id: grade}}.
        queries: {query_id: text}.
        text_of: text of a document.
    """
    other = dict(baseline[0]) if baseline else {}
    middle = float(np.mean(list(values.values())))
    change = {q: values[q] - (other[q] if baseline else middle) for q in values}
    order = sorted(change, key=lambda query_id: (-change[query_id], query_id))
    best = [query_id for query_id in order if change[query_id] > 0][:SHOWN_CASES]
    worst = [query_id for query_id in reversed(order) if change[query_id] < 0][:SHOWN_CASES]
    other_run = (baseline[1] if baseline else None) or {}

    def case(query_id: str) -> QueryCase:
        mine, theirs = run.get(query_id, {}), other_run.get(query_id, {})
        grades = qrels[query_id]
        return QueryCase(
            query_id=query_id,
            query=queries[query_id],
            value=values[query_id],
            baseline=other.get(query_id),
            documents=_best(mine, theirs, grades, text_of),
            baseline_documents=_best(theirs, mine, grades, text_of),
        )

    signs = np.sign(list(change.values()))
    shown = list(change.values()) if baseline else list(values.values())
    return Outcomes(
        better=int(np.sum(signs > 0)),
        equal=int(np.sum(signs == 0)),
        worse=int(np.sum(signs < 0)),
        curve=tuple(np.percentile(shown, np.arange(101)).round(6).tolist()),
        best=tuple(map(case, best)),
        worst=tuple(map(case, worst)),
    )


def _best(
    scores: Mapping[str, float],
    other: Mapping[str, float],
    grades: Mapping[str, int],
    text_of: Callable[[str], str],
) -> tuple[RankedDocument, ...]:
    other_ranks = {doc_id: rank for rank, doc_id in enumerate(ranked(other), start=1)}
    return tuple(
        RankedDocument(
            doc_id=doc_id,
            rank=rank,
            score=scores[doc_id],
            grade=grades.get(doc_id),
            other_rank=other_ranks.get(doc_id),
            text=_beginning(text_of(doc_id)),
        )
        for rank, doc_id in enumerate(ranked(scores)[:SHOWN_DOCUMENTS], start=1)
    )


def _beginning(text: str) -> str:
    # Only as much is split as can be shown, whatever the length of the text.
    words = " ".join(text[: 4 * SHOWN_CHARACTERS].split())
    if len(words) <= SHOWN_CHARACTERS and len(text) <= 4 * SHOWN_CHARACTERS:
        return words
    return words[:SHOWN_CHARACTERS].rsplit(" ", 1)[0] + " …"


def by_length(
    values: Mapping[str, float],
    baselines: Sequence[Baseline],
    name: str,
    queries: Mapping[str, str],
) -> tuple[LengthBin, ...]:
    """The metric `name` in groups of queries of like length, about equally many in each."""
    query_ids = sorted(values)
    words = np.array([len(queries[query_id].split()) for query_id in query_ids])
    column = _column(values, query_ids)
    edges = np.unique(np.quantile(words, np.arange(1, LENGTH_BINS) / LENGTH_BINS, method="nearest"))
    group = np.searchsorted(edges, words)  # the last of a group has the edge's number of words
    bins = []
    for number in np.unique(group):
        chosen = group == number
        bins.append(
            LengthBin(
                low=int(words[chosen].min()),
                high=int(words[chosen].max()),
                queries=int(chosen.sum()),
                mean=float(column[chosen].mean()),
                interval=bootstrap_interval(column[chosen]),
                baselines={
                    b.label: float(_column(b.per_query[name], query_ids)[chosen].mean())
                    for b in baselines
                },
            )
        )
    return tuple(bins)


def _column(values: Mapping[str, float], query_ids: Sequence[str]) -> NDArray[np.float64]:
    return np.array([values[query_id] for query_id in query_ids])
