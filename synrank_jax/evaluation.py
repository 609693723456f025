"""What scoring a model on a collection consists of: read, encode, search, measure, write."""

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from synrank_jax.config import CollectionConfig, Config, EvaluationConfig
from synrank_jax.corpus_encoding import encode_corpus, encoding_progress, store_key
from synrank_jax.data import beir
from synrank_jax.data.corpus import Corpus, read_corpus
from synrank_jax.encoders import Backend, Encoder
from synrank_jax.errors import UserError
from synrank_jax.hub import collection_folder
from synrank_jax.retrieval.ann import AnnSearch, recall_audit
from synrank_jax.retrieval.embeddings import EmbeddingStore
from synrank_jax.retrieval.files import RUN_FILE, Qrels, Run, require_trec_ids, write_run
from synrank_jax.retrieval.metrics import means, parse_measures, per_query
from synrank_jax.retrieval.result import EvaluationResult
from synrank_jax.retrieval.search import (
    Found,
    Search,
    Vectors,
    load_faiss,
    ranking,
    search,
    unit_length,
)

logger = logging.getLogger(__name__)

CACHE = Path("runs") / "cache"
"""Ingested documents and embeddings; what is missing is made again."""
METRICS_FILE = "metrics.json"
AUDITED_DEPTHS = (10, 100, 1000)
VERSIONED = (
    *("synrank-jax", "numpy", "faiss-cpu", "ir-measures", "pytrec-eval-terrier"),
    *("jax", "flax", "torch", "transformers", "sentence-transformers"),
)


@dataclass(frozen=True)
class ScoredCollection:
    """Documents, and the queries of one split that are scored on them."""

    documents: Corpus
    queries: dict[str, str]
    qrels: Qrels
    excluded: frozenset[tuple[str, str]]
    sha256: str


def evaluation_section(config: Config) -> EvaluationConfig:
    """The evaluation section of a configuration.

    Raises:
        UserError: there is none.
    """
    if config.evaluation is None:
        raise UserError(
            "evaluation: this section is missing, so there is no collection to score on; add "
            "`evaluation:` with at least `path:` (for example bundled:cranfield)"
        )
    return config.evaluation


def read_documents(evaluation: CollectionConfig, section: str = "evaluation") -> Corpus:
    """The documents of the collection, ingested under `CACHE` once; they stay on disk.

    Raises:
        UserError: the corpus is missing, empty or malformed.
    """
    folder = collection_folder(evaluation.path, f"{section}.path")
    documents = read_corpus(folder, CACHE / "texts")
    require_trec_ids(documents.ids, "document")
    return documents


def read_collection(evaluation: CollectionConfig, section: str = "evaluation") -> ScoredCollection:
    """Read the collection that a section of that name describes and check that its files fit.

    Raises:
        UserError: a file is missing or broken, a judgement names an unknown query or document, a
            scored query is empty, or nothing is left to score.
    """
    folder = collection_folder(evaluation.path, f"{section}.path")
    documents = read_documents(evaluation, section)
    texts = beir.read_queries(folder)
    qrels = beir.read_qrels(folder, evaluation.split)
    qrels_file = beir.qrels_file(folder, evaluation.split)
    _require_known(
        [query_id for query_id in qrels if query_id not in texts],
        qrels_file,
        "queries",
        beir.QUERIES_FILE,
    )
    judged = sorted({doc_id for grades in qrels.values() for doc_id in grades})
    _require_known(documents.unknown(judged), qrels_file, "documents", beir.CORPUS_FILE)
    qrels = _subset(qrels, texts, evaluation, qrels_file, section)
    for query_id in qrels:
        if not texts[query_id]:
            place = beir.locate_text(folder / beir.QUERIES_FILE, query_id)
            raise UserError(
                f"{place}: query {query_id!r} is empty; write its text or drop its qrels"
            )
    require_trec_ids(qrels, "query")
    pairs = beir.read_exclude(folder) if evaluation.exclude else frozenset[tuple[str, str]]()
    own = sorted(pair for pair in pairs if pair[0] in qrels)
    gone = set(documents.unknown([doc_id for _, doc_id in own]))
    excluded = frozenset(pair for pair in own if pair[1] not in gone)
    queries = {query_id: texts[query_id] for query_id in qrels}
    digest = hashlib.sha256(documents.sha256.encode())
    for part in (queries, qrels, sorted(excluded), evaluation.exclude_self_match):
        digest.update(json.dumps(part, sort_keys=True).encode())
    return ScoredCollection(documents, queries, qrels, excluded, digest.hexdigest())


def _require_known(unknown: Sequence[str], file: Path, what: str, source: str) -> None:
    if unknown:
        raise UserError(
            f"{file}: judges {len(unknown)} {what} that are not in {source} "
            f"(for example {', '.join(unknown[:3])}); add them there or drop their judgements"
        )


def _subset(
    qrels: Qrels, texts: dict[str, str], evaluation: CollectionConfig, file: Path, section: str
) -> Qrels:
    if evaluation.queries is not None:
        wanted = beir.read_query_subset(Path(evaluation.queries).expanduser())
        if unknown := sorted(wanted - texts.keys()):
            raise UserError(
                f"{evaluation.queries}: names {len(unknown)} queries that are not in "
                f"{beir.QUERIES_FILE} (for example {', '.join(unknown[:3])}); correct the ids"
            )
        if without := wanted - qrels.keys():
            logger.warning(
                "%s: %d of %d queries have no judgements in %s and are not scored (for example %s)",
                evaluation.queries,
                len(without),
                len(wanted),
                file,
                ", ".join(sorted(without)[:3]),
            )
        qrels = {query_id: grades for query_id, grades in qrels.items() if query_id in wanted}
    if not qrels:
        raise UserError(f"{file}: no judged query to score; check {section}.split and queries")
    return qrels


