"""Hard negatives: which documents of a ranking may enter a query's list as not relevant.

The most similar documents that nobody judged teach the most, and are the likeliest to be relevant
after all. The rules take out what is known to be wrong (judged, excluded, empty, the very text of a
relevant document) and, as far as asked, what is suspiciously similar.
"""

import math
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Set
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from synrank_jax.errors import UserError

Rankings = Iterable[tuple[str, dict[str, float]]]
"""(query_id, {doc_id: score}), every query once."""


class Reason(StrEnum):
    """Why a document is no hard negative, or why a query has none."""

    JUDGED = "judged"
    EXCLUDED = "excluded pair"
    SELF_MATCH = "self-match"
    EMPTY = "empty text"
    SAME_TEXT = "text of a relevant document"
    MIN_SCORE = "--min-score"
    MAX_SCORE = "--max-score"
    NO_POSITIVE = "no relevant document in the ranking to compare with"
    MARGIN = "--margin"
    MAX_RELATIVE = "--max-relative"
    PER_QUERY = "--per-query"
    NOT_RANKED = "nothing in the ranking"
    SKIPPED = "--skip-top"


@dataclass(frozen=True)
class Rules:
    """What `mine_query` keeps. Scores are those of the ranking, higher is more similar.

    The filters relative to a positive take the *highest* score that a relevant document of the
    query has in the ranking. Unlike the lowest, it does not change with the depth of the ranking,
    and one relevant document that the scorer misses does not empty the list.

    On NFCorpus (42 judged documents per query) with BM25 and half of the judgements hidden, 11.8 %
    of the 20 best hard negatives are hidden relevant documents; with max_relative .95 11.1 % (71 %
    of the queries keep some), with skip_top 10 6.9 % (84 %), with skip_top 30 4.1 % (75 %).

    Raises:
        UserError: two of the rules contradict each other.
    """

    depth: int = 100
    """Ranks considered; judged and excluded documents count."""
    skip_top: int = 0
    """Ranks skipped at the top, where most relevant documents are that nobody judged."""
    per_query: int | None = None
    """Most hard negatives of a query, best first; None: all."""
    min_score: float | None = None
    """Lowest score kept."""
    max_score: float | None = None
    """Only scores below it are kept, as by the mixture's max_score."""
    margin: float | None = None
    """Keep score <= positive - margin."""
    max_relative: float | None = None
    """Keep score <= positive - (1 - max_relative) |positive|. Where the positive's score is above
    0 that is max_relative times it (TopK-PercPos of NV-Retriever, arXiv 2407.15831); below 0 the
    product would lie above the positive, this does not."""
    positive_grade: int = 1
    """Lowest grade of a relevant document."""
    exclude_self_match: bool = False
    """Take out a document whose id is the query's."""

    def __post_init__(self) -> None:
        if self.skip_top >= self.depth:
            raise UserError(
                f"--skip-top {self.skip_top}: leaves nothing of --depth {self.depth}, which counts "
                "from the first rank; raise --depth or lower --skip-top"
            )
        low, high = self.min_score, self.max_score
        if low is not None and high is not None and low >= high:
            raise UserError(
                f"--min-score {low:g}: is not below --max-score {high:g}, so no score is left; "
                "lower the one or raise the other"
            )

    def ceilings(self, positive: float | None) -> list[tuple[Reason, float]]:
        """The highest score that the rules relative to the positive's score allow."""
        if self.margin is None and self.max_relative is None:
            return []
        if positive is None:
            return [(Reason.NO_POSITIVE, -math.inf)]
        below = None if self.max_relative is None else (1 - self.max_relative) * abs(positive)
        gaps = ((Reason.MARGIN, self.margin), (Reason.MAX_RELATIVE, below))
        return [(reason, positive - gap) for reason, gap in gaps if gap is not None]


class Mined(NamedTuple):
    """The hard negatives of a query."""

    documents: list[tuple[str, float]]
    """(doc_id, score), best first."""
    removed: Counter[Reason]
    """The other documents between skip_top and depth, by the first reason that applies."""
    none_because: Reason | None
    """What took out the most of the unjudged documents, where `documents` is empty."""


