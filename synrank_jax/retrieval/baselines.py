"""What a model is compared with on the same queries: earlier evaluations, run files, BM25."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from synrank_jax.config import EvaluationConfig
from synrank_jax.errors import UserError
from synrank_jax.retrieval.bm25 import K1, B, Bm25
from synrank_jax.retrieval.files import RUN_FILE, Qrels, Run, ranked, read_run
from synrank_jax.retrieval.metrics import PerQuery, per_query
from synrank_jax.retrieval.result import EvaluationResult

logger = logging.getLogger(__name__)

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Baseline:
    """A system that the model is compared with."""

    label: str
    origin: str
    """What it is, for the record: a file, or BM25 and its settings."""
    per_query: PerQuery
    run: Run | None
    """Its rankings; None for a metrics.json without them beside it."""


class Documents(Protocol):
    """Documents by position and by id."""

    @property
    def ids(self) -> Sequence[str]: ...
    def __len__(self) -> int: ...
    def texts(self, start: int, stop: int) -> Sequence[str]: ...
    def unknown(self, ids: Sequence[str]) -> Sequence[str]: ...


class Collection(Protocol):
    """What all systems are scored on."""

    @property
    def documents(self) -> Documents: ...
    @property
    def queries(self) -> Mapping[str, str]: ...
    @property
    def qrels(self) -> Qrels: ...
    @property
    def excluded(self) -> Set[tuple[str, str]]: ...
    @property
    def sha256(self) -> str: ...


def read_baselines(
    metrics_files: Sequence[str],
    run_files: Sequence[str],
    bm25: bool,
    collection: Collection,
    evaluation: EvaluationConfig,
    taken: str,
) -> list[Baseline]:
    """All baselines in the order of the arguments, each under a label of its own.

    A run file is scored as the model is: excluded pairs are dropped, `top_k` documents are kept,
    equal scores are ranked as trec_eval does, and a query that it lacks scores 0.

    Args:
        metrics_files: metrics.json of earlier evaluations.
        run_files: TREC run files.
        bm25: rank by BM25 too, which holds the texts and an index of them in memory.
        collection: queries, judgements and documents.
        evaluation: measures, depth and what to exclude.
        taken: the model's label.

    Raises:
        UserError: a file is missing, broken or of another collection, or bm25s is missing.
    """
    found = [_earlier(Path(path), collection, evaluation) for path in metrics_files]
    found += [_of_run_file(Path(path), collection, evaluation) for path in run_files]
    if bm25:
        found.append(_of_bm25(collection, evaluation))
    return list(_with_labels(found, taken))


def _with_labels(baselines: Sequence[Baseline], taken: str) -> Iterator[Baseline]:
    seen = Counter([taken])
    for baseline in baselines:
        seen[baseline.label] += 1
        number = seen[baseline.label]
        yield baseline if number == 1 else replace(baseline, label=f"{baseline.label} ({number})")


def _earlier(path: Path, collection: Collection, evaluation: EvaluationConfig) -> Baseline:
    result = EvaluationResult.read(path)
    measures = evaluation.metrics
    result.require_comparable(
        collection.sha256, collection.queries.keys(), set(measures), str(path)
    )
    run: Run | None = None
    if (beside := path.with_name(RUN_FILE)).is_file():
        run = read_run(beside)
        again = per_query(run, collection.qrels, measures[:1])[measures[0]]
        if any(abs(again[q] - v) > _ROUNDING for q, v in result.per_query[measures[0]].items()):
            logger.warning("%s: not the rankings that %s was measured on; ignored", beside, path)
            run = None
    return Baseline(result.label, str(path), result.per_query, run)


def _of_run_file(path: Path, collection: Collection, evaluation: EvaluationConfig) -> Baseline:
    found = read_run(path)
    missing = [query_id for query_id in collection.queries if query_id not in found]
    if len(missing) == len(collection.queries):
        raise UserError(
            f"{path}: has none of the {len(missing)} scored queries (for example {missing[0]}); "
            "check evaluation.path, split and queries, or give the run of this collection"
        )
    ranked_ids = {d for query_id in collection.queries for d in found.get(query_id, ())}
    unknown = collection.documents.unknown(sorted(ranked_ids))
    if unknown:
        raise UserError(
            f"{path}: ranks {len(unknown)} documents that the collection does not have (for "
            f"example {', '.join(unknown[:3])}); give a run of the same corpus"
        )
    if missing:
        logger.warning(
            "%s: %d of %d queries are missing and score 0 (for example %s)",
            path,
            len(missing),
            len(collection.queries),
            ", ".join(missing[:3]),
        )
    run = {
        query_id: _kept(query_id, found[query_id], collection, evaluation)
        for query_id in collection.queries
        if query_id in found
    }
    label = "/".join(path.with_suffix("").parts[-2:])
    return Baseline(label, str(path), per_query(run, collection.qrels, evaluation.metrics), run)


def _of_bm25(collection: Collection, evaluation: EvaluationConfig) -> Baseline:
    documents = collection.documents
    texts = documents.texts(0, len(documents))
    index = Bm25(dict(zip(documents.ids, texts, strict=True)))
    most = max(Counter(query_id for query_id, _ in collection.excluded).values(), default=0)
    depth = evaluation.top_k + most + int(evaluation.exclude_self_match)
    run = {
        query_id: _kept(query_id, index.search(text, depth), collection, evaluation)
        for query_id, text in collection.queries.items()
    }
    origin = f"BM25 of Lucene by bm25s: k1 {K1}, b {B}, English stop words, Snowball stemmer"
    return Baseline("BM25", origin, per_query(run, collection.qrels, evaluation.metrics), run)


def _kept(
    query_id: str,
    scores: Mapping[str, float],
    collection: Collection,
    evaluation: EvaluationConfig,
) -> dict[str, float]:
    """The best documents that are not excluded for this query."""
    allowed = {
        doc_id: score
        for doc_id, score in scores.items()
        if (query_id, doc_id) not in collection.excluded
        and not (evaluation.exclude_self_match and doc_id == query_id)
    }
    return {doc_id: allowed[doc_id] for doc_id in ranked(allowed)[: evaluation.top_k]}