def evaluate_collection(
    encoder: Encoder,
    evaluation: EvaluationConfig,
    collection: ScoredCollection,
    *,
    label: str,
    model: str,
    backend: Backend,
    embeddings: Path | None = None,
) -> tuple[EvaluationResult, Run]:
    """Encode, search and measure.

    Args:
        encoder: the model.
        evaluation: measures, depth, batch size and how to search.
        collection: of `read_collection(evaluation)`.
        label: name in tables.
        model: what was evaluated, for the record.
        backend: what computes the embeddings, for the record.
        embeddings: folder of the documents' embeddings, made or of the same model and documents;
            None: one of its own under `CACHE`.

    Returns:
        The result, and the rankings it was computed from.

    Raises:
        UserError: a library is missing, an embedding is not finite, or the folder has other
            embeddings.
    """
    load_faiss()  # and the measures: better now than after an hour of encoding
    parse_measures(evaluation.metrics)
    empty = collection.documents.empty()
    if empty:
        logger.warning(
            "%d of %d documents are empty, and encoded as such: %s",
            len(empty),
            len(collection.documents),
            ", ".join(collection.documents.id(position) for position in empty[:5]),
        )
    before = encoder.timings()  # it may have encoded other collections
    began = time.perf_counter()
    with encoding_progress() as progress:
        task = progress.add_task("encode queries", total=len(collection.queries))
        texts = list(collection.queries.values())
        (queries,) = encoder.encode_windows(
            [texts], "query", lambda done: progress.advance(task, done)
        )
    query_s = time.perf_counter() - began
    if encoder.contract.similarity == "cosine":
        queries = unit_length(queries)
    approximate = _approximate(evaluation.search)
    if approximate is not None:
        approximate.check(queries.shape[1])
    store = open_store(encoder, backend, collection.documents, evaluation, embeddings)
    encoded = encode_corpus(encoder, collection.documents, store)
    found: list[Found] = []

    def find(queries: NDArray[np.float32], passages: Vectors, k: int) -> Found:
        how = approximate or (search_on_accelerator() if evaluation.search == "jax" else search)
        found.append(how(queries, passages, k))
        return found[0]

    began = time.perf_counter()
    run = ranking(
        queries,
        store,
        list(collection.queries),
        collection.documents.ids,
        evaluation.top_k,
        collection.excluded,
        evaluation.exclude_self_match,
        find,
    )
    timings = {
        "documents_encoded": encoded.documents,
        "encode_s": encoded.seconds,
        "query_s": query_s,
        "search_s": time.perf_counter() - began,
        "embedding_bytes": store.nbytes(),
        **{name: took - before.get(name, 0) for name, took in encoder.timings().items()},
    }
    recall: dict[int, float] = {}
    if approximate is not None:
        deepest = found[0][1].shape[1]
        depths = [k for k in AUDITED_DEPTHS if k <= deepest] or [deepest]
        recall = recall_audit(queries, store, found[0], depths)
    values = per_query(run, collection.qrels, evaluation.metrics)
    result = EvaluationResult(
        label=label,
        model=model,
        backend=backend,
        contract=encoder.contract,
        weights_sha256=encoder.weights_sha256,
        evaluation=evaluation,
        documents=len(collection.documents),
        empty_documents=len(empty),
        queries=len(collection.queries),
        excluded_pairs=len(collection.excluded),
        collection_sha256=collection.sha256,
        metrics=means(values),
        per_query=values,
        index_recall=recall,
        timings=timings,
        versions=_versions(),
    )
    return result, run


def _approximate(spec: str) -> AnnSearch | None:
    return None if spec in ("flat", "jax") else AnnSearch(spec)


def search_on_accelerator() -> Search:
    """Exact search in JAX, which is imported here."""
    from synrank_jax.engine.search import search as search_in_jax

    return search_in_jax


def open_store(
    encoder: Encoder,
    backend: Backend,
    documents: Corpus,
    evaluation: EvaluationConfig,
    folder: Path | None = None,
) -> EmbeddingStore:
    """The store of a model's embeddings of a corpus, empty or not; by default under `CACHE`.

    Raises:
        UserError: `folder` has other embeddings or something else, or cannot be written.
    """
    key = store_key(encoder, backend, documents, evaluation.embedding_dtype)
    return EmbeddingStore(CACHE / "embeddings" / key.name() if folder is None else folder, key)


def _versions() -> dict[str, str]:
    """Versions of the packages that figures depend on, where they are installed."""
    installed = {}
    for name in VERSIONED:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[name] = importlib.metadata.version(name)
    return installed


def write_results(output: Path, result: EvaluationResult, run: Run) -> None:
    """Write run.trec and metrics.json into `output`; the latter appears when both are whole.

    Raises:
        UserError: `output` cannot be written to.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        (output / METRICS_FILE).unlink(missing_ok=True)
        write_run(output / RUN_FILE, run, result.label)
        result.write(output / METRICS_FILE)
    except OSError as error:
        raise UserError(f"--output {output}: cannot be written ({error})") from error
