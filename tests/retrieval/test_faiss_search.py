from collections.abc import Sequence
from pathlib import Path

import faiss
import numpy as np
import pytest

from synrank_jax.errors import UserError
from synrank_jax.retrieval import search as exact
from synrank_jax.retrieval.search import ArrayVectors, Embeddings, ranking, search, unit_length

# float32 sums of 32 products in another order.
SUM_ORDER = 1e-5

NO_PAIRS: frozenset[tuple[str, str]] = frozenset()


def embeddings(rows: int, seed: int, dimension: int = 32) -> Embeddings:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((rows, dimension)).astype(np.float32)


def column(*scores: float) -> Embeddings:
    """Passages whose inner product with the query [1] is their score."""
    return np.array(scores, np.float32)[:, None]


def test_search_is_exact() -> None:
    queries, passages = embeddings(7, seed=0), embeddings(500, seed=1)
    products = queries @ passages.T
    best = np.argsort(-products, axis=1)[:, :20]
    scores, indices = search(queries, ArrayVectors(passages), 20)
    np.testing.assert_array_equal(indices, best)
    np.testing.assert_allclose(
        scores, np.take_along_axis(products, best, axis=1), rtol=0, atol=SUM_ORDER
    )


def test_search_over_many_blocks_and_query_tiles_is_faiss_flat(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exact, "BLOCK_ROWS", 64)
    monkeypatch.setattr(exact, "QUERY_TILE", 16)
    queries, passages = embeddings(45, seed=0), embeddings(1000, seed=1)  # both not a multiple
    index = faiss.IndexFlatIP(32)
    index.add(passages)
    expected_scores, expected = index.search(queries, 100)
    scores, rows = search(queries, ArrayVectors(passages), 100)
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(scores, expected_scores, rtol=0, atol=SUM_ORDER)


@pytest.mark.parametrize("block_rows", [7, 64, 4096])
@pytest.mark.parametrize("k", [1, 10, 150, 300])
def test_equal_scores_are_ordered_by_row_at_the_boundary_too(
    k: int, block_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact, "BLOCK_ROWS", block_rows)
    # Small whole numbers: sums are exact in any order, and most scores occur many times.
    rng = np.random.default_rng(0)
    queries = rng.integers(-2, 3, (20, 4)).astype(np.float32)
    passages = rng.integers(-2, 3, (300, 4)).astype(np.float32)
    scores, rows = search(queries, ArrayVectors(passages), k)
    products = queries @ passages.T
    expected = np.argsort(-products, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_array_equal(scores, np.take_along_axis(products, expected, axis=1))


def test_memory_mapped_rows_are_searched_where_they_lie(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", embeddings(300, seed=1))
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    assert all(np.shares_memory(block, mapped) for block in ArrayVectors(mapped).blocks(128))
    queries = embeddings(5, seed=0)
    found = search(queries, ArrayVectors(mapped), 10)
    np.testing.assert_array_equal(found[1], search(queries, ArrayVectors(np.array(mapped)), 10)[1])


def test_k_larger_than_the_corpus_gives_the_whole_corpus_once() -> None:
    scores, indices = search(embeddings(3, seed=0), ArrayVectors(embeddings(4, seed=1)), 1000)
    assert scores.shape == indices.shape == (3, 4)
    assert np.array_equal(np.sort(indices, axis=1), np.tile(np.arange(4), (3, 1)))


def test_unit_length_gives_cosines_and_keeps_zero_rows() -> None:
    rows = np.array([[3, 4], [0, 0], [1e-3, 0]], np.float32)
    np.testing.assert_allclose(
        unit_length(rows), [[0.6, 0.8], [0, 0], [1, 0]], rtol=0, atol=SUM_ORDER
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("side", ["query", "passage"])
def test_embedding_that_is_not_finite_is_refused_with_its_row(side: str, value: float) -> None:
    queries, passages = embeddings(3, seed=0), embeddings(3, seed=1)
    (queries if side == "query" else passages)[1, 5] = value
    with pytest.raises(UserError, match=rf"1 of {side} embeddings 0 to 2 .*first rows: \[1\]"):
        search(queries, ArrayVectors(passages), 2)


def test_broken_row_of_a_later_block_is_named_by_its_own_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exact, "BLOCK_ROWS", 8)
    passages = embeddings(30, seed=1)
    passages[[18, 21], 3] = np.nan
    with pytest.raises(UserError, match=r"2 of passage embeddings 16 to 23 .*\[18, 21\]"):
        search(embeddings(3, seed=0), ArrayVectors(passages), 2)


def test_large_finite_embeddings_are_searched() -> None:
    # Their squares overflow, their products with these queries do not.
    scores, rows = search(column(1e-20), ArrayVectors(column(1e25, 3e25)), 2)
    assert rows.tolist() == [[1, 0]]
    np.testing.assert_allclose(scores, [[3e5, 1e5]], rtol=1e-6)


def test_overflowing_products_are_refused() -> None:
    huge = np.full((2, 8), 3e38, np.float32)
    with pytest.raises(UserError, match="overflow"):
        search(huge, ArrayVectors(huge), 2)


def test_empty_corpus_is_refused() -> None:
    with pytest.raises(UserError, match="corpus is empty"):
        search(embeddings(2, seed=0), ArrayVectors(embeddings(0, seed=0)), 10)


def test_two_dimensions_are_refused_with_both() -> None:
    with pytest.raises(UserError, match="32 dimensions and passages 16"):
        search(embeddings(2, seed=0), ArrayVectors(embeddings(2, seed=0, dimension=16)), 1)


def test_exclusions_are_dropped_before_the_cut() -> None:
    passages = ArrayVectors(column(5, 4, 3, 2, 1))
    doc_ids = ["a", "b", "c", "d", "e"]
    excluded = {("q1", "a"), ("q1", "b"), ("q1", "d"), ("q2", "c")}
    run = ranking(column(1, 1), passages, ["q1", "q2"], doc_ids, 2, excluded, False)
    assert run == {"q1": {"c": 3.0, "e": 1.0}, "q2": {"a": 5.0, "b": 4.0}}


def test_ranking_holds_top_k_documents_best_first() -> None:
    run = ranking(
        column(-1), ArrayVectors(column(1, 3, 2)), ["q"], ["a", "b", "c"], 2, NO_PAIRS, False
    )
    assert list(run["q"].items()) == [("a", -1.0), ("c", -2.0)]


def test_ranking_looks_up_found_documents_only_and_drops_what_was_not_found() -> None:
    asked = set()

    class Ids(Sequence[str]):
        def __len__(self) -> int:
            return 10**9

        def __getitem__(self, row):
            asked.add(row)
            return f"d{row}"

    def find(queries, passages, k):
        return np.array([[3, 2, -np.inf]], np.float32), np.array([[7, 123_456_789, -1]])

    passages = ArrayVectors(column(1))
    run = ranking(column(1), passages, ["q"], Ids(), 3, NO_PAIRS, False, find=find)
    assert list(run["q"].items()) == [("d7", 3.0), ("d123456789", 2.0)]
    assert asked == {7, 123_456_789}


def test_self_match_is_dropped_only_when_asked() -> None:
    arguments = (
        column(1, 1),
        ArrayVectors(column(3, 2, 1)),
        ["a", "q"],
        ["a", "b", "c"],
        2,
        NO_PAIRS,
    )
    assert list(ranking(*arguments, False)["a"]) == ["a", "b"]
    assert {query: list(docs) for query, docs in ranking(*arguments, True).items()} == {
        "a": ["b", "c"],
        "q": ["a", "b"],
    }
