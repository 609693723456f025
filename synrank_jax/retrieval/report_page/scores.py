"""Do the scores separate the grades, and what does a gap between two scores say?"""

import itertools
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from synrank_jax.config_section import Section
from synrank_jax.plots import PERCENTILES
from synrank_jax.retrieval.files import Qrels, Run, ranked
from synrank_jax.retrieval.significance import LEVEL, Interval, bootstrap_interval

TOP = 10
"""Down to this rank unjudged documents are a level of their own."""
UNJUDGED_DRAWN = 20
"""Unjudged documents of a query that stand for all that were retrieved, drawn at random."""
MOST_SCORES = 100_000
"""Scores of a level in its percentiles and the pooled figure; drawn where there are more."""
MOST_PAIRS = 500
"""Pairs of a query that enter the calibration; drawn where there are more."""
GAP_BINS = 10
_RESAMPLES = 1_000
_SEED = 0
UNJUDGED, UNJUDGED_TOP = "unjudged", f"unjudged, first {TOP}"

Floats = NDArray[np.float64]


class Level(Section):
    """The documents of one grade, or unjudged ones: drawn from all, or the first of each query."""

    name: str
    scored: int
    """Documents with a score."""
    not_retrieved: int
    """Judged documents that are not in the rankings, so that their score is not known."""
    percentiles: tuple[float, ...]
    """Of the scores, at `PERCENTILES`; empty without scores."""


class Separation(Section):
    """How often a document of the higher level scores above one of the lower."""

    lower: str
    higher: str
    queries: int
    """With documents of both."""
    within: float
    """Mean over these queries of the share of pairs in the right order, equal scores counting half
    and documents that were not retrieved as the lowest."""
    interval: Interval
    """Of `within`, 95 %, by the bootstrap over queries."""
    pooled: float | None
    """The same for pairs of scored documents whatever their queries: the area under the ROC curve
    of one threshold for all. None where a level has no scores."""


class GapBin(Section):
    """Pairs of documents of one query and different grades, by the distance of their scores."""

    low: float
    high: float
    mean: float
    """Of the distances."""
    pairs: int
    share: float
    """Pairs in which the document of higher grade has the higher score."""
    interval: Interval
    """Of the share, 95 %: percentiles of a bootstrap that draws whole queries."""


class ScoreFacts(Section):
    levels: tuple[Level, ...]
    """From the lowest."""
    separations: tuple[Separation, ...]
    """Of neighbouring levels."""
    gaps: tuple[GapBin, ...]
    gaps_to_unjudged: bool
    """The gaps are between relevant and unjudged documents, for want of pairs of judged ones."""
    in_order: float | None
    """Share over all pairs of the calibration; None if there are none."""


def score_facts(run: Run, qrels: Qrels) -> ScoreFacts:
    """All figures about scores, from the rankings of the judged queries."""
    rng = np.random.default_rng(_SEED)
    grades = [str(g) for g in sorted({g for judged in qrels.values() for g in judged.values()})]
    levels = [UNJUDGED, UNJUDGED_TOP, *grades]
    scored: dict[str, list[Floats]] = {level: [] for level in levels}
    missing = dict.fromkeys(levels, 0)
    neighbours = itertools.pairwise([UNJUDGED, *grades])
    shares: dict[tuple[str, str], list[float]] = {pair: [] for pair in neighbours}
    gaps, gaps_to_unjudged = [], []
    for query_id, judged in qrels.items():
        found = _by_level(run.get(query_id, {}), judged, levels, rng)
        for level in levels:
            known = found[level][np.isfinite(found[level])]
            missing[level] += len(found[level]) - len(known)
            scored[level].append(known)
        for lower, higher in shares:
            if len(found[lower]) and len(found[higher]):
                shares[lower, higher].append(_share_above(found[higher], found[lower]))
        gaps.append(_gaps({int(grade): found[grade] for grade in grades}, rng))
        relevant = [found[grade] for grade in grades if int(grade) > 0]
        against = {0: found[UNJUDGED], 1: np.concatenate([np.zeros(0), *relevant])}
        gaps_to_unjudged.append(_gaps(against, rng))
    to_unjudged = not any(map(len, gaps))
    drawn = {level: _drawn(np.concatenate(scored[level]), MOST_SCORES, rng) for level in levels}
    gap_bins, in_order = _calibration(gaps_to_unjudged if to_unjudged else gaps, rng)
    return ScoreFacts(
        levels=tuple(
            Level(
                name=level,
                scored=sum(map(len, scored[level])),
                not_retrieved=missing[level],
                percentiles=tuple(np.percentile(drawn[level], PERCENTILES).tolist())
                if len(drawn[level])
                else (),
            )
            for level in levels
        ),
        separations=tuple(
            Separation(
                lower=lower,
                higher=higher,
                queries=len(found_shares),
                within=float(np.mean(found_shares)),
                interval=bootstrap_interval(np.array(found_shares)),
                pooled=_share_above(drawn[higher], drawn[lower])
                if len(drawn[lower]) and len(drawn[higher])
                else None,
            )
            for (lower, higher), found_shares in shares.items()
            if found_shares
        ),
        gaps=gap_bins,
        gaps_to_unjudged=to_unjudged,
        in_order=in_order,
    )


