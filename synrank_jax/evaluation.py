"""What scoring a model on a collection consists of: read, encode, search, measure, write."""

import contextlib
import hashlib
import importlib.metadata
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from synrank_jax.config import EvaluationConfig
from synrank_jax.data import beir
from synrank_jax.encoders import Backend, Encoder, Side
from synrank_jax.errors import UserError
from synrank_jax.hub import collection_folder
from synrank_jax.retrieval.files import Qrels, Run, require_trec_ids, write_run
from synrank_jax.retrieval.metrics import means, parse_measures, per_query
from synrank_jax.retrieval.result import EvaluationResult
from synrank_jax.retrieval.search import load_faiss, ranking, unit_length

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.json"
RUN_FILE = "run.trec"
VERSIONED = (
    *("synrank-jax", "numpy", "faiss-cpu", "ir-measures", "pytrec-eval-terrier"),
    *("jax", "flax", "torch", "transformers", "sentence-transformers"),
)


@dataclass(frozen=True)
class ScoredCollection:
    """Documents, and the queries of one split that are scored on them."""

    documents: dict[str, str]
    queries: dict[str, str]
    qrels: Qrels
    excluded: frozenset[tuple[str, str]]
    sha256: str


def read_collection(evaluation: EvaluationConfig) -> ScoredCollection:
    """Read the collection that the section names and check that its files fit together.

    Raises:
        UserError: a file is missing or broken, a judgement names an unknown query or document, a
            scored query is empty, or nothing is left to score.
    """
    folder = collection_folder(evaluation.path, "evaluation.path")
    documents = beir.read_corpus(folder)
    texts = beir.read_queries(folder)
    qrels = beir.read_qrels(folder, evaluation.split)
    qrels_file = beir.qrels_file(folder, evaluation.split)
    if not documents:
        raise UserError(f"{folder / beir.CORPUS_FILE}: the corpus is empty")
    _require_known(qrels, texts, qrels_file, "queries", beir.QUERIES_FILE)
    judged = {doc_id for grades in qrels.values() for doc_id in grades}
    _require_known(sorted(judged), documents, qrels_file, "documents", beir.CORPUS_FILE)
    qrels = _subset(qrels, texts, evaluation, qrels_file)
    for query_id in qrels:
        if not texts[query_id]:
            place = beir.locate_text(folder / beir.QUERIES_FILE, query_id)
            raise UserError(
                f"{place}: query {query_id!r} is empty; write its text or drop its qrels"
            )
    require_trec_ids(documents, "document")
    require_trec_ids(qrels, "query")
    pairs = beir.read_exclude(folder) if evaluation.exclude else frozenset[tuple[str, str]]()
    excluded = frozenset(pair for pair in pairs if pair[0] in qrels and pair[1] in documents)
    queries = {query_id: texts[query_id] for query_id in qrels}
    digest = hashlib.sha256()
    for part in (documents, queries, qrels, sorted(excluded), evaluation.exclude_self_match):
        digest.update(json.dumps(part, sort_keys=True).encode())
    return ScoredCollection(documents, queries, qrels, excluded, digest.hexdigest())


def _require_known(
    ids: Sequence[str] | Qrels, known: dict[str, str], file: Path, what: str, source: str
) -> None:
    unknown = [identifier for identifier in ids if identifier not in known]
    if unknown:
        raise UserError(
            f"{file}: judges {len(unknown)} {what} that are not in {source} "
            f"(for example {', '.join(unknown[:3])}); add them there or drop their judgements"
        )


def _subset(qrels: Qrels, texts: dict[str, str], evaluation: EvaluationConfig, file: Path) -> Qrels:
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
        raise UserError(f"{file}: no judged query to score; check evaluation.split and queries")
    return qrels


def evaluate_collection(
    encoder: Encoder,
    evaluation: EvaluationConfig,
    collection: ScoredCollection,
    *,
    label: str,
    model: str,
    backend: Backend,
) -> tuple[EvaluationResult, Run]:
    """Encode, search and measure.

    Args:
        encoder: the model.
        evaluation: measures, depth and batch size.
        collection: of `read_collection(evaluation)`.
        label: name in tables.
        model: what was evaluated, for the record.
        backend: what computes the embeddings, for the record.

    Returns:
        The result, and the rankings it was computed from.

    Raises:
        UserError: a library is missing, or an embedding is not finite.
    """
    load_faiss()  # and the measures: better now than after an hour of encoding
    parse_measures(evaluation.metrics)
    empty = [doc_id for doc_id, text in collection.documents.items() if not text]
    if empty:
        logger.warning(
            "%d of %d documents are empty, and encoded as such: %s",
            len(empty),
            len(collection.documents),
            ", ".join(empty[:5]),
        )
    passages = _encode_all(encoder, collection.documents, "passage", evaluation.batch_size)
    queries = _encode_all(encoder, collection.queries, "query", evaluation.batch_size)
    if encoder.contract.similarity == "cosine":
        passages, queries = unit_length(passages), unit_length(queries)
    run = ranking(
        queries,
        passages,
        list(collection.queries),
        list(collection.documents),
        evaluation.top_k,
        collection.excluded,
        evaluation.exclude_self_match,
    )
    values = per_query(run, collection.qrels, evaluation.metrics)
    result = EvaluationResult(
        label=label,
        model=model,
        backend=backend,
        contract=encoder.contract,
        evaluation=evaluation,
        documents=len(collection.documents),
        empty_documents=len(empty),
        queries=len(collection.queries),
        excluded_pairs=len(collection.excluded),
        collection_sha256=collection.sha256,
        metrics=means(values),
        per_query=values,
        versions=_versions(),
    )
    return result, run


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} texts/s")


def _encode_all(
    encoder: Encoder, texts: dict[str, str], side: Side, batch_size: int
) -> NDArray[np.float32]:
    """Embeddings [N, D] in the order of `texts`; longest first, so that batches pad little."""
    values = list(texts.values())
    order = sorted(range(len(values)), key=lambda i: len(values[i]), reverse=True)
    blocks = []
    columns = (BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(
        TextColumn("{task.description}"), *columns, console=Console(stderr=True)
    ) as progress:
        task = progress.add_task(f"encode {side} texts", total=len(values))
        for start in range(0, len(order), batch_size):
            batch = [values[i] for i in order[start : start + batch_size]]
            blocks.append(encoder.encode(batch, side))
            progress.advance(task, len(batch))
    by_length = np.concatenate(blocks)
    embeddings = np.empty_like(by_length)
    embeddings[order] = by_length
    return embeddings


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
