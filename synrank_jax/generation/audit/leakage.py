"""How far grades can be told without reading: from length, query words or openings alone.

A model trained on lists whose better passages are longer learns length. Two figures for each
feature, both with what chance gives, measured by shuffling the feature within its lists:

- concordance: share of the pairs of a list with different grades in which the passage of higher
  grade has the higher value (ties count half), averaged over lists. Chance: 0.5.
- accuracy: share of passages whose grade is predicted from the feature's rank within the list (of
  an opening: from the words themselves). The prediction is the most frequent grade of equal rank in
  the other four fifths of the lists.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from synrank_jax.config_section import Section
from synrank_jax.generation.lists import RankingContext
from synrank_jax.generation.ngrams import words
from synrank_jax.plots import PERCENTILES

LENGTH = "length in words"
OVERLAP = "query words (BM25)"
OPENING = "opening"
SHUFFLES = 200
FOLDS = 5
OPENING_WORDS = 2
"""Words of an opening that grades are predicted from."""
BOILERPLATE = 3
"""Words of an opening that the report counts."""
FEWEST_LISTS = 3
_BINS = 10
_MOST_OPENINGS = 10
_SEED = 0


class Chance(Section):
    """A figure, and where it would be by chance."""

    value: float
    chance: float
    """Mean of the shuffles."""
    low: float
    high: float
    """95 % of the shuffles are between them."""

    def beyond(self) -> bool:
        """Whether it is outside of what chance gives."""
        return not self.low <= self.value <= self.high


class Feature(Section):
    """What one feature gives away."""

    concordance: Chance | None
    """None for an opening, which has no order."""
    accuracy: Chance
    percentiles: dict[int, tuple[float, ...]]
    """grade -> the feature's PERCENTILES; empty for an opening."""


class Opening(Section):
    """Words that passages begin with."""

    words: str
    lists: int
    passages: dict[int, int]
    """grade -> passages."""


class Leakage(Section):
    """What the sample's grades can be told from."""

    lists: int
    passages: int
    features: dict[str, Feature]
    best: str
    """The feature that predicts best above chance."""
    openings: tuple[Opening, ...]
    """The most frequent ones that at least FEWEST_LISTS lists share."""


@dataclass(frozen=True)
class _Sample:
    lists: NDArray[np.int64]
    """[S] list of each passage, ascending."""
    grades: NDArray[np.int64]
    """[S]"""
    pairs: tuple[NDArray[np.int64], NDArray[np.int64]]
    """Passages of one list, the first of higher grade."""

    def shuffles(self) -> list[NDArray[np.int64]]:
        """Orders of the passages that stay within their lists."""
        rng = np.random.default_rng(_SEED)
        return [np.lexsort((rng.random(len(self.lists)), self.lists)) for _ in range(SHUFFLES)]


def measure(
    sample: Sequence[RankingContext], overlap: Sequence[Sequence[float]] | None
) -> Leakage | None:
    """Leakage of the sample; None if no list has two grades.

    Args:
        sample: the lists.
        overlap: BM25 score of each list's passages with its query; None: not known.
    """
    ranked = [n for n, c in enumerate(sample) if len({p.grade for p in c.passages}) > 1]
    if not ranked:
        return None
    scores = [value for n in ranked for value in overlap[n]] if overlap is not None else None
    sample = [sample[n] for n in ranked]
    data = _sample(sample)
    texts = [words(passage.full_text()) for context in sample for passage in context.passages]
    shuffles = data.shuffles()
    numbers = {LENGTH: np.array([len(text) for text in texts], float)}
    if scores is not None:
        numbers[OVERLAP] = np.array(scores)
    features = {name: _numeric(data, values, shuffles) for name, values in numbers.items()}
    accuracy = _against_chance(_accuracies(data, _opening_codes(texts), shuffles))
    features[OPENING] = Feature(concordance=None, accuracy=accuracy, percentiles={})
    best = max(features, key=lambda name: _gain(features[name].accuracy))
    return Leakage(
        lists=len(sample),
        passages=len(texts),
        features=features,
        best=best,
        openings=_openings(data, texts),
    )


def _gain(accuracy: Chance) -> float:
    return accuracy.value - accuracy.chance