def mine_query(
    query_id: str,
    scores: Mapping[str, float],
    judged: Mapping[str, int],
    excluded: Set[str],
    documents: Mapping[str, str | int],
    rules: Rules,
) -> Mined:
    """The hard negatives of one query. Equal scores are ranked by id, descending, as in trec_eval.

    Args:
        query_id: of the query.
        scores: {doc_id: score}, its ranking.
        judged: {doc_id: grade}; none of them is a hard negative, whatever the grade.
        excluded: doc_ids that exclusion lists name for the query.
        documents: {doc_id: text}, of the ranking at least; hashes of the texts do too, where that
            of an empty one is 0.
        rules: what to keep.
    """
    ranked = sorted(scores.items(), key=lambda item: (item[1], item[0]), reverse=True)
    relevant = [doc_id for doc_id, grade in judged.items() if grade >= rules.positive_grade]
    positive = max((scores[doc_id] for doc_id in relevant if doc_id in scores), default=None)
    relevant_texts = {documents[doc_id] for doc_id in relevant if doc_id in documents}
    ceilings = rules.ceilings(positive)

    def reason_against(doc_id: str, score: float) -> Reason | None:
        if doc_id in judged:
            return Reason.JUDGED
        if doc_id in excluded:
            return Reason.EXCLUDED
        if rules.exclude_self_match and doc_id == query_id:
            return Reason.SELF_MATCH
        if not documents[doc_id]:
            return Reason.EMPTY
        if documents[doc_id] in relevant_texts:
            return Reason.SAME_TEXT
        if rules.min_score is not None and score < rules.min_score:
            return Reason.MIN_SCORE
        if rules.max_score is not None and score >= rules.max_score:
            return Reason.MAX_SCORE
        above = (reason for reason, highest in ceilings if score > highest)
        return next(above, Reason.PER_QUERY if len(kept) == rules.per_query else None)

    kept: list[tuple[str, float]] = []
    removed: Counter[Reason] = Counter()
    for doc_id, score in ranked[rules.skip_top : rules.depth]:
        reason = reason_against(doc_id, score)
        if reason is None:
            kept.append((doc_id, score))
        else:
            removed[reason] += 1
    return Mined(kept, removed, None if kept else _none_because(ranked, removed))


def _none_because(ranked: list[tuple[str, float]], removed: Counter[Reason]) -> Reason:
    if not removed:
        return Reason.SKIPPED if ranked else Reason.NOT_RANKED
    # Judged documents are as they should be; what took the others is what the user can change.
    others = Counter({reason: removed[reason] for reason in removed if reason != Reason.JUDGED})
    return (others or removed).most_common(1)[0][0]


@dataclass
class Summary:
    """What was mined so far."""

    kept: dict[str, int] = field(default_factory=dict)
    """{query_id: number of hard negatives}."""
    removed: Counter[Reason] = field(default_factory=Counter)
    none_because: Counter[Reason] = field(default_factory=Counter)
    """Queries without a hard negative, by reason."""
    not_asked: int = 0
    """Queries of the ranking that are not to be mined."""

    def add(self, query_id: str, mined: Mined) -> None:
        """Count one query."""
        self.kept[query_id] = len(mined.documents)
        self.removed += mined.removed
        if mined.none_because is not None:
            self.none_because[mined.none_because] += 1


def run_rankings(
    lines: Iterable[tuple[int, str]], path: Path, queries: Container[str], documents: Container[str]
) -> Rankings:
    """The rankings of a TREC run file, of which only one is in memory at a time.

    The lines of a query must stand together; their order, like the rank, does not matter.

    Args:
        lines: (line number, text) of the file.
        path: of the file, for errors.
        queries: all query ids there are.
        documents: all document ids there are.

    Raises:
        UserError: names the line that lacks a field, has no finite score, repeats a document, has
            an unknown query or document, or comes back to an earlier query.
    """
    seen: set[str] = set()
    current, scores = "", dict[str, float]()
    for number, line in lines:
        place = f"{path}:{number}"
        query_id, doc_id, score = _fields(line, place)
        if query_id != current:
            if scores:
                yield current, scores
            _require_new_query(query_id, queries, seen, place)
            seen.add(query_id)
            current, scores = query_id, {}
        if doc_id not in documents:
            raise UserError(
                f"{place}: document {doc_id!r} is not in the corpus; a run can only be mined with "
                "the collection that it ranks"
            )
        if doc_id in scores:
            raise UserError(
                f"{place}: document {doc_id!r} twice for query {query_id!r}; keep one line"
            )
        scores[doc_id] = score
    if scores:
        yield current, scores


def _fields(line: str, place: str) -> tuple[str, str, float]:
    fields = line.split()
    if len(fields) < 6:
        raise UserError(f"{place}: expected qid Q0 docid rank score tag, got {line!r}")
    try:
        score = float(fields[4])
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise UserError(f"{place}: score {fields[4]!r} is not a finite number; correct the line")
    return fields[0], fields[2], score


def _require_new_query(query_id: str, queries: Container[str], seen: Set[str], place: str) -> None:
    if query_id not in queries:
        raise UserError(
            f"{place}: query {query_id!r} is not in the collection; a run can only be mined with "
            "the collection that it ranks"
        )
    if query_id in seen:
        raise UserError(
            f"{place}: query {query_id!r} comes back after another one; bring the lines of each "
            "query together, for example with sort -s -k1,1"
        )
