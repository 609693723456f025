"""From the configured sources to ranking contexts: one query with its graded list of passages."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from synrank_jax.config import DataConfig, SourceConfig
from synrank_jax.data import beir
from synrank_jax.errors import UserError
from synrank_jax.hub import collection_folder

EXAMPLES_SHOWN = 3


class Passage(NamedTuple):
    """A document in the list of a query."""

    doc_id: str
    text: str
    grade: int


class RankingContext(NamedTuple):
    """A query and its list, highest grade first and document ids ascending within a grade.

    excluded: documents that are no negatives for this query either, where other lists hold them.
    """

    query_id: str
    query: str
    passages: tuple[Passage, ...]
    excluded: tuple[str, ...] = ()


class Contexts(NamedTuple):
    """All lists, in the order of the sources and of their query files."""

    lists: list[RankingContext]
    excluded_pairs: int
    """Judged pairs that exclude.tsv kept out of the lists."""


def read_contexts(data: DataConfig) -> Contexts:
    """The ranking contexts of all sources. Queries without a judgement have none.

    Raises:
        UserError: bad input of `beir`; judgements or a query subset naming an unknown query or
            document; a grade outside data.grades; a list longer than data.list_size; an empty
            query or passage; one query in two sources; one document id with two texts; no list.
    """
    lists: list[RankingContext] = []
    excluded_pairs = 0
    for source in data.sources:
        found = _read_source(source, data)
        lists += found.lists
        excluded_pairs += found.excluded_pairs
    if not lists:
        raise UserError(
            f"data.sources: no list is left of {', '.join(s.path for s in data.sources)}; "
            "check the split, the query subset and exclude.tsv"
        )
    _require_distinct(lists)
    return Contexts(lists, excluded_pairs)


def source_sha256(source: SourceConfig) -> str:
    """Hash of the content of every file that `read_contexts` reads of a source.

    Raises:
        UserError: the folder or a file does not exist.
    """
    folder = _folder(source)
    files = [
        folder / beir.CORPUS_FILE,
        folder / beir.QUERIES_FILE,
        beir.qrels_file(folder, source.split),
    ]
    if (folder / beir.EXCLUDE_FILE).is_file():
        files.append(folder / beir.EXCLUDE_FILE)
    if source.queries is not None:
        files.append(Path(source.queries).expanduser())
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name}:{_file_sha256(path)}\n".encode())
    return digest.hexdigest()


def _file_sha256(path: Path) -> str:
    with beir.open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _folder(source: SourceConfig) -> Path:
    return collection_folder(source.path, "data.sources.path")


def _read_source(source: SourceConfig, data: DataConfig) -> Contexts:
    folder = _folder(source)
    queries, corpus = beir.read_queries(folder), beir.read_corpus(folder)
    qrels_path = beir.qrels_file(folder, source.split)
    qrels = beir.read_qrels(folder, source.split)
    _require_known(qrels, queries, corpus, qrels_path)
    excluded: dict[str, set[str]] = {}
    for query_id, doc_id in beir.read_exclude(folder):
        excluded.setdefault(query_id, set()).add(doc_id)
    chosen = _chosen_queries(source, queries)

    lists: list[RankingContext] = []
    excluded_pairs = 0
    for query_id, query in queries.items():
        if query_id not in qrels or query_id not in chosen:
            continue
        judged, barred = qrels[query_id], excluded.get(query_id, set())
        kept = {doc: grade for doc, grade in judged.items() if doc not in barred}
        excluded_pairs += len(judged) - len(kept)
        if not kept:
            continue
        _require_valid(query_id, kept, data, qrels_path)
        _require_text(query, folder / beir.QUERIES_FILE, query_id, "query")
        for doc_id in kept:
            _require_text(corpus[doc_id], folder / beir.CORPUS_FILE, doc_id, "passage")
        ranked = sorted(kept, key=lambda doc_id: (-kept[doc_id], doc_id))
        passages = tuple(Passage(doc_id, corpus[doc_id], kept[doc_id]) for doc_id in ranked)
        lists.append(RankingContext(query_id, query, passages, tuple(sorted(barred))))
    return Contexts(lists, excluded_pairs)


def _chosen_queries(source: SourceConfig, queries: dict[str, str]) -> Iterable[str]:
    if source.queries is None:
        return queries
    file = Path(source.queries).expanduser()
    subset = beir.read_query_subset(file)
    unknown = sorted(subset - queries.keys())
    if unknown:
        raise UserError(
            f"{beir.locate_row(file, unknown[0])}: query {unknown[0]!r} is not in {source.path} "
            f"({_among(unknown)} unknown); remove it"
        )
    return subset


def _require_known(
    qrels: dict[str, dict[str, int]], queries: dict[str, str], corpus: dict[str, str], path: Path
) -> None:
    """Every judged query and document must exist."""
    unknown = [query_id for query_id in qrels if query_id not in queries]
    if unknown:
        raise UserError(
            f"{beir.locate_row(path, unknown[0])}: query {unknown[0]!r} is not in "
            f"{beir.QUERIES_FILE} ({_among(unknown)} unknown); add it or remove its judgements"
        )
    pairs = [(query, doc) for query, judged in qrels.items() for doc in judged if doc not in corpus]
    if pairs:
        raise UserError(
            f"{beir.locate_row(path, *pairs[0])}: document {pairs[0][1]!r} is not in "
            f"{beir.CORPUS_FILE} ({_among([doc for _, doc in pairs])} unknown); "
            "add it or remove its judgements"
        )


def _among(ids: list[str]) -> str:
    shown = ", ".join(ids[:EXAMPLES_SHOWN])
    return f"{len(ids)}: {shown}{', ...' if len(ids) > EXAMPLES_SHOWN else ''}"


def _require_valid(query_id: str, judged: dict[str, int], data: DataConfig, path: Path) -> None:
    """Grades are among the configured levels and the list is not too long."""
    for doc_id, grade in judged.items():
        if grade not in data.grades:
            raise UserError(
                f"{beir.locate_row(path, query_id, doc_id)}: grade {grade} is not one of "
                f"data.grades {list(data.grades)}; correct the judgement or the config"
            )
    if len(judged) > data.list_size:
        raise UserError(
            f"{beir.locate_row(path, query_id)}: the list of query {query_id!r} has {len(judged)} "
            f"passages, data.list_size is {data.list_size}; raise it or shorten the list"
        )


def _require_text(text: str, path: Path, text_id: str, kind: str) -> None:
    if not text:
        raise UserError(
            f"{beir.locate_text(path, text_id)}: the {kind} {text_id!r} of a training list is "
            "empty; give it a text or remove its judgements"
        )


def _require_distinct(lists: list[RankingContext]) -> None:
    """A query id occurs once, and a document id stands for one text."""
    query_ids: set[str] = set()
    texts: dict[str, str] = {}
    for context in lists:
        if context.query_id in query_ids:
            raise UserError(
                f"data.sources: query {context.query_id!r} is in two sources; "
                "give each query to one of them with `queries:`"
            )
        query_ids.add(context.query_id)
        for passage in context.passages:
            if texts.setdefault(passage.doc_id, passage.text) != passage.text:
                raise UserError(
                    f"data.sources: document {passage.doc_id!r} has different texts in two "
                    "sources; rename it in one of them"
                )
