import numpy as np
import pytest

from synrank_jax.errors import UserError
from synrank_jax.retrieval.search import Embeddings, ranking, search, unit_length

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
    scores, indices = search(queries, passages, 20)
    np.testing.assert_array_equal(indices, best)
    np.testing.assert_allclose(
        scores, np.take_along_axis(products, best, axis=1), rtol=0, atol=SUM_ORDER
    )


def test_k_larger_than_the_corpus_gives_the_whole_corpus_once() -> None:
    scores, indices = search(embeddings(3, seed=0), embeddings(4, seed=1), 1000)
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
    with pytest.raises(UserError, match=rf"1 of 3 {side} embeddings .*first rows: \[1\]"):
        search(queries, passages, 2)


def test_overflowing_products_are_refused() -> None:
    huge = np.full((2, 8), 3e38, np.float32)
    with pytest.raises(UserError, match="overflow"):
        search(huge, huge, 2)


def test_empty_corpus_is_refused() -> None:
    with pytest.raises(UserError, match="corpus is empty"):
        search(embeddings(2, seed=0), embeddings(0, seed=0), 10)


def test_two_dimensions_are_refused_with_both() -> None:
    with pytest.raises(UserError, match="32 dimensions and passages 16"):
        search(embeddings(2, seed=0), embeddings(2, seed=0, dimension=16), 1)


def test_exclusions_are_dropped_before_the_cut() -> None:
    passages = column(5, 4, 3, 2, 1)
    doc_ids = ["a", "b", "c", "d", "e"]
    excluded = {("q1", "a"), ("q1", "b"), ("q1", "d"), ("q2", "c")}
    run = ranking(column(1, 1), passages, ["q1", "q2"], doc_ids, 2, excluded, False)
    assert run == {"q1": {"c": 3.0, "e": 1.0}, "q2": {"a": 5.0, "b": 4.0}}


def test_ranking_holds_top_k_documents_best_first() -> None:
    run = ranking(column(-1), column(1, 3, 2), ["q"], ["a", "b", "c"], 2, NO_PAIRS, False)
    assert list(run["q"].items()) == [("a", -1.0), ("c", -2.0)]


def test_self_match_is_dropped_only_when_asked() -> None:
    arguments = (column(1, 1), column(3, 2, 1), ["a", "q"], ["a", "b", "c"], 2, NO_PAIRS)
    assert list(ranking(*arguments, False)["a"]) == ["a", "b"]
    assert {query: list(docs) for query, docs in ranking(*arguments, True).items()} == {
        "a": ["b", "c"],
        "q": ["a", "b"],
    }
