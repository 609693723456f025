"""Exact search, streamed over blocks of passages, and rankings without excluded pairs."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from synrank_jax.errors import UserError
from synrank_jax.retrieval.files import Run

Embeddings = NDArray[np.float32]
Found = tuple[NDArray[np.float32], NDArray[np.int64]]
"""Scores [Q, k], descending, and rows [Q, k] of the passages; row -1 where nothing was found."""

# Measured with `python benchmarks/search.py --part blocks`; also the rows of a store's file, which
# is then read where it lies on disk.
BLOCK_ROWS = 4096
QUERY_TILE = 1024


class Vectors(Protocol):
    """Embeddings that need not fit into memory."""

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D)."""

    def blocks(self, rows: int) -> Iterator[Embeddings]:
        """Consecutive blocks [<= rows, D] float32 from row 0 on, memory-mapped or fresh."""


Search = Callable[[Embeddings, Vectors, int], Found]
"""(queries [Q, D], passages, k) to what was found, as `search`."""


@dataclass(frozen=True)
class ArrayVectors:
    """The rows of an array [N, D], which may be memory-mapped."""

    array: Embeddings

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D)."""
        rows, dimension = self.array.shape
        return rows, dimension

    def blocks(self, rows: int) -> Iterator[Embeddings]:
        """Slices of the array."""
        for start in range(0, len(self.array), rows):
            yield np.asarray(self.array[start : start + rows], np.float32)


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


def search(queries: Embeddings, passages: Vectors, k: int) -> Found:
    """The k passages with the largest inner product, exactly, as FAISS' IndexFlatIP finds them.

    Products come from NumPy's BLAS (the one inside faiss-cpu takes recent processors for old ones
    and is several times slower there), the best of them from one FAISS heap per query that lives
    through all blocks. Memory: queries, results, one block and `QUERY_TILE` x `BLOCK_ROWS` scores,
    however many passages there are.

    Order: score descending, then row ascending. Of equal scores at place k the lowest rows stay.
    Scores are equal as computed: BLAS may sum the products of two equal passages in another order
    and so make them differ in the last bit.

    Args:
        queries: [Q, D] float32.
        passages: [N, D].
        k: at least 1; more than N gives all N.

    Returns:
        scores [Q, min(k, N)] and rows [Q, min(k, N)].

    Raises:
        UserError: no passages, embeddings of two dimensions, a value or product that is not finite.
    """
    require_searchable(queries, passages)
    k = min(k, passages.shape[0])
    values = np.empty((len(queries), k), np.float32)
    rows = np.empty((len(queries), k), np.int64)
    faiss = load_faiss()
    # A heap of smallest values drops, among equal ones, the largest row first; so: negated scores.
    heap = faiss.float_maxheap_array_t()
    heap.nh, heap.k = values.shape
    heap.val, heap.ids = faiss.swig_ptr(values), faiss.swig_ptr(rows)
    heap.heapify()
    negated = -queries
    tile = np.empty((QUERY_TILE, BLOCK_ROWS), np.float32)
    first = 0
    for block in passages.blocks(BLOCK_ROWS):
        require_finite(block, "passage", first)
        for start in range(0, len(queries), QUERY_TILE):
            part = negated[start : start + QUERY_TILE]
            scores = tile.ravel()[: len(part) * len(block)].reshape(len(part), len(block))
            with np.errstate(over="ignore", invalid="ignore"):  # told below
                np.matmul(part, block.T, out=scores)
            heap.addn(len(block), faiss.swig_ptr(scores), first, start, len(part))
        first += len(block)
    heap.reorder()
    np.negative(values, out=values)
    require_found(values, rows)
    return values, rows


def require_searchable(queries: Embeddings, passages: Vectors) -> None:
    """Refuse what cannot be searched in.

    Raises:
        UserError: no passages, embeddings of two dimensions, a query that is not finite.
    """
    count, dimension = passages.shape
    if count == 0:
        raise UserError("search: the corpus is empty, there is nothing to search in")
    if queries.shape[1] != dimension:
        raise UserError(
            f"search: queries have {queries.shape[1]} dimensions and passages {dimension}; "
            "both must come from the same model"
        )
    require_finite(queries, "query", 0)


def require_finite(embeddings: Embeddings, what: str, first: int) -> None:
    """Refuse embeddings [n, D] that are not finite.

    Args:
        embeddings: a block.
        what: query or passage.
        first: the row of all embeddings that it begins with.

    Raises:
        UserError: names their number and rows.
    """
    flat = embeddings.ravel()
    with np.errstate(over="ignore", invalid="ignore"):
        # One fast pass; a sum that overflows without such a value goes through the slow one.
        if np.isfinite(flat @ flat):
            return
    broken = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if broken.size:
        raise UserError(
            f"search: {broken.size} of {what} embeddings {first} to {first + len(embeddings) - 1} "
            f"are NaN or infinite (first rows: {(first + broken[:5]).tolist()}); the model's "
            "weights or precision are broken"
        )


def require_found(scores: NDArray[np.float32], rows: NDArray[np.int64]) -> None:
    """Refuse results of an exact search that lack passages: their products were not finite.

    Raises:
        UserError: a row is -1, which NumPy would read as the last, or a score is not finite.
    """
    if (rows < 0).any() or not np.isfinite(scores).all():
        raise UserError("search: inner products overflow float32; the embeddings are far too large")


def ranking(
    queries: Embeddings,
    passages: Vectors,
    query_ids: Sequence[str],
    doc_ids: Sequence[str],
    top_k: int,
    excluded: Set[tuple[str, str]],
    exclude_self_match: bool,
    find: Search = search,
) -> Run:
    """The `top_k` best documents of every query that are left after the exclusions.

    The search goes deeper than `top_k` by the most exclusions any query has, so that dropping pairs
    never shortens a ranking while documents are left.

    Args:
        queries: [Q, D] float32, rows in the order of `query_ids`.
        passages: [N, D], rows in the order of `doc_ids`.
        query_ids: Q ids.
        doc_ids: N ids; only those of found rows are looked up.
        top_k: documents kept per query.
        excluded: (query_id, doc_id) pairs to drop.
        exclude_self_match: also drop a document whose id is the query's id.
        find: how to search.

    Raises:
        UserError: as `find`.
    """
    most = max(Counter(query_id for query_id, _ in excluded).values(), default=0)
    scores, rows = find(queries, passages, top_k + most + int(exclude_self_match))
    run: Run = {}
    for query_id, of_query, best in zip(query_ids, scores.tolist(), rows.tolist(), strict=True):
        found = (
            (doc_ids[row], score) for row, score in zip(best, of_query, strict=True) if row >= 0
        )
        kept = (
            (doc_id, score)
            for doc_id, score in found
            if (query_id, doc_id) not in excluded
            and not (exclude_self_match and doc_id == query_id)
        )
        run[query_id] = dict(islice(kept, top_k))
    return run
