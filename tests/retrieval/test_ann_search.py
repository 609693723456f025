import logging

import faiss
import numpy as np
import pytest

from synrank_jax.errors import UserError
from synrank_jax.retrieval import ann
from synrank_jax.retrieval.ann import AnnSearch, recall, recall_audit
from synrank_jax.retrieval.search import ArrayVectors, Embeddings, Found, search

DIMENSION = 16


def clustered(rows: int, seed: int) -> Embeddings:
    """Rows around 20 common centres."""
    centres = np.random.default_rng(0).standard_normal((20, DIMENSION))
    rng = np.random.default_rng(seed)
    noise = 0.3 * rng.standard_normal((rows, DIMENSION))
    return (centres[rng.integers(0, 20, rows)] + noise).astype(np.float32)


@pytest.fixture(scope="module")
def passages() -> ArrayVectors:
    return ArrayVectors(clustered(5000, seed=1))


@pytest.fixture(scope="module")
def queries() -> Embeddings:
    return clustered(40, seed=2)


@pytest.mark.parametrize(
    ("spec", "least"),
    [
        ("Flat", 1.0),
        ("IVF16,Flat;nprobe=16", 1.0),
        ("IVF16,Flat;nprobe=4", 0.9),
        ("HNSW16;efSearch=200", 0.95),
        ("SQ8", 0.95),
        ("IVF16,PQ8x4;nprobe=16", 0.15),
        ("PCAR12,IVF16,SQ8;nprobe=16", 0.6),
        ("IVF16,PQ4x4fs,RFlat;nprobe=16,k_factor_rf=50", 0.9),
    ],
)
def test_indexes_find_most_of_what_exact_search_finds(
    spec: str, least: float, queries: Embeddings, passages: ArrayVectors
) -> None:
    found = AnnSearch(spec)(queries, passages, 20)
    assert found[0].shape == found[1].shape == (40, 20)
    audit = recall_audit(queries, passages, found, [10, 20])
    assert audit.keys() == {10, 20}
    assert all(least <= value <= 1 for value in audit.values())


def test_search_parameters_count(queries: Embeddings, passages: ArrayVectors) -> None:
    def audited(spec: str) -> float:
        found = AnnSearch(spec)(queries, passages, 10)
        return recall_audit(queries, passages, found, [10])[10]

    assert audited("IVF64,Flat;nprobe=1") < audited("IVF64,Flat;nprobe=64") == 1


def test_same_seed_gives_the_same_index(
    queries: Embeddings, passages: ArrayVectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ann, "MIN_TRAINING_ROWS", 600)  # a sample, not all rows
    first, same, other = (
        AnnSearch("IVF4,PQ8x4;nprobe=4", seed)(queries, passages, 10)[0] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("size", [1, 100, 5000, 9999])
def test_training_rows_are_drawn_over_all_blocks_without_replacement(
    size: int, passages: ArrayVectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ann, "BLOCK_ROWS", 64)
    sample = ann._sample(passages, size, seed=0)
    rows = [int(np.flatnonzero((passages.array == row).all(axis=1))[0]) for row in sample]
    assert len(set(rows)) == len(rows) == min(size, 5000)
    assert size < 100 or max(rows) > 4000 > 1000 > min(rows)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("nonsense", "could not parse index string nonsense"),
        ("", "could not parse index string"),
        ("IVF4,PQ5", "multiple of the number of subquantizers"),
        ("IVF4,Flat;nprob=3", "could not set parameter nprob"),
        ("IVF4,Flat;nprobe=many", "could not interpret parameters"),
        ("HNSW32;nprobe=3", "could not set parameter nprobe"),
        ("LSH", "METRIC_L2"),
    ],
)
def test_spec_that_faiss_refuses_is_named_before_anything_is_encoded(
    spec: str, reason: str
) -> None:
    with pytest.raises(UserError, match=r"evaluation\.search .*with 16 dimensions") as caught:
        AnnSearch(spec).check(DIMENSION)
    assert repr(spec) in str(caught.value)
    assert reason in str(caught.value)
    assert ".cpp" not in str(caught.value)