def _by_level(
    scores: Mapping[str, float],
    judged: Mapping[str, int],
    levels: list[str],
    rng: np.random.Generator,
) -> dict[str, Floats]:
    """Level -> scores; -inf for a judged document that was not retrieved."""
    found: dict[str, list[float]] = {level: [] for level in levels}
    for doc_id, grade in judged.items():
        found[str(grade)].append(scores.get(doc_id, -np.inf))
    by_level = {level: np.array(values) for level, values in found.items()}
    top = [scores[doc_id] for doc_id in ranked(scores)[:TOP] if doc_id not in judged]
    rest = np.array([score for doc_id, score in scores.items() if doc_id not in judged])
    return by_level | {UNJUDGED: _drawn(rest, UNJUDGED_DRAWN, rng), UNJUDGED_TOP: np.array(top)}


def _share_above(higher: Floats, lower: Floats) -> float:
    """Share of the pairs in which the value of `higher` is above that of `lower`; ties half."""
    ordered = np.sort(lower)
    below = np.searchsorted(ordered, higher, "left") + np.searchsorted(ordered, higher, "right")
    return float(below.mean() / 2 / len(lower))


def _drawn(values: Floats, most: int, rng: np.random.Generator) -> Floats:
    return values if len(values) <= most else rng.choice(values, most, replace=False)


def _gaps(by_grade: Mapping[int, Floats], rng: np.random.Generator) -> Floats:
    """[n] score of the higher minus score of the lower grade, of pairs of different grades."""
    scores = np.concatenate(list(by_grade.values()))
    grades = np.repeat(list(by_grade), list(map(len, by_grade.values())))
    known = np.isfinite(scores)
    scores, grades = scores[known], grades[known]
    if len(scores) * (len(scores) - 1) // 2 <= 4 * MOST_PAIRS:
        left, right = np.triu_indices(len(scores), k=1)
    else:
        left, right = rng.integers(0, len(scores), size=(2, 4 * MOST_PAIRS))
    differing = grades[left] != grades[right]
    left, right = left[differing], right[differing]
    if len(left) > MOST_PAIRS:
        chosen = rng.choice(len(left), MOST_PAIRS, replace=False)
        left, right = left[chosen], right[chosen]
    gaps: Floats = (scores[left] - scores[right]) * np.sign(grades[left] - grades[right])
    return gaps


def _calibration(
    gaps: list[Floats], rng: np.random.Generator
) -> tuple[tuple[GapBin, ...], float | None]:
    """Bins of equally many pairs, from the signed gaps of each query."""
    gap = np.concatenate(gaps)
    if not len(gap):
        return (), None
    query = np.repeat(np.arange(len(gaps)), [len(found) for found in gaps])
    distance, right = np.abs(gap), (gap > 0) + (gap == 0) / 2
    edges = np.unique(np.quantile(distance, np.arange(1, GAP_BINS) / GAP_BINS))
    _, place = np.unique(np.searchsorted(edges, distance, "right"), return_inverse=True)
    bins = int(place.max()) + 1
    cell, size = query * bins + place, len(gaps) * bins
    pairs = np.bincount(cell, minlength=size).reshape(-1, bins).astype(np.float64)
    hits = np.bincount(cell, weights=right, minlength=size).reshape(-1, bins)
    drawn = rng.multinomial(len(gaps), np.full(len(gaps), 1 / len(gaps)), size=_RESAMPLES)
    # A resample may have no pair of a bin: it says nothing there.
    with np.errstate(invalid="ignore"):
        shares = (drawn @ hits) / (drawn @ pairs)
    ends = np.nanquantile(shares, ((1 - LEVEL) / 2, (1 + LEVEL) / 2), axis=0)
    found = tuple(
        GapBin(
            low=float(distance[place == number].min()),
            high=float(distance[place == number].max()),
            mean=float(distance[place == number].mean()),
            pairs=int(pairs[:, number].sum()),
            share=float(hits[:, number].sum() / pairs[:, number].sum()),
            interval=Interval(*ends[:, number].tolist()),
        )
        for number in range(bins)
    )
    return found, float(right.mean())
