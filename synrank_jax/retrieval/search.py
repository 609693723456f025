"""Exact search with FAISS, and rankings without the pairs that must not be scored."""

from collections import Counter
from collections.abc import Sequence, Set
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synrank_jax.errors import UserError
from synrank_jax.retrieval.files import Run

Embeddings = NDArray[np.float32]


def load_faiss() -> Any:
    """The faiss module.

    Raises:
        UserError: faiss is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise UserError(
            f"search needs faiss ({error}); install the extra: pip install 'synrank-jax[eval]'"
        ) from error
    return faiss


def unit_length(embeddings: Embeddings) -> Embeddings:
    """Rows of [N, D] scaled to length 1: inner products become cosines. Zero rows stay zero.

    Lengths below 1e-12 count as 1e-12, as in torch's `normalize`.
    """
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    scaled: Embeddings = embeddings / np.maximum(lengths, 1e-12)
    return scaled


def search(
    queries: Embeddings, passages: Embeddings, k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k passages with the largest inner product, exactly (FAISS IndexFlatIP).

    Args:
        queries: [Q, D] float32.
        passages: [N, D] float32.
        k: at least 1; more than N gives all N.

    Returns:
        scores [Q, min(k, N)] float32, descending, and indices [Q, min(k, N)] into `passages`.

    Raises:
        UserError: no passages, embeddings of two dimensions, a value or product that is not finite.
    """
    if len(passages) == 0:
        raise UserError("search: the corpus is empty, there is nothing to search in")
    if queries.shape[1] != passages.shape[1]:
        raise UserError(
            f"search: queries have {queries.shape[1]} dimensions and passages {passages.shape[1]}; "
            "both must come from the same model"
        )
    _require_finite(queries, "query")
    _require_finite(passages, "passage")
    index = load_faiss().IndexFlatIP(passages.shape[1])
    index.add(np.ascontiguousarray(passages))
    scores, indices = index.search(np.ascontiguousarray(queries), min(k, len(passages)))
    # FAISS fills places it finds nothing for with index -1, which NumPy would read as the last row.
    if (indices < 0).any() or not np.isfinite(scores).all():
        raise UserError("search: inner products overflow float32; the embeddings are far too large")
    return scores, indices


def ranking(
    queries: Embeddings,
    passages: Embeddings,
    query_ids: Sequence[str],
    doc_ids: Sequence[str],
    top_k: int,
    excluded: Set[tuple[str, str]],
    exclude_self_match: bool,
) -> Run:
    """The `top_k` best documents of every query that are left after the exclusions.

    The search goes deeper than `top_k` by the most exclusions any query has, so that dropping pairs
    never shortens a ranking while documents are left.

    Args:
        queries: [Q, D] float32, rows in the order of `query_ids`.
        passages: [N, D] float32, rows in the order of `doc_ids`.
        query_ids: Q ids.
        doc_ids: N ids.
        top_k: documents kept per query.
        excluded: (query_id, doc_id) pairs to drop.
        exclude_self_match: also drop a document whose id is the query's id.

    Raises:
        UserError: as `search`.
    """
    most = max(Counter(query_id for query_id, _ in excluded).values(), default=0)
    depth = top_k + most + int(exclude_self_match)
    scores, indices = search(queries, passages, depth)
    run: Run = {}
    for query_id, row, columns in zip(query_ids, scores.tolist(), indices.tolist(), strict=True):
        kept = (
            (doc_ids[column], score)
            for column, score in zip(columns, row, strict=True)
            if (query_id, doc_ids[column]) not in excluded
            and not (exclude_self_match and doc_ids[column] == query_id)
        )
        run[query_id] = dict(islice(kept, top_k))
    return run


def _require_finite(embeddings: Embeddings, what: str) -> None:
    broken = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if broken.size:
        raise UserError(
            f"search: {broken.size} of {len(embeddings)} {what} embeddings are NaN or infinite "
            f"(first rows: {broken[:5].tolist()}); the model's weights or precision are broken"
        )
