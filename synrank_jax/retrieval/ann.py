"""Approximate search by any index that FAISS makes from a factory string, and its recall."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synrank_jax.errors import UserError
from synrank_jax.retrieval.search import (
    BLOCK_ROWS,
    Embeddings,
    Found,
    Vectors,
    load_faiss,
    require_finite,
    require_searchable,
    search,
)

logger = logging.getLogger(__name__)

# FAISS asks for 39 rows per centroid at least, and product quantisers have 256 centroids.
ROWS_PER_CENTROID = 64
MIN_TRAINING_ROWS = 65_536
AUDITED_QUERIES = 1000


@dataclass(frozen=True)
class AnnSearch:
    """A `Search` by an approximate index of inner products.

    Args:
        spec: FAISS' factory string, and search parameters behind a semicolon:
            `IVF4096,PQ64;nprobe=32`, `HNSW32;efSearch=128`, `OPQ32,IVF1024,PQ32x4fs;nprobe=16`.
        seed: of the sample. HNSW graphs still differ from run to run where several threads build.
    """

    spec: str
    seed: int = 0

    def check(self, dimension: int) -> None:
        """Refuse a spec that FAISS cannot make an index of, before anything is encoded.

        Raises:
            UserError: the string is not understood, does not fit the dimension, or names a search
                parameter that its index lacks.
        """
        self._empty(dimension)

    def __call__(self, queries: Embeddings, passages: Vectors, k: int) -> Found:
        """As `search.search`, approximately, with an index built for this one call.

        Raises:
            UserError: as `check`, `build` and `search.search`.
        """
        require_searchable(queries, passages)
        return self.search(self.build(passages), queries, k)

    def build(self, passages: Vectors) -> Any:
        """The FAISS index of the passages.

        One with inverted lists or quantisers is trained on a sample of rows, and all are filled
        block by block, so memory is the sample and what the index itself holds. With a faiss that
        sees GPUs, it is split over all of them, if its kind exists there.

        Raises:
            UserError: as `check`; too few passages to train on; a passage is not finite.
        """
        faiss = load_faiss()
        count, dimension = passages.shape
        index = self._empty(dimension)
        if not index.is_trained:
            inverted = faiss.try_extract_index_ivf(index)
            lists = 0 if inverted is None else inverted.nlist
            sample = _sample(passages, max(lists * ROWS_PER_CENTROID, MIN_TRAINING_ROWS), self.seed)
            try:
                index.train(sample)
            except RuntimeError as error:
                raise self._refused(f"for {count} documents", error) from error
        if faiss.get_num_gpus():
            options = faiss.GpuMultipleClonerOptions()
            options.shard = True
            try:
                index = faiss.index_cpu_to_all_gpus(index, co=options)
            except RuntimeError:
                logger.info("evaluation.search %r: not on GPUs, so on the CPU", self.spec)
        first = 0
        for block in passages.blocks(BLOCK_ROWS):
            require_finite(block, "passage", first)
            try:
                index.add(block)
            except RuntimeError as error:
                raise self._refused(f"for {count} documents", error) from error
            first += len(block)
        return index

    def search(self, index: Any, queries: Embeddings, k: int) -> Found:
        """What the index finds; row -1 and score -inf where it finds fewer than min(k, N)."""
        k = min(k, index.ntotal)
        try:
            scores, rows = index.search(np.ascontiguousarray(queries), k)
        except RuntimeError as error:
            raise self._refused(f"for the best {k}", error) from error
        if short := int((rows < 0).any(axis=1).sum()):
            logger.warning(
                "evaluation.search %r found fewer than %d documents for %d of %d queries; search "
                "deeper (nprobe, efSearch)",
                *(self.spec, k, short, len(queries)),
            )
        # Whatever a kind of index leaves there.
        return np.where(rows < 0, np.float32(-np.inf), scores), rows

    def _empty(self, dimension: int) -> Any:
        faiss = load_faiss()
        factory, _, parameters = self.spec.partition(";")
        try:
            index = faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
            if parameters:
                faiss.ParameterSpace().set_index_parameters(index, parameters.replace(";", ","))
        except RuntimeError as error:
            raise self._refused(f"with {dimension} dimensions", error) from error
        return index

    def _refused(self, where: str, error: RuntimeError) -> UserError:
        # Without the place in FAISS' own sources.
        reason = re.sub(r"^Error in .* at \S+:\d+: (Error: )?", "", str(error))
        return UserError(
            f"evaluation.search {self.spec!r}: FAISS refuses it {where} ({reason}); write `flat`, "
            "`jax` or a factory string such as `IVF4096,PQ64;nprobe=32` or `HNSW32`"
        )


def _some(count: int, size: int, seed: int) -> NDArray[np.int64]:
    """Up to `size` of the numbers below `count`, ascending."""
    rng = np.random.default_rng(seed)
    return np.sort(rng.choice(count, min(size, count), replace=False, shuffle=False))


def _sample(passages: Vectors, size: int, seed: int) -> Embeddings:
    """Up to `size` rows, drawn without replacement."""
    count, dimension = passages.shape
    chosen = _some(count, size, seed)
    sample = np.empty((len(chosen), dimension), np.float32)
    first = 0
    for block in passages.blocks(BLOCK_ROWS):
        start, stop = np.searchsorted(chosen, (first, first + len(block)))
        sample[start:stop] = block[chosen[start:stop] - first]
        first += len(block)
    return sample


def recall_audit(
    queries: Embeddings, passages: Vectors, found: Found, ks: Sequence[int], seed: int = 0
) -> dict[int, float]:
    """Recall@k of an approximate search against the exact one, on up to `AUDITED_QUERIES` queries.

    Args:
        queries: [Q, D].
        passages: [N, D].
        found: of all queries.
        ks: depths, none deeper than `found`.
        seed: of the sample of queries.

    Returns:
        k -> mean over queries, as `recall`.

    Raises:
        UserError: as `search.search`.
    """
    chosen = _some(len(queries), AUDITED_QUERIES, seed)
    # Deeper than asked, to see which documents tie with the last one.
    exact = search(queries[chosen], passages, 2 * max(ks))
    return {k: float(recall(exact, found[1][chosen], k).mean()) for k in ks}


def recall(exact: Found, rows: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """Share [Q] of the exact best k that the first k of `rows` hold.

    A row counts that exact search scores no lower than its k-th, so of equal documents any will do,
    as far down as `exact` reaches.

    Args:
        exact: exact results, at least k deep or all passages.
        rows: [Q, >= k], or all that could be found; -1 counts as nothing.
        k: depth; with fewer passages than that, all of them.
    """
    scores, best = exact
    k = min(k, best.shape[1])
    hits = [
        np.isin(mine[:k], wanted[values >= values[k - 1]]).sum()
        for values, wanted, mine in zip(scores, best, rows, strict=True)
    ]
    return np.array(hits, np.float64) / k