def _sample(sample: Sequence[RankingContext]) -> _Sample:
    sizes = [len(context.passages) for context in sample]
    grades = np.array([passage.grade for context in sample for passage in context.passages])
    higher, lower = [], []
    for start, size in zip(np.cumsum([0, *sizes[:-1]]), sizes, strict=True):
        own = grades[start : start + size]
        left, right = np.nonzero(own[:, None] > own[None, :])
        higher.append(left + start)
        lower.append(right + start)
    lists = np.repeat(np.arange(len(sizes)), sizes)
    return _Sample(lists, grades, (np.concatenate(higher), np.concatenate(lower)))


def _numeric(
    data: _Sample, values: NDArray[np.float64], shuffles: Sequence[NDArray[np.int64]]
) -> Feature:
    orders = [np.arange(len(values)), *shuffles]
    codes = _rank_bins(data.lists, values)
    return Feature(
        concordance=_against_chance([_concordance(data, values[order]) for order in orders]),
        accuracy=_against_chance(_accuracies(data, codes, shuffles)),
        percentiles={
            int(grade): tuple(
                round(float(value), 3)
                for value in np.percentile(values[data.grades == grade], PERCENTILES)
            )
            for grade in np.unique(data.grades)
        },
    )


def _concordance(data: _Sample, values: NDArray[np.float64]) -> float:
    higher, lower = data.pairs
    won = (values[higher] > values[lower]) + (values[higher] == values[lower]) / 2
    owners = data.lists[higher]
    totals = np.bincount(owners, won) / np.bincount(owners)
    return float(np.mean(totals))


def _rank_bins(lists: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.int64]:
    """[S] relative rank within the list, 0 to _BINS - 1; equal values have one rank."""
    bins = np.zeros(len(values), np.int64)
    for block in np.split(np.arange(len(values)), np.flatnonzero(np.diff(lists)) + 1):
        own = values[block]
        below = (own[:, None] > own[None, :]).sum(1) + ((own[:, None] == own).sum(1) - 1) / 2
        bins[block] = np.round(below / max(len(own) - 1, 1) * (_BINS - 1))
    return bins


def _opening_codes(texts: Sequence[Sequence[str]]) -> NDArray[np.int64]:
    """[S] number of each passage's opening; rare ones are one class: each alone tells nothing."""
    openings = [" ".join(text[:OPENING_WORDS]) for text in texts]
    count = Counter(openings)
    common = [opening if count[opening] >= FEWEST_LISTS else "" for opening in openings]
    codes: NDArray[np.int64] = np.unique(common, return_inverse=True)[1]
    return codes


def _accuracies(
    data: _Sample, codes: NDArray[np.int64], shuffles: Sequence[NDArray[np.int64]]
) -> list[float]:
    """Accuracy of the feature as it is, then of every shuffle."""
    _, grades = np.unique(data.grades, return_inverse=True)
    folds = data.lists % FOLDS
    shape = (FOLDS, int(codes.max()) + 1, int(grades.max()) + 1)
    accuracies = []
    for order in [np.arange(len(codes)), *shuffles]:
        shuffled = codes[order]
        cells = np.ravel_multi_index((folds, shuffled, grades), shape)
        own = np.bincount(cells, minlength=int(np.prod(shape))).reshape(shape)
        others = own.sum(0, keepdims=True) - own
        # The grade that is most frequent over all decides ties, and what was never seen.
        votes = others + others.sum(1, keepdims=True) * 1e-9
        predicted = votes.argmax(2)[folds, shuffled]
        accuracies.append(float(np.mean(predicted == grades)))
    return accuracies


def _against_chance(values: Sequence[float]) -> Chance:
    """The first value against the others."""
    value, *shuffled = values
    low, high = np.percentile(shuffled, (2.5, 97.5))
    return Chance(value=value, chance=float(np.mean(shuffled)), low=float(low), high=float(high))


def _openings(data: _Sample, texts: Sequence[Sequence[str]]) -> tuple[Opening, ...]:
    passages: dict[str, Counter[int]] = {}
    lists: dict[str, set[int]] = {}
    for text, grade, number in zip(texts, data.grades, data.lists, strict=True):
        opening = " ".join(text[:BOILERPLATE])
        passages.setdefault(opening, Counter())[int(grade)] += 1
        lists.setdefault(opening, set()).add(int(number))
    common = sorted(
        (opening for opening in passages if len(lists[opening]) >= FEWEST_LISTS),
        key=lambda opening: (-len(lists[opening]), opening),
    )
    return tuple(
        Opening(
            words=opening,
            lists=len(lists[opening]),
            passages=dict(sorted(passages[opening].items())),
        )
        for opening in common[:_MOST_OPENINGS]
    )