@pytest.mark.parametrize("spec", ["IVF64,Flat", "PQ8", "OPQ4,SQ8"])
def test_fewer_documents_than_an_index_trains_on_are_refused(spec: str) -> None:
    few = ArrayVectors(clustered(10, seed=0))
    with pytest.raises(UserError, match=r"evaluation\.search .*for 10 documents .*raining points"):
        AnnSearch(spec)(few.array, few, 3)


def test_bad_embeddings_are_refused(queries: Embeddings) -> None:
    broken = clustered(50, seed=1)
    broken[33, 2] = np.nan
    with pytest.raises(UserError, match=r"passage embeddings .*\[33\]"):
        AnnSearch("HNSW8")(queries, ArrayVectors(broken), 5)
    with pytest.raises(UserError, match="corpus is empty"):
        AnnSearch("HNSW8")(queries, ArrayVectors(broken[:0]), 5)
    with pytest.raises(UserError, match="16 dimensions and passages 8"):
        AnnSearch("HNSW8")(queries, ArrayVectors(broken[:, :8]), 5)


def test_places_without_a_result_are_minus_one_and_told(
    queries: Embeddings, passages: ArrayVectors, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        scores, rows = AnnSearch("IVF64,Flat;nprobe=1")(queries, passages, 6000)
    assert scores.shape == rows.shape == (40, 5000)
    assert (rows < 0).any()
    assert np.isneginf(scores[rows < 0]).all()
    assert np.isfinite(scores[rows >= 0]).all()
    assert "fewer than 5000 documents for 40 of 40 queries" in caplog.text


def test_index_moves_to_all_gpus_where_its_kind_exists_there(
    queries: Embeddings, passages: ArrayVectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Options:
        shard = False

    moved = []

    def move(index, co):
        if isinstance(index, faiss.IndexHNSW):
            raise RuntimeError("not implemented on GPU")
        moved.append((type(index), index.is_trained, index.ntotal, co.shard))
        return index

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 2)
    monkeypatch.setattr(faiss, "GpuMultipleClonerOptions", Options, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_all_gpus", move, raising=False)
    AnnSearch("IVF4,Flat")(queries, passages, 5)
    assert moved == [(faiss.IndexIVFFlat, True, 0, True)]
    assert (AnnSearch("HNSW8")(queries, passages, 5)[1] >= 0).all()


# Two queries of five documents; in the second, rows 0, 1 and 2 score the same.
EXACT: Found = (
    np.array([[5, 4, 3, 2, 1], [9, 9, 9, 1, 0]], np.float32),
    np.array([[4, 3, 2, 1, 0], [0, 1, 2, 3, 4]]),
)


@pytest.mark.parametrize(
    ("rows", "k", "expected"),
    [
        ([[4, 3], [0, 1]], 2, [1, 1]),
        ([[3, 4], [2, 1]], 2, [1, 1]),  # ties count, order does not
        ([[4, 0], [3, 2]], 2, [0.5, 0.5]),
        ([[4, -1], [-1, -1]], 2, [0.5, 0]),
        ([[3, 4], [2, 0]], 1, [0, 1]),  # what is below place k does not count
        ([[4, 3, 2, 1, 0], [0, 1, 2, 3, -1]], 9, [1, 0.8]),  # deeper than the corpus
    ],
)
def test_recall_by_hand(rows: list[list[int]], k: int, expected: list[float]) -> None:
    assert recall(EXACT, np.array(rows), k).tolist() == expected


def test_audit_samples_queries_and_their_own_results(
    queries: Embeddings, passages: ArrayVectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ann, "AUDITED_QUERIES", 10)
    scores, rows = search(queries, passages, 5)
    assert recall_audit(queries, passages, (scores, rows), [1, 5]) == {1: 1.0, 5: 1.0}
    rows[::2] = -1  # half of the queries found nothing
    values = {recall_audit(queries, passages, (scores, rows), [5], seed)[5] for seed in range(5)}
    assert all(0 < value < 1 for value in values)
    assert len(values) > 1
